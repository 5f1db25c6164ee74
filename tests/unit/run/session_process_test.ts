/** Session process: arguments, byte streams, ends and refusals, with a guest that the test plays. */
import assert from "node:assert/strict";
import test, { type TestContext } from "node:test";
import {
  CommunicationError,
  EnvVarValidationError,
  InputValidationError,
  SessionClosedError,
  VmConfigError,
} from "../../../src/base/errors.ts";
import { DATA_FLAG, decodeCredit, type Frame, KIND } from "../../../src/channel/wire.ts";
import type { SpawnOptions } from "../../../src/mod.ts";
import { json, parsed, type Peer, rejectsWith } from "../../support/guest_peer.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { openSessionPeer } from "../../support/session_peer.ts";
import { eventually, settled, sleep } from "../../support/waiting.ts";

const bytes = (text: string) => new TextEncoder().encode(text);
const textOf = (stream: ReadableStream<Uint8Array>) => new Response(stream).text();
/** A guest in which programs start; a cancelled one ends with SIGTERM's status. */
const starting = (frame: Frame, peer: Peer) => {
  if (frame.kind === KIND.open && ["spawn", "attach"].includes(parsed(frame).method)) {
    peer.send(frame.stream, KIND.data, json({ id: 3, pid: 40 }), DATA_FLAG.event);
  }
  if (frame.kind === KIND.cancel) peer.send(frame.stream, KIND.result, json({ exitCode: 143 }));
};
const open = (t: TestContext, env: Record<string, string> = {}) => openSessionPeer(t, { onFrame: starting, request: { env } });

test("session process: a program gets its arguments, the session's environment and its own, and starts in the home", async (t) => {
  const { session, received } = await open(t, { A: "1", B: "1" });
  const process = await session.spawn("ls", ["-l"], { env: { B: "2" } });
  assert.deepEqual([process.id, process.pid], [3, 40]);
  const { method, cwd, stdin, pty, background } = parsed(received[0]);
  assert.deepEqual([method, cwd, stdin, pty, background], ["spawn", "/home/user", false, null, false]);
  assert.equal(new TextDecoder().decode(received[1]?.payload), "A=1\0B=2\0ls\0-l\0");
  for (const [given, wanted] of [["sub/dir", "/home/user/sub/dir"], ["/tmp", "/tmp"], ["", "/home/user"]]) {
    await session.spawn("ls", [], { cwd: given!, pty: { columns: 80, rows: 24 }, background: true });
    const last = parsed(received.findLast(({ kind }) => kind === KIND.open));
    assert.deepEqual([last.cwd, last.pty, last.background, last.stdin], [wanted, { columns: 80, rows: 24 }, true, true]);
  }
});

test("session process: output is read as streams, and can still be read when it has ended", async (t) => {
  const { session, peer } = await open(t);
  const process = await session.spawn("x");
  peer.send(1, KIND.data, bytes("out "), DATA_FLAG.stdout);
  peer.send(1, KIND.data, bytes("err"), DATA_FLAG.stderr);
  peer.send(1, KIND.data, bytes("put"), DATA_FLAG.stdout);
  peer.send(1, KIND.result, json({ exitCode: 2 }));
  assert.deepEqual([await process.wait(), await process.wait()], [{ exitCode: 2 }, { exitCode: 2 }]);
  assert.deepEqual(await Promise.all([textOf(process.stdout), textOf(process.stderr)]), ["out put", "err"]);
});

test("session process: output that nobody reads holds it back; cancelled or let go of, it does not", async (t) => {
  const { session, peer, received } = await open(t);
  const process = await session.spawn("yes");
  for (let count = 0; count < 3; count++) peer.send(1, KIND.data, new Uint8Array(65_536), DATA_FLAG.stdout);
  await sleep(20);
  const granted = () => received.filter(({ kind }) => kind === KIND.credit).reduce((sum, { payload }) => sum + decodeCredit(payload), 0);
  assert.equal(granted(), 0);
  await process.stdout.cancel();
  await eventually("credit came", () => granted() > 0);
  peer.send(1, KIND.data, new Uint8Array(65_536), DATA_FLAG.stderr);
  await process.detach();
  assert.deepEqual([await process.wait(), await textOf(process.stderr)], [{ exitCode: 143 }, "\0".repeat(65_536)]);
});

test("session process: a pipe to it is fed through its stream, and closed with it", async (t) => {
  const { session, received } = await open(t);
  const process = await session.spawn("cat", [], { stdin: true });
  const writer = process.stdin.getWriter();
  await writer.write(bytes("one"));
  await writer.close();
  await eventually("the end was sent", () => received.some(({ kind }) => kind === KIND.end));
  assert.deepEqual(received.slice(2).map(({ payload }) => new TextDecoder().decode(payload)), ["one", ""]);
  const other = await session.spawn("cat");
  await rejectsWith(other.stdin.getWriter().write(bytes("x")), InputValidationError, /without a stdin pipe/);
  const third = await session.spawn("cat", [], { stdin: true });
  await rejectsWith(third.stdin.getWriter().write("text" as never), InputValidationError, /give Uint8Array/);
});

test("session process: known input is sent and ended; a source that fails ends the process", async (t) => {
  const { session, received } = await open(t);
  const inputs = ["text", bytes("text"), ReadableStream.from([bytes("te"), bytes("xt")])];
  for (const [at, stdin] of inputs.entries()) {
    await session.spawn("cat", [], { stdin: stdin as string });
    await eventually("the end was sent", () => received.filter(({ kind }) => kind === KIND.end).length === at + 1);
    const sent = received.filter(({ kind, stream }) => kind === KIND.data && stream === at + 1).slice(1);
    assert.equal(sent.map(({ payload }) => new TextDecoder().decode(payload)).join(""), "text");
  }
  const reason = new Error("the source broke");
  const process = await session.spawn("cat", [], { stdin: new ReadableStream({ pull: (controller) => controller.error(reason) }) });
  await assert.rejects(settled(process.wait(), "the end"), (error) => error === reason);
  assert.ok(received.some(({ kind }) => kind === KIND.cancel));
});

test("session process: an abort ends it, and its streams, with the reason", async (t) => {
  const { session } = await open(t), controller = new AbortController(), reason = new Error("enough");
  const process = await session.spawn("x", [], { signal: controller.signal });
  const reading = textOf(process.stdout);
  reading.catch(() => {});
  controller.abort(reason);
  await assert.rejects(settled(process.wait(), "the end"), (error) => error === reason);
  await assert.rejects(session.spawn("x", [], { signal: controller.signal }), (error) => error === reason);
  assert.equal(session.closed, false);
});

test("session process: a closed session and a lost VM end it, each with its error", async (t) => {
  for (const type of [SessionClosedError, CommunicationError]) {
    const { session, peer } = await open(t);
    const process = await session.spawn("x"), reading = textOf(process.stdout);
    reading.catch(() => {});
    if (type === SessionClosedError) await session.close();
    else peer.pipe.destroy();
    await rejectsWith(process.wait(), type);
    await assert.rejects(settled(reading, "the stream"), type);
    await rejectsWith(process.kill(), SessionClosedError);
    await rejectsWith(process.resize(80, 24), SessionClosedError);
    await settled(process.detach(), "the detach");
  }
});

test("session process: signals go by name or number, sizes within their range", async (t) => {
  const { session, received } = await openSessionPeer(t, {
    onFrame: (frame, peer) => {
      starting(frame, peer);
      if (frame.kind === KIND.open && parsed(frame).method.startsWith("process_")) {
        peer.send(frame.stream, KIND.result, json({ delivered: true }));
      }
    },
  });
  const process = await session.attach(3);
  assert.deepEqual(parsed(received[0]), { method: "attach", id: 3, stdin: true });
  assert.equal(await process.kill(), true);
  await process.kill("SIGKILL");
  await process.kill(64);
  await process.resize(100, 40);
  const sent = received.slice(1).map(parsed);
  assert.deepEqual(sent.map(({ signal }) => signal), [15, 9, 64, undefined]);
  assert.deepEqual(sent[3], { method: "process_resize", id: 3, columns: 100, rows: 40 });
  for (const signal of ["TERM", "SIGWHAT", "toString", 0, 65, 1.5, null]) {
    await rejectsWith(process.kill(signal as string), InputValidationError);
  }
  for (const [columns, rows] of [[0, 1], [1, 0], [65_536, 1], [1, 1.5], ["80", 24]]) {
    await rejectsWith(process.resize(columns as number, rows as number), InputValidationError);
  }
});

test("session process: bad arguments are refused before anything is sent", async (t) => {
  const { session, received } = await open(t);
  const spawn = (command: unknown, args?: unknown, options?: unknown) =>
    session.spawn(command as string, args as string[], options as SpawnOptions);
  for (const command of ["", 5, null, "a\0", "\ud800"]) await rejectsWith(spawn(command), InputValidationError);
  for (const args of ["-l", [5], ["a\0"], ["x".repeat(131_072)], { length: 1 }]) await rejectsWith(spawn("ls", args), InputValidationError);
  const bad = [{ cwd: 5 }, { cwd: "a\0" }, { cwd: "x".repeat(4097) }, { stdin: 5 }, { pty: 5 }, { pty: { columns: 0, rows: 1 } }, {
    background: 1,
  }, {
    signal: 5,
  }];
  for (const options of bad) await rejectsWith(spawn("ls", [], options), InputValidationError);
  await rejectsWith(spawn("ls", [], { shell: true }), VmConfigError, /unknown field "shell"/);
  await rejectsWith(spawn("ls", [], { pty: { columns: 1, rows: 1, colors: 1 } }), VmConfigError);
  await rejectsWith(spawn("ls", [], { env: { LD_PRELOAD: "x" } }), EnvVarValidationError);
  for (const id of [0, -1, 1.5, "1", null]) await rejectsWith(session.attach(id as number), InputValidationError);
  assert.equal(received.length, 0);
});

noLeftovers();
