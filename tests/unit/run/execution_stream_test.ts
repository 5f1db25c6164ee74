/** Execution stream: events in order, a guest held back while nobody comes, loops that are left early. */
import assert from "node:assert/strict";
import test from "node:test";
import { InputValidationError, OutcomeUnknownError } from "../../../src/base/errors.ts";
import { DATA_FLAG, decodeCredit, type Frame, KIND } from "../../../src/channel/wire.ts";
import type { ExecutionEvent } from "../../../src/mod.ts";
import { json, type Peer, rejectsWith, REPLY } from "../../support/guest_peer.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { openSessionPeer } from "../../support/session_peer.ts";
import { eventually, settled, sleep } from "../../support/waiting.ts";

const bytes = (text: string) => new TextEncoder().encode(text);
function display(value: unknown): Uint8Array {
  const content = json(value), whole = new Uint8Array(4 + content.length);
  new DataView(whole.buffer).setUint32(0, content.length, true);
  whole.set(content, 4);
  return whole;
}
const stopping = (frame: Frame, peer: Peer) => {
  if (frame.kind === KIND.cancel) peer.send(frame.stream, KIND.result, json({ ...REPLY, exitCode: 130 }));
};

test("stream: output, display data and the result come in order, each once", async (t) => {
  const { session } = await openSessionPeer(t, {
    onFrame: (frame, peer) => {
      if (frame.kind !== KIND.data) return;
      peer.send(1, KIND.data, bytes("out"), DATA_FLAG.stdout);
      peer.send(1, KIND.data, display({ "text/plain": "shown" }), DATA_FLAG.display);
      peer.send(1, KIND.data, bytes("err"), DATA_FLAG.stderr);
      peer.send(1, KIND.data, Uint8Array.of(0xc3), DATA_FLAG.stdout);
      peer.send(1, KIND.result, json(REPLY));
    },
  });
  const events: ExecutionEvent[] = [];
  for await (const event of session.stream("x")) events.push(event);
  const result = events.pop();
  assert.deepEqual(events, [
    { type: "stdout", text: "out" },
    { type: "display", data: { "text/plain": "shown" } },
    { type: "stderr", text: "err" },
    { type: "stdout", text: "\ufffd" },
  ]);
  assert.ok(result?.type === "result");
  assert.deepEqual([result.result.stdout, result.result.results], ["out\ufffd", [{ "text/plain": "shown" }]]);
});

test("stream: nothing is sent before the first event is asked for", async (t) => {
  const { session, received } = await openSessionPeer(t, { onFrame: stopping });
  const stream = session.stream("x");
  await sleep(10);
  assert.equal(received.length, 0);
  const next = stream.next();
  await eventually("it was sent", () => received.length > 0);
  await stream.return();
  assert.equal((await next).done, true);
});

test("stream: a loop that does not come back holds the guest at its credit, and goes on when it does", async (t) => {
  const { session, peer, received } = await openSessionPeer(t);
  const stream = session.stream("x"), first = stream.next();
  for (let count = 0; count < 4; count++) peer.send(1, KIND.data, new Uint8Array(65_536).fill(97), DATA_FLAG.stdout);
  await first;
  await sleep(20);
  const granted = () => received.filter(({ kind }) => kind === KIND.credit).reduce((sum, { payload }) => sum + decodeCredit(payload), 0);
  assert.equal(granted(), 0);
  let got = 0;
  const taking = (async () => {
    for await (const event of stream) if (event.type === "stdout") got += event.text.length;
  })();
  await eventually("credit came", () => granted() > 0);
  peer.send(1, KIND.result, json(REPLY));
  await settled(taking, "the loop");
  assert.ok(got > 3 * 65_536, String(got));
});

test("stream: leaving the loop interrupts the code, waits until it has stopped, and the session goes on", async (t) => {
  const { session, received } = await openSessionPeer(t, {
    onFrame: (frame, peer) => {
      stopping(frame, peer);
      if (frame.kind !== KIND.data) return;
      if (frame.stream === 1) peer.send(1, KIND.data, bytes("x"), DATA_FLAG.stdout);
      else peer.send(frame.stream, KIND.result, json(REPLY));
    },
  });
  for await (const event of session.stream("endless")) {
    assert.equal(event.type, "stdout");
    break;
  }
  assert.ok(received.some(({ kind }) => kind === KIND.cancel));
  assert.equal((await session.exec("next")).exitCode, 0);
});

test("stream: it can be left while an event is awaited, before it starts, and twice", async (t) => {
  const { session } = await openSessionPeer(t, { onFrame: stopping });
  const stream = session.stream("x"), next = stream.next();
  await rejectsWith(stream.next(), InputValidationError, /another call of next/);
  await settled(stream.return(), "the return");
  assert.deepEqual([await next, await stream.next(), await stream.return()].map(({ done }) => done), [true, true, true]);
  const unused = session.stream("x");
  await unused.return();
  assert.equal((await unused.next()).done, true);
  assert.equal(session.execCount, 1);
});

test("stream: the caller's signal ends it with its reason, after what came before", async (t) => {
  const controller = new AbortController(), reason = new Error("enough");
  const { session, peer } = await openSessionPeer(t, { onFrame: stopping });
  const stream = session.stream("x", { signal: controller.signal }), first = stream.next();
  peer.send(1, KIND.data, bytes("x"), DATA_FLAG.stdout);
  assert.equal((await first).done, false);
  controller.abort(reason);
  await assert.rejects(settled(stream.next(), "the abort"), (error) => error === reason);
  assert.equal((await stream.next()).done, true);
  await assert.rejects(session.stream("x", { signal: controller.signal }).next(), (error) => error === reason);
});

test("stream: a lost VM is told once", async (t) => {
  const { session, peer } = await openSessionPeer(t);
  const stream = session.stream("x"), next = stream.next();
  peer.pipe.destroy();
  await rejectsWith(next, OutcomeUnknownError);
  assert.equal((await stream.next()).done, true);
});

noLeftovers();
