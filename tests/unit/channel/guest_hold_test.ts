/** Guest hold: what both sides say, and do not say, while a machine is saved. */
import assert from "node:assert/strict";
import test from "node:test";
import { CommunicationError, GuestAgentError } from "../../../src/base/errors.ts";
import { type Frame, KIND } from "../../../src/channel/wire.ts";
import { connect, IDENTITY, json, parsed, PATIENT, type Peer, quiet, REPLY } from "../../support/guest_peer.ts";
import { eventually, settled, sleep } from "../../support/waiting.ts";

/** An agent that answers `quiesce` with `answer`, pings and HELLO at once, and executions with success. */
const agent = (answer: unknown, kind: typeof KIND.result | typeof KIND.error = KIND.result) => (frame: Frame, peer: Peer) => {
  if (frame.kind === KIND.hello) return peer.send(0, KIND.hello, json({ protocol: 1, id: parsed(frame).id }));
  if (frame.kind !== KIND.open) return;
  const { method } = parsed(frame);
  if (method === "quiesce") peer.send(frame.stream, kind, json(answer));
  else peer.send(frame.stream, KIND.result, json(method === "exec" ? REPLY : {}));
};
const methodsOf = (frames: readonly Frame[]) =>
  frames.filter(({ kind }) => kind === KIND.hello || kind === KIND.open).map((frame) =>
    frame.kind === KIND.hello ? `hello ${parsed(frame).id}` : parsed(frame).method
  );

test("guest: nothing is sent between hold and resume, and what waited follows the same HELLO as before", async () => {
  const { channel, received } = connect(agent({ held: true }));
  await channel.hello(IDENTITY);
  await channel.hold();
  const waiting = [channel.ping(), channel.exec(PATIENT, quiet), channel.ping()];
  await sleep(20); // For what must not be sent meanwhile.
  assert.deepEqual(methodsOf(received), ["hello vm-1", "quiesce"]);
  assert.deepEqual(parsed(received[1]), { method: "quiesce", hold: true });
  await channel.resume(new Uint8Array(64).fill(1));
  await settled(Promise.all(waiting), "what waited");
  assert.deepEqual(methodsOf(received).slice(2), ["hello vm-1", "ping", "exec", "ping"]);
  assert.equal(parsed(received[2]).entropy, "01".repeat(64));
});

test("guest: what was asked for before a hold is sent before it", async () => {
  const { channel, received } = connect(agent({ held: true }));
  await channel.hello(IDENTITY);
  const before = channel.ping();
  await channel.hold();
  await before;
  assert.deepEqual(methodsOf(received), ["hello vm-1", "ping", "quiesce"]);
});

for (
  const [what, answer, kind] of [
    ["a refusal", { code: "busy", message: "Cannot quiesce" }, KIND.error],
    ["an agent that knows no hold", {}, KIND.result],
    ["nonsense", { held: "yes" }, KIND.result],
  ] as const
) {
  test(`guest: ${what} in answer to a hold is an error, and both sides go on without a HELLO`, async () => {
    const { channel, received } = connect(agent(answer, kind));
    await channel.hello(IDENTITY);
    const holding = channel.hold();
    const waiting = channel.ping();
    await assert.rejects(settled(holding, "the hold"), (error) => error instanceof GuestAgentError);
    await settled(waiting, "what waited");
    assert.deepEqual(methodsOf(received), ["hello vm-1", "quiesce", "ping"]);
  });
}

test("guest: a channel that is lost while held ends the hold and what waits", async () => {
  const { channel, peer } = connect((frame) => {
    if (frame.kind === KIND.open) queueMicrotask(() => peer.pipe.destroy());
  });
  const holding = channel.hold();
  const waiting = channel.ping();
  for (const call of [holding, waiting]) await assert.rejects(settled(call, "the call"), CommunicationError);
  await eventually("it is closed", () => channel.closed.aborted);
});

test("guest: calls on a channel that is closed for a reason end with that reason", async () => {
  const { channel } = connect();
  const waiting = channel.ping(), reason = new CommunicationError("Cannot go on: the session was rolled back");
  channel.close(reason);
  await assert.rejects(settled(waiting, "the call"), (error) => error === reason);
});
