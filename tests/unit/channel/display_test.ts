/** Display: objects out of bytes that are cut anyhow, and their bounds. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { CommunicationError, OutcomeUnknownError } from "../../../src/base/errors.ts";
import { DISPLAY_MAX_BYTES, DISPLAY_TOTAL_MAX_BYTES } from "../../../src/base/limits.ts";
import type { DisplayData } from "../../../src/base/result.ts";
import { DisplayReader } from "../../../src/channel/display.ts";
import { concat, DATA_FLAG, KIND, WireError } from "../../../src/channel/wire.ts";
import { connect, json, PATIENT, rejectsWith, REPLY } from "../../support/guest_peer.ts";

function framed(content: Uint8Array): Uint8Array {
  const whole = new Uint8Array(4 + content.length);
  new DataView(whole.buffer).setUint32(0, content.length, true);
  whole.set(content, 4);
  return whole;
}
const object = (value: unknown) => framed(json(value));

test("display: any objects, cut anyhow, come out whole and in order", () => {
  const anyData = fc.dictionary(fc.constantFrom("text/plain", "text/html", "image/png", "__proto__"), fc.string({ unit: "grapheme" }));
  fc.assert(fc.property(fc.array(anyData, { maxLength: 6 }), fc.array(fc.nat({ max: 40 })), (objects, cuts) => {
    const whole = concat(...objects.map(object)), reader = new DisplayReader(), found: DisplayData[] = [];
    let at = 0;
    for (const size of [...cuts, whole.length]) {
      found.push(...reader.push(whole.subarray(at, at + size)));
      at += size;
    }
    assert.deepEqual(found.map((data) => Object.entries(data)), objects.map((data) => Object.entries(data)));
    assert.equal(reader.isMalformed, false);
  }));
});

test("display: values that are no text become their JSON", () => {
  const [data] = new DisplayReader().push(object({ "application/json": { a: [1] }, "text/plain": "x", "a/b": null }));
  assert.deepEqual(data, { "application/json": '{"a":[1]}', "text/plain": "x", "a/b": "null" });
});

test("display: what is no object is left out and told, and does not hurt what follows", () => {
  for (const bad of [json([1]), json("x"), json(null), Uint8Array.of(0xff), new Uint8Array(0)]) {
    const reader = new DisplayReader();
    assert.deepEqual(reader.push(concat(framed(bad), object({ a: "b" }))), [{ a: "b" }]);
    assert.equal(reader.isMalformed, true);
  }
});

test("display: an object at the limit is read, one beyond it is refused before it has come", () => {
  const text = "x".repeat(DISPLAY_MAX_BYTES - 8);
  assert.deepEqual(new DisplayReader().push(object({ a: text })).map((data) => data["a"]?.length), [text.length]);
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, DISPLAY_MAX_BYTES + 1, true);
  assert.throws(() => new DisplayReader().push(length), WireError);
});

test("display: all objects of an execution together have a limit too", () => {
  const reader = new DisplayReader(), part = object({ a: "x".repeat(1_048_576 - 8) });
  for (let count = 0; count < DISPLAY_TOTAL_MAX_BYTES / 1_048_576; count++) assert.equal(reader.push(part).length, 1);
  assert.throws(() => {
    for (let count = 0; count < 6; count++) reader.push(part);
  }, WireError);
});

test("display: an execution hands each object on as it comes, and tells of those it could not read", async () => {
  const shown: DisplayData[] = [];
  const { channel } = connect((frame, peer) => {
    if (frame.kind !== KIND.data) return;
    peer.send(1, KIND.data, object({ "text/plain": "1" }), DATA_FLAG.display);
    peer.send(1, KIND.data, framed(json([])), DATA_FLAG.display);
    peer.send(1, KIND.result, json(REPLY));
  });
  const reply = await channel.exec(PATIENT, { onOutput: () => {}, onDisplay: (data) => void shown.push(data) });
  assert.deepEqual([shown, reply.isDisplayMalformed], [[{ "text/plain": "1" }], true]);
});

test("display: an object without end is no object, and one that is too long ends the channel", async () => {
  const half = connect((frame, peer) => {
    if (frame.kind !== KIND.data) return;
    peer.send(1, KIND.data, object({ a: "b" }).subarray(0, 8), DATA_FLAG.display);
    peer.send(1, KIND.result, json(REPLY));
  });
  assert.equal((await half.channel.exec(PATIENT, { onOutput: () => {} })).isDisplayMalformed, false);
  const { channel } = connect((frame, peer) => {
    if (frame.kind === KIND.data) peer.send(1, KIND.data, Uint8Array.of(255, 255, 255, 255), DATA_FLAG.display);
  });
  await rejectsWith(channel.exec(PATIENT, { onOutput: () => {} }), OutcomeUnknownError);
  assert.ok(channel.closed.reason instanceof CommunicationError);
});
