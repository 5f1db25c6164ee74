/** Words of commands: quoting, and the nearest of known names. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { nearest, quotedWord, wordsOf } from "../../../src/cli/repl_words.ts";

const texts = (line: string) => wordsOf(line).map((word) => word.text);

test("words are apart by white space, and quoted as in a shell", () => {
  assert.deepEqual(texts(":upload a\tb"), [":upload", "a", "b"]);
  assert.deepEqual(texts(`x 'a b' "c 'd" e\\ f g"h i"j`), ["x", "a b", "c 'd", "e f", "gh ij"]);
  assert.deepEqual(texts("x "), ["x", ""]);
  assert.deepEqual(texts(""), [""]);
  assert.deepEqual(wordsOf("x  'y").at(-1), { text: "y", start: 3, isOpen: true });
  assert.equal(wordsOf("x\\").at(-1)?.isOpen, true);
});

test("a quoted word is read as it was", () => {
  fc.assert(fc.property(fc.string({ minLength: 1 }), (text) => {
    assert.deepEqual(texts(`x ${quotedWord(text)}`), ["x", text]);
  }));
});

test("the nearest name is one that was begun, or mistyped by little", () => {
  const names = ["upload", "download", "files", "reset", "help", "quit"];
  for (const [typed, name] of [["dow", "download"], ["hlep", "help"], ["uplaod", "upload"], ["file", "files"], ["rset", "reset"]]) {
    assert.equal(nearest(typed ?? "", names), name);
  }
  for (const typed of ["", "xyz", "downstairs", "a".repeat(10_000)]) assert.equal(nearest(typed, names), undefined);
});
