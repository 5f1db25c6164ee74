/** Keys: what terminals send, whole and in pieces, and what they answer. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import test from "node:test";
import fc from "fast-check";
import { type Key, KeyDecoder } from "../../../src/cli/repl_keys.ts";

const decode = (...chunks: readonly string[]): Key[] => {
  const decoder = new KeyDecoder();
  return chunks.flatMap((chunk) => decoder.push(Buffer.from(chunk)));
};
const names = (...chunks: readonly string[]) => decode(...chunks).map((key) => key.type === "key" ? key.name : `${key.type}:${key.text}`);

test("control characters are named keys", () => {
  assert.deepEqual(names("\r\n\t\x7f\b\x01\x1a\x1f\0"), [
    "enter",
    "ctrl-j",
    "tab",
    "backspace",
    "backspace",
    "ctrl-a",
    "ctrl-z",
    "ctrl-_",
    "ctrl-space",
  ]);
});

test("arrows and their modifiers, in both forms that terminals use", () => {
  assert.deepEqual(names("\x1b[A\x1bOB\x1b[1;5C\x1b[1;3D\x1b[1;2A\x1b[Z"), [
    "up",
    "down",
    "ctrl-right",
    "alt-left",
    "shift-up",
    "shift-tab",
  ]);
  assert.deepEqual(names("\x1b[H\x1b[4~\x1b[1~\x1bOF\x1b[3~\x1b[3;5~\x1b[13;2u"), [
    "home",
    "end",
    "home",
    "end",
    "delete",
    "ctrl-delete",
    "shift-enter",
  ]);
});

test("Alt is Escape and a key", () => {
  assert.deepEqual(names("\x1bb\x1b\x7f\x1b\r\x1bé"), ["alt-b", "alt-backspace", "alt-enter", "alt-é"]);
});

test("a lone Escape is told from the beginning of a sequence only when nothing follows", () => {
  const decoder = new KeyDecoder();
  assert.deepEqual(decoder.push(Buffer.from("\x1b")), []);
  assert.equal(decoder.isPending, true);
  assert.deepEqual(decoder.flush(), [{ type: "key", name: "escape" }]);
  assert.equal(decoder.isPending, false);
  assert.deepEqual(decoder.push(Buffer.from("\x1b[")), []);
  assert.deepEqual(decoder.push(Buffer.from("A")), [{ type: "key", name: "up" }]);
});

test("a paste is one block, whatever is in it", () => {
  assert.deepEqual(decode("\x1b[200~a\r\nb\x1b[A\tc\x07\x1b[201~d"), [
    { type: "paste", text: "a\nb[A\tc" },
    { type: "text", text: "d" },
  ]);
  assert.deepEqual(decode("\x1b[200~one", " two\x1b[2", "01~"), [{ type: "paste", text: "one two" }]);
});

test("what a terminal answers never becomes text", () => {
  const answers = [
    "\x1b[?62;4c",
    "\x1b[>0;276;0c",
    "\x1b]l:upload /etc/passwd\x1b\\",
    "\x1bP1$r0m\x1b\\",
    "\x1b_Gi=1;OK\x1b\\",
    "\x1b]52;c;QQ==\x07",
  ];
  for (const answer of answers) assert.deepEqual(decode(answer), [{ type: "answer", text: answer }], JSON.stringify(answer));
  // A cursor position, a focus event, an unknown function key.
  assert.deepEqual(decode("\x1b[12;40R\x1b[I\x1b[15~"), []);
});

test("an endless control string takes no memory, and ends where it ends", () => {
  const decoder = new KeyDecoder();
  for (let count = 0; count < 40; count += 1) {
    assert.deepEqual(decoder.push(Buffer.from(`${count ? "" : "\x1b]"}${"x".repeat(10_000)}`)), []);
  }
  assert.deepEqual(decoder.push(Buffer.from("\x1b\\ok")).at(-1), { type: "text", text: "ok" });
});

test("any cut of the same bytes gives the same keys", () => {
  const whole = Buffer.from("é世\x1b[1;5C👍🏽\x1b[200~p\r\nq\x1b[201~\x1bb\x1b]0;t\x07\x1bOAz");
  const joined = (keys: readonly Key[]) =>
    keys.reduce<Key[]>((all, key) => {
      const last = all.at(-1);
      if (key.type === "text" && last?.type === "text") return [...all.slice(0, -1), { type: "text", text: last.text + key.text }];
      return [...all, key];
    }, []);
  const expected = joined(new KeyDecoder().push(whole));
  fc.assert(fc.property(fc.array(fc.integer({ min: 1, max: whole.length - 1 }), { maxLength: 8 }), (cuts) => {
    const decoder = new KeyDecoder(), at = [0, ...cuts.toSorted((a, b) => a - b), whole.length];
    const keys = at.slice(1).flatMap((end, index) => decoder.push(whole.subarray(at[index], end)));
    assert.deepEqual(joined(keys), expected);
  }));
});

test("no bytes make the decoder fail or keep control characters in a text", () => {
  fc.assert(fc.property(fc.array(fc.uint8Array({ maxLength: 20 }), { maxLength: 5 }), (chunks) => {
    const decoder = new KeyDecoder();
    for (const key of [...chunks.flatMap((chunk) => decoder.push(chunk)), ...decoder.flush()]) {
      // deno-lint-ignore no-control-regex
      if (key.type === "text" || key.type === "paste") assert.doesNotMatch(key.text, /[\x00-\x08\x0b-\x1f\x7f-\x9f]/);
    }
  }));
});
