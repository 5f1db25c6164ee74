/** Width: columns of letters, ideographs, marks and emoji. */
import assert from "node:assert/strict";
import test from "node:test";
import { fitText, nextBoundary, previousBoundary, textWidth } from "../../../src/cli/repl_width.ts";

test("each kind of character takes the columns that terminals give it", () => {
  const widths = {
    "abc": 3,
    "é": 1,
    "e\u0301": 1,
    "世界": 4,
    "한글": 4,
    "ｆ": 2,
    "👍🏽": 2,
    "👨‍👩‍👧": 2,
    "🇩🇪": 2,
    "❤️": 2,
    "→": 1,
    "\u200b": 0,
    "Привет": 6,
    "あ": 2,
    "…": 1,
  };
  for (const [text, width] of Object.entries(widths)) assert.equal(textWidth(text), width, text);
});

test("text is cut to fit, never in the middle of a character", () => {
  assert.equal(fitText("hello", 5), "hello");
  assert.equal(fitText("hello", 4), "hel…");
  assert.equal(fitText("世界世界", 6), "世界…");
  assert.equal(fitText("hello", 0), "");
});

test("borders of characters", () => {
  const text = "a👍🏽\nb";
  assert.deepEqual([nextBoundary(text, 0), nextBoundary(text, 1), nextBoundary(text, 5)], [1, 5, 6]);
  assert.deepEqual([previousBoundary(text, 7), previousBoundary(text, 6), previousBoundary(text, 5), previousBoundary(text, 0)], [
    6,
    5,
    1,
    0,
  ]);
});
