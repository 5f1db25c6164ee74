/** Wire: the fixtures that the guest's tests read too, and frames cut at every byte. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import fc from "fast-check";
import { encodeFrame, type Frame, FrameDecoder, KIND, owned, WireError } from "../../../src/channel/wire.ts";

interface Fixture {
  readonly name: string;
  readonly hex: string;
  readonly frame?: { readonly stream: number; readonly kind: string; readonly flags: number; readonly payload: string };
  readonly error?: string;
  /** Bytes that follow, repeated so that the file stays small. */
  readonly fill?: { readonly hex: string; readonly times: number };
}

const fixtures: Fixture[] = JSON.parse(readFileSync(new URL("../../fixtures/wire_frames.json", import.meta.url), "utf8"));
const bytesOf = (hex: string) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
const hexOf = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const plain = (frame: Frame) => ({ stream: frame.stream, kind: frame.kind, flags: frame.flags, payload: hexOf(frame.payload) });
const filled = (hex: string, { fill }: Fixture) => hex + (fill ? fill.hex.repeat(fill.times) : "");

for (const fixture of fixtures) {
  const hex = filled(fixture.hex, fixture);
  if (fixture.frame) {
    const kind = KIND[fixture.frame.kind.toLowerCase() as keyof typeof KIND];
    const expected = { ...fixture.frame, kind, payload: filled(fixture.frame.payload, fixture) };
    test(`wire: ${fixture.name} decodes and encodes to the same bytes`, () => {
      assert.deepEqual(new FrameDecoder().push(bytesOf(hex)).map(plain), [expected]);
      assert.equal(hexOf(encodeFrame({ ...expected, payload: bytesOf(expected.payload) })), hex);
    });
  } else if (fixture.error === "truncated") {
    test(`wire: ${fixture.name} waits for more`, () => {
      const decoder = new FrameDecoder();
      assert.deepEqual([decoder.push(bytesOf(hex)), decoder.pendingBytes], [[], hex.length / 2]);
    });
  } else {
    test(`wire: ${fixture.name} is refused as ${fixture.error}`, () => {
      assert.throws(() => new FrameDecoder().push(bytesOf(hex)), { name: "WireError", violation: fixture.error });
    });
  }
}

test("wire: the fixtures cover every kind", () => {
  const kinds = new Set(fixtures.flatMap(({ frame }) => frame ? [frame.kind.toLowerCase()] : []));
  assert.deepEqual([...kinds].sort(), Object.keys(KIND).sort());
});

test("wire: frames cut at any byte come out whole", () => {
  const frames = [
    { stream: 0, kind: KIND.hello, flags: 0, payload: new TextEncoder().encode("{}") },
    { stream: 7, kind: KIND.data, flags: 1, payload: new Uint8Array(300).fill(9) },
    { stream: 7, kind: KIND.end, flags: 0, payload: new Uint8Array(0) },
  ];
  const whole = frames.flatMap((frame) => [...encodeFrame(frame)]);
  for (let cut = 0; cut <= whole.length; cut++) {
    const decoder = new FrameDecoder();
    const parts = [Uint8Array.from(whole.slice(0, cut)), Uint8Array.from(whole.slice(cut))];
    assert.deepEqual(parts.flatMap((part) => decoder.push(part)).map(plain), frames.map(plain), `cut at ${cut}`);
    assert.equal(decoder.pendingBytes, 0);
  }
});

test("wire: a header that promises too much is refused before its payload arrives", () => {
  assert.throws(() => new FrameDecoder().push(bytesOf("ffffffff0100000003010000")), WireError);
  assert.throws(() => encodeFrame({ stream: 1, kind: KIND.data, payload: new Uint8Array(65_537) }), RangeError);
});

test("wire: random bytes give frames or a WireError, and never hold more than one frame", () => {
  fc.assert(fc.property(fc.array(fc.uint8Array({ maxLength: 64 }), { maxLength: 20 }), (chunks) => {
    const decoder = new FrameDecoder();
    try {
      for (const chunk of chunks) decoder.push(chunk);
    } catch (error) {
      assert.ok(error instanceof WireError, String(error));
    }
    assert.ok(decoder.pendingBytes < 12 + 65_536);
  }));
});

test("wire: a payload that came in several chunks has a buffer of its own, which no later chunk touches", () => {
  const decoder = new FrameDecoder(), payload = new Uint8Array(65_536).map((_, at) => at * 7);
  const both = new Uint8Array(2 * (payload.length + 12));
  both.set(encodeFrame({ stream: 1, kind: KIND.data, payload }));
  both.set(encodeFrame({ stream: 2, kind: KIND.data, payload }), both.length / 2);
  const frames: Frame[] = [];
  for (let at = 0; at < both.length; at += 10_000) {
    const chunk = both.slice(at, at + 10_000);
    frames.push(...decoder.push(chunk));
    chunk.fill(0);
  }
  assert.deepEqual(frames.map(({ stream }) => stream), [1, 2]);
  for (const frame of frames) {
    assert.deepEqual(frame.payload, payload);
    assert.equal(owned(frame.payload), frame.payload);
  }
  const view = payload.subarray(1, 3), copy = owned(view);
  assert.deepEqual([copy, copy.buffer.byteLength, decoder.pendingBytes], [view, 2, 0]);
});
