/** Lines: cut anyhow, bounded, and given up for raw bytes; over an in-memory socket. */
import assert from "node:assert/strict";
import type { Socket } from "node:net";
import { PassThrough } from "node:stream";
import test from "node:test";
import fc from "fast-check";
import { LINE_MAX_BYTES, LineError, LineReader } from "../../../src/link/lines.ts";
import { openingSchema, readMessage, requestSchema } from "../../../src/link/messages.ts";

/** A reader, what it read, and why it gave up. */
function reading(onLine: (value: unknown, stop: () => Uint8Array) => void = () => {}) {
  const pipe = new PassThrough(), lines: unknown[] = [], broken: string[] = [];
  const reader: LineReader = new LineReader(pipe as unknown as Socket, (value) => {
    lines.push(value);
    onLine(value, () => reader.stop());
  }, (error) => broken.push(error.message));
  return { pipe, lines, broken };
}
const turn = () => new Promise((resolve) => setTimeout(resolve));

test("lines arrive in order, wherever the bytes are cut", async () => {
  const values = fc.array(fc.oneof(fc.string(), fc.integer(), fc.record({ a: fc.string({ unit: "binary" }) })), { maxLength: 8 });
  await fc.assert(fc.asyncProperty(values, fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }), async (values, cuts) => {
    const bytes = new TextEncoder().encode(values.map((value) => `${JSON.stringify(value)}\n`).join(""));
    const { pipe, lines, broken } = reading();
    for (let at = 0, i = 0; at < bytes.length; i++) {
      const size = cuts[i % cuts.length] ?? 1;
      pipe.write(bytes.subarray(at, at + size));
      at += size;
    }
    await turn();
    assert.deepEqual([JSON.stringify(lines), broken], [JSON.stringify(values), []]);
  }));
});

test("a line at its limit is read, one byte more is refused before it has ended, and nothing is read behind it", async () => {
  const longest = `"${"x".repeat(LINE_MAX_BYTES - 2)}"`;
  const fits = reading();
  fits.pipe.write(`${longest}\n`);
  await turn();
  assert.deepEqual([fits.lines.length, fits.broken], [1, []]);
  for (const text of [`${longest}x`, `${longest}x\n`]) {
    const { pipe, lines, broken } = reading();
    pipe.write(text);
    pipe.write('\n"next"\n');
    await turn();
    assert.deepEqual([lines, broken], [[], [`a line has at most ${LINE_MAX_BYTES} bytes`]]);
    assert.equal(pipe.listenerCount("data"), 0);
  }
});

test("what is no JSON, and what a handler refuses, ends the reading once", async () => {
  const garbage = reading();
  garbage.pipe.write("GET / HTTP/1.1\r\n\r\n");
  await turn();
  assert.equal(garbage.lines.length, 0);
  assert.match(garbage.broken.join("|"), /^a line is JSON \([^|]+\)$/);
  const refused = reading(() => {
    throw new LineError("not this one");
  });
  refused.pipe.write("1\n2\n3\n");
  await turn();
  assert.deepEqual([refused.lines, refused.broken], [[1], ["not this one"]]);
});

test("a reader that stops hands over what came behind its line, and leaves the rest unread", async () => {
  const rests: Uint8Array[] = [];
  const { pipe, lines } = reading((_value, stop) => rests.push(stop()));
  pipe.write('{"open":1}\n\x00raw\n');
  pipe.write("later");
  await turn();
  assert.deepEqual([lines, new TextDecoder().decode(rests[0])], [[{ open: 1 }], "\x00raw\n"]);
  assert.equal(String(pipe.read()), "later");
});

test("messages are believed only as they should be, and hostile ones are told shortly", () => {
  const nonce = "0".repeat(32);
  assert.deepEqual(readMessage(openingSchema, { open: "vm", token: nonce }, "it"), { open: "vm", token: nonce });
  const wrong: unknown[] = [
    null,
    [],
    { open: "vm", token: "../../etc/passwd" },
    { open: "shell" },
    { open: "control", version: "x".repeat(129), nonce },
    { open: "control", version: "1", nonce: "0".repeat(33) },
  ];
  for (const value of wrong) assert.throws(() => readMessage(openingSchema, value, "the first line"), LineError, JSON.stringify(value));
  for (const memoryMb of [127, 1e300, -1, 1.5, NaN, "256"]) {
    const value = { id: 1, method: "lease", language: "python", memoryMb, wantsLog: false };
    assert.throws(() => readMessage(requestSchema, value, "a request"), LineError, String(memoryMb));
  }
  assert.throws(
    () => readMessage(requestSchema, { id: 1, method: "x".repeat(100_000) }, "a request"),
    (error: Error) => error instanceof LineError && error.message.length < 2_000,
  );
});
