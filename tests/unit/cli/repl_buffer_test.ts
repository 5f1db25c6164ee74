/** Edit buffer: moving, cutting and taking back. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { EditBuffer } from "../../../src/cli/repl_buffer.ts";

/** `|` marks the cursor. */
function bufferOf(marked: string): EditBuffer {
  const buffer = new EditBuffer();
  buffer.set(marked.replace("|", ""), marked.indexOf("|"));
  return buffer;
}
const shown = (buffer: EditBuffer) => `${buffer.text.slice(0, buffer.cursor)}|${buffer.text.slice(buffer.cursor)}`;
function after(marked: string, ...steps: ReadonlyArray<(buffer: EditBuffer) => void>): string {
  const buffer = bufferOf(marked);
  for (const step of steps) step(buffer);
  return shown(buffer);
}

test("characters are what a reader sees as one", () => {
  assert.equal(after("a👍🏽|b", (b) => b.left()), "a|👍🏽b");
  assert.equal(after("a|👍🏽b", (b) => b.right()), "a👍🏽|b");
  assert.equal(after("ae\u0301|", (b) => b.backspace()), "a|");
  assert.equal(after("|👨‍👩‍👧x", (b) => b.delete()), "|x");
  assert.equal(after("a\n|b", (b) => b.left()), "a|\nb");
  assert.equal(after("a|\nb", (b) => b.delete()), "a|b");
});

test("Up and Down keep their column past short lines", () => {
  assert.equal(after("abcdef\nx\nghijkl|", (b) => b.up(), (b) => b.up()), "abcdef|\nx\nghijkl");
  assert.equal(after("世界ab|\ncdefgh", (b) => b.down()), "世界ab\ncdefgh|");
  assert.equal(after("世界|\ncdefgh", (b) => b.down()), "世界\ncdef|gh");
  assert.equal(bufferOf("a|\nb").up(), false);
  assert.equal(bufferOf("a\nb|").down(), false);
  assert.equal(after("\n|", (b) => b.up()), "|\n");
});

test("words and lines", () => {
  assert.equal(after("foo.bar(baz)|", (b) => b.wordLeft()), "foo.bar(|baz)");
  assert.equal(after("|foo.bar", (b) => b.wordRight()), "foo|.bar");
  assert.equal(after("a\nbc|d\ne", (b) => b.home()), "a\n|bcd\ne");
  assert.equal(after("a\nb|cd\ne", (b) => b.end()), "a\nbcd|\ne");
  assert.equal(after("a\nb|c", (b) => b.first()), "|a\nbc");
  assert.equal(after("|a\nbc", (b) => b.last()), "a\nbc|");
});

test("what is cut comes back, cuts in a row as one, older ones by turns", () => {
  assert.equal(after("one two |three", (b) => b.killToEnd(), (b) => b.home(), (b) => b.yank()), "three|one two ");
  assert.equal(after("one two three|", (b) => b.killBlankWord(), (b) => b.killBlankWord(), (b) => b.yank()), "one two three|");
  assert.equal(after("|ab\ncd", (b) => b.killToEnd(), (b) => b.killToEnd(), (b) => b.killToEnd(), (b) => b.yank()), "ab\ncd|");
  assert.equal(
    after("a b|", (b) => b.killBlankWord(), (b) => b.left(), (b) => b.killToStart(), (b) => b.yank(), (b) => b.yankPrevious()),
    "b| ",
  );
  assert.equal(after("foo.bar|", (b) => b.killWordLeft()), "foo.|");
  assert.equal(after("x |foo.bar", (b) => b.killWordRight()), "x |.bar");
  assert.equal(after("x|", (b) => b.yank(), (b) => b.yankPrevious()), "x|");
});

test("what was cut outlives the block", () => {
  assert.equal(after("gone|", (b) => b.killToStart(), (b) => b.reset(), (b) => b.yank()), "gone|");
});

test("Backspace takes an indentation back by one step", () => {
  assert.equal(after("x:\n        |", (b) => b.backspace(4)), "x:\n    |");
  assert.equal(after("x:\n      |", (b) => b.backspace(4)), "x:\n    |");
  assert.equal(after("x:\n  a |", (b) => b.backspace(4)), "x:\n  a|");
  assert.equal(after("|x", (b) => b.backspace(4)), "|x");
});

test("transposing stays in its line", () => {
  assert.equal(after("ab|c", (b) => b.transpose()), "acb|");
  assert.equal(after("abc|", (b) => b.transpose()), "acb|");
  assert.equal(after("x\n|ab", (b) => b.transpose()), "x\n|ab");
  assert.equal(after("|", (b) => b.transpose()), "|");
});

test("undo takes back what was typed together", () => {
  const type = (text: string) => (b: EditBuffer) => [...text].forEach((letter) => b.insert(letter));
  assert.equal(after("|", type("abc def"), (b) => b.undo()), "abc |");
  assert.equal(after("|", type("abc"), (b) => b.killToStart(), (b) => b.undo()), "abc|");
  assert.equal(after("|", (b) => b.undo()), "|");
});

test("undo leads back to the beginning, and the cursor never leaves the text or splits a character", () => {
  type Step = (buffer: EditBuffer) => void;
  const steps: readonly Step[] = [
    (b) => b.insert("a"),
    (b) => b.insert("世👍🏽\n"),
    (b) => b.insert("  "),
    (b) => b.backspace(4),
    (b) => b.delete(),
    (b) => b.left(),
    (b) => b.right(),
    (b) => b.up(),
    (b) => b.down(),
    (b) => b.wordLeft(),
    (b) => b.wordRight(),
    (b) => b.home(),
    (b) => b.end(),
    (b) => b.killToEnd(),
    (b) => b.killToStart(),
    (b) => b.killBlankWord(),
    (b) => b.killWordRight(),
    (b) => b.yank(),
    (b) => b.yankPrevious(),
    (b) => b.transpose(),
  ];
  fc.assert(fc.property(fc.array(fc.nat(steps.length - 1), { maxLength: 60 }), (choice) => {
    const buffer = new EditBuffer();
    for (const index of choice) {
      steps[index]?.(buffer);
      assert.ok(buffer.cursor >= 0 && buffer.cursor <= buffer.text.length);
      assert.ok(buffer.text.isWellFormed() && buffer.text.slice(0, buffer.cursor).isWellFormed());
    }
    for (let count = 0; count < choice.length; count += 1) buffer.undo();
    assert.equal(buffer.text, "");
  }));
});
