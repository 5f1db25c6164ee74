/** Mux: any interleaving of senders, credit and answers; every byte arrives once, in order, and never before it may. */
import assert from "node:assert/strict";
import { Duplex } from "node:stream";
import test from "node:test";
import fc from "fast-check";
import { CommunicationError } from "../../../src/base/errors.ts";
import { STREAM_CREDIT_BYTES } from "../../../src/base/limits.ts";
import { Mux } from "../../../src/channel/mux.ts";
import { DATA_FLAG, encodeCredit, encodeFrame, FrameDecoder, KIND, type Kind } from "../../../src/channel/wire.ts";
import { settled } from "../../support/waiting.ts";

/** A mux, and a peer that keeps what each stream has sent. */
function pair() {
  const sent = new Map<number, number[]>(), decoder = new FrameDecoder();
  const pipe = new Duplex({
    read() {},
    write(chunk: Uint8Array, _encoding, done) {
      for (const frame of decoder.push(chunk)) {
        if (frame.kind !== KIND.data) continue;
        const bytes = sent.get(frame.stream) ?? [];
        for (const byte of frame.payload) bytes.push(byte);
        sent.set(frame.stream, bytes);
      }
      done();
    },
  });
  const say = (stream: number, kind: Kind, payload: Uint8Array = new Uint8Array(0), flags = 0) =>
    void pipe.push(encodeFrame({ stream, kind, flags, payload }));
  return { mux: new Mux(pipe, () => {}), pipe, sent, say };
}
const turn = () => new Promise((resolve) => setImmediate(resolve));
/** Uses the first credit up, so that little is needed to see it at work. */
async function drained(channel: ReturnType<typeof pair>) {
  const stream = channel.mux.open({ method: "x" });
  await stream.send(new Uint8Array(STREAM_CREDIT_BYTES), DATA_FLAG.body);
  await turn();
  channel.sent.set(stream.id, []);
  return stream;
}

test("mux: several senders of one stream take turns, and each one's bytes stay together", async () => {
  const channel = pair(), stream = await drained(channel);
  const sending = [1, 2, 3].map((id) => stream.send(new Uint8Array(10).fill(id), DATA_FLAG.body));
  for (let granted = 0; granted < 30; granted += 4) {
    channel.say(stream.id, KIND.credit, encodeCredit(4));
    await turn();
  }
  await settled(Promise.all(sending), "all three senders");
  await turn();
  assert.deepEqual(channel.sent.get(stream.id), [1, 2, 3].flatMap((id) => Array.from({ length: 10 }, () => id)));
});

test("mux: senders that wait for credit return when the stream or the channel ends", async () => {
  for (const end of ["result", "destroy"] as const) {
    const channel = pair(), stream = await drained(channel);
    const sending = [1, 2, 3].map(() => stream.send(new Uint8Array(10), DATA_FLAG.body));
    if (end === "result") channel.say(stream.id, KIND.result);
    else channel.pipe.destroy();
    await settled(Promise.all(sending), `the senders after ${end}`);
    await settled(stream.send(new Uint8Array(10), DATA_FLAG.body), "a late sender");
  }
});

test("mux: under any schedule no stream sends beyond its credit, and all of it arrives in order", async () => {
  const action = fc.oneof(
    fc.record({ kind: fc.constant("send" as const), stream: fc.nat({ max: 2 }), count: fc.integer({ min: 0, max: 300 }) }),
    fc.record({ kind: fc.constant("grant" as const), stream: fc.nat({ max: 2 }), count: fc.integer({ min: 0, max: 300 }) }),
    fc.record({ kind: fc.constant("turn" as const), stream: fc.constant(0), count: fc.constant(0) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(action, { maxLength: 40 }), async (actions) => {
      const channel = pair();
      const streams = [await drained(channel), await drained(channel), await drained(channel)];
      const wanted: number[][] = [[], [], []], granted = [0, 0, 0], sending: Array<Promise<void>> = [];
      const check = () =>
        streams.forEach(({ id }, at) => {
          const bytes = channel.sent.get(id) ?? [];
          assert.ok(bytes.length <= (granted[at] ?? 0), `${bytes.length} of ${granted[at]}`);
          assert.deepEqual(bytes, wanted[at]?.slice(0, bytes.length));
        });
      for (const { kind, stream: at, count } of actions) {
        const stream = streams[at];
        assert.ok(stream);
        if (kind === "send") {
          const bytes = Uint8Array.from({ length: count }, (_, position) => (wanted[at]?.length ?? 0) + position & 0xff);
          wanted[at]?.push(...bytes);
          sending.push(stream.send(bytes, DATA_FLAG.body));
        } else if (kind === "grant") {
          granted[at] = (granted[at] ?? 0) + count;
          channel.say(stream.id, KIND.credit, encodeCredit(count));
        }
        await turn();
        check();
      }
      for (const [at, stream] of streams.entries()) {
        granted[at] = Infinity;
        channel.say(stream.id, KIND.credit, encodeCredit(100_000));
      }
      await settled(Promise.all(sending), "every sender");
      await turn();
      check();
      assert.deepEqual(streams.map(({ id }) => channel.sent.get(id)?.length), wanted.map(({ length }) => length));
    }),
    { numRuns: 60 },
  );
});

test("mux: any bytes from the peer give answers or a CommunicationError, and nothing stays open after it", async () => {
  const piece = fc.oneof(
    fc.uint8Array({ maxLength: 30 }),
    fc.record({
      stream: fc.constantFrom(0, 1, 2, 3, 0xffff_ffff),
      kind: fc.constantFrom(...Object.values(KIND)),
      flags: fc.nat({ max: 4 }),
      payload: fc.uint8Array({ maxLength: 8 }),
    }).map(encodeFrame),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { maxLength: 15 }), async (pieces) => {
      const { mux, pipe } = pair();
      const answers = [mux.open({}), mux.open({})].map((stream) => stream.answer);
      for (const bytes of pieces) pipe.push(bytes);
      pipe.push(null);
      for (const end of await settled(Promise.allSettled(answers), "every answer")) {
        if (end.status === "rejected") assert.ok(end.reason instanceof CommunicationError, String(end.reason));
      }
      assert.ok(mux.closed.reason instanceof CommunicationError);
    }),
    { numRuns: 200 },
  );
});
