/** Output: text from bytes that come in pieces of any size, up to the cap and beyond, and callbacks that misbehave. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import test from "node:test";
import fc from "fast-check";
import { CALLBACK_CHUNK_MAX_BYTES, STDOUT_MAX_BYTES } from "../../../src/base/limits.ts";
import { lineLogger } from "../../../src/base/log.ts";
import { guarded, OutputText } from "../../../src/run/output.ts";
import { sleep } from "../../support/waiting.ts";

const bytesOf = (text: string) => new TextEncoder().encode(text);
/** What a decoder makes of all bytes at once; a byte-order mark stays. */
const decoded = (bytes: Uint8Array) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);

/** Pushes `chunks`; the text, what the callback got, and what each push said. */
function collect(chunks: readonly Uint8Array[], maxBytes = STDOUT_MAX_BYTES) {
  const pieces: string[] = [];
  const output = new OutputText(maxBytes, (piece) => pieces.push(piece));
  const fitted = chunks.map((chunk) => output.push(chunk));
  return { text: output.finish(), pieces, fitted };
}

test("output: a text cut at every byte comes out whole, and no piece of it is broken", () => {
  const text = "a🎓ü\u{10ffff}é漢👩‍👩‍👧z", bytes = bytesOf(text);
  for (let first = 0; first <= bytes.length; first++) {
    for (let second = first; second <= bytes.length; second++) {
      const { text: got, pieces } = collect([bytes.subarray(0, first), bytes.subarray(first, second), bytes.subarray(second)]);
      assert.equal(got, text);
      assert.equal(pieces.join(""), text);
      assert.ok(pieces.every((piece) => piece !== "" && piece.isWellFormed() && !piece.includes("\ufffd")));
    }
  }
});

test("output: byte by byte, characters are delivered as soon as they are whole", () => {
  const { pieces } = collect([...bytesOf("ü🎓x")].map((byte) => Uint8Array.of(byte)));
  assert.deepEqual(pieces, ["ü", "🎓", "x"]);
});

test("output: a line of ours is a line of its own, within the limit", () => {
  for (
    const [before, wanted] of [["", "ours\n"], ["a\n", "a\nours\n"], ["a", "a\nours\n"], ["12345678", "12345678\no"], [
      "1234567890",
      "1234567890",
    ]]
  ) {
    const pieces: string[] = [], output = new OutputText(10, (piece) => pieces.push(piece));
    output.push(bytesOf(before ?? ""));
    output.pushLine("ours");
    assert.deepEqual([output.finish(), pieces.join("")], [wanted, wanted]);
  }
});

test("output: a byte-order mark is the program's and stays, wherever it is", () => {
  const { text, pieces } = collect([bytesOf("\ufeffa"), bytesOf("\ufeff")]);
  assert.deepEqual([text, pieces], ["\ufeffa\ufeff", ["\ufeffa", "\ufeff"]]);
});

test("output: bytes that are no UTF-8 become U+FFFD, as one decoder sees them all", () => {
  for (const bytes of [[0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0xf5, 0x80], [0x80], [0xe2, 0x82], [0xf0, 0x9f, 0x41], [0, 1, 0x7f]]) {
    const whole = Uint8Array.from(bytes);
    assert.equal(collect([whole]).text, decoded(whole));
    assert.equal(collect(bytes.map((byte) => Uint8Array.of(byte))).text, decoded(whole));
  }
  assert.equal(collect([Uint8Array.of(0x61, 0xf0, 0x9f)]).text, "a\ufffd");
});

test("output: chunks of any bytes, cut anywhere, give what one decoder gives, in pieces that are small", () => {
  fc.assert(fc.property(fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 12 }), fc.nat({ max: 300 }), (chunks, maxBytes) => {
    const whole = Buffer.concat(chunks), fitting = whole.subarray(0, maxBytes);
    const { text, pieces, fitted } = collect(chunks, maxBytes);
    assert.equal(text, decoded(fitting));
    assert.equal(pieces.join(""), text);
    assert.equal(fitted.every(Boolean), whole.length <= maxBytes);
  }));
});

test("output: the cap is exact", () => {
  const full = new Uint8Array(STDOUT_MAX_BYTES).fill(0x61);
  const exact = collect([full, new Uint8Array(0)]);
  assert.deepEqual([exact.fitted, exact.text.length], [[true, true], STDOUT_MAX_BYTES]);
  const beyond = collect([full, Uint8Array.of(0x62)]);
  assert.deepEqual([beyond.fitted, beyond.text.length, beyond.text.endsWith("a")], [[true, false], STDOUT_MAX_BYTES, true]);
  const atOnce = collect([new Uint8Array(STDOUT_MAX_BYTES + 1).fill(0x61)]);
  assert.deepEqual([atOnce.fitted, atOnce.text.length, atOnce.pieces.join("").length], [[false], STDOUT_MAX_BYTES, STDOUT_MAX_BYTES]);
});

test("output: what comes after the cap is dropped, and every push says so", () => {
  const { fitted, text, pieces } = collect(["abc", "de", "f"].map(bytesOf), 4);
  assert.deepEqual([fitted, text, pieces], [[true, false, false], "abcd", ["abc", "d"]]);
});

test("output: a cap inside a character ends the text with one U+FFFD", () => {
  for (const maxBytes of [2, 3, 4]) assert.deepEqual(collect([bytesOf("a🎓b")], maxBytes).text, "a\ufffd");
  assert.equal(collect([bytesOf("a🎓b")], 5).text, "a🎓");
  assert.deepEqual(collect([bytesOf("a")], 0), { text: "", pieces: [], fitted: [false] });
});

for (const [name, byte] of [["letters", 0x61], ["bytes that are no UTF-8", 0xff], ["starts of characters", 0xf0]] as const) {
  test(`output: pieces of ${name} are at most 64 KiB, however large the chunk`, () => {
    const whole = new Uint8Array(STDOUT_MAX_BYTES).fill(byte);
    for (const size of [1, 2, 3].map((offset) => offset + 65_536).concat(STDOUT_MAX_BYTES)) {
      const chunks = Array.from({ length: Math.ceil(whole.length / size) }, (_, at) => whole.subarray(at * size, (at + 1) * size));
      const { text, pieces } = collect(chunks);
      const largest = Math.max(...pieces.map((piece) => Buffer.byteLength(piece)));
      assert.ok(largest <= CALLBACK_CHUNK_MAX_BYTES, `${largest} bytes`);
      assert.equal(pieces.join(""), text);
      assert.equal(text, decoded(whole));
    }
  });
}

test("output: without a callback the text is the same", () => {
  const output = new OutputText(10);
  assert.deepEqual([output.push(bytesOf("ab")), output.push(bytesOf("c")), output.finish()], [true, true, "abc"]);
});

test("output: the bytes of a chunk may be used again afterwards", () => {
  const output = new OutputText(100), chunk = bytesOf("a\u00fc");
  output.push(chunk.subarray(0, 2));
  chunk.fill(0);
  output.push(Uint8Array.of(0xbc));
  assert.equal(output.finish(), "aü");
});

/** A callback made safe, what it got, and what was logged. */
function guardedCallback(body: (text: string) => unknown) {
  const got: string[] = [], lines: string[] = [];
  const log = lineLogger("debug", (line) => lines.push(line));
  const callback = guarded(
    (text: string) => {
      got.push(text);
      return body(text) as void;
    },
    "onStdout",
    log,
  );
  assert.ok(callback);
  return { callback, got, lines };
}

test("guarded: a callback that throws is logged once, without its message, and called no more", () => {
  const { callback, got, lines } = guardedCallback(() => {
    throw new TypeError("secret text");
  });
  for (const text of ["a", "b", "c"]) callback(text);
  assert.deepEqual([got, lines], [["a"], ["sbx error: onStdout threw and is called no more reason=TypeError"]]);
});

test("guarded: a callback may throw anything", () => {
  for (const thrown of [undefined, null, "text", Object.create(null)]) {
    const { callback, lines } = guardedCallback(() => {
      throw thrown;
    });
    callback("a");
    callback("b");
    assert.equal(lines.length, 1);
  }
});

test("guarded: a callback that throws later has got everything before", () => {
  const { callback, got, lines } = guardedCallback((text) => {
    if (text === "b") throw new Error("b");
  });
  for (const text of ["a", "b", "c"]) callback(text);
  assert.deepEqual([got, lines.length], [["a", "b"], 1]);
});

test("guarded: an asynchronous callback that rejects is logged once, called no more, and no unhandled rejection", async () => {
  const { callback, got, lines } = guardedCallback(() => Promise.reject(new RangeError("later")));
  callback("a");
  callback("b");
  await sleep(5);
  callback("c");
  await sleep(5);
  assert.deepEqual([got, lines], [["a", "b"], ["sbx error: onStdout threw and is called no more reason=RangeError"]]);
});

test("guarded: one that behaves is called for everything and nothing is logged; none stays none", () => {
  const { callback, got, lines } = guardedCallback(() => Promise.resolve());
  for (const text of ["a", "b"]) callback(text);
  assert.deepEqual([got, lines], [["a", "b"], []]);
  assert.equal(guarded(undefined, "onStdout", lineLogger("debug", () => assert.fail("nothing to log"))), undefined);
});

test("guarded: a callback that throws does not keep the text from being kept", () => {
  const { callback } = guardedCallback(() => {
    throw new Error("x");
  });
  const output = new OutputText(100, callback);
  output.push(bytesOf("abc"));
  output.push(bytesOf("def"));
  assert.equal(output.finish(), "abcdef");
});
