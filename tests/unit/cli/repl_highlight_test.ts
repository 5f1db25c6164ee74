/** Highlighting: which words of a text get a colour. */
import assert from "node:assert/strict";
import test from "node:test";
import { highlight, isCommand } from "../../../src/cli/repl_highlight.ts";
import type { Language } from "../../../src/run/request.ts";

const painted = (text: string, language: Language) => highlight(text, language).map(({ start, end }) => text.slice(start, end));

test("words and literals of each language", () => {
  assert.deepEqual(painted("for x in [1.5, 'a b']: # note\n  formal = f\"{x}\"", "python"), [
    "for",
    "in",
    "1.5",
    "'a b'",
    "# note",
    'f"{x}"',
  ]);
  assert.deepEqual(painted("const a = `x ${b}` // note\nconstant + 0x1F", "javascript"), ["const", "`x ${b}`", "// note", "0x1F"]);
  assert.deepEqual(painted("if [ $x = 'a' ]; then echo ${y} #note\nfi", "raw"), ["if", "$x", "'a'", "then", "${y}", "#note", "fi"]);
});

test("a literal that is not closed yet is one up to its line's or the text's end", () => {
  assert.deepEqual(painted("x = 'for in", "python"), ["'for in"]);
  assert.deepEqual(painted('x = """for\nin', "python"), ['"""for\nin']);
});

test("of a command only its name", () => {
  assert.deepEqual(painted(":upload for.txt", "python"), [":upload"]);
  assert.deepEqual(painted(": ${x:=1}", "raw"), ["${x:=1}"], "the shell's own colon is none");
});

test("commands are told from code", () => {
  assert.deepEqual([":help", " :q", ":?", ":!"].map(isCommand), [true, true, true, true]);
  assert.deepEqual([": x", ":", "x:y", "a\n:help", ":x\ny", "::"].map(isCommand), [false, false, false, false, false, false]);
});

test("no text makes it slow or fail", () => {
  for (const language of ["python", "javascript", "raw"] as const) {
    for (const text of ["'".repeat(9_999), "\"'".repeat(9_999), "/*".repeat(9_999), "a.".repeat(20_000), "x".repeat(60_000)]) {
      for (const { start, end } of highlight(text, language)) assert.ok(end > start && end <= text.length);
    }
  }
});
