/** Files: hashes, atomic writes, staged directories and process identities, within one process. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test from "node:test";
import {
  exists,
  isSameProcess,
  makePrivateDirectory,
  ownIdentity,
  processIdentity,
  sha256File,
  StagedDirectory,
  sweepTemporaries,
  writeFileAtomic,
} from "../../../src/host/files.ts";
import { Child } from "../../../src/host/process.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { eventually } from "../../support/waiting.ts";

const modeOf = (file: string) => statSync(file).mode & 0o7777;
const hasProc = existsSync("/proc/self/stat");

test("sha256File hashes files of any size", async (t) => {
  const file = path.join(temporaryDirectory(t), "file");
  for (const length of [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000]) {
    const bytes = new Uint8Array(length).fill(length & 0xff);
    writeFileSync(file, bytes);
    assert.equal(await sha256File(file), createHash("sha256").update(bytes).digest("hex"));
  }
});

test("sha256File rejects for what is no file, and when it is aborted", async (t) => {
  const directory = temporaryDirectory(t), file = path.join(directory, "file");
  await assert.rejects(sha256File(file), { code: "ENOENT" });
  await assert.rejects(sha256File(directory), { code: "EISDIR" });
  writeFileSync(file, new Uint8Array(10_000_000));
  await assert.rejects(sha256File(file, AbortSignal.abort()));
});

test("exists tells what is there from what is not", async (t) => {
  const directory = temporaryDirectory(t);
  symlinkSync("nowhere", path.join(directory, "dangling"));
  assert.deepEqual(await Promise.all([directory, path.join(directory, "x"), path.join(directory, "dangling"), "a\0b"].map(exists)), [
    true,
    false,
    false,
    false,
  ]);
});

test("makePrivateDirectory makes a directory and its parents for this user alone, and leaves one that is there", async (t) => {
  const directory = path.join(temporaryDirectory(t), "a", "b");
  assert.equal(await makePrivateDirectory(directory), directory);
  assert.deepEqual([modeOf(directory), modeOf(path.dirname(directory))], [0o700, 0o700]);
  chmodSync(directory, 0o755);
  await makePrivateDirectory(directory);
  assert.equal(modeOf(directory), 0o755);
});

test("writeFileAtomic writes text and bytes, with the mode asked for", async (t) => {
  const directory = temporaryDirectory(t), file = path.join(directory, "file");
  await writeFileAtomic(file, "text ü");
  assert.deepEqual([readFileSync(file, "utf8"), modeOf(file)], ["text ü", 0o644 & ~process.umask()]);
  await writeFileAtomic(file, new Uint8Array([0, 255]), 0o400);
  assert.deepEqual([[...readFileSync(file)], modeOf(file)], [[0, 255], 0o400]);
  await writeFileAtomic(file, "", 0o600);
  assert.deepEqual([readFileSync(file, "utf8"), modeOf(file), readdirSync(directory)], ["", 0o600, ["file"]]);
});

test("writeFileAtomic that fails leaves what was there and nothing else", async (t) => {
  const directory = temporaryDirectory(t), target = path.join(directory, "target");
  mkdirSync(target);
  await assert.rejects(writeFileAtomic(target, "over a directory"));
  assert.deepEqual(readdirSync(directory), ["target"]);
  await assert.rejects(writeFileAtomic(path.join(directory, "missing", "file"), "x"), { code: "ENOENT" });
  assert.deepEqual(readdirSync(directory), ["target"]);
});

test("writeFileAtomic by many at once ends with one whole content", async (t) => {
  const directory = temporaryDirectory(t), file = path.join(directory, "file");
  await Promise.all(Array.from({ length: 30 }, (_, id) => writeFileAtomic(file, String(id % 10).repeat(50_000))));
  assert.match(readFileSync(file, "utf8"), /^(\d)\1{49999}$/);
  assert.deepEqual(readdirSync(directory), ["file"]);
});

test("writeFileAtomic replaces a symbolic link and not what it points to", async (t) => {
  const directory = temporaryDirectory(t);
  const real = path.join(directory, "real"), link = path.join(directory, "link");
  writeFileSync(real, "old");
  symlinkSync(real, link);
  await writeFileAtomic(link, "new");
  assert.deepEqual([readFileSync(real, "utf8"), readFileSync(link, "utf8")], ["old", "new"]);
});

test("StagedDirectory is private, moves to its place whole, and is gone when it was not published", async (t) => {
  const parent = path.join(temporaryDirectory(t), "parent"), target = path.join(parent, "target");
  {
    await using staged = await StagedDirectory.create(parent);
    assert.deepEqual([modeOf(staged.path), path.dirname(staged.path)], [0o700, parent]);
    writeFileSync(path.join(staged.path, "file"), "first");
    await staged.publish(target);
  }
  assert.equal(readFileSync(path.join(target, "file"), "utf8"), "first");
  {
    await using staged = await StagedDirectory.create(parent);
    writeFileSync(path.join(staged.path, "file"), "dropped");
  }
  assert.deepEqual(readdirSync(parent), ["target"]);
});

test("StagedDirectory that comes second leaves the first one's directory as it is", async (t) => {
  const parent = temporaryDirectory(t), target = path.join(parent, "target");
  for (const content of ["first", "second"]) {
    await using staged = await StagedDirectory.create(parent);
    writeFileSync(path.join(staged.path, "file"), content);
    await staged.publish(target);
  }
  assert.deepEqual([readFileSync(path.join(target, "file"), "utf8"), readdirSync(parent)], ["first", ["target"]]);
});

test("StagedDirectory cannot be published over a file, says so, and is removed", async (t) => {
  const parent = temporaryDirectory(t), target = path.join(parent, "target");
  writeFileSync(target, "a file");
  await assert.rejects(async () => {
    await using staged = await StagedDirectory.create(parent);
    writeFileSync(path.join(staged.path, "file"), "x");
    await staged.publish(target);
  }, { code: "ENOTDIR" });
  assert.deepEqual([readFileSync(target, "utf8"), readdirSync(parent)], ["a file", ["target"]]);
});

test("processIdentity knows this process, and none that has ended or never was", async () => {
  const own = processIdentity(process.pid);
  assert.ok(own && isSameProcess(own));
  assert.deepEqual(own, ownIdentity());
  await using child = await Child.spawn(["sleep", "60"], { isTermFirst: false });
  const identity = processIdentity(child.pid);
  assert.ok(identity && isSameProcess(identity));
  child.kill();
  await child.exited;
  assert.deepEqual([processIdentity(child.pid), isSameProcess(identity), processIdentity(0x7fff_fffe)], [undefined, false, undefined]);
});

test("isSameProcess tells a process from another that got its number later", { skip: !hasProc }, () => {
  const own = ownIdentity();
  assert.equal(isSameProcess({ pid: own.pid, startTicks: own.startTicks - 1 }), false);
});

test("isSameProcess believes nothing that is no identity", () => {
  for (
    const value of [{}, { pid: "self", startTicks: 1 }, { pid: NaN, startTicks: NaN }, { pid: 0x7fff_fffe }, { pid: -1, startTicks: 0 }]
  ) {
    assert.equal(isSameProcess(value as never), false, JSON.stringify(value));
  }
});

for (const name of [") Z 1 2", "a b", "((", "x) R 1", "\u00fc\u00fc", "a\nb"]) {
  test(`processIdentity reads the start of a program called ${JSON.stringify(name)}`, { skip: !hasProc }, async (t) => {
    const program = path.join(temporaryDirectory(t), name);
    symlinkSync("/bin/sleep", program);
    await using child = await Child.spawn([program, "60"], { isTermFirst: false });
    await eventually("it has its name", () => readFileSync(`/proc/${child.pid}/comm`, "utf8").slice(0, -1) === name.slice(0, 15));
    const identity = processIdentity(child.pid);
    assert.ok(identity && identity.startTicks >= ownIdentity().startTicks && isSameProcess(identity));
  });
}

test("processIdentity: a zombie does not run", { skip: !hasProc }, async (t) => {
  const file = path.join(temporaryDirectory(t), "pid");
  // The shell becomes a program that never waits for the child it inherits, and which must not have ended before.
  await using child = await Child.spawn(["sh", "-c", `sleep 0.3 & echo $! > ${file}; exec sleep 60`]);
  await eventually("the zombie is there", () => {
    const pid = existsSync(file) ? Number(readFileSync(file, "utf8")) : 0;
    return pid > 1 && existsSync(`/proc/${pid}/stat`) && /\) Z/.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  });
  assert.ok(child.pid);
  assert.equal(processIdentity(Number(readFileSync(file, "utf8"))), undefined);
});

test("sweepTemporaries removes what the dead left, files and whole trees, and nothing else", async (t) => {
  const directory = temporaryDirectory(t);
  const child = await Child.spawn(["sleep", "60"], { isTermFirst: false });
  const dead = processIdentity(child.pid);
  await child[Symbol.asyncDispose]();
  assert.ok(dead);
  const own = ownIdentity();
  const gone = [`.tmp-${dead.pid}-${dead.startTicks}-a`, `.tmp-${dead.pid}-${dead.startTicks}-tree`];
  const reused = `.tmp-${own.pid}-${own.startTicks + 1}-x`;
  const kept = [`.tmp-${own.pid}-${own.startTicks}-mine`, ".tmp-", ".tmp-x-y-z", ".tmp-1", "tmp-99999-1-x", "file", ".hidden"];
  for (const name of [...gone.slice(0, 1), reused, ...kept]) writeFileSync(path.join(directory, name), "x");
  mkdirSync(path.join(directory, gone[1] ?? "", "deep"), { recursive: true });
  writeFileSync(path.join(directory, gone[1] ?? "", "deep", "file"), "x", { mode: 0o400 });
  await sweepTemporaries(directory);
  assert.deepEqual(readdirSync(directory).sort(), [...kept, ...hasProc ? [] : [reused]].sort());
});

test("sweepTemporaries of a directory that is not there does nothing", async (t) => {
  const directory = path.join(temporaryDirectory(t), "missing");
  await sweepTemporaries(directory);
  assert.equal(existsSync(directory), false);
});

noLeftovers();
