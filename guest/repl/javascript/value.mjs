const MEMBERS_LIMIT = 10_000;

/** Bun shows every member of a map, a set or an object, which takes seconds for a million: the text of what is that large, or null. */
function summary(value) {
  if (typeof value !== "object" || value === null) return null;
  if (isMap(value)) return mapSize(value) > MEMBERS_LIMIT ? `Map(${mapSize(value)}) { … }` : null;
  if (isSet(value)) return setSize(value) > MEMBERS_LIMIT ? `Set(${setSize(value)}) { … }` : null;
  if (isArray(value) || isView(value)) return null; // Bun shows the first hundred.
  const size = keys(value).length;
  return size > MEMBERS_LIMIT ? `{ … ${size} properties }` : null;
}

/** The text of a trailing expression's value, within the limit. */
function describe(value) {
  let text;
  // Bun takes a second for ten million characters under emulation; those beyond the limit are cut off anyway.
  if (typeof value === "string") value = slice(value, 0, VALUE_LIMIT_BYTES + 1);
  try {
    text = isNativeError(value) ? userStack(`${value.stack}`, {}) : summary(value) ?? inspect(value, { colors: false });
  } catch {
    text = "<value that cannot be shown>"; // Its own inspect method throws.
  }
  const bytes = encode(slice(text, 0, VALUE_LIMIT_BYTES));
  if (bytes.length <= VALUE_LIMIT_BYTES && text.length <= VALUE_LIMIT_BYTES) return bytes;
  let end = VALUE_LIMIT_BYTES - 3;
  while ((bytes[end] & 0xc0) === 0x80) end--;
  return encode(decode(subarray(bytes, 0, end)) + "…");
}

// The protocol of Deno's Jupyter kernel: a method of that name returns an object of MIME types, or a promise of one.
const DISPLAY = Symbol.for("Jupyter.display");

/** How a value wants to be shown, or null. */
function bundleOf(value) {
  if ((typeof value !== "object" && typeof value !== "function") || value === null) return null;
  const method = value[DISPLAY];
  if (typeof method !== "function") return null;
  const bundle = apply(method, value, []);
  return typeof bundle === "object" ? bundle : null;
}

let shownBytes = 0;

/** Sends display data, `{"text/plain": ..., "image/png": bytes, ...}`; says on stderr what cannot be sent. */
function showBundle(bundle) {
  const { content, problem } = part("display").encodeBundle(bundle, shownBytes);
  if (problem !== null) return print(`display: ${problem}\n`);
  shownBytes += content.length;
  send(running.id, KIND_DISPLAY, 0, content);
}

/** The global `display(object, {raw})`: raw objects are MIME types themselves. Between executions they are printed as text. */
function display(object, options) {
  const shown = (bundle) => {
    if (running !== null) showBundle(bundle);
    else writeAll(1, encode(`${bundle?.["text/plain"] ?? inspect(bundle, { colors: false })}\n`));
  };
  const bundle = options?.raw ? object : bundleOf(object) ?? { "text/plain": inspect(object, { colors: false }) };
  return isPromise(bundle) ? then(bundle, shown) : resolved(shown(bundle));
}
defineProperty(root, "display", { __proto__: null, configurable: true, writable: true, value: display });
