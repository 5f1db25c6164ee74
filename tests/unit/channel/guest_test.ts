/** Guest: executions, calls, aborts and silence, over a pipe whose other end the test is. */
import assert from "node:assert/strict";
import test from "node:test";
import { CommunicationError, GuestAgentError, OutcomeUnknownError } from "../../../src/base/errors.ts";
import { STREAM_CREDIT_BYTES, STREAMS_MAX } from "../../../src/base/limits.ts";
import { DATA_FLAG, KIND } from "../../../src/channel/wire.ts";
import {
  ANNOUNCEMENT,
  answering,
  connect,
  IDENTITY,
  json,
  parsed,
  PATIENT,
  quiet,
  rejectsWith,
  REPLY,
  REQUEST,
} from "../../support/guest_peer.ts";
import { eventually, settled, sleep } from "../../support/waiting.ts";

test("guest: an execution sends method, limits, environment and code, and gives output and reply", async () => {
  const output: Array<[string, string]> = [];
  const { channel, received } = connect((frame, peer) => {
    if (frame.kind !== KIND.data) return;
    peer.send(frame.stream, KIND.data, new TextEncoder().encode("out"), DATA_FLAG.stdout);
    peer.send(frame.stream, KIND.data, new TextEncoder().encode("err"), DATA_FLAG.stderr);
    peer.send(frame.stream, KIND.result, json({ ...REPLY, exitCode: 255, value: "2" }));
  });
  const reply = await channel.exec({ code: "1 + 1 ü", env: { A: "1", B: "é" }, timeoutMs: 1000 }, {
    onOutput: (name, bytes) => void output.push([name, new TextDecoder().decode(bytes)]),
  });
  assert.deepEqual(reply, {
    exitCode: 255,
    timedOut: false,
    executionUs: 812,
    isReset: false,
    outputLimit: undefined,
    value: "2",
    isDisplayMalformed: false,
  });
  assert.deepEqual(output, [["stdout", "out"], ["stderr", "err"]]);
  const body = received.filter(({ kind }) => kind === KIND.data).map(({ payload }) => new TextDecoder().decode(payload)).join("");
  assert.equal(body, "A=1\0B=é\x001 + 1 ü");
  assert.deepEqual(parsed(received[0]), {
    method: "exec",
    envBytes: 9,
    codeBytes: 8,
    timeoutMs: 1000,
    stdin: false,
    final: false,
    stdoutLimit: 1_000_000,
    stderrLimit: 100_000,
  });
});

for (
  const [name, reply] of Object.entries({
    timedOut: { exitCode: -1, timedOut: true },
    reset: { reset: true },
    limit: { outputLimit: "stderr" },
  })
) {
  test(`guest: a reply with ${name} is read`, async () => {
    const { channel } = connect(answering(json({ ...REPLY, ...reply, extra: "ignored" })));
    const got = await channel.exec(REQUEST, quiet);
    assert.deepEqual([got.timedOut, got.isReset, got.outputLimit], [
      name === "timedOut",
      name === "reset",
      name === "limit" ? "stderr" : undefined,
    ]);
  });
}

test("guest: ping, quiesce and interrupt", async () => {
  const { channel, received } = connect((frame, peer) => peer.send(frame.stream, KIND.result, json({ interrupted: frame.stream === 4 })));
  await channel.ping();
  await channel.quiesce();
  await channel.rehearseNetwork();
  assert.deepEqual([await channel.interrupt(), await channel.interrupt()], [true, false]);
  assert.deepEqual(received.map((frame) => parsed(frame).method), ["ping", "quiesce", "net", "interrupt", "interrupt"]);
});

test("guest: interrupt believes nothing but true", async () => {
  for (const interrupted of [1, "true", null, {}]) {
    assert.equal(await connect(answering(json({ interrupted }))).channel.interrupt(), false);
  }
  for (const payload of [new Uint8Array(0), json(null), json([])]) {
    await rejectsWith(connect(answering(payload)).channel.interrupt(), GuestAgentError);
  }
});

test("guest: the announcement is passed on, bounded", async () => {
  const { channel, peer } = connect();
  peer.send(0, KIND.hello, json({ ...ANNOUNCEMENT, language: "x".repeat(60_000) }));
  const announced = await channel.announced();
  assert.deepEqual([announced.agent, announced.language.length], ["0.1.0", 64]);
});

test("guest: hello tells identity, clock and entropy, and is acknowledged by that id alone", async () => {
  const { channel, peer, received } = connect();
  const greeting = channel.hello(IDENTITY);
  let isOver = false;
  void greeting.then(() => isOver = true);
  await sleep(5);
  const said = parsed(received[0]);
  assert.deepEqual([said.protocol, said.id, said.entropy, said.silenceMs], [1, "vm-1", "ab".repeat(64), 0]);
  assert.ok(Number.isSafeInteger(said.clockUs) && Math.abs(said.clockUs / 1000 - Date.now()) < 60_000, String(said.clockUs));
  peer.send(0, KIND.hello, json({ protocol: 1, id: "vm-2" }));
  await sleep(5);
  assert.equal(isOver, false, "another machine's acknowledgement is none");
  peer.send(0, KIND.hello, json({ protocol: 1, id: "vm-1" }));
  await settled(greeting, "the acknowledgement");
});

test("guest: a thousand HELLOs are one", async () => {
  const { channel, peer } = connect();
  for (let count = 0; count < 1000; count++) peer.send(0, KIND.hello, json({ ...ANNOUNCEMENT, agent: String(count) }));
  assert.equal((await channel.announced()).agent, "0");
  assert.equal(channel.closed.aborted, false);
});

test("guest: no answer to an execution is an OutcomeUnknownError once the guest's own time is over", async () => {
  const { channel } = connect();
  const running = channel.exec(REQUEST, quiet);
  await rejectsWith(running, OutcomeUnknownError, /no answer from the guest 40 ms after it was sent$/);
  assert.equal(await running.catch((error) => error.retry), "unknown");
});

test("guest: output without end does not put the deadline off", async () => {
  let isOver = false;
  const { channel, peer } = connect();
  const running = channel.exec(REQUEST, quiet).finally(() => isOver = true);
  const flood = async () => {
    while (!isOver) {
      peer.send(1, KIND.data, new Uint8Array(1000), DATA_FLAG.stdout);
      await sleep(1);
    }
  };
  await Promise.all([rejectsWith(running, OutcomeUnknownError), flood()]);
});

test("guest: an abort interrupts the code and gives the signal's reason once it has stopped", async () => {
  const controller = new AbortController(), reason = new Error("enough");
  const { channel, received } = connect((frame, peer) => {
    if (frame.kind === KIND.cancel) peer.send(frame.stream, KIND.result, json({ ...REPLY, exitCode: 130 }));
  });
  const running = channel.exec(PATIENT, quiet, controller.signal);
  await sleep(5);
  controller.abort(reason);
  await assert.rejects(settled(running, "the abort"), (error) => error === reason);
  assert.deepEqual(parsed(received.find(({ kind }) => kind === KIND.cancel)), { graceMs: 5 });
  assert.equal(channel.closed.aborted, false, "the session lives");
  await assert.rejects(channel.exec(PATIENT, quiet, controller.signal), (error) => error === reason);
});

test("guest: an abort that the guest ignores gives the reason all the same, and the channel is lost", async () => {
  const controller = new AbortController(), reason = new Error("enough");
  const { channel } = connect();
  const running = channel.exec(PATIENT, quiet, controller.signal);
  controller.abort(reason);
  await assert.rejects(settled(running, "the abort"), (error) => error === reason);
  assert.equal(channel.closed.aborted, true);
});

test("guest: waiting for HELLO, its acknowledgement or an answer ends with the signal", async () => {
  const { channel } = connect();
  const reason = new Error("enough"), controller = new AbortController();
  const { signal } = controller;
  const waiting: Array<Promise<unknown>> = [
    channel.announced(signal),
    channel.hello(IDENTITY, signal),
    channel.ping(signal),
    channel.quiesce(signal),
    channel.interrupt(signal),
  ];
  controller.abort(reason);
  for (const promise of waiting) await assert.rejects(settled(promise, "the abort"), (error) => error === reason);
});

test("guest: no more streams than the limit are open at once, and the next is refused before it is sent", async () => {
  const { channel } = connect();
  const waiting = Array.from({ length: STREAMS_MAX }, () => channel.exec(PATIENT, quiet));
  await rejectsWith(channel.exec(PATIENT, quiet), CommunicationError, /at most 64/);
  channel.close();
  for (const promise of waiting) await rejectsWith(promise, OutcomeUnknownError, /the VM was lost/);
});

test("guest: calls that were given up take no more streams than others, and give them back when they are answered", async () => {
  const { channel, peer, received } = connect(), reason = new Error("enough");
  const opens = () => received.filter(({ kind }) => kind === KIND.open);
  for (let count = 0; count < 2 * STREAMS_MAX; count++) {
    const controller = new AbortController(), { signal } = controller;
    const calls: Promise<unknown>[] = [
      channel.ping(signal),
      channel.interrupt(signal),
      channel.files.rename("a", { to: "b", signal }),
      channel.processes.list(signal),
    ];
    await null;
    controller.abort(reason);
    for (const call of calls) await assert.rejects(settled(call, "the abort"), (error) => error === reason);
  }
  assert.ok(opens().length <= 16, `${opens().length} streams are open`);
  const waiting = channel.ping();
  for (const { stream } of opens()) peer.send(stream, KIND.result, json({}));
  await eventually("it is its turn", () => parsed(opens().at(-1)).method === "ping");
  peer.send(opens().at(-1)!.stream, KIND.result, json({}));
  await settled(waiting, "the next ping");
});

test("guest: answers of one execution do not reach the next", async () => {
  const { channel, peer } = connect();
  const first = channel.exec(PATIENT, quiet);
  await sleep(1);
  for (let count = 0; count < 3; count++) peer.send(1, KIND.result, json({ ...REPLY, exitCode: 1 }));
  assert.equal((await first).exitCode, 1);
  const output: string[] = [];
  const second = channel.exec(PATIENT, { onOutput: (name) => void output.push(name) });
  await sleep(1);
  peer.send(1, KIND.data, new Uint8Array(1), DATA_FLAG.stdout);
  peer.send(1, KIND.result, json({ ...REPLY, exitCode: 2 }));
  peer.send(2, KIND.result, json({ ...REPLY, exitCode: 3 }));
  assert.deepEqual([(await second).exitCode, output], [3, []]);
});

test("guest: close ends every call once, and may be called again", async () => {
  const { channel, peer } = connect();
  const calls = [channel.announced(), channel.ping()];
  channel.close();
  channel.close();
  for (const call of calls) await rejectsWith(call, CommunicationError);
  peer.send(0, KIND.hello, json(ANNOUNCEMENT));
  peer.raw(new Uint8Array(100));
  await sleep(5);
});

test("guest: code larger than the credit waits for it, and no more is ever sent than was granted", async () => {
  let granted = STREAM_CREDIT_BYTES, got = 0;
  const code = "x".repeat(1_048_576);
  const { channel } = connect((frame, peer) => {
    if (frame.kind !== KIND.data) return;
    got += frame.payload.length;
    assert.ok(got <= granted, `${got} of ${granted}`);
    if (got === code.length) return peer.send(frame.stream, KIND.result, json(REPLY));
    if (got === granted) {
      granted += 100_000;
      const credit = new Uint8Array(4);
      new DataView(credit.buffer).setUint32(0, 100_000, true);
      peer.send(frame.stream, KIND.credit, credit);
    }
  });
  await settled(channel.exec({ code, env: {}, timeoutMs: 60_000 }, quiet), "the large program");
  assert.equal(got, code.length);
});

test("guest: an exchange moves bytes both ways, and tells what the guest counted; an abort cancels it", async () => {
  let counted = 0;
  const { channel, received } = connect((frame, peer) => {
    if (frame.kind === KIND.data) counted += frame.payload.length;
    if (frame.kind === KIND.cancel) peer.send(frame.stream, KIND.error, json({ code: "bad_request", message: "cancelled" }));
    if (frame.kind !== KIND.end) return;
    peer.send(frame.stream, KIND.data, new Uint8Array(7), DATA_FLAG.stdout);
    peer.send(frame.stream, KIND.result, json({ receivedBytes: counted }));
  });
  const body = async function* () {
    yield new Uint8Array(100_000);
    yield new Uint8Array(5);
  };
  assert.equal(await channel.exchange({ body: body(), receiveBytes: 7 }), 100_005);
  assert.deepEqual(parsed(received[0]), { method: "ping", sendBytes: 7, body: true });
  const reason = new Error("enough"), controller = new AbortController();
  const waiting = channel.exchange({ receiveBytes: 1 }, controller.signal);
  controller.abort(reason);
  await assert.rejects(settled(waiting, "the exchange"), reason);
  assert.equal(received.at(-1)?.kind, KIND.cancel);
});

test("guest: the network's message, certificates and END leave before anything that is sent later", async () => {
  const { channel, received } = connect((frame, peer) => {
    if (frame.kind === KIND.end) peer.send(frame.stream, KIND.result, json({}));
    if (frame.kind === KIND.open && parsed(frame).method === "ping") peer.send(frame.stream, KIND.result, json({}));
  });
  const ca = new Uint8Array(STREAM_CREDIT_BYTES).fill(65);
  const setUp = channel.network({ outbound: true, ipv6: true, ca }), later = channel.ping();
  await settled(Promise.all([setUp, later]), "both calls");
  assert.deepEqual(parsed(received[0]), { method: "net", outbound: true, caBytes: ca.length, ipv6: true });
  const bytes = received.filter(({ kind, stream }) => kind === KIND.data && stream === 1).reduce(
    (sum, { payload }) => sum + payload.length,
    0,
  );
  assert.equal(bytes, ca.length);
  assert.deepEqual(received.slice(-2).map(({ kind, stream }) => [kind, stream]), [[KIND.end, 1], [KIND.open, 2]]);
  await settled(channel.network({ outbound: false }), "a second call");
  assert.deepEqual(parsed(received.find(({ stream }) => stream === 3)), { method: "net", outbound: false, caBytes: 0, ipv6: false });
  await assert.rejects(channel.network({ outbound: true, ca: new Uint8Array(STREAM_CREDIT_BYTES + 1) }), RangeError);
});
