/** Guest: standard input, held consumers and assist of executions, over a pipe whose other end the test is. */
import assert from "node:assert/strict";
import test from "node:test";
import { OutcomeUnknownError } from "../../../src/base/errors.ts";
import { DATA_FLAG, encodeCredit, KIND } from "../../../src/channel/wire.ts";
import { connect, json, parsed, PATIENT, quiet, rejectsWith, REPLY, REQUEST } from "../../support/guest_peer.ts";
import { eventually, settled, sleep } from "../../support/waiting.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

test("guest: standard input follows the code, and its end the input", async () => {
  const { channel, received } = connect((frame, peer) => {
    if (frame.kind === KIND.end) peer.send(frame.stream, KIND.result, json(REPLY));
  });
  const stdin = async function* () {
    yield bytes("one");
    yield bytes("two");
  };
  await channel.exec({ ...PATIENT, code: "c", env: { A: "1" }, stdin: stdin() }, quiet);
  assert.equal(parsed(received[0]).stdin, true);
  assert.deepEqual(received.slice(1).map(({ payload }) => new TextDecoder().decode(payload)), ["A=1\0c", "one", "two", ""]);
});

test("guest: an execution that ends first ends its input, which may wait for what never comes", async () => {
  let isEnded = false;
  const { channel, received } = connect((frame, peer) => {
    if (frame.kind === KIND.data) peer.send(frame.stream, KIND.result, json(REPLY));
  });
  const stdin = {
    [Symbol.asyncIterator]: () => ({
      next: () => new Promise<IteratorResult<Uint8Array>>(() => {}),
      return: async () => {
        isEnded = true;
        return { done: true as const, value: undefined };
      },
    }),
  };
  await settled(channel.exec({ ...PATIENT, stdin }, quiet), "the execution");
  assert.equal(isEnded, true);
  assert.equal(received.some(({ kind }) => kind === KIND.end), false);
});

test("guest: input that fails ends the execution, and is what the caller gets", async () => {
  const reason = new Error("the input broke");
  const { channel } = connect((frame, peer) => {
    if (frame.kind === KIND.cancel) peer.send(frame.stream, KIND.result, json({ ...REPLY, exitCode: 130 }));
  });
  // deno-lint-ignore require-yield
  const stdin = async function* (): AsyncGenerator<Uint8Array> {
    throw reason;
  };
  await assert.rejects(settled(channel.exec({ ...PATIENT, stdin: stdin() }, quiet), "the execution"), (error) => error === reason);
  assert.equal(channel.closed.aborted, false);
});

test("guest: a consumer that takes its time does not make the guest late", async () => {
  const { channel, peer } = connect();
  const taken = Promise.withResolvers<void>();
  const running = channel.exec(REQUEST, { onOutput: () => taken.promise });
  peer.send(1, KIND.data, bytes("x"), DATA_FLAG.stdout);
  await sleep(150); // Many times what the guest is given.
  assert.equal(channel.closed.aborted, false);
  taken.resolve();
  peer.send(1, KIND.result, json(REPLY));
  assert.equal((await settled(running, "the execution")).exitCode, 0);
});

test("guest: silence after the consumer has taken all is a loss, and ends the channel", async () => {
  const { channel, peer } = connect();
  const running = channel.exec(REQUEST, { onOutput: () => sleep(60) });
  peer.send(1, KIND.data, bytes("x"), DATA_FLAG.stdout);
  await rejectsWith(running, OutcomeUnknownError, /no answer from the guest/);
  assert.match(channel.closed.reason.message, /no answer after/);
});

test("guest: an abort takes what a consumer holds, so that the guest can answer", async () => {
  const controller = new AbortController(), reason = new Error("enough");
  let isHeld = true;
  const { channel, peer } = connect((frame, other) => {
    if (frame.kind === KIND.credit) isHeld = false;
    if (frame.kind === KIND.cancel) void eventually("credit came", () => !isHeld).then(() => other.send(1, KIND.result, json(REPLY)));
  }, { killMs: 5, cancelMs: 5, resultMs: 5000 });
  const running = channel.exec(PATIENT, { onOutput: () => new Promise(() => {}) }, controller.signal);
  for (let count = 0; count < 4; count++) peer.send(1, KIND.data, new Uint8Array(65_536), DATA_FLAG.stdout);
  await sleep(5);
  controller.abort(reason);
  await assert.rejects(settled(running, "the abort"), (error) => error === reason);
  assert.equal(channel.closed.aborted, false);
});

test("guest: a question about code is asked as such", async () => {
  const { channel, received } = connect((frame, peer) => {
    if (frame.kind === KIND.data) peer.send(frame.stream, KIND.result, json({ ...REPLY, value: "{}" }));
    if (frame.kind === KIND.data) peer.send(frame.stream, KIND.credit, encodeCredit(1));
  });
  assert.equal((await channel.exec({ ...PATIENT, assist: "is_complete" }, quiet)).value, "{}");
  assert.equal(parsed(received[0]).assist, "is_complete");
});
