/** Guest processes: starts, output, input and ends over a pipe whose other end the test is, and an agent that lies about them. */
import assert from "node:assert/strict";
import test from "node:test";
import {
  CommunicationError,
  GuestAgentError,
  InputValidationError,
  SandboxError,
  SandboxFileError,
  VmCapacityError,
} from "../../../src/base/errors.ts";
import { SESSION_PROCESSES_MAX } from "../../../src/base/limits.ts";
import type { GuestSpawn } from "../../../src/channel/guest_processes.ts";
import { DATA_FLAG, type Frame, KIND } from "../../../src/channel/wire.ts";
import { answering, connect, json, parsed, type Peer, rejectsWith } from "../../support/guest_peer.ts";
import { eventually, settled } from "../../support/waiting.ts";

const SPAWN: GuestSpawn = { argv: ["ls", "-l", "ü"], env: { A: "1" }, cwd: "/home/user", hasStdin: true, pty: null, isBackground: false };
const quiet = () => {};
const text = (payload: Uint8Array) => new TextDecoder().decode(payload);
const bytes = (string: string) => new TextEncoder().encode(string);
const starting = (frame: Frame, peer: Peer) => {
  if (frame.kind === KIND.open) peer.send(frame.stream, KIND.data, json({ id: 7, pid: 99 }), DATA_FLAG.event);
};

test("guest processes: a spawn sends what it is asked, then environment and arguments, and tells id and pid", async () => {
  const { channel, received } = connect(starting);
  const process = await channel.processes.spawn({ ...SPAWN, pty: { columns: 80, rows: 24 }, isBackground: true }, quiet);
  assert.deepEqual([process.id, process.pid], [7, 99]);
  assert.deepEqual(parsed(received[0]), {
    method: "spawn",
    envBytes: 4,
    argvBytes: 9,
    cwd: "/home/user",
    stdin: true,
    pty: { columns: 80, rows: 24 },
    background: true,
  });
  assert.equal(text(received[1]!.payload), "A=1\0ls\0-l\0ü\0");
});

test("guest processes: output comes by name, input goes until its end, and the exit code is told", async () => {
  const { channel, peer, received } = connect(starting);
  const output: string[] = [];
  const process = await channel.processes.spawn(SPAWN, (name, part) => void output.push(`${name} ${text(part)}`));
  await process.send(bytes("in"));
  process.end();
  process.end();
  peer.send(1, KIND.data, bytes("out"), DATA_FLAG.stdout);
  peer.send(1, KIND.data, bytes("err"), DATA_FLAG.stderr);
  peer.send(1, KIND.result, json({ exitCode: 143 }));
  assert.deepEqual([await process.ended, output], [143, ["stdout out", "stderr err"]]);
  assert.deepEqual(received.slice(2).map(({ kind, payload }) => [kind, text(payload)]), [[KIND.data, "in"], [KIND.end, ""]]);
  await settled(process.stop(), "the stop of what has ended");
});

test("guest processes: one that is let go of has no exit code, whatever the guest says", async () => {
  for (const answer of [{}, { exitCode: null }, { exitCode: 137 }]) {
    const { channel } = connect((frame, peer) => {
      starting(frame, peer);
      if (frame.kind === KIND.cancel) peer.send(frame.stream, KIND.result, json(answer));
    });
    const process = await channel.processes.spawn(SPAWN, quiet);
    await process.stop();
    assert.equal(await process.ended, answer.exitCode ?? -1);
    assert.equal(channel.closed.aborted, false);
  }
});

test("guest processes: an abort before the start stops what starts, and gives the reason", async () => {
  const controller = new AbortController(), reason = new Error("enough");
  const { channel, received } = connect((frame, peer) => {
    if (frame.kind === KIND.cancel) peer.send(frame.stream, KIND.result, json({ exitCode: 143 }));
  });
  const spawning = channel.processes.spawn(SPAWN, quiet, controller.signal);
  controller.abort(reason);
  await assert.rejects(settled(spawning, "the abort"), (error) => error === reason);
  assert.ok(received.some(({ kind }) => kind === KIND.cancel));
  await assert.rejects(channel.processes.spawn(SPAWN, quiet, controller.signal), (error) => error === reason);
});

const REFUSALS: ReadonlyArray<readonly [string, new (...args: never[]) => SandboxError, string | undefined]> = [
  ["not_found", SandboxFileError, "not-found"],
  ["permission", SandboxFileError, "permission"],
  ["not_directory", SandboxFileError, "not-directory"],
  ["limit", VmCapacityError, undefined],
  ["busy", VmCapacityError, undefined],
  ["internal", GuestAgentError, undefined],
  ["constructor", GuestAgentError, undefined],
];
for (const [code, type, reason] of REFUSALS) {
  test(`guest processes: a spawn refused with ${code} is a ${type.name}`, async () => {
    const { channel } = connect(answering(json({ code, message: "m" }), KIND.error));
    const error = await channel.processes.spawn(SPAWN, quiet).catch((caught) => caught);
    assert.ok(error instanceof type, String(error));
    if (error instanceof SandboxFileError) {
      assert.deepEqual([error.reason, error.path], [reason, code === "not_directory" ? "/home/user" : "ls"]);
    }
  });
}

test("guest processes: there is no attaching to what does not exist, or to what another has", async () => {
  const missing = connect(answering(json({ code: "not_found", message: "m" }), KIND.error)).channel.processes;
  await rejectsWith(missing.attach(5, { hasStdin: true }, quiet), InputValidationError, /there is no process 5/);
  const taken = connect(answering(json({ code: "busy", message: "m" }), KIND.error)).channel.processes;
  const error = await taken.attach(5, { hasStdin: false }, quiet).catch((caught) => caught);
  assert.ok(error instanceof GuestAgentError && error.retry === "safe", String(error));
});

test("guest processes: no more than may be are attached at once, and one that ended makes room", async () => {
  const { channel, peer, received } = connect(starting);
  for (let count = 0; count < SESSION_PROCESSES_MAX; count++) await channel.processes.spawn(SPAWN, quiet);
  await rejectsWith(channel.processes.spawn(SPAWN, quiet), VmCapacityError, /at most 32/);
  await rejectsWith(channel.processes.attach(1, { hasStdin: true }, quiet), VmCapacityError, /at most 32/);
  assert.equal(received.filter(({ kind }) => kind === KIND.open).length, SESSION_PROCESSES_MAX);
  peer.send(3, KIND.result, json({ exitCode: 0 }));
  await eventually("there is room", () => channel.processes.spawn(SPAWN, quiet).then(() => true, () => false));
});

test("guest processes: the list, a signal and a size", async () => {
  const info = { id: 1, pid: 87, argv: ["sh"], background: true, attached: false, pty: true, exitCode: null };
  const { channel, received } = connect((frame, peer) => {
    const answers: Record<string, unknown> = {
      process_list: { processes: [info, { ...info, id: 2, exitCode: 3 }] },
      process_signal: { delivered: true },
      process_resize: {},
    };
    peer.send(frame.stream, KIND.result, json(answers[parsed(frame).method]));
  });
  const known = { id: 1, pid: 87, argv: ["sh"], isBackground: true, isAttached: false, hasPty: true };
  assert.deepEqual(await channel.processes.list(), [{ ...known, exitCode: undefined }, { ...known, id: 2, exitCode: 3 }]);
  assert.equal(await channel.processes.signal(1, 9), true);
  await channel.processes.resize(1, { columns: 100, rows: 40 });
  assert.deepEqual(received.slice(1).map(parsed), [
    { method: "process_signal", id: 1, signal: 9 },
    { method: "process_resize", id: 1, columns: 100, rows: 40 },
  ]);
});

const LISTS = [
  {},
  { processes: null },
  { processes: [null] },
  { processes: [{ id: 1 }] },
  {
    processes: [{ id: 1, pid: 1, argv: [5], exitCode: null }],
  },
  { processes: [{ id: "1", pid: 1, argv: [], exitCode: null }] },
  { processes: [{ id: 1, pid: 1, argv: [], exitCode: "0" }] },
];
for (const list of LISTS) {
  test(`guest processes: a list of ${JSON.stringify(list)} is a GuestAgentError`, async () => {
    await rejectsWith(connect(answering(json(list))).channel.processes.list(), GuestAgentError, /^Cannot read/);
  });
}

for (const exit of [{}, { exitCode: -1 }, { exitCode: 256 }, { exitCode: "0" }, { exitCode: null }]) {
  test(`guest processes: an end with ${JSON.stringify(exit)} is a GuestAgentError`, async () => {
    const { channel, peer } = connect(starting);
    const process = await channel.processes.spawn(SPAWN, quiet);
    peer.send(1, KIND.result, json(exit));
    await rejectsWith(process.ended, GuestAgentError, /^Cannot read/);
  });
}

test("guest processes: an end before the start is a GuestAgentError", async () => {
  await rejectsWith(connect(answering(json({ exitCode: 0 }))).channel.processes.spawn(SPAWN, quiet), GuestAgentError, /^Cannot read/);
});

const VIOLATIONS: ReadonlyArray<readonly [string, (peer: Peer) => void]> = [
  ["output before the start", (peer) => peer.send(1, KIND.data, bytes("x"), DATA_FLAG.stdout)],
  ["a start without a pid", (peer) => peer.send(1, KIND.data, json({ id: 1 }), DATA_FLAG.event)],
  ["a start with a name for an id", (peer) => peer.send(1, KIND.data, json({ id: "x", pid: 1 }), DATA_FLAG.event)],
  ["a start that is no JSON", (peer) => peer.send(1, KIND.data, Uint8Array.of(0xff), DATA_FLAG.event)],
];
for (const [name, violate] of VIOLATIONS) {
  test(`guest processes: ${name} ends the channel`, async () => {
    const { channel, peer } = connect();
    const spawning = channel.processes.spawn(SPAWN, quiet);
    violate(peer);
    await rejectsWith(spawning, CommunicationError, /^Cannot understand the guest/);
  });
}

test("guest processes: a second start and output of no kind end the channel, and with it every process", async () => {
  for (const flags of [DATA_FLAG.event, DATA_FLAG.display, DATA_FLAG.body]) {
    const { channel, peer } = connect(starting);
    const process = await channel.processes.spawn(SPAWN, quiet);
    peer.send(1, KIND.data, json({ id: 1, pid: 1 }), flags);
    await rejectsWith(process.ended, CommunicationError, /^Cannot understand the guest/);
  }
});
