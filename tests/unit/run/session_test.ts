/** Session: the queue of executions, what runs beside it, aborts, losses and ends, with a guest that the test plays. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import process from "node:process";
import test from "node:test";
import {
  CommunicationError,
  EnvVarValidationError,
  ExecutionFailedError,
  GuestAgentError,
  InputValidationError,
  OutcomeUnknownError,
  OutputLimitError,
  SandboxFileError,
  SessionClosedError,
  VmConfigError,
  VmTimeoutError,
} from "../../../src/base/errors.ts";
import { DISPLAY_OBJECTS_MAX } from "../../../src/base/limits.ts";
import { DATA_FLAG, type Frame, KIND } from "../../../src/channel/wire.ts";
import type { ExecOptions } from "../../../src/mod.ts";
import { json, parsed, type Peer, rejectsWith, REPLY } from "../../support/guest_peer.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { BackgroundOutput } from "../../../src/run/background_output.ts";
import { openSessionPeer } from "../../support/session_peer.ts";
import { eventually, settled, sleep } from "../../support/waiting.ts";

const opens = (frames: readonly Frame[]) => frames.filter(({ kind }) => kind === KIND.open);
const codes = (frames: readonly Frame[]) =>
  frames.filter(({ kind }) => kind === KIND.data).map(({ payload }) => new TextDecoder().decode(payload));
/** Answers every execution at once, with `reply`. */
const answering = (reply: Record<string, unknown> = {}) => (frame: Frame, peer: Peer) => {
  if (frame.kind === KIND.data) peer.send(frame.stream, KIND.result, json({ ...REPLY, ...reply }));
};

test("session: executions are sent one after the other, in the order of the calls, whatever becomes of each", async (t) => {
  const { session, peer, received } = await openSessionPeer(t);
  const running = ["a", "b", "c"].map((code) => session.exec(code).catch((error) => error));
  for (const [at, exitCode] of [[1, 0], [2, 9], [3, 0]] as const) {
    await eventually(`${at} were sent`, () => codes(received).length === at);
    await sleep(5);
    assert.deepEqual([codes(received).length, session.execCount], [at, at]);
    peer.send(at, KIND.result, json({ ...REPLY, exitCode }));
  }
  assert.deepEqual((await Promise.all(running)).map(({ exitCode }) => exitCode), [0, 9, 0]);
  assert.deepEqual(codes(received), ["a", "b", "c"]);
});

test("session: an interrupt made after an execution is sent after it", async (t) => {
  const { session, received } = await openSessionPeer(t, {
    onFrame: (frame, peer) => {
      if (frame.kind !== KIND.open || parsed(frame).method !== "interrupt") return;
      peer.send(frame.stream, KIND.result, json({ interrupted: true }));
      peer.send(1, KIND.result, json({ ...REPLY, exitCode: 130 }));
    },
  });
  const running = session.exec("x");
  assert.equal(await session.interrupt(), true);
  assert.equal((await running).exitCode, 130);
  assert.deepEqual(opens(received).map((frame) => parsed(frame).method), ["exec", "interrupt"]);
});

test("session: an interrupt of code that waits for a CPU slot is sent when the code was, and at once when that is given up", async (t) => {
  const slot = Promise.withResolvers<Disposable>(), first = [slot.promise];
  const never = (signal: AbortSignal | undefined) =>
    new Promise<never>((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
  const { session, received } = await openSessionPeer(t, {
    occupy: (signal) => first.shift() ?? never(signal),
    onFrame: (frame, peer) => {
      if (frame.kind !== KIND.open || parsed(frame).method !== "interrupt") return;
      const isRunning = opens(received).length === 2;
      peer.send(frame.stream, KIND.result, json({ interrupted: isRunning }));
      if (isRunning) peer.send(1, KIND.result, json({ ...REPLY, exitCode: 130 }));
    },
  });
  const running = session.exec("x"), interrupted = session.interrupt();
  await sleep(5);
  assert.deepEqual(received, [], "neither was sent yet");
  slot.resolve({ [Symbol.dispose]() {} });
  assert.deepEqual([await interrupted, (await running).exitCode], [true, 130]);
  assert.deepEqual(opens(received).map((frame) => parsed(frame).method), ["exec", "interrupt"]);
  const controller = new AbortController(), givenUp = new Error("enough");
  const waiting = session.exec("y", { signal: controller.signal }), late = session.interrupt();
  controller.abort(givenUp);
  await assert.rejects(waiting, (error) => error === givenUp);
  assert.equal(await settled(late, "the interrupt"), false);
});

test("session: a thousand interrupts and pings at once all come back", async (t) => {
  const { session } = await openSessionPeer(t, {
    onFrame: (frame, peer) => peer.send(frame.stream, KIND.result, json({ interrupted: false })),
  });
  const calls = Array.from({ length: 1000 }, (_, at) => at % 2 ? session.interrupt() : session.ping());
  const answers = await settled(Promise.all(calls), "all of them");
  assert.ok(answers.every((answer, at) => at % 2 ? answer === false : typeof answer === "number"));
});

test("session: a result has the times of its execution, and no boot", async (t) => {
  const { session } = await openSessionPeer(t, { onFrame: answering({ value: "2", executionUs: 1500 }) });
  const result = await session.exec("1 + 1");
  assert.deepEqual([result.value, result.executionTimeMs, result.timing.bootMs, result.start, result.warmPoolHit], [
    "2",
    2,
    0,
    "template",
    false,
  ]);
  assert.ok(result.timing.setupMs >= 1 && result.timing.totalMs >= result.timing.executeMs);
  assert.equal(result.stateReset, false);
  const reset = await openSessionPeer(t, { onFrame: answering({ exitCode: 137, reset: true }) });
  assert.equal((await reset.session.exec("x")).stateReset, true);
  assert.deepEqual([session.language, session.exposedPorts, session.closed, typeof session.id], ["python", [], false, "string"]);
});

test("session: env, time-out, check and callbacks are the session's unless the execution says otherwise", async (t) => {
  const out: string[] = [];
  const { session, received } = await openSessionPeer(t, {
    request: { env: { A: "1", B: "1" }, timeoutSeconds: 7, check: true, onStdout: (text) => void out.push(`session ${text}`) },
    onFrame: (frame, peer) => {
      if (frame.kind !== KIND.data) return;
      peer.send(frame.stream, KIND.data, new TextEncoder().encode("x"), DATA_FLAG.stdout);
      peer.send(frame.stream, KIND.result, json({ ...REPLY, exitCode: 3 }));
    },
  });
  await rejectsWith(session.exec("c"), ExecutionFailedError);
  const options: ExecOptions = { env: { B: "2" }, timeoutSeconds: 9, check: false, onStdout: (text) => void out.push(`own ${text}`) };
  assert.equal((await session.exec("c", options)).exitCode, 3);
  assert.deepEqual(opens(received).map((frame) => parsed(frame).timeoutMs), [7000, 9000]);
  assert.deepEqual([codes(received), out], [["A=1\0B=1\0c", "A=1\0B=2\0c"], ["session x", "own x"]]);
});

test("session: check makes a time-out a VmTimeoutError, and passed caps are OutputLimitErrors; the session lives", async (t) => {
  const late = await openSessionPeer(t, { onFrame: answering({ exitCode: -1, timedOut: true }) });
  await rejectsWith(late.session.exec("c", { check: true }), VmTimeoutError);
  const much = await openSessionPeer(t, { onFrame: answering({ outputLimit: "stderr" }) });
  await rejectsWith(much.session.exec("c"), OutputLimitError);
  assert.deepEqual([late.session.closed, much.session.closed], [false, false]);
});

const BAD: ReadonlyArray<readonly [string, unknown[], new (...args: never[]) => Error]> = [
  ["no code", [], InputValidationError],
  ["white space", [" \n"], InputValidationError],
  ["NUL", ["a\0"], InputValidationError],
  ["code of 1,048,577 bytes", ["x".repeat(1_048_577)], InputValidationError],
  ["options that are none", ["x", 5], InputValidationError],
  ["an unknown option", ["x", { timeout: 5 }], VmConfigError],
  ["a time-out of 0", ["x", { timeoutSeconds: 0 }], InputValidationError],
  ["a time-out of 301", ["x", { timeoutSeconds: 301 }], InputValidationError],
  ["a signal that is none", ["x", { signal: {} }], InputValidationError],
  ["check of no kind", ["x", { check: "yes" }], InputValidationError],
  ["env with PATH", ["x", { env: { PATH: "/" } }], EnvVarValidationError],
  ["stdin that is a number", ["x", { stdin: 5 }], InputValidationError],
  ["stdin that is no Unicode", ["x", { stdin: "\ud800" }], InputValidationError],
  ["a callback that is none", ["x", { onStdout: "log" }], InputValidationError],
];
test("session: bad arguments are refused before anything is sent, and do not touch the session", async (t) => {
  const { session, received } = await openSessionPeer(t);
  for (const [name, args, type] of BAD) {
    const [code, options] = args as [string, ExecOptions];
    await assert.rejects(session.exec(code, options), (error) => error instanceof Error && error.constructor === type, name);
    assert.throws(() => session.stream(code, options), (error) => error instanceof Error && error.constructor === type, name);
  }
  for (const cursor of [-1, 2, 0.5, NaN]) await rejectsWith(session.complete("x", cursor), InputValidationError);
  await rejectsWith(session.isComplete(5 as unknown as string), InputValidationError);
  await rejectsWith(session.ping({ signal: 5 as unknown as AbortSignal }), InputValidationError);
  assert.deepEqual([received.length, session.execCount, session.closed], [0, 0, false]);
});

test("session: an aborted execution is interrupted, rejects with the reason, and the next one runs", async (t) => {
  const { session, received } = await openSessionPeer(t, {
    onFrame: (frame, peer) => {
      if (frame.kind === KIND.cancel) peer.send(frame.stream, KIND.result, json({ ...REPLY, exitCode: 130 }));
      if (frame.kind === KIND.data && frame.stream > 1) peer.send(frame.stream, KIND.result, json(REPLY));
    },
  });
  const controller = new AbortController(), reason = new Error("enough");
  const running = session.exec("x", { signal: controller.signal }), waiting = session.exec("y", { signal: controller.signal });
  controller.abort(reason);
  for (const call of [running, waiting]) await assert.rejects(settled(call, "the abort"), (error) => error === reason);
  await assert.rejects(session.exec("z", { signal: controller.signal }), (error) => error === reason);
  assert.equal((await session.exec("next")).exitCode, 0);
  assert.deepEqual([codes(received), session.closed], [["x", "next"], false], "what waited was never sent");
});

test("session: closed while it executes, what runs and what waits rejects, at once and for good", async (t) => {
  const { session, releases } = await openSessionPeer(t);
  const calls = [session.exec("x"), session.exec("y"), session.ping(), session.stat("f"), session.spawn("ls"), session.isComplete("x")];
  for (const call of calls) call.catch(() => {});
  await session.close();
  for (const call of calls) await rejectsWith(call, SessionClosedError, /^Cannot use the session: it was closed$/);
  await session.close();
  await session[Symbol.asyncDispose]();
  assert.deepEqual([session.closed, releases()], [true, 1]);
  for (const call of [() => session.exec("x"), () => session.interrupt(), () => session.readFile("f"), () => session.processes()]) {
    await rejectsWith(call(), SessionClosedError, /it was closed$/);
  }
  await rejectsWith(session.stream("x").next(), SessionClosedError);
});

for (
  const [how, lose] of [
    ["its process dies", (child: { pid: number }) => void process.kill(child.pid, "SIGKILL")],
    ["its channel breaks", (_: unknown, peer: Peer) => void peer.pipe.destroy()],
    ["its guest speaks nonsense", (_: unknown, peer: Peer) => peer.raw(new Uint8Array(64).fill(255))],
  ] as const
) {
  test(`session: when ${how}, what runs has an unknown outcome, what waits never ran, and the session is closed`, async (t) => {
    const { session, child, peer, releases } = await openSessionPeer(t);
    const running = session.exec("x"), waiting = session.exec("y"), reading = session.readFile("f");
    for (const call of [running, waiting, reading]) call.catch(() => {});
    lose(child, peer);
    await rejectsWith(running, OutcomeUnknownError);
    await rejectsWith(waiting, SessionClosedError, /its VM was lost/);
    assert.equal((await reading.catch((error) => error)).code, "SBX_COMMUNICATION");
    assert.equal(session.closed, true);
    await rejectsWith(session.exec("z"), SessionClosedError, /its VM was lost/);
    await session.close();
    assert.equal(releases(), 1);
  });
}

test("session: a guest that never answers is lost, and the session with it", async (t) => {
  const { session } = await openSessionPeer(t, { graces: { killMs: 5, cancelMs: 5, resultMs: 15 } });
  await rejectsWith(session.exec("x", { timeoutSeconds: 1 }), OutcomeUnknownError);
  await rejectsWith(session.exec("x"), SessionClosedError, /its VM was lost: Cannot reach the guest: no answer after/);
});

test("session: without use for its time it closes itself and says why", async (t) => {
  const { session, releases } = await openSessionPeer(t, { idleTimeoutSeconds: 0.05 });
  await eventually("it is closed", () => session.closed);
  await rejectsWith(session.exec("x"), SessionClosedError, /it was not used for 0.05 s/);
  assert.equal(releases(), 1);
});

test("session: it never closes itself while something runs or waits, or somebody is attached to a process", async (t) => {
  const { session, peer } = await openSessionPeer(t, {
    idleTimeoutSeconds: 0.05,
    onFrame: (frame, other) => {
      if (frame.kind === KIND.open && parsed(frame).method === "spawn") {
        other.send(frame.stream, KIND.data, json({ id: 1, pid: 2 }), DATA_FLAG.event);
      }
    },
  });
  const running = session.exec("x");
  await sleep(200);
  assert.equal(session.closed, false);
  const process = await session.spawn("sleep", ["100"]);
  peer.send(1, KIND.result, json(REPLY));
  await running;
  await sleep(200);
  assert.equal(session.closed, false);
  peer.send(2, KIND.result, json({ exitCode: 0 }));
  await process.wait();
  await eventually("it is closed", () => session.closed);
});

test("session: a call that races the idle time-out runs or is refused, and never hangs", async (t) => {
  const { session } = await openSessionPeer(t, { idleTimeoutSeconds: 0.02, onFrame: answering() });
  let ran = 0;
  for (let waitMs = 12; !session.closed; waitMs += 1) {
    await sleep(waitMs);
    const end = await settled(session.exec("x").catch((error) => error), "the call");
    if (end instanceof Error) assert.ok(end instanceof SessionClosedError, String(end));
    else ran += 1;
  }
  assert.ok(ran > 0);
});

test("session: questions about code take their turn, and bad answers are the guest's", async (t) => {
  const answers = new Map<string, unknown>([
    ["good", { start: 0, candidates: ["goods"] }],
    ["far", { start: 99, candidates: [] }],
    ["many", { start: 0, candidates: Array(1001).fill("x") }],
    ["none", null],
    ["done", { state: "complete", indent: "" }],
    ["odd", { state: "odd", indent: "" }],
  ]);
  const { session, received } = await openSessionPeer(t, {
    onFrame: (frame, peer) => {
      if (frame.kind !== KIND.data) return;
      const value = answers.get(new TextDecoder().decode(frame.payload));
      peer.send(frame.stream, KIND.result, json({ ...REPLY, value: value === undefined ? null : JSON.stringify(value) }));
    },
  });
  assert.deepEqual(await session.complete("good"), { start: 0, candidates: ["goods"] });
  assert.deepEqual(await session.complete("goodness", 4), { start: 0, candidates: ["goods"] });
  assert.deepEqual(await session.isComplete("done"), { state: "complete", indent: "" });
  for (const code of ["far", "many", "none", "unknown"]) await rejectsWith(session.complete(code), GuestAgentError);
  for (const code of ["odd", "good"]) await rejectsWith(session.isComplete(code), GuestAgentError);
  const asked = received.length;
  assert.deepEqual([await session.complete(" "), await session.isComplete("")], [
    { start: 1, candidates: [] },
    { state: "complete", indent: "" },
  ]);
  assert.deepEqual([received.length, session.execCount], [asked, 0]);
});

test("session: a question whose VM is lost says so of the question: no code ran, so no outcome is unknown", async (t) => {
  for (
    const [ask, says] of [["complete", /^Cannot complete: the VM was lost/], [
      "isComplete",
      /^Cannot judge the code: the VM was lost/,
    ]] as const
  ) {
    const { session, peer, received } = await openSessionPeer(t);
    const asked = session[ask]("x");
    asked.catch(() => {}); // It is awaited below.
    await eventually("it was sent", () => codes(received).length === 1);
    peer.pipe.destroy();
    await rejectsWith(asked, CommunicationError, says);
    await rejectsWith(session[ask]("x"), SessionClosedError, /its VM was lost/);
  }
});

test("session: a stream given as standard input is cancelled when nobody will read it", async (t) => {
  const source = () => {
    const reasons: unknown[] = [];
    return { reasons, stream: new ReadableStream<Uint8Array>({ cancel: (reason) => void reasons.push(reason) }) };
  };
  const { session } = await openSessionPeer(t, {
    onFrame: (frame, peer) => {
      if (frame.kind !== KIND.open || parsed(frame).method !== "spawn") return;
      peer.send(frame.stream, KIND.error, json({ code: "not_found", message: "no such program" }));
    },
  });
  session.exec("x").catch(() => {});
  const aborted = source(), controller = new AbortController(), reason = new Error("enough"), { signal } = controller;
  const waiting = session.exec("y", { stdin: aborted.stream, signal });
  const early = source(), refused = source(), queued = source(), late = source();
  controller.abort(reason);
  await assert.rejects(settled(waiting, "the abort"), (error) => error === reason);
  await assert.rejects(session.exec("y", { stdin: early.stream, signal }), (error) => error === reason);
  await assert.rejects(session.spawn("none", [], { stdin: refused.stream }), SandboxFileError);
  const ends = session.exec("z", { stdin: queued.stream });
  ends.catch(() => {}); // It is awaited below.
  await session.close();
  await rejectsWith(ends, SessionClosedError);
  await rejectsWith(session.exec("z", { stdin: late.stream }), SessionClosedError);
  for (const { reasons } of [aborted, early]) assert.deepEqual(reasons, [reason]);
  for (const { reasons } of [queued, late]) assert.ok(reasons.length === 1 && reasons[0] instanceof SessionClosedError, String(reasons));
  assert.ok(refused.reasons.length === 1 && refused.reasons[0] instanceof SandboxFileError);
  const own = source();
  await rejectsWith(session.exec("", { stdin: own.stream }), InputValidationError);
  assert.deepEqual([own.reasons, own.stream.locked], [[], false], "a call that was wrong has taken nothing");
});

test("session: display data beyond what a result keeps is told, and comes as events all the same", async (t) => {
  const item = json({ "text/plain": "x" }), framed = new Uint8Array(4 + item.length);
  new DataView(framed.buffer).setUint32(0, item.length, true);
  framed.set(item, 4);
  const { session } = await openSessionPeer(t, {
    onFrame: (frame, peer) => {
      if (frame.kind !== KIND.data) return;
      peer.send(frame.stream, KIND.data, new TextEncoder().encode("half a line"), DATA_FLAG.stderr);
      const count = Number(new TextDecoder().decode(frame.payload));
      for (let left = count; left > 0; left -= 500) {
        peer.send(frame.stream, KIND.data, Buffer.concat(Array(Math.min(left, 500)).fill(framed)), DATA_FLAG.display);
      }
      peer.send(frame.stream, KIND.result, json(REPLY));
    },
  });
  const fits = await session.exec(`${DISPLAY_OBJECTS_MAX}`);
  assert.deepEqual([fits.results.length, fits.stderr], [DISPLAY_OBJECTS_MAX, "half a line"]);
  let shown = 0, errors = "";
  for await (const event of session.stream(`${DISPLAY_OBJECTS_MAX + 5}`)) {
    if (event.type === "display") shown += 1;
    else if (event.type === "stderr") errors += event.text;
    else if (event.type === "result") assert.deepEqual([event.result.results.length, event.result.stderr], [DISPLAY_OBJECTS_MAX, errors]);
  }
  assert.equal(shown, DISPLAY_OBJECTS_MAX + 5);
  assert.equal(
    errors,
    "half a line\nCannot keep all display data: one execution has at most 10000 objects, got 10005: the result has the first 10000\n",
  );
});

test("session: what is printed while the guest is asked about code belongs to the next execution", async (t) => {
  const { session } = await openSessionPeer(t, {
    onFrame: (frame, peer) => {
      if (frame.kind !== KIND.data) return;
      const code = new TextDecoder().decode(frame.payload);
      peer.send(frame.stream, KIND.data, new TextEncoder().encode(`out of ${code}\n`), DATA_FLAG.stdout);
      peer.send(frame.stream, KIND.data, new TextEncoder().encode(`error of ${code}\n`), DATA_FLAG.stderr);
      const value = code.startsWith("ask") ? JSON.stringify({ state: "complete", indent: "" }) : null;
      peer.send(frame.stream, KIND.result, json({ ...REPLY, value }));
    },
  });
  for (const code of ["ask 1", "ask 2"]) await session.isComplete(code);
  const events: unknown[] = [];
  for await (const event of session.stream("run 1")) if (event.type === "stdout") events.push(event.text);
  assert.equal(events.join(""), "out of ask 1\nout of ask 2\nout of run 1\n");
  await session.isComplete("ask 3");
  const { stdout, stderr } = await session.exec("run 2");
  assert.deepEqual([stdout, stderr], ["out of ask 3\nout of run 2\n", "error of ask 3\nerror of run 2\n"]);
  assert.equal((await session.exec("run 3")).stdout, "out of run 3\n");
});

test("session: of such output the newest 64 KiB are kept", () => {
  const background = new BackgroundOutput(), taken: Uint8Array[] = [];
  for (let count = 0; count < 20; count += 1) background.push("stdout", new Uint8Array(10_000).fill(count));
  background.push("stderr", new Uint8Array(100_000).fill(9));
  background.take((name, bytes) => void (name === "stdout" && taken.push(bytes)));
  const bytes = Buffer.concat(taken);
  assert.deepEqual([bytes.length, bytes[0], bytes.at(-1)], [65_536, 13, 19]);
  background.take(() => assert.fail("it was taken"));
});

noLeftovers();
