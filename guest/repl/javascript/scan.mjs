// Scan: the tokens of unfinished JavaScript, for the assist. No parser: good enough to know where strings, comments and templates end,
// which brackets are open, and what chain of names stands before a place.

const SPACE = /[\s\ufeff]+/y;
const COMMENT = /\/\/[^\n]*|\/\*[^]*?(\*\/|$)/y;
const NAME = /[\p{ID_Start}$_#@][\p{ID_Continue}$\u200c\u200d]*/uy;
const NUMBER = /(?:0[xob][\da-f_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:e[+-]?\d+)?)n?/iy;
const STRING = /"(?:[^"\\\n]|\\(?:[^]|$))*("?)|'(?:[^'\\\n]|\\(?:[^]|$))*('?)/y;
const TEMPLATE = /(?:[^`\\$]|\\[^]|\$(?!\{))*(`|\$\{|$)/y;
const REGEX = /\/(?:[^/\\\n[]|\\.|\[(?:[^\]\\\n]|\\.)*\])+\/[a-z]*/y;
const PUNCTUATOR = /\?\.(?!\d)|=>|\.\.\.|[^]/uy;
const BEFORE_REGEX = /^(?:return|typeof|case|in|of|delete|void|throw|new|else|do|instanceof|yield|await|[^\w$)\]}"'`]+)$/;
const OPENING = "([{", CLOSING = ")]}";

/**
 * Tokens `{type, text, start, end}` of a text; `mode` says where it ends: "code", "string", "template", "comment" or "line
 * comment", with `start` where that string begins; `brackets` how many are open; `isInTemplate`
 * whether a template is not finished.
 */
export function scan(source) {
  const tokens = [], open = [];
  let at = 0;
  const take = (pattern) => {
    pattern.lastIndex = at;
    return pattern.exec(source);
  };
  const add = (type, text) => {
    tokens.push({ type, text, start: at, end: at + text.length });
    at += text.length;
  };
  const template = () => {
    const match = take(TEMPLATE);
    at += match[0].length;
    if (match[1] === "${") open.push("${");
    if (match[1] === "`") tokens.push({ type: "template", text: "`", start: at, end: at });
    return match[1] !== "";
  };
  const ended = (mode, start = at) => ({ mode, start, tokens, brackets: open.length, isInTemplate: mode === "template" || open.includes("${") });
  while (at < source.length) {
    let match;
    if ((match = take(SPACE)) !== null) at += match[0].length;
    else if ((match = take(COMMENT)) !== null) {
      at += match[0].length;
      if (at === source.length && (match[0].startsWith("//") || match[1] === "")) return ended(match[1] === "" ? "comment" : "line comment");
    } else if ((match = take(NAME)) !== null) add("name", match[0]);
    else if ((match = take(NUMBER)) !== null) add("number", match[0]);
    else if ((match = take(STRING)) !== null) {
      const isClosed = match[1] || match[2];
      if (!isClosed && at + match[0].length >= source.length) return ended("string");
      add("string", match[0]);
    } else if (source[at] === "`") {
      at++;
      if (!template()) return ended("template");
    } else if (source[at] === "/" && startsRegex(tokens.at(-1)) && (match = take(REGEX)) !== null) add("regex", match[0]);
    else {
      const [text] = take(PUNCTUATOR);
      add("punctuator", text);
      if (OPENING.includes(text)) open.push(text);
      else if (CLOSING.includes(text) && open.pop() === "${" && text === "}" && !template()) return ended("template");
    }
  }
  return ended("code");
}

function startsRegex(before) {
  return before === undefined || (before.text !== "<" && BEFORE_REGEX.test(before.text));
}

const LITERALS = { string: "", template: "", regex: /x/ };

/**
 * The chain that ends at token `at`: `a.b["c"]` is `{root: "a", keys: ["b", "c"]}`, a literal `{literal, keys}`; null for what only a run
 * could tell.
 */
export function chainBefore(tokens, at) {
  const keys = [];
  for (let index = at; index >= 0;) {
    const { type, text } = tokens[index], before = tokens[index - 1];
    if (type === "name") {
      if (before?.text !== "." && before?.text !== "?.") return { root: text, keys };
      keys.unshift(text);
      index -= 2;
    } else if (text === "]" && tokens[index - 2]?.text === "[" && isPrimary(tokens[index - 3])) {
      if (before.type !== "string" && before.type !== "number") return null;
      keys.unshift(before.type === "string" ? unquoted(before.text) : before.text);
      index -= tokens[index - 3].text === "?." ? 4 : 3;
    } else if (text === "]") return isArray(tokens, index) ? { literal: [], keys } : null;
    else return type in LITERALS ? { literal: LITERALS[type], keys } : null;
  }
  return null;
}

function isPrimary(token) {
  return token !== undefined && (token.type in LITERALS || token.type === "name" || token.text === "]" || token.text === ")" || token.text === "?.");
}

/** Whether the bracket that closes at `at` is an array's, not an index. */
function isArray(tokens, at) {
  let depth = 0;
  for (let index = at; index >= 0; index--) {
    if (tokens[index].text === "]") depth++;
    else if (tokens[index].text === "[" && --depth === 0) return !isPrimary(tokens[index - 1]) || BEFORE_REGEX.test(tokens[index - 1].text);
  }
  return false;
}

function unquoted(text) {
  return text.slice(1, -1).replace(/\\(.)/g, "$1");
}
