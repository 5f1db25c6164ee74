// Assist: what may stand where somebody types, and whether what they typed is finished. A module of its own, loaded by the JavaScript
// REPL at the first question. It runs no code of the user: getters that the REPL did not make and proxies are left alone.
import { readdirSync } from "node:fs";
import { builtinModules } from "node:module";
import { types } from "node:util";
import { chainBefore, scan } from "./javascript_scan.mjs";

const CANDIDATES_MAX = 1000;
/** The whole answer must stay below the agent's limit for a value. */
const CANDIDATES_BYTES = 30_000;
const OWN_NAMES_MAX = 20_000;
const PROTOTYPES_MAX = 32;
const IDENTIFIER = /^[\p{ID_Start}$_][\p{ID_Continue}$\u200c\u200d]*$/u;
const HIDDEN = /^\$\$sbx$|^__.*__$/;
const WORDS = "as async await break case catch class const continue debugger default delete do else enum export extends false finally for from function if implements import in instanceof interface let new null of private protected public readonly require return satisfies static super switch this throw true try type typeof undefined var void while with yield"
  .split(" ");
const { getOwnPropertyDescriptor, getOwnPropertyNames, getPrototypeOf } = Object;
const { isProxy } = types;
const { stringify } = JSON;
const { byteLength } = Buffer;
const join = Function.prototype.call.bind(Array.prototype.join);
const sort = Function.prototype.call.bind(Array.prototype.sort);

/** `{"start", "candidates"}` as JSON. `isOurs` tells the getters that read a name of the session, and may be called. */
export function complete(source, isOurs) {
  const { start, names } = candidatesFor(source, isOurs);
  const texts = [];
  let bytes = 0;
  for (let index = 0; index < names.length && texts.length < CANDIDATES_MAX; index++) {
    const text = stringify(names[index]);
    bytes += byteLength(text) + 1;
    if (bytes > CANDIDATES_BYTES) break;
    texts[texts.length] = text;
  }
  return `{"start":${start},"candidates":[${join(texts, ",")}]}`;
}

function candidatesFor(source, isOurs) {
  const { mode, start, tokens } = scan(source);
  const nothing = { start: source.length, names: [] };
  if (mode === "string") return inString(source, start, tokens, isOurs) ?? nothing;
  if (mode !== "code") return nothing;
  const last = tokens.at(-1);
  const touches = last !== undefined && last.end === source.length;
  if (touches && last.type !== "name" && last.type !== "punctuator") return nothing;
  const prefix = touches && last.type === "name" ? last.text : "";
  const at = tokens.length - (prefix === "" ? 1 : 2);
  const names = tokens[at]?.text === "." || tokens[at]?.text === "?."
    ? members(valueOf(chainBefore(tokens, at - 1), isOurs), prefix, IDENTIFIER)
    : everywhere(tokens, prefix);
  return { start: source.length - prefix.length, names };
}

/** Inside quotes: a module's name, or a key in brackets. */
function inString(source, start, tokens, isOurs) {
  const typed = source.slice(start + 1), last = tokens.at(-1), before = tokens.at(-2);
  const isCall = last?.text === "(" && (before?.text === "require" || before?.text === "import" || before?.text === "resolve");
  if (isCall || last?.text === "from" || last?.text === "import") return modules(typed, start + 1);
  if (last?.text !== "[") return null;
  const chain = chainBefore(tokens, tokens.length - (before?.text === "?." ? 3 : 2));
  if (chain === null) return null;
  const quote = source[start], names = members(valueOf(chain, isOurs), typed, /^/);
  return { start: start + 1, names: names.map((name) => stringify(name).slice(1, -1).replaceAll('\\"', '"').replaceAll(quote, `\\${quote}`)) };
}

/** What a chain of names stands for, if that can be told without running anything: a box, or null. */
function valueOf(chain, isOurs) {
  if (chain === null) return null;
  let box = chain.root === undefined ? { value: chain.literal } : property(globalThis, chain.root, isOurs);
  for (let index = 0; box !== null && index < chain.keys.length; index++) box = property(box.value, chain.keys[index], isOurs);
  return box;
}

function property(holder, key, isOurs) {
  if (holder === undefined || holder === null) return null;
  let object = Object(holder);
  for (let depth = 0; object !== null && depth < PROTOTYPES_MAX && !isProxy(object); depth++) {
    try {
      const found = getOwnPropertyDescriptor(object, key);
      if (found?.get !== undefined) return isOurs(found.get) ? { value: found.get() } : null;
      if (found !== undefined) return "value" in found ? { value: found.value } : null;
    } catch {
      return null; // A name of a module that is not initialised.
    }
    object = getPrototypeOf(object);
  }
  return null;
}

/** Names of an object and of what it inherits from, the nearest first, each sorted. */
function members(box, prefix, wanted) {
  const found = [], seen = Object.create(null);
  if (box === null || box.value === undefined || box.value === null) return found;
  let object = Object(box.value);
  for (let depth = 0; object !== null && depth < PROTOTYPES_MAX && !isProxy(object); depth++, object = getPrototypeOf(object)) {
    // A long array or text has nothing but numbers.
    if (getOwnPropertyDescriptor(object, "length")?.value > OWN_NAMES_MAX || types.isTypedArray(object)) continue;
    const names = sort(getOwnPropertyNames(object));
    for (let index = 0; index < names.length; index++) {
      const name = names[index];
      if (seen[name] || !name.startsWith(prefix) || !wanted.test(name) || (HIDDEN.test(name) && !prefix.startsWith("_"))) continue;
      seen[name] = true;
      found[found.length] = name;
    }
  }
  return found;
}

const DECLARES = /^(?:const|let|var|function|class|enum|interface|type)$/;

/** Names declared in the code typed, global ones, and words of the language. */
function everywhere(tokens, prefix) {
  const names = members({ value: globalThis }, prefix, IDENTIFIER);
  for (let index = 1; index < tokens.length; index++) {
    const { type, text } = tokens[index];
    if (type === "name" && DECLARES.test(tokens[index - 1].text) && text !== prefix && text.startsWith(prefix)) names[names.length] = text;
  }
  for (let index = 0; index < WORDS.length; index++) {
    if (WORDS[index].startsWith(prefix)) names[names.length] = WORDS[index];
  }
  return sort([...new Set(names)]);
}

function modules(typed, start) {
  const slash = typed.lastIndexOf("/") + 1;
  const isPath = /^\.{0,2}\//.test(typed);
  if (isPath) return { start: start + slash, names: entries(typed.slice(0, slash), typed.slice(slash)) };
  const names = [];
  for (const name of builtinModules) {
    if (name.startsWith("_")) continue;
    names.push(name);
    if (!name.includes(":") && !name.startsWith("bun")) names.push(`node:${name}`);
  }
  const scope = /^@[^/]*\//.exec(typed)?.[0] ?? "";
  for (let directory = process.cwd(), above;; directory = above) {
    for (const name of entries(`${directory}/node_modules/${scope}`, "")) {
      if (!name.startsWith(".")) names.push(scope + (scope === "" && name.startsWith("@") ? name : name.replace(/\/$/, "")));
    }
    above = directory.replace(/\/[^/]*$/, "");
    if (above === directory) break;
  }
  return { start, names: sort([...new Set(names)].filter((name) => name.startsWith(typed))) };
}

/** What lies in a directory; directories end with a slash. */
function entries(directory, prefix) {
  try {
    const found = readdirSync(directory, { withFileTypes: true });
    return sort(
      found.filter(({ name }) => name.startsWith(prefix) && (prefix !== "" || !name.startsWith(".")))
        .map((entry) => entry.isDirectory() ? `${entry.name}/` : entry.name),
    );
  } catch {
    return [];
  }
}

const AT_END = /end of file|^Expected "\*\/" to terminate/;
const UNTERMINATED = /^Unterminated string literal/;

/** `{"state", "indent"}` as JSON. `parsers` throw what the parser says about a text. */
export function isComplete(source, parsers) {
  const scanned = scan(source);
  let state = "invalid";
  for (let index = 0; index < parsers.length && state !== "complete"; index++) {
    try {
      parsers[index](source);
      state = "complete";
    } catch (error) {
      const errors = error.errors ?? [error];
      if (errors.every((error) => isAboutTheEnd(error, source, scanned))) state = "incomplete";
    }
  }
  const indent = state === "incomplete" && (scanned.mode === "code" || scanned.mode === "line comment") ? "  ".repeat(Math.min(scanned.brackets, 40)) : "";
  return stringify({ state, indent });
}

function isAboutTheEnd({ message, position }, source, { mode, isInTemplate }) {
  if (AT_END.test(message)) return true;
  if (UNTERMINATED.test(message)) return isInTemplate || (mode === "string" && /\\\n?$/.test(source));
  const end = source.trimEnd();
  // `import x` at the end, and `a?.`, which the parser takes for a conditional.
  return (message.endsWith('but found ""') && position?.offset >= end.length) || (message === "Unexpected ." && end.endsWith("?."));
}
