/** Output: what counts as text on a line. */
import assert from "node:assert/strict";
import test from "node:test";
import { Line } from "../../../src/cli/output.ts";

test("a line is empty after a line break, after progress was taken away, and where only modes were switched", () => {
  const line = new Line();
  const after = (text: string) => {
    line.take(text);
    return line.isEmpty;
  };
  assert.equal(after("\x1b[?2004h"), true);
  assert.equal(after("x"), false);
  assert.equal(after("\x1b[?2004l\x1b[0m\x1b[?25h\x1b>"), false);
  assert.equal(after(""), false);
  assert.equal(after("y\n"), true);
  assert.equal(after("\x1b[0m\x1b[?1049l"), true);
  assert.equal(after("\x1b[c"), true);
  assert.equal(after("\x07"), true);
  assert.equal(after("\x1b\\\x1b[0m\x1b[?25h\x1b>\x1b(B\x0f\x1b7\x1b[r\x1b8\x1b[4l\x1b[=0u\x1b[>4m\x1b[0 q"), true);
  assert.equal(after("\x1b[31m"), false);
  assert.equal(after("\r\x1b[K"), true);
  assert.equal(after("x"), false);
  assert.equal(after("\r\x1b[2A\x1b[J"), true);
});
