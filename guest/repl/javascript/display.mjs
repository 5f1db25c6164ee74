// Display: display data as it goes to the agent. A module of its own, loaded by the JavaScript REPL at first use.

/** Limits of the agent, which ends a REPL that goes beyond them. */
const ITEM_BYTES = 8 << 20;
const TOTAL_BYTES = 16 << 20;
const { isView } = ArrayBuffer;
const { from, byteLength } = Buffer;
const { stringify } = JSON;
const { keys, create } = Object;
const encode = TextEncoder.prototype.encode.bind(new TextEncoder());

/** `{content}` to be sent, or `{problem}`; `shownBytes` are those that the execution has shown before. */
export function encodeBundle(bundle, shownBytes) {
  const refuse = (problem) => ({ content: null, problem: `cannot show an object: ${problem}` });
  if (typeof bundle !== "object" || bundle === null) return refuse(`it must be an object of MIME types, got ${bundle === null ? "null" : typeof bundle}`);
  const types = keys(bundle), parts = create(null);
  let isEmpty = true;
  for (let index = 0; index < types.length; index++) {
    const part = partOf(bundle[types[index]]);
    if (part === undefined) continue;
    parts[types[index]] = part;
    isEmpty = false;
  }
  if (isEmpty) return refuse("it has no MIME type with a content");
  let text;
  try {
    text = stringify(parts);
  } catch (error) {
    return refuse(`${error?.message}`); // Circular, or a BigInt.
  }
  const bytes = byteLength(text);
  if (bytes > ITEM_BYTES) return refuse(`it has ${bytes} bytes, the limit is ${ITEM_BYTES} bytes`);
  if (shownBytes + bytes > TOTAL_BYTES) {
    return refuse(`with its ${bytes} bytes this execution would have shown ${shownBytes + bytes} bytes, the limit is ${TOTAL_BYTES} bytes`);
  }
  return { content: encode(text), problem: null };
}

/** Text as it is, bytes as base64, anything else as JSON. */
function partOf(value) {
  if (value === null || typeof value === "function" || typeof value === "symbol") return undefined;
  if (isView(value)) return from(value.buffer, value.byteOffset, value.byteLength).toString("base64");
  return value instanceof ArrayBuffer ? from(value).toString("base64") : value;
}
