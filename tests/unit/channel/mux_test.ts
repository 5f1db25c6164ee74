/** Mux: credit, crossing frames and a peer that breaks the rules, over a pair of in-memory pipes. */
import assert from "node:assert/strict";
import { Duplex } from "node:stream";
import test from "node:test";
import { CommunicationError } from "../../../src/base/errors.ts";
import { STREAM_CREDIT_BYTES, STREAMS_MAX } from "../../../src/base/limits.ts";
import { Mux } from "../../../src/channel/mux.ts";
import {
  DATA_FLAG,
  decodeCredit,
  encodeCredit,
  encodeFrame,
  type Frame,
  FrameDecoder,
  KIND,
  type Kind,
} from "../../../src/channel/wire.ts";

/** The wire boundary: what a guest would receive, and a way to answer as one. */
function pair() {
  const sent: Frame[] = [], decoder = new FrameDecoder();
  const pipe = new Duplex({
    read() {},
    write(chunk: Uint8Array, _encoding, done) {
      sent.push(...decoder.push(chunk));
      done();
    },
  });
  const mux = new Mux(pipe, () => {});
  const guest = (stream: number, kind: Kind, flags = 0, payload: Uint8Array = new Uint8Array(0)) =>
    pipe.push(encodeFrame({ stream, kind, flags, payload }));
  return { mux, pipe, sent, guest };
}
const turn = () => new Promise((resolve) => setTimeout(resolve, 5));
const dataBytes = (frames: Frame[]) =>
  frames.filter(({ kind }) => kind === KIND.data).reduce((sum, { payload }) => sum + payload.length, 0);

test("mux: a sender stops at its credit and goes on when more is granted", async () => {
  const { mux, sent, guest } = pair();
  const stream = mux.open({ method: "x" });
  const sending = stream.send(new Uint8Array(STREAM_CREDIT_BYTES + 10), DATA_FLAG.body);
  await turn();
  assert.equal(dataBytes(sent), STREAM_CREDIT_BYTES);
  guest(stream.id, KIND.credit, 0, encodeCredit(4));
  await turn();
  assert.equal(dataBytes(sent), STREAM_CREDIT_BYTES + 4);
  guest(stream.id, KIND.credit, 0, encodeCredit(100));
  await sending;
  await turn();
  assert.equal(dataBytes(sent), STREAM_CREDIT_BYTES + 10);
});

test("mux: a sender whose stream ends does not wait for ever", async () => {
  const { mux, guest } = pair();
  const stream = mux.open({ method: "x" });
  const sending = stream.send(new Uint8Array(STREAM_CREDIT_BYTES * 2), DATA_FLAG.body);
  await turn();
  guest(stream.id, KIND.result);
  await sending;
  assert.equal((await stream.answer).kind, "result");
});

test("mux: what is consumed is granted back, so that a stream can carry any amount", async () => {
  const { mux, sent, guest } = pair();
  let got = 0;
  const stream = mux.open({ method: "x" }, (_flags, payload) => void (got += payload.length));
  for (let sentBytes = 0; sentBytes < 4 * STREAM_CREDIT_BYTES; sentBytes += 65_536) {
    guest(stream.id, KIND.data, DATA_FLAG.stdout, new Uint8Array(65_536));
    await turn();
  }
  const granted = sent.filter(({ kind }) => kind === KIND.credit).reduce((sum, { payload }) => sum + decodeCredit(payload), 0);
  assert.deepEqual([got, granted, mux.closed.aborted], [4 * STREAM_CREDIT_BYTES, 4 * STREAM_CREDIT_BYTES, false]);
});

test("mux: frames of a stream that is over are ignored, whatever they are", async () => {
  const { mux, guest } = pair();
  const stream = mux.open({ method: "x" });
  guest(stream.id, KIND.result);
  await stream.answer;
  for (const kind of [KIND.data, KIND.end, KIND.result, KIND.error]) guest(stream.id, kind);
  await turn();
  assert.equal(mux.closed.aborted, false);
});

const violations: Array<[string, (guest: ReturnType<typeof pair>["guest"], id: number) => void]> = [
  ["a frame of a stream that was never opened", (guest) => guest(99, KIND.data)],
  ["data on stream 0", (guest) => guest(0, KIND.data)],
  ["HELLO on another stream", (guest, id) => guest(id, KIND.hello)],
  ["OPEN from the guest", (guest, id) => guest(id, KIND.open)],
  ["CANCEL from the guest", (guest, id) => guest(id, KIND.cancel)],
  ["credit of the wrong size", (guest, id) => guest(id, KIND.credit, 0, new Uint8Array(3))],
  ["credit without end", (guest, id) => {
    guest(id, KIND.credit, 0, encodeCredit(0xffff_ffff));
  }],
  ["credit for more than a host keeps for a guest", (guest, id) => {
    for (let count = 0; count < 64; count++) guest(id, KIND.credit, 0, encodeCredit(STREAM_CREDIT_BYTES));
  }],
];
for (const [name, violate] of violations) {
  test(`mux: ${name} ends the channel`, async () => {
    const { mux, guest } = pair();
    const stream = mux.open({ method: "x" });
    violate(guest, stream.id);
    await assert.rejects(stream.answer, CommunicationError);
    assert.ok(mux.closed.reason instanceof CommunicationError);
    assert.throws(() => mux.open({ method: "x" }), CommunicationError);
  });
}

test("mux: the end of the pipe ends every stream", async () => {
  const { mux, pipe } = pair();
  const streams = [mux.open({ method: "x" }), mux.open({ method: "y" })];
  pipe.destroy();
  for (const stream of streams) await assert.rejects(stream.answer, CommunicationError);
});

test("mux: no more than the limit of streams are open at once", () => {
  const { mux } = pair();
  for (let count = 0; count < STREAMS_MAX; count++) mux.open({ method: "x" });
  assert.throws(() => mux.open({ method: "x" }), /at most 64/);
});

test("mux: what is sent in one turn leaves in one write", async () => {
  let writes = 0;
  const pipe = new Duplex({
    read() {},
    write(_chunk, _encoding, done) {
      writes++;
      done();
    },
  });
  const mux = new Mux(pipe, () => {});
  mux.hello({ protocol: 1 });
  const stream = mux.open({ method: "exec" });
  void stream.send(new Uint8Array(10), DATA_FLAG.body);
  await turn();
  assert.equal(writes, 1);
});

test("mux: what a consumer has not taken yet is not granted back; once it has, it is", async () => {
  const { mux, sent, guest } = pair();
  const taken: Array<() => void> = [];
  const stream = mux.open({ method: "x" }, () => new Promise<void>((resolve) => taken.push(resolve)));
  for (let count = 0; count < 4; count++) guest(stream.id, KIND.data, DATA_FLAG.stdout, new Uint8Array(65_536));
  await turn();
  assert.deepEqual([sent.some(({ kind }) => kind === KIND.credit), stream.heldBytes], [false, STREAM_CREDIT_BYTES]);
  for (const take of taken) take();
  await turn();
  const granted = sent.filter(({ kind }) => kind === KIND.credit).reduce((sum, { payload }) => sum + decodeCredit(payload), 0);
  assert.deepEqual([granted, stream.heldBytes], [STREAM_CREDIT_BYTES, 0]);
});

test("mux: a consumer that fails has taken what it was given, and a stream that is released grants at once", async () => {
  for (const consumed of [() => Promise.reject(new Error("broken")), () => new Promise<void>(() => {})]) {
    const { mux, sent, guest } = pair();
    const stream = mux.open({ method: "x" }, consumed);
    for (let count = 0; count < 4; count++) guest(stream.id, KIND.data, DATA_FLAG.stdout, new Uint8Array(65_536));
    await turn();
    stream.release();
    guest(stream.id, KIND.data, DATA_FLAG.stdout, new Uint8Array(65_536));
    await turn();
    const granted = sent.filter(({ kind }) => kind === KIND.credit).reduce((sum, { payload }) => sum + decodeCredit(payload), 0);
    assert.ok(granted >= STREAM_CREDIT_BYTES && stream.heldBytes === 0, String(granted));
    assert.equal(mux.closed.aborted, false);
  }
});

test("mux: a guest cannot send beyond its credit by being held back", async () => {
  const { mux, guest } = pair();
  const stream = mux.open({ method: "x" }, () => new Promise<void>(() => {}));
  for (let count = 0; count < 5; count++) guest(stream.id, KIND.data, DATA_FLAG.stdout, new Uint8Array(65_536));
  await assert.rejects(stream.answer, CommunicationError);
});

test("mux: a channel is handed over when no stream is open, with what was said last, and another takes it up", async () => {
  const { mux, pipe, sent, guest } = pair();
  const first = mux.open({ method: "x" });
  assert.throws(() => mux.handOver(), /while it is in use/);
  guest(first.id, KIND.result);
  await first.answer;
  mux.hello({ id: "last" });
  const { firstStream } = mux.handOver();
  assert.deepEqual([firstStream, sent.at(-1)?.kind], [first.id + 1, KIND.hello]);
  guest(first.id, KIND.credit, 0, encodeCredit(1)); // Crossed on the way: waits for whoever reads next.
  const next = new Mux(pipe, () => {}, firstStream);
  pipe.resume();
  const stream = next.open({ method: "y" });
  assert.equal(stream.id, firstStream);
  guest(stream.id, KIND.result);
  assert.equal((await stream.answer).kind, "result");
  pipe.push(null);
  await turn();
  assert.ok(mux.closed.aborted && next.closed.aborted, "both know the end");
  assert.throws(() => mux.handOver(), CommunicationError);
});
