/** Session files: every source and destination, every bad argument, and nothing half-done on the host; the guest is the test's. */
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { pathToFileURL } from "node:url";
import { InputValidationError, SandboxFileError, SessionClosedError, VmConfigError } from "../../../src/base/errors.ts";
import { FILE_MAX_BYTES } from "../../../src/base/limits.ts";
import type { FileReason, FileSource, ReadFileOptions, Session, WriteFileOptions } from "../../../src/mod.ts";
import { filePeer } from "../../support/file_peer.ts";
import { parsed, rejectsWith } from "../../support/guest_peer.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { openSessionPeer } from "../../support/session_peer.ts";
import { eventually, settled } from "../../support/waiting.ts";

async function open(t: TestContext) {
  const guest = filePeer();
  return { guest, ...await openSessionPeer(t, { onFrame: guest.onFrame }) };
}
const bytes = (text: string) => new TextEncoder().encode(text);
const streamOf = (...parts: unknown[]) => ReadableStream.from(parts) as ReadableStream<Uint8Array>;
async function failsWith(call: Promise<unknown>, side: "guest" | "host", reason: FileReason): Promise<void> {
  const error = await settled(call, "the call").catch((caught) => caught);
  assert.ok(error instanceof SandboxFileError, String(error));
  assert.deepEqual([error.side, error.reason], [side, reason], error.message);
}

test("session files: bytes, text, blobs, streams and local files are written as they are", async (t) => {
  const { session, guest } = await open(t), directory = temporaryDirectory(t), file = path.join(directory, "ü.bin");
  const big = Uint8Array.from({ length: 1_000_003 }, (_, at) => at * 7 & 0xff);
  fs.writeFileSync(file, big);
  const sources: Record<string, readonly [FileSource, Uint8Array]> = {
    bytes: [big, big],
    view: [big.subarray(5, 10), big.slice(5, 10)],
    buffer: [big.slice(0, 9).buffer, big.slice(0, 9)],
    text: ["\ufeffzwölf 🙂\0", bytes("\ufeffzwölf 🙂\0")],
    empty: ["", new Uint8Array(0)],
    blob: [new Blob(["a", big]), new Uint8Array([97, ...big])],
    stream: [streamOf(bytes("a"), new Uint8Array(0), big), new Uint8Array([97, ...big])],
    local: [{ local: file }, big],
    url: [{ local: pathToFileURL(file) }, big],
  };
  for (const [name, [source, content]] of Object.entries(sources)) {
    await session.writeFile(name, source);
    assert.deepEqual(guest.files.get(name), content, name);
  }
});

test("session files: modes are passed on, and progress is told", async (t) => {
  const { session, received } = await open(t), told: number[] = [];
  await session.writeFile("a", new Uint8Array(200_000), { mode: 0o600, onProgress: (count) => void told.push(count) });
  await session.writeFile("b", "x", { executable: true });
  await session.writeFile("c", "x", { executable: false });
  const modes = received.filter(({ kind }) => kind === 2).map((frame) => parsed(frame).mode);
  assert.deepEqual([modes, told.at(-1)], [[0o600, 0o755, null], 200_000]);
});

test("session files: a file is read as bytes, text, to a local file or to a stream", async (t) => {
  const { session, guest } = await open(t), directory = temporaryDirectory(t);
  const big = Uint8Array.from({ length: 1_000_003 }, (_, at) => at * 7 & 0xff);
  guest.files.set("big", big);
  guest.files.set("text", bytes("\ufeffzwölf 🙂"));
  guest.files.set("empty", new Uint8Array(0));
  guest.files.set("latin1", Uint8Array.of(0xfc));
  assert.deepEqual([await session.readFile("big"), await session.readFile("empty")], [big, new Uint8Array(0)]);
  const texts = await Promise.all(["text", "latin1"].map((name) => session.readFile(name, { encoding: "utf-8" })));
  assert.deepEqual(texts, ["\ufeffzwölf 🙂", "\ufffd"]);
  const told: number[] = [], target = path.join(directory, "big.bin");
  assert.equal(await session.readFile("big", { destination: target, onProgress: (count) => void told.push(count) }), big.length);
  assert.equal(await session.readFile("empty", { destination: pathToFileURL(path.join(directory, "empty")) }), 0);
  assert.deepEqual([new Uint8Array(fs.readFileSync(target)), told.at(-1)], [big, big.length]);
  assert.deepEqual(fs.readdirSync(directory).sort(), ["big.bin", "empty"]);
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const collected = new Response(readable).bytes();
  assert.equal(await session.readFile("big", { destination: writable }), big.length);
  assert.deepEqual(await collected, big);
  assert.deepEqual([await session.exists("big"), await session.exists("none")], [true, false]);
});

test("session files: a local file is replaced whole, through links, with its mode; others are not touched", async (t) => {
  const { session, guest } = await open(t), directory = temporaryDirectory(t);
  const target = path.join(directory, "target"), link = path.join(directory, "link");
  fs.writeFileSync(target, "old", { mode: 0o640 });
  fs.symlinkSync("target", link);
  guest.files.set("f", bytes("new"));
  await session.readFile("f", { destination: link });
  assert.deepEqual([fs.readFileSync(target, "utf8"), fs.statSync(target).mode & 0o777], ["new", 0o640]);
  assert.equal(fs.lstatSync(link).isSymbolicLink(), true);
  await failsWith(session.readFile("none", { destination: target }), "guest", "not-found");
  assert.deepEqual([fs.readFileSync(target, "utf8"), fs.readdirSync(directory).sort()], ["new", ["link", "target"]]);
});

test("session files: what stands in the way on the host is told, and nothing is left", async (t) => {
  const { session, guest, received } = await open(t), directory = temporaryDirectory(t);
  const at = (name: string) => path.join(directory, name);
  guest.files.set("f", bytes("x"));
  fs.writeFileSync(at("file"), "x");
  fs.truncateSync(at("file"), 1);
  fs.writeFileSync(at("huge"), "");
  fs.truncateSync(at("huge"), FILE_MAX_BYTES + 1);
  const sources: Array<[string, FileReason]> = [["none", "not-found"], [".", "is-directory"], ["file/x", "not-directory"], [
    "huge",
    "too-large",
  ]];
  for (const [name, reason] of sources) await failsWith(session.writeFile("f", { local: at(name) }), "host", reason);
  await failsWith(session.writeFile("f", { local: "/dev/zero" }), "host", "not-a-file");
  assert.deepEqual(received.length, 0, "nothing was sent for a source that cannot be read");
  const targets: Array<[string, FileReason]> = [["none/x", "not-found"], [".", "is-directory"], ["file/x", "not-directory"]];
  for (const [name, reason] of targets) await failsWith(session.readFile("f", { destination: at(name) }), "host", reason);
  await failsWith(session.readFile("f", { destination: "/dev/null" }), "host", "not-a-file");
  assert.deepEqual(fs.readdirSync(directory).sort(), ["file", "huge"]);
  assert.equal(session.closed, false);
});

test("session files: content of more than the limit is refused, at once where its size is known", async (t) => {
  const { session, guest, received } = await open(t);
  await failsWith(session.writeFile("f", new ArrayBuffer(FILE_MAX_BYTES + 1)), "guest", "too-large");
  assert.equal(received.length, 0);
  let given = 0;
  const part = new Uint8Array(1_048_576);
  const endless = new ReadableStream<Uint8Array>({ pull: (controller) => (given++, controller.enqueue(part)) }, { highWaterMark: 0 });
  guest.files.set("f", bytes("old"));
  await failsWith(session.writeFile("f", endless), "guest", "too-large");
  assert.deepEqual([given, guest.cancelled, guest.files.get("f")], [501, ["f"], bytes("old")]);
});

test("session files: a stream that fails aborts the transfer with its own error; one that is not used up is cancelled", async (t) => {
  const { session, guest } = await open(t), reason = new Error("the source broke");
  let cancelled: unknown;
  const failing = new ReadableStream<Uint8Array>({
    pull(controller) {
      controller.enqueue(bytes("half"));
      controller.error(reason);
    },
  }, { highWaterMark: 0 });
  await assert.rejects(session.writeFile("f", failing), (error) => error === reason);
  await rejectsWith(session.writeFile("f", streamOf("text")), InputValidationError, /pieces must be Uint8Array/);
  const controller = new AbortController(), enough = new Error("enough");
  const idle = new ReadableStream<Uint8Array>({ cancel: (why) => void (cancelled = why ?? "cancelled") });
  const writing = session.writeFile("f", idle, { signal: controller.signal });
  controller.abort(enough);
  await assert.rejects(settled(writing, "the abort"), (error) => error === enough);
  await eventually("the source was cancelled", () => cancelled !== undefined);
  assert.deepEqual([guest.files.size, session.closed], [0, false]);
});

test("session files: a destination stream that fails ends the transfer; a transfer that fails aborts the stream", async (t) => {
  const { session, guest } = await open(t), full = new Error("the sink is full");
  guest.files.set("big", new Uint8Array(3_000_000));
  const failing = new WritableStream<Uint8Array>({ write: () => Promise.reject(full) });
  await assert.rejects(settled(session.readFile("big", { destination: failing }), "the read"), (error) => error === full);
  let aborted: unknown, closed = 0;
  const sink = () => new WritableStream<Uint8Array>({ abort: (why) => void (aborted = why), close: () => void (closed += 1) });
  await failsWith(session.readFile("none", { destination: sink() }), "guest", "not-found");
  assert.ok(aborted instanceof SandboxFileError);
  assert.equal(await session.readFile("big", { destination: sink() }), 3_000_000);
  assert.equal(closed, 1);
  const stuck = new WritableStream<Uint8Array>({ write: () => new Promise(() => {}) }), controller = new AbortController();
  const reading = session.readFile("big", { destination: stuck, signal: controller.signal });
  controller.abort(full);
  await assert.rejects(settled(reading, "the abort"), (error) => error === full);
  assert.equal(session.closed, false);
});

test("session files: a callback of progress that throws ends the transfer with what it threw", async (t) => {
  const { session, guest } = await open(t), reason = new Error("the bar broke");
  const onProgress = () => {
    throw reason;
  };
  guest.files.set("f", bytes("x"));
  await assert.rejects(settled(session.readFile("f", { onProgress }), "the read"), (error) => error === reason);
  await assert.rejects(settled(session.writeFile("g", "x", { onProgress }), "the write"), (error) => error === reason);
  assert.deepEqual([guest.files.has("g"), session.closed], [false, false]);
});

const long = "x".repeat(255);
test("session files: paths are checked before anything is sent", async (t) => {
  const { session, received } = await open(t);
  const calls: Array<(path: string) => Promise<unknown>> = [
    (name) => session.writeFile(name, "x"),
    (name) => session.readFile(name),
    (name) => session.makeDir(name),
    (name) => session.remove(name, { recursive: true }),
    (name) => session.rename(name, "b"),
    (name) => session.rename("b", name),
    (name) => session.listFiles(name),
    (name) => session.stat(name),
    (name) => session.exists(name),
  ];
  const bad: unknown[] = [
    "/etc/passwd",
    "//x",
    "..",
    "a/../b",
    "a/..",
    "../x",
    "a\0b",
    `${long}x`,
    `a/${long}x/b`,
    "ü".repeat(128),
    "\ud800",
    5,
    null,
  ];
  const deep = Array(20).fill(long).join("/");
  for (const name of [...bad, deep]) {
    for (const call of calls) {
      await rejectsWith(call(name as string), InputValidationError, /^Cannot .*(path|from|to) (must|not)|names? in a path/);
    }
  }
  for (const call of calls.slice(0, 6)) {
    for (const name of ["", ".", "./"]) await rejectsWith(call(name), InputValidationError, /must name something/);
  }
  assert.equal(received.length, 0);
  for (const name of [long, "ü".repeat(127), "a/./b", "...", "a..b", Array(16).fill(long).join("/").slice(0, 4096)]) {
    await assert.rejects(session.stat(name), (error) => error instanceof SandboxFileError);
  }
});

test("session files: bad options and contents are refused before anything is sent", async (t) => {
  const { session, received } = await open(t);
  const locked = new ReadableStream<Uint8Array>();
  locked.getReader();
  for (
    const content of [5, null, undefined, {}, [1], { local: "" }, { local: "a\0" }, { local: 5 }, "\ud800", locked, {
      local: new URL("http://x/y"),
    }]
  ) {
    await rejectsWith(session.writeFile("f", content as FileSource), InputValidationError);
  }
  for (const options of [{ mode: 0o1000 }, { mode: -1 }, { mode: "644" }, { executable: 1 }, { signal: 5 }, { onProgress: 5 }]) {
    await rejectsWith(session.writeFile("f", "x", options as unknown as WriteFileOptions), InputValidationError);
  }
  const busy = new WritableStream<Uint8Array>();
  busy.getWriter();
  for (
    const options of [{ encoding: "latin1" }, { encoding: "utf-8", destination: "x" }, { destination: 5 }, { destination: busy }, {
      destination: "",
    }]
  ) {
    await rejectsWith(session.readFile("f", options as unknown as ReadFileOptions as never), InputValidationError);
  }
  await rejectsWith(session.writeFile("f", "x", { perm: 1 } as unknown as WriteFileOptions), VmConfigError, /unknown field "perm"/);
  await rejectsWith(session.makeDir("d", { recursive: 1 } as never), InputValidationError);
  await rejectsWith(session.stat("d", 5 as never), InputValidationError);
  assert.equal(received.length, 0);
});

test("session files: a session that is closed ends a transfer, which leaves nothing on the host", async (t) => {
  const { session, peer } = await openSessionPeer(t), directory = temporaryDirectory(t);
  const reading = session.readFile("f", { destination: path.join(directory, "f") });
  reading.catch(() => {});
  await eventually("it has begun", () => fs.readdirSync(directory).length > 0);
  await session.close();
  await rejectsWith(reading, SessionClosedError);
  await eventually("the unfinished file is gone", () => fs.readdirSync(directory).length === 0);
  assert.ok(peer);
});

test("session files: sessions of one guest do not wait for each other's transfers", async (t) => {
  const sessions: Session[] = [];
  for (let count = 0; count < 2; count++) sessions.push((await open(t)).session);
  await Promise.all(sessions.map((session) => session.writeFile("f", "x")));
});

noLeftovers();
