/** Files between processes: locks that are fought over and abandoned, publishing at once, writers that are killed. */
import assert from "node:assert/strict";
import { existsSync, linkSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { FileLock, isSameProcess, ownIdentity, sweepTemporaries } from "../../src/host/files.ts";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { type Script, startScript } from "../support/subprocess.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";

/** Kills a script and waits for its death. */
async function kill(script: Script): Promise<void> {
  script.raw.kill("SIGKILL");
  await script.ended;
}

/** A lock file that names a process which has ended. */
async function deadLock(t: TestContext, lock: string): Promise<string> {
  const holder = startScript(t, "lock_holder.ts", [lock]);
  await holder.said("held");
  await kill(holder);
  return readFileSync(lock, "utf8");
}

test("FileLock excludes: eight processes that count in one file lose no step", async (t) => {
  const directory = temporaryDirectory(t), lock = path.join(directory, "lock"), counter = path.join(directory, "counter");
  writeFileSync(counter, "0");
  const scripts = Array.from({ length: 8 }, () => startScript(t, "lock_counter.ts", [lock, counter, "50"]));
  for (const script of scripts) {
    const { code, stderr } = await script.ended;
    assert.deepEqual([code, stderr], [0, ""]);
  }
  assert.equal(readFileSync(counter, "utf8"), "400");
  assert.deepEqual(readdirSync(directory), ["counter"]);
});

test("FileLock excludes within one process too", async (t) => {
  const lock = path.join(temporaryDirectory(t), "deep", "lock");
  let inside = 0;
  await Promise.all(Array.from({ length: 10 }, async () => {
    await using _held = await FileLock.acquire(lock);
    assert.equal(++inside, 1);
    await sleep(1);
    inside--;
  }));
  assert.deepEqual(readdirSync(path.dirname(lock)), []);
});

test("FileLock of a killed process goes to the next, who waited for it and was told so once", async (t) => {
  const lock = path.join(temporaryDirectory(t), "lock");
  const holder = startScript(t, "lock_holder.ts", [lock]);
  await holder.said("held");
  const holders: number[] = [];
  const waiting = FileLock.acquire(lock, { onWait: (pid) => holders.push(pid) });
  await eventually("it waits", () => holders.length > 0);
  await sleep(200);
  await kill(holder);
  await using held = await settled(waiting, "the dead one's lock");
  assert.ok(held);
  assert.deepEqual(holders, [holder.pid]);
});

test("FileLock of a living process is not broken, and is free when it is released", async (t) => {
  const lock = path.join(temporaryDirectory(t), "lock");
  const holder = startScript(t, "lock_holder.ts", [lock]);
  await holder.said("held");
  const before = readFileSync(lock, "utf8");
  for (let count = 0; count < 5; count++) assert.equal(await FileLock.tryAcquire(lock), undefined);
  assert.equal(readFileSync(lock, "utf8"), before);
  const waiting = FileLock.acquire(lock);
  holder.tell("release");
  assert.equal((await holder.ended).code, 0);
  await using held = await settled(waiting, "the released lock");
  assert.ok(held);
});

test("FileLock.acquire says nothing of waiting when it need not wait", async (t) => {
  const lock = path.join(temporaryDirectory(t), "lock");
  await deadLock(t, lock);
  await using held = await FileLock.acquire(lock, { onWait: () => assert.fail("the holder is dead") });
  assert.ok(held);
});

for (
  const garbage of [
    "",
    "{}",
    "null",
    "5",
    "[1]",
    '{"pid":1}',
    '{"pid":"self","startTicks":1,"token":"x"}',
    '{"pid":-1,"startTicks":0,"token":"x"}',
    "\0\xff",
    "x".repeat(1_000_000),
  ]
) {
  test(`FileLock takes a lock whose file is garbage: ${JSON.stringify(garbage.slice(0, 50))}`, async (t) => {
    const directory = temporaryDirectory(t), lock = path.join(directory, "lock");
    writeFileSync(lock, garbage);
    {
      await using held = await settled(FileLock.acquire(lock), "the lock");
      assert.ok(held);
    }
    assert.deepEqual(readdirSync(directory), []);
  });
}

test("FileLock whose number another process has now is broken", async (t) => {
  const lock = path.join(temporaryDirectory(t), "lock"), own = ownIdentity();
  writeFileSync(lock, JSON.stringify({ pid: own.pid, startTicks: own.startTicks + 1, token: "t" }));
  if (isSameProcess({ ...own, startTicks: own.startTicks + 1 })) return; // A host that does not tell when a process started.
  await using held = await settled(FileLock.acquire(lock), "the lock");
  assert.ok(held);
});

test("FileLock.acquire rejects with the signal's reason while it waits, and leaves nothing", async (t) => {
  const directory = temporaryDirectory(t), lock = path.join(directory, "lock");
  const holder = startScript(t, "lock_holder.ts", [lock]);
  await holder.said("held");
  const controller = new AbortController(), reason = new Error("enough");
  const waiting = FileLock.acquire(lock, { signal: controller.signal, onWait: () => controller.abort(reason) });
  await assert.rejects(settled(waiting, "the abort"), (error) => error === reason);
  await assert.rejects(FileLock.acquire(lock, { signal: controller.signal }), (error) => error === reason);
  assert.deepEqual(readdirSync(directory), ["lock"]);
});

test("FileLock whose file vanished is released without harm to whoever has the name now", async (t) => {
  const directory = temporaryDirectory(t), lock = path.join(directory, "lock");
  const first = await FileLock.acquire(lock);
  rmSync(lock);
  const second = await settled(FileLock.acquire(lock), "the free name");
  await first[Symbol.asyncDispose]();
  assert.equal(existsSync(lock), true, "the second holder's file stays");
  await second[Symbol.asyncDispose]();
  await second[Symbol.asyncDispose]();
  assert.deepEqual(readdirSync(directory), []);
});

test("FileLock: a waiter gets a lock whose file vanishes", async (t) => {
  const lock = path.join(temporaryDirectory(t), "lock");
  const holder = await FileLock.acquire(lock);
  const waiting = FileLock.acquire(lock, { onWait: () => rmSync(lock) });
  await using held = await settled(waiting, "the vanished lock");
  await holder[Symbol.asyncDispose]();
  assert.ok(held && existsSync(lock));
});

test("FileLock that cannot be read is nobody's to break: the caller learns why", async (t) => {
  const lock = path.join(temporaryDirectory(t), "lock");
  mkdirSync(lock);
  await assert.rejects(FileLock.acquire(lock), { code: "EISDIR" });
  assert.equal(existsSync(lock), true);
});

test("FileLock: a breaker that judged by what is no longer there removes nothing", async (t) => {
  const directory = temporaryDirectory(t), lock = path.join(directory, "lock");
  const dead = await deadLock(t, lock);
  // Many break the same dead lock at once: each saw the dead holder, only one may act on it.
  let inside = 0, most = 0;
  await Promise.all(Array.from({ length: 20 }, async () => {
    await using _held = await FileLock.acquire(lock);
    most = Math.max(most, ++inside);
    await sleep(1);
    inside--;
  }));
  assert.equal(most, 1);
  assert.deepEqual([dead !== "", readdirSync(directory)], [true, []]);
});

test("FileLock stays exclusive while its holders are killed at any moment", async (t) => {
  const directory = temporaryDirectory(t), lock = path.join(directory, "lock"), witness = path.join(directory, "witness");
  const start = async () => {
    const script = startScript(t, "lock_churn.ts", [lock, witness]);
    await script.said("started");
    return script;
  };
  const scripts = await Promise.all(Array.from({ length: 4 }, start));
  const said: string[] = [];
  for (let round = 0; round < 12; round++) {
    await sleep(30 + round * 7);
    const victim = scripts.shift();
    assert.ok(victim);
    process.kill(victim.pid, "SIGSTOP"); // Not by the ChildProcess: Deno 2.9 then takes it for ended.
    // Stopped inside or outside; what it left as a witness goes with it, or its successor would see it.
    await sleep(10);
    if (existsSync(witness) && readFileSync(witness, "utf8") === String(victim.pid)) rmSync(witness);
    await kill(victim);
    said.push((await victim.ended).stdout);
    const starting = start();
    scripts.push(await starting);
  }
  for (const script of scripts) {
    await kill(script);
    said.push((await script.ended).stdout);
  }
  assert.equal(said.join("").includes("overlap"), false);
  await using held = await settled(FileLock.acquire(lock), "the last one's lock");
  assert.ok(held);
});

test("FileLock: what a breaker left that was killed itself does not stop the next", async (t) => {
  const directory = temporaryDirectory(t), lock = path.join(directory, "lock");
  await deadLock(t, lock);
  // The right to break this lock is a lock of its own; here its holder died too, and so did the holder of that one's.
  const dead = readFileSync(lock, "utf8");
  const { createHash } = await import("node:crypto");
  const rightTo = (file: string, content: string) => `${file}.${createHash("sha256").update(content).digest("hex").slice(0, 16)}`;
  const right = rightTo(lock, dead);
  linkSync(lock, right);
  linkSync(lock, rightTo(right, dead));
  {
    await using held = await settled(FileLock.acquire(lock), "the lock");
    assert.ok(held);
  }
  assert.deepEqual(readdirSync(directory), []);
});

test("StagedDirectory: of two processes that publish at once one wins, both see its content, nothing else is left", async (t) => {
  for (let round = 0; round < 3; round++) {
    const parent = temporaryDirectory(t), target = path.join(parent, "target");
    const scripts = ["one", "two", "three"].map((content) => startScript(t, "publish.ts", [parent, target, content]));
    for (const script of scripts) await script.said("staged");
    for (const script of scripts) script.tell("go");
    const ends = await Promise.all(scripts.map((script) => script.ended));
    const content = readFileSync(path.join(target, "file"), "utf8");
    assert.ok(["one", "two", "three"].includes(content));
    assert.deepEqual(ends.map(({ code, stdout }) => [code, stdout]), ends.map(() => [0, `staged\nsees ${content}\n`]));
    assert.deepEqual(readdirSync(parent), ["target"]);
  }
});

test("writeFileAtomic: a reader never sees a part, not even when the writer is killed, and a sweep clears what it left", async (t) => {
  const directory = temporaryDirectory(t), file = path.join(directory, "file"), bytes = 2_000_000;
  for (let round = 0; round < 5; round++) {
    const writers = [1, 2].map(() => startScript(t, "write_atomic.ts", [file, String(bytes)]));
    for (const writer of writers) await writer.said("written");
    for (let look = 0; look < 20; look++) {
      assert.match(readFileSync(file, "latin1"), new RegExp(`^([a-z])\\1{${bytes - 1}}$`));
      await sleep(2);
    }
    for (const writer of writers) await kill(writer);
    assert.match(readFileSync(file, "latin1"), new RegExp(`^([a-z])\\1{${bytes - 1}}$`));
  }
  await sweepTemporaries(directory);
  assert.deepEqual(readdirSync(directory), ["file"]);
});

test("sweepTemporaries keeps what a living process is making, until it is dead; several may sweep at once", async (t) => {
  const directory = temporaryDirectory(t);
  const living = startScript(t, "sweep.ts", [directory]);
  await living.said("ready");
  const sweepers = [1, 2, 3].map(() => startScript(t, "sweep.ts", [directory]));
  for (const sweeper of sweepers) await sweeper.said("ready");
  // The script says its own identity first; here it is found as every process finds it.
  const { processIdentity } = await import("../../src/host/files.ts");
  const identity = processIdentity(living.pid);
  assert.ok(identity);
  const tree = path.join(directory, `.tmp-${identity.pid}-${identity.startTicks}-tree`);
  for (let at = 0; at < 300; at++) {
    mkdirSync(path.join(tree, `d${at % 30}`), { recursive: true });
    writeFileSync(path.join(tree, `d${at % 30}`, `f${at}`), "x");
  }
  await sweepTemporaries(directory);
  assert.equal(existsSync(tree), true);
  await kill(living);
  for (const sweeper of sweepers) sweeper.tell("go");
  const ends = await Promise.all(sweepers.map((sweeper) => sweeper.ended));
  assert.deepEqual(ends.map(({ code, stderr }) => [code, stderr]), ends.map(() => [0, ""]));
  assert.deepEqual(readdirSync(directory), []);
});

noLeftovers();
