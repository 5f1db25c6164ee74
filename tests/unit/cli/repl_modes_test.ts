/** Modes: what is undone of what a program did to the terminal. */
import assert from "node:assert/strict";
import test from "node:test";
import { Modes } from "../../../src/cli/repl_modes.ts";

const PLAIN = "\x1b\\\x1b[0m\x1b[?25h\x1b>\x1b(B\x0f";

function undoneAfter(...texts: readonly string[]): string {
  const modes = new Modes();
  for (const text of texts) modes.take(text);
  return modes.undo();
}

test("plain text needs nothing", () => {
  assert.equal(undoneAfter("text\r\n\ttab 漢\x07"), "");
});

test("colours, letters and an open control string end", () => {
  for (const text of ["\x1b[31m", "\x0e", "\x1b(0", "\x1b]0;title", "\x9b31m"]) assert.equal(undoneAfter(text), PLAIN);
});

test("modes that are not as usual are switched back, each once", () => {
  assert.equal(undoneAfter("\x1b[?1049h\x1b[?1000;1006h\x1b[?1049h\x1b[?7l"), `${PLAIN}\x1b[?1049l\x1b[?1000l\x1b[?1006l\x1b[?7h`);
  assert.equal(undoneAfter("\x1b[?1049h text \x1b[?1049l\x1b[?7h\x1b[?2004l"), PLAIN);
  assert.equal(undoneAfter("\x9b?47h"), `${PLAIN}\x1b[?47l`);
  assert.equal(undoneAfter("\x1b[?99999h\x1b[?12;x25h"), PLAIN);
});

test("regions, insertion, keyboards and cursors are undone", () => {
  assert.equal(
    undoneAfter("\x1b[2;5r", "\x1b[4h", "\x1b[>1u", "\x1b[>4;2m", "\x1b[3 q"),
    `${PLAIN}\x1b7\x1b[r\x1b8\x1b[2l\x1b[4l\x1b[20l\x1b[=0u\x1b[>4m\x1b[0 q`,
  );
});

test("a sequence may be cut anywhere", () => {
  const text = "a\x1b[?1049hb\x1b[?1000;1006hc\x1b[?1006ld";
  for (let at = 0; at <= text.length; at += 1) {
    assert.equal(undoneAfter(text.slice(0, at), text.slice(at)), `${PLAIN}\x1b[?1049l\x1b[?1000l`, String(at));
  }
});

test("an endless sequence takes no memory, and what was undone is forgotten", () => {
  const modes = new Modes();
  modes.take("\x1b[?");
  for (let count = 0; count < 1000; count += 1) modes.take("1;".repeat(100));
  modes.take("\x1b[?5h");
  assert.equal(modes.undo(), `${PLAIN}\x1b[?5l`);
  assert.equal(modes.undo(), "");
});
