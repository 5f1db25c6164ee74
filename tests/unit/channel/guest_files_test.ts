/** Guest files: transfers and calls over a pipe whose other end the test is, and an agent that lies about them. */
import assert from "node:assert/strict";
import test from "node:test";
import { CommunicationError, GuestAgentError, InputValidationError, SandboxFileError } from "../../../src/base/errors.ts";
import { CALLS_MAX, FILE_MAX_BYTES, STREAM_CREDIT_BYTES, TRANSFERS_MAX } from "../../../src/base/limits.ts";
import { DATA_FLAG, encodeCredit, type Frame, KIND } from "../../../src/channel/wire.ts";
import { answering, connect, json, parsed, type Peer, rejectsWith } from "../../support/guest_peer.ts";
import { eventually, settled, sleep } from "../../support/waiting.ts";

const bytes = (text: string) => new TextEncoder().encode(text);
const text = (payload: Uint8Array) => new TextDecoder().decode(payload);
async function* pieces(...parts: Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* parts;
}
const ENTRY = { name: "a.txt", type: "file", size: 5, mode: 0o100644, modifiedMs: 1764000000000 };

/** A peer that reads a body to its end, with credit for all of it, and answers with its size. */
function taking(onBody: (body: Uint8Array[]) => void = () => {}) {
  const bodies = new Map<number, Uint8Array[]>();
  return (frame: Frame, peer: Peer) => {
    const body = bodies.get(frame.stream) ?? [];
    bodies.set(frame.stream, body);
    if (frame.kind === KIND.data) {
      body.push(frame.payload.slice());
      peer.send(frame.stream, KIND.credit, encodeCredit(frame.payload.length));
    }
    if (frame.kind !== KIND.end) return;
    onBody(body);
    peer.send(frame.stream, KIND.result, json({ bytes: body.reduce((sum, part) => sum + part.length, 0) }));
  };
}
/** A peer that answers each file_read with these pieces and then `end`. */
const giving = (parts: readonly Uint8Array[], end: unknown, kind: typeof KIND.result | typeof KIND.error = KIND.result) =>
(
  frame: Frame,
  peer: Peer,
) => {
  if (frame.kind !== KIND.open) return;
  for (const part of parts) peer.send(frame.stream, KIND.data, part, DATA_FLAG.stdout);
  peer.send(frame.stream, kind, json(end));
};

test("guest files: a write sends path, mode and size, then the body and its end, and gives the size", async () => {
  let got = "";
  const { channel, received } = connect(taking((body) => got = body.map(text).join("")));
  assert.equal(await channel.files.write("d/a.txt", { body: pieces(bytes("one "), bytes("two")), mode: 0o600, size: 7 }), 7);
  assert.deepEqual([got, parsed(received[0])], ["one two", { method: "file_write", path: "d/a.txt", mode: 0o600, size: 7 }]);
  assert.equal(await channel.files.write("empty", { body: pieces() }), 0);
  const open = received.filter(({ kind }) => kind === KIND.open)[1];
  assert.deepEqual(parsed(open), { method: "file_write", path: "empty", mode: null, size: null });
});

test("guest files: a write of megabytes waits for credit, and takes no more of its source than it may send", async () => {
  let taken = 0;
  const source = async function* () {
    for (; taken < 64; taken++) yield new Uint8Array(65_536);
  };
  const { channel, peer, received } = connect();
  const writing = channel.files.write("big", { body: source() });
  await eventually("the first credit is used", () => taken >= STREAM_CREDIT_BYTES / 65_536);
  await sleep(20);
  assert.ok(taken <= STREAM_CREDIT_BYTES / 65_536 + 1, String(taken));
  peer.send(1, KIND.credit, encodeCredit(64 * 65_536));
  await eventually("the end came", () => received.some(({ kind }) => kind === KIND.end));
  peer.send(1, KIND.result, json({ bytes: 64 * 65_536 }));
  assert.equal(await settled(writing, "the write"), 64 * 65_536);
});

test("guest files: what a source throws ends the transfer and is what the caller gets", async () => {
  const reason = new Error("the source broke");
  const { channel, received } = connect((frame, peer) => {
    if (frame.kind === KIND.cancel) peer.send(frame.stream, KIND.error, json({ code: "bad_request", message: "cancelled" }));
  });
  const source = async function* () {
    yield bytes("half");
    throw reason;
  };
  await assert.rejects(settled(channel.files.write("a", { body: source() }), "the write"), (error) => error === reason);
  assert.deepEqual(parsed(received.find(({ kind }) => kind === KIND.cancel)), { graceMs: 0 });
  assert.equal(received.some(({ kind }) => kind === KIND.end), false, "half a body has no end");
  assert.equal(channel.closed.aborted, false);
});

test("guest files: a refusal ends the source, also one that waits for what never comes", async () => {
  let isEnded = false;
  const endless = {
    [Symbol.asyncIterator]: () => ({
      next: () => new Promise<IteratorResult<Uint8Array>>(() => {}),
      return: async () => {
        isEnded = true;
        return { done: true as const, value: undefined };
      },
    }),
  };
  const { channel } = connect(answering(json({ code: "no_space", message: "full" }), KIND.error));
  await rejectsWith(channel.files.write("a", { body: endless }), SandboxFileError, /no space is left/);
  assert.equal(isEnded, true);
});

test("guest files: an abort cancels a transfer, gives the reason, and a guest that does not stop is lost", async () => {
  for (const isDeaf of [false, true]) {
    const controller = new AbortController(), reason = new Error("enough");
    const { channel, received } = connect((frame, peer) => {
      if (frame.kind === KIND.cancel && !isDeaf) peer.send(frame.stream, KIND.error, json({ code: "internal", message: "stopped" }));
    });
    const transfers: Promise<unknown>[] = [
      channel.files.write("a", { body: pieces(bytes("x")), signal: controller.signal }),
      channel.files.read("a", { onBytes: () => {}, signal: controller.signal }),
      channel.files.list("a", controller.signal),
    ];
    await eventually("all were sent", () => received.filter(({ kind }) => kind === KIND.open).length === 3);
    controller.abort(reason);
    for (const transfer of transfers) await assert.rejects(settled(transfer, "the abort"), (error) => error === reason);
    assert.equal(channel.closed.aborted, isDeaf);
  }
});

test("guest files: a call that is aborted tells the guest to stop, and nobody waits for it", async () => {
  const controller = new AbortController(), reason = new Error("enough");
  const { channel, received } = connect();
  const removing = channel.files.remove("a", { isRecursive: true, signal: controller.signal });
  await eventually("it was sent", () => received.length === 1);
  controller.abort(reason);
  await assert.rejects(settled(removing, "the abort"), (error) => error === reason);
  await eventually("the guest was told", () => received.at(-1)?.kind === KIND.cancel);
  assert.equal(channel.closed.aborted, false);
});

test("guest files: a read hands the bytes on in order and holds the guest back until they are taken", async () => {
  const { channel, peer, received } = connect();
  const held: Array<() => void> = [], got: string[] = [];
  const reading = channel.files.read("a", {
    onBytes: (part) => {
      got.push(text(part.subarray(0, 1)));
      return new Promise((resolve) => held.push(resolve));
    },
  });
  for (const letter of "abcd") peer.send(1, KIND.data, new Uint8Array(65_536).fill(letter.charCodeAt(0)), DATA_FLAG.stdout);
  await eventually("all credit is used", () => got.length === 4);
  await sleep(10);
  assert.equal(received.some(({ kind }) => kind === KIND.credit), false, "nothing is granted before it is taken");
  for (const take of held) take();
  await eventually("credit came", () => received.some(({ kind }) => kind === KIND.credit));
  peer.send(1, KIND.result, json({ bytes: 4 * 65_536 }));
  assert.deepEqual([await reading, got.join("")], [4 * 65_536, "abcd"]);
});

test("guest files: whoever takes the bytes can end a read", async () => {
  const failed = new AbortController(), reason = new Error("the disk is full");
  const { channel } = connect((frame, peer) => {
    if (frame.kind === KIND.open) peer.send(frame.stream, KIND.data, bytes("x"), DATA_FLAG.stdout);
    if (frame.kind === KIND.cancel) peer.send(frame.stream, KIND.error, json({ code: "internal", message: "stopped" }));
  });
  const onBytes = () => void failed.abort(reason);
  await assert.rejects(settled(channel.files.read("a", { onBytes, failed: failed.signal }), "the read"), (error) => error === reason);
});

test("guest files: more than a file may have is cut off by the host too", async () => {
  const whole = Math.floor(FILE_MAX_BYTES / 65_536), part = new Uint8Array(65_536);
  const { channel } = connect((frame, peer) => {
    if (frame.kind === KIND.open) { for (let count = 0; count < 4; count++) peer.send(1, KIND.data, part, DATA_FLAG.stdout); }
    if (frame.kind === KIND.credit) { for (let count = 0; count < 2; count++) peer.send(1, KIND.data, part, DATA_FLAG.stdout); }
    if (frame.kind === KIND.cancel) peer.send(1, KIND.error, json({ code: "internal", message: "stopped" }));
  });
  let count = 0;
  const error = await channel.files.read("endless", { onBytes: () => void (count += 1) }).catch((caught) => caught);
  assert.ok(error instanceof SandboxFileError && error.reason === "too-large" && error.side === "guest", String(error));
  assert.equal(count, whole);
});

test("guest files: a listing comes line by line, cut anyhow", async () => {
  const entries = [ENTRY, { ...ENTRY, name: "ü🙂", type: "directory", size: 4096 }, { ...ENTRY, name: "l", type: "symlink" }];
  const all = bytes(entries.map((entry) => `${JSON.stringify(entry)}\n`).join(""));
  for (const size of [1, 7, all.length]) {
    const parts = Array.from({ length: Math.ceil(all.length / size) }, (_, at) => all.subarray(at * size, (at + 1) * size));
    const { channel } = connect(giving(parts, { entries: 3 }));
    assert.deepEqual(await channel.files.list("d"), entries.map((entry) => ({ ...entry, mode: 0o644 })));
  }
});

test("guest files: a stat of the home has the home's name", async () => {
  const { channel, received } = connect(answering(json({ ...ENTRY, name: "", type: "directory" })));
  assert.equal((await channel.files.stat(".", { isFollowed: false })).name, ".");
  assert.deepEqual(parsed(received[0]), { method: "file_stat", path: ".", follow: false });
});

test("guest files: the small calls send what they were asked", async () => {
  const { channel, received } = connect(answering(json({})));
  await channel.files.makeDirectory("d", { isRecursive: true, mode: 0o700 });
  await channel.files.remove("d", { isRecursive: true });
  await channel.files.rename("a", { to: "b" });
  assert.deepEqual(received.map(parsed), [
    { method: "file_make_directory", path: "d", recursive: true, mode: 0o700 },
    { method: "file_remove", path: "d", recursive: true },
    { method: "file_rename", from: "a", to: "b" },
  ]);
});

const REASONS = {
  not_found: "not-found",
  is_directory: "is-directory",
  not_directory: "not-directory",
  not_a_file: "not-a-file",
  permission: "permission",
  exists: "exists",
  not_empty: "exists",
  no_space: "no-space",
  too_large: "too-large",
  changed: "changed",
};
for (const [code, reason] of Object.entries(REASONS)) {
  test(`guest files: ${code} is a SandboxFileError that says ${reason}, for every method`, async () => {
    const { channel: { files } } = connect(answering(json({ code, message: "in the agent's words" }), KIND.error));
    const calls = [
      files.write("p", { body: pieces() }),
      files.read("p", { onBytes: () => {} }),
      files.list("p"),
      files.stat("p", { isFollowed: true }),
      files.makeDirectory("p", { isRecursive: false, mode: 0o755 }),
      files.remove("p", { isRecursive: false }),
      files.rename("p", { to: "q" }),
    ];
    for (const call of calls) {
      const error = await call.catch((caught) => caught);
      assert.ok(error instanceof SandboxFileError, String(error));
      assert.deepEqual([error.reason, error.side, error.path, error.retry], [reason, "guest", "p", "never"]);
      assert.match(error.message, /^Cannot .* "p" in the guest: /);
    }
  });
}

test("guest files: a directory that would go into itself is the caller's mistake", async () => {
  const { channel } = connect(answering(json({ code: "bad_request", message: "Invalid argument" }), KIND.error));
  const says = /^Cannot rename "a" in the guest: a directory cannot go into itself, got "link\/b"$/;
  await rejectsWith(channel.files.rename("a", { to: "link/b" }), InputValidationError, says);
});

test("guest files: what is no file's fault is the agent's", async () => {
  for (const code of ["bad_request", "busy", "internal", "toString", "__proto__"]) {
    const { channel: { files } } = connect(answering(json({ code, message: "m" }), KIND.error));
    await rejectsWith(files.stat("p", { isFollowed: true }), GuestAgentError, /m \(/);
    await rejectsWith(files.write("p", { body: pieces() }), GuestAgentError, /m \(/);
  }
});

const LIES: ReadonlyArray<readonly [string, Uint8Array]> = [
  ["no JSON", Uint8Array.of(0xff)],
  ["an empty object", json({})],
  ["a size that is not that of the bytes", json({ bytes: 4, entries: 4 })],
  ["a size that is no number", json({ bytes: "5", entries: "0", name: 5 })],
];
for (const [name, payload] of LIES) {
  test(`guest files: a RESULT of ${name} is a GuestAgentError`, async () => {
    const { channel: { files } } = connect((frame, peer) => {
      if (frame.kind === KIND.open) peer.send(frame.stream, KIND.result, payload);
    });
    await rejectsWith(files.write("p", { body: pieces(bytes("hello")) }), GuestAgentError, /^Cannot read the guest's answer/);
    await rejectsWith(files.read("p", { onBytes: () => {} }), GuestAgentError, /^Cannot read the guest's answer/);
    await rejectsWith(files.list("p"), GuestAgentError, /^Cannot read the guest's answer/);
    await rejectsWith(files.stat("p", { isFollowed: true }), GuestAgentError, /^Cannot read the guest's answer/);
  });
}

const line = (entry: unknown) => bytes(`${JSON.stringify(entry)}\n`);
const LISTINGS: ReadonlyArray<readonly [string, Uint8Array, number]> = [
  ["no JSON", bytes("hello\n"), DATA_FLAG.stdout],
  ["a list", line([ENTRY]), DATA_FLAG.stdout],
  ["an entry without a type", line({ ...ENTRY, type: "door" }), DATA_FLAG.stdout],
  ["an entry with a path for a name", line({ ...ENTRY, name: "../x" }), DATA_FLAG.stdout],
  ["an entry without a name", line({ ...ENTRY, name: "" }), DATA_FLAG.stdout],
  ["an entry of negative size", line({ ...ENTRY, size: -1 }), DATA_FLAG.stdout],
  ["an entry from no time", line({ ...ENTRY, modifiedMs: null }), DATA_FLAG.stdout],
  ["a line without end", new Uint8Array(65_536).fill(120), DATA_FLAG.stdout],
  ["other bytes than were asked for", line(ENTRY), DATA_FLAG.stderr],
];
for (const [name, payload, flags] of LISTINGS) {
  test(`guest files: a listing with ${name} ends the channel`, async () => {
    const { channel, peer } = connect();
    const listing = channel.files.list("d");
    peer.send(1, KIND.data, payload, flags);
    await rejectsWith(listing, CommunicationError, /^Cannot understand the guest/);
  });
}

test("guest files: no more transfers and calls than may be are on the wire, and all get their turn", async () => {
  const waiting: number[] = [];
  let most = 0;
  const { channel, peer, received } = connect((frame) => {
    if (frame.kind !== KIND.open) return;
    waiting.push(frame.stream);
    most = Math.max(most, waiting.length);
  });
  const reads = Array.from({ length: 100 }, () => channel.files.read("a", { onBytes: () => {} }));
  const stats = Array.from({ length: 100 }, () => channel.files.remove("a", { isRecursive: false }));
  const ping = channel.ping();
  await eventually("the first are there", () => waiting.length === TRANSFERS_MAX + CALLS_MAX + 1);
  while (waiting.length > 0) {
    peer.send(waiting.shift()!, KIND.result, json({ bytes: 0 }));
    await sleep(0);
  }
  await settled(Promise.all([...reads, ...stats, ping]), "all of them");
  assert.equal(most, TRANSFERS_MAX + CALLS_MAX + 1);
  assert.equal(received.filter(({ kind }) => kind === KIND.open).length, 201);
});

test("guest files: one that waits its turn can be aborted, and the loss of the channel ends all", async () => {
  const { channel, peer } = connect();
  const controller = new AbortController(), reason = new Error("enough");
  const reads = Array.from({ length: 40 }, () => channel.files.read("a", { onBytes: () => {} }));
  const waiting = channel.files.read("late", { onBytes: () => {}, signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(waiting, (error) => error === reason);
  peer.pipe.destroy();
  for (const read of reads) await rejectsWith(read, CommunicationError);
});
