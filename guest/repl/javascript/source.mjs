const transpilers = {
  tsx: new Bun.Transpiler({ loader: "tsx", deadCodeElimination: false, trimUnusedImports: false }),
  ts: new Bun.Transpiler({ loader: "ts", deadCodeElimination: false, trimUnusedImports: false }),
};

function parse(source) {
  try {
    return { loader: "tsx", printed: transform(transpilers.tsx, source) };
  } catch (error) {
    try {
      // `<T>value` is a type assertion in TypeScript, but JSX in TSX.
      return { loader: "ts", printed: transform(transpilers.ts, source) };
    } catch {
      throw error;
    }
  }
}

/** Calls `visit` with every match; immune to changes of the iteration protocol. */
function eachMatch(pattern, text, visit) {
  pattern.lastIndex = 0;
  for (let match; (match = exec(pattern, text)) !== null;) {
    visit(match);
    if (match[0] === "") pattern.lastIndex++;
  }
}

function replaceEach(pattern, text, replacement) {
  let result = "", end = 0;
  eachMatch(pattern, text, (match) => {
    result += slice(text, end, match.index) + replacement;
    end = match.index + match[0].length;
  });
  return result + slice(text, end);
}

// The printer puts top-level statements, and nothing else but the text of template literals, at the start of a line.
const EXPORTED = /^export (?:default (?=(?:async )?function\b\*? *[\w$]|class [\w$])|(?=const|let|var|function|async function|class))/gm;
const EXPORT_LIST = /^export (?:\{[^}]*\}|\*[^"\n]*)(?: from "[^"\n]*")?;?$/gm;
const CONSTANT = /^(?=const\b)/gm;
const VARIABLE = /^(?=(?:let|var|function|async function|class)\b)/gm;
const IMPORTED = /^import ([^"]*?) from "/gm;
const NAME = /(?:^|[\s,{*])([\p{ID_Start}$_][\p{ID_Continue}$]*)(?=\s*(?:,|\}|$))/gu;

const DECLARATION = /^(?:export|import|const|let|var|function|async function|class)\b/m;

/** The top-level names of a printed module: `{constant: [...], variable: [...]}`. */
function declarations(transpiler, printed) {
  if (exec(DECLARATION, printed) === null) return { constant: [], variable: [] };
  const plain = replaceEach(EXPORT_LIST, replaceEach(EXPORTED, printed, ""), "");
  let imported = "";
  eachMatch(IMPORTED, plain, (match) => {
    eachMatch(NAME, match[1], (name) => imported += name[1] + ",");
  });
  const names = (text) => without(scan(transpiler, text).exports, "default");
  return {
    // An export of a name that is not declared is dropped by the parser: a template literal cannot fake an import.
    constant: names(replaceEach(CONSTANT, plain, "export ") + (imported && `\nexport {${imported}}`)),
    variable: names(exportEach(transpiler, plain)),
  };
}

function without(names, excluded) {
  const kept = [];
  for (let index = 0; index < names.length; index++) {
    if (names[index] !== excluded) kept[kept.length] = names[index];
  }
  return kept;
}

/** Exports every variable; `var` may be repeated, but an export may not, so then each is tried by itself. */
function exportEach(transpiler, plain) {
  const all = replaceEach(VARIABLE, plain, "export ");
  try {
    scan(transpiler, all);
    return all;
  } catch {
    let text = plain, added = 0;
    eachMatch(VARIABLE, plain, ({ index }) => {
      const attempt = slice(text, 0, index + added) + "export " + slice(text, index + added);
      try {
        scan(transpiler, attempt);
      } catch {
        return;
      }
      text = attempt;
      added += "export ".length;
    });
    return text;
  }
}

const STATEMENT = /^(?:(?:const|let|var|function|async function|class|export|if|for|while|do|switch|try|throw|with|debugger)\b|import(?! ?[(.])|[\w$]+:|[{;@])/;
const BOUNDARY = /[\n;}]/;
const BLANK_LINES = /\n\n+/g;
const SIMPLE = /^[^\n;/]*;?\s*$/;

const HOISTED = /(?:^|\n)var [^=;\n]*;\s*$/;

/** The printer puts a `var` from within a block at the end. */
function withoutHoisted(printed) {
  const match = exec(HOISTED, printed);
  return match === null ? printed : match.index === 0 ? "" : slice(printed, 0, match.index + 1);
}

/** Where the last top-level statement of a printed module begins. */
function lastStatement(printed) {
  let begin = printed.length - 1;
  while (begin > 0 && (printed[begin - 1] !== "\n" || includes(" \n)]}`", printed[begin]))) begin--;
  return begin < 0 ? 0 : begin;
}

/** Where the trailing expression stands in the source: `[start, end]`, or null when there is none. */
function trailingExpression(transpiler, source, whollyPrinted) {
  const printed = withoutHoisted(whollyPrinted);
  const begin = lastStatement(printed);
  if (printed === "" || exec(STATEMENT, slice(printed, begin)) !== null) return null;
  if (startsWith(slice(printed, begin), "console.")) return null; // No value, the most frequent last statement.
  if (begin === 0 && exec(SIMPLE, source) !== null) return [0, source.length];
  const whole = replaceEach(BLANK_LINES, printed, "\n");
  const print = (text) => {
    try {
      return replaceEach(BLANK_LINES, withoutHoisted(transform(transpiler, text)), "\n");
    } catch {
      return null;
    }
  };
  const rest = replaceEach(BLANK_LINES, slice(printed, 0, begin), "\n");
  let end = source.length;
  for (let start = source.length - 1, cuts = 0; start >= -1; start--) {
    if (start >= 0 && exec(BOUNDARY, source[start]) === null) continue;
    if (++cuts > CUTS_LIMIT) {
      if (begin > 0) return null;
      start = -1; // One statement: only its beginning can be right.
    }
    const last = print(slice(source, start + 1, end));
    if (last === "") end = start + 1;
    // The right cut is the one before which the source prints as the whole does. The tail may differ (inlined enums).
    if (!last || (cuts > 8 && !endsWith(whole, last))) continue;
    if ((start < 0 ? "" : print(slice(source, 0, start + 1))) === rest) return exec(STATEMENT, last) === null ? [start + 1, end] : null;
  }
  return null;
}

/** JSX compiles to calls of React's runtime; without React its elements are still made, as plain objects of the same shape. */
function provideJsx() {
  try {
    resolve("react/jsx-dev-runtime", workingDirectory());
  } catch {
    const element = (type, { key: inner, ...props }, key = inner) => ({ $$typeof: ELEMENT, type, key: key ?? null, props });
    const exports = { jsx: element, jsxs: element, jsxDEV: element, Fragment: FRAGMENT };
    build.module("react/jsx-dev-runtime", () => ({ exports, loader: "object" }));
    build.module("react/jsx-runtime", () => ({ exports, loader: "object" }));
  }
}

const CALL = /\bimport\b|\bnew\b|[\w$)\]}"'`?]\s*[(`]/;
const CONSOLE_CALL = /\bconsole\.\w+\(/g;

/**
 * Whether the code may run for long: to let SIGINT stop it costs a thread. What only assigns, computes and logs needs none;
 * a getter or a coercion that never ends is then the agent's to kill.
 */
function mayRunLong(printed) {
  return exec(CALL, replaceEach(CONSOLE_CALL, printed, "")) !== null;
}

const TRAILING_SEMICOLON = /;?\s*$/;
const LEADING_SPACE = /^\s*/;
const LINK = "$$sbx.link($$names);";
const CAPTURE = "$$sbx.value=(";

// Words whose meaning a script and a module do not share, and calls that TypeScript reads as generic.
const MODULE_ONLY = /\b(?:await|this|import|require|module|exports|__dirname|__filename|arguments)\b|[\w$]\s*<[^<>()]*>\s*\(/;
const STRICT = '"use strict";';

/** The module of an execution. Lines stay where the user wrote them; columns too, but for what `shifts` tells. */
function instrument(source, scriptPath) {
  if (startsWith(source, "#!")) source = "//" + slice(source, 2);
  const { loader, printed } = parse(source);
  const transpiler = transpilers[loader];
  const long = mayRunLong(printed);
  if (exec(DECLARATION, printed) === null && exec(MODULE_ONLY, source) === null) {
    // Nothing to keep and nothing to import: as a script it is the same at half the cost, if it is plain JavaScript.
    try {
      const hasValue = printed !== "" && exec(STATEMENT, slice(printed, lastStatement(printed))) === null;
      const script = new Script(STRICT + source, { __proto__: null, filename: scriptPath });
      return { source, script, shifts: [{ line: 1, column: 0, by: STRICT.length }], long, hasValue };
    } catch {
      // TypeScript or JSX.
    }
  }
  if (includes(printed, "jsx")) provideJsx();
  const { constant, variable } = declarations(transpiler, printed);
  let cases = "";
  for (let index = 0; index < constant.length; index++) {
    cases += `case ${stringify(constant[index])}:return ${constant[index]};`;
  }
  for (let index = 0; index < variable.length; index++) {
    const name = variable[index];
    cases += `case ${stringify(name)}:return $$set?${name}=$$value:${name};`;
  }
  const head = cases === "" ? "" : LINK;
  const tail = cases === "" ? "\nexport{}" : `\nexport function $$names($$name,$$set,$$value){switch($$name){${cases}}}`;
  const unit = { loader, source, constant, variable, plain: head + source + tail, capturing: null, script: null, shifts: [], long };
  unit.shifts[0] = { line: 1, column: 0, by: head.length };
  const cut = trailingExpression(transpiler, source, printed);
  if (cut !== null) {
    const start = cut[0] + exec(LEADING_SPACE, slice(source, cut[0], cut[1]))[0].length;
    const text = slice(source, start, cut[1]);
    const expression = slice(text, 0, exec(TRAILING_SEMICOLON, text).index);
    unit.capturing = `${head}${slice(source, 0, start)}${CAPTURE}${expression}\n)${slice(source, cut[1])}${tail}`;
    let line = 1, column = start;
    for (let index = 0; index < start; index++) {
      if (source[index] === "\n") line++, column = start - index - 1;
    }
    unit.shifts[1] = { line, column: (line === 1 ? head.length : 0) + column, by: CAPTURE.length };
  }
  return unit;
}
