/** Highlighting: colours for code as it is typed, from words and literals alone. */
import type { Language } from "../run/request.ts";
import type { Span } from "./repl_screen.ts";

/** Longer text is left plain: colouring must never be felt. */
const HIGHLIGHT_MAX_CHARS = 50_000;

const STYLES: Readonly<Record<string, string>> = {
  comment: "90",
  string: "32",
  number: "36",
  keyword: "35",
  command: "1;36",
  variable: "33",
};

const COMMAND = /^\s*(?<command>:[a-z]*)/g;
const PYTHON = new RegExp(
  [
    "(?<comment>#[^\\n]*)",
    `(?<string>\\b[rbfuRBFUtT]{0,2}(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|"(?:\\\\.|[^"\\\\\\n])*"?|'(?:\\\\.|[^'\\\\\\n])*'?)|"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|"(?:\\\\.|[^"\\\\\\n])*"?|'(?:\\\\.|[^'\\\\\\n])*'?)`,
    "(?<number>\\b\\d[\\w.]*)",
    "(?<keyword>\\b(?:False|None|True|and|as|assert|async|await|break|case|class|continue|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|match|nonlocal|not|or|pass|raise|return|try|while|with|yield)\\b)",
    "[\\p{L}_][\\p{L}\\p{N}_]*",
  ].join("|"),
  "gu",
);
const JAVASCRIPT = new RegExp(
  [
    "(?<comment>//[^\\n]*|/\\*[^]*?(?:\\*/|$))",
    "(?<string>\"(?:\\\\.|[^\"\\\\\\n])*\"?|'(?:\\\\.|[^'\\\\\\n])*'?|`(?:\\\\.|[^`\\\\])*`?)",
    "(?<number>\\b\\d[\\w.]*)",
    "(?<keyword>\\b(?:as|async|await|break|case|catch|class|const|continue|default|delete|do|else|enum|export|extends|false|finally|for|from|function|if|import|in|instanceof|interface|let|new|null|of|return|static|super|switch|this|throw|true|try|type|typeof|undefined|var|void|while|yield)\\b)",
    "[\\p{L}_$][\\p{L}\\p{N}_$]*",
  ].join("|"),
  "gu",
);
const SHELL = new RegExp(
  [
    "(?<comment>(?<![^\\s;&|(])#[^\\n]*)",
    "(?<string>'[^']*'?|\"(?:\\\\.|[^\"\\\\])*\"?)",
    "(?<variable>\\$(?:\\w+|\\{[^}\\n]*\\}?|[@#?$!*-]))",
    "(?<keyword>(?<![^\\s;&|(`])(?:case|do|done|elif|else|esac|exec|exit|export|fi|for|function|if|in|local|return|select|then|time|until|while)(?![^\\s;&|)`]))",
    "[\\w./-]+",
  ].join("|"),
  "gu",
);
const PATTERNS: Readonly<Record<Language, RegExp>> = { python: PYTHON, javascript: JAVASCRIPT, raw: SHELL };

/** Colours for `text` in `language`; only the name of a `:command`. */
export function highlight(text: string, language: Language): Span[] {
  if (text.length > HIGHLIGHT_MAX_CHARS) return [];
  const pattern = text.trimStart().startsWith(":") && language !== "raw" || isCommand(text) ? COMMAND : PATTERNS[language];
  const spans: Span[] = [];
  for (const match of text.matchAll(pattern)) {
    const [name, value] = Object.entries(match.groups ?? {}).find(([, group]) => group !== undefined) ?? [];
    const style = name === undefined ? undefined : STYLES[name];
    if (style === undefined || value === undefined) continue;
    const start = match.index + match[0].indexOf(value);
    spans.push({ start, end: start + value.length, style });
  }
  return spans;
}

/** Is `text` a `:command`, and no code? `:` alone and `: word` are the shell's own. */
export function isCommand(text: string): boolean {
  return /^\s*:[a-z?!]/i.test(text) && !text.trim().includes("\n");
}
