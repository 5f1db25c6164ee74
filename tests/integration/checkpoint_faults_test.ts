/** Faults of checkpoints: damaged and foreign files, dying machines and processes, full disks. Each is refused with its reason, and leaves nothing half made. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { CommunicationError, Scheduler, type SchedulerConfig, SessionClosedError, SnapshotError } from "../../src/mod.ts";
import { cacheDirectory } from "../../src/host/platform.ts";
import { withEnv } from "../support/environment.ts";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { startScript } from "../support/subprocess.ts";
import { descendants, qemuOf } from "../support/vm.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";

/** Found before any test moves the cache directory. */
const IMAGES = imagesDirectory(), SNAPSHOTS = process.env["EXEC_SANDBOX_SNAPSHOT_CACHE_DIR"] ?? path.join(cacheDirectory(), "snapshots");
/** Baking under emulation on a loaded machine takes its time. */
const TIMEOUT_MS = 600_000;
const skip = reasonToSkip() ?? false;
const log = { debug() {}, info() {}, warning() {}, error() {} };

/** Declares a test that has a cache directory of its own, with the templates of this machine. */
function testIn(name: string, body: (t: TestContext, cache: string) => Promise<void>, reason: string | false = skip): void {
  test(name, { skip: reason, timeout: TIMEOUT_MS }, async (t) => {
    await withEnv({ EXEC_SANDBOX_CACHE_DIR: temporaryDirectory(t) }, () => body(t, cacheDirectory()));
  });
}

const open = (config: SchedulerConfig = {}) =>
  Scheduler.open({ imagesDir: IMAGES, snapshotCacheDir: SNAPSHOTS, autoDownloadAssets: false, ...config }, { log });

/** Every file below `directory`. */
const filesIn = (directory: string) =>
  existsSync(directory)
    ? readdirSync(directory, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile()).map(({ name }) => name)
    : [];

/** Files of a checkpoint, or of one that is being made. */
const savedIn = (cache: string) =>
  [...filesIn(path.join(cache, "checkpoints")), ...filesIn(path.join(cache, "run"))]
    .filter((name) => !/^[0-9a-f]{16}$/.test(name)); // The journal's own entry.

interface Meta {
  format: number;
  facts: Record<string, string>;
}

testIn("a damaged or foreign checkpoint is refused with the reason, by everybody who would use it", async (_t, cache) => {
  await using scheduler = await open();
  await using session = await scheduler.session({ language: "raw" });
  await session.exec("n=1");
  await session.checkpoint({ name: "whole" });
  await session.exec("n=2");
  const root = path.join(cache, "checkpoints"), whole = path.join(root, "whole"), broken = path.join(root, "broken");
  const edit = (change: (meta: Meta) => void) => () => {
    const file = path.join(broken, "meta.json"), meta = JSON.parse(readFileSync(file, "utf8"));
    change(meta);
    chmodSync(file, 0o600);
    writeFileSync(file, JSON.stringify(meta));
  };
  const change = (name: string, how: (file: string) => void) => () => {
    const file = path.join(broken, name);
    chmodSync(file, 0o600);
    how(file);
  };
  const cases: ReadonlyArray<readonly [damage: () => void, says: RegExp]> = [
    [change("ram", (file) => truncateSync(file, 10_000_000)), /ram must have \d+ bytes, got 10000000/],
    [change("state", (file) => truncateSync(file, 1_000)), /state must have \d+ bytes, got 1000/],
    [change("ram", (file) => rmSync(file)), /ram must have \d+ bytes, got no file/],
    [
      change("state", (file) => {
        const bytes = readFileSync(file);
        bytes.writeUInt8(255 - bytes.readUInt8(bytes.length - 1_000), bytes.length - 1_000);
        writeFileSync(file, bytes);
      }),
      /state was changed/,
    ],
    [change("meta.json", (file) => writeFileSync(file, "{")), /there is none of that name/],
    [edit((meta) => meta.format = 0), /its format was 0 and is \d/],
    [edit((meta) => meta.facts["sbx protocol"] = "99"), /sbx protocol was 99 and is \d/],
    [edit((meta) => meta.facts["QEMU version"] = "9.9.9"), /QEMU version was 9\.9\.9 and is \d+\.\d+/],
    [edit((meta) => meta.facts["agent"] = "a".repeat(64)), /agent was aaaaaaaaaaaa and is [0-9a-f]{12}/],
    [edit((meta) => meta.facts["host CPU"] = "b".repeat(64)), /host CPU was bbbbbbbbbbbb and is \w+/],
    [edit((meta) => meta.facts["CPU model"] = "host"), /CPU model was host and is max/],
    [edit((meta) => delete meta.facts["accelerator"]), /accelerator was unknown and is tcg/],
  ];
  for (const [damage, says] of cases) {
    cpSync(whole, broken, { recursive: true });
    damage();
    for (const use of [() => scheduler.restore("broken"), () => session.rollback("broken")]) {
      await assert.rejects(use(), (error) => {
        assert.ok(error instanceof SnapshotError, String(error));
        assert.match(error.message, says);
        return error.retry === "never";
      });
    }
    rmSync(broken, { recursive: true });
  }
  assert.equal((await session.exec("echo $n")).stdout, "2\n", "the session is as it was");
  await using restored = await scheduler.restore("whole");
  assert.equal((await restored.exec("echo $n")).stdout, "1\n");
});

testIn("a machine that is killed while it is saved closes the session, and nothing of the checkpoint is left", async (_t, cache) => {
  await using scheduler = await open();
  for (const name of [undefined, "named"]) {
    const session = await scheduler.session({ language: "raw" });
    await session.exec("head -c 100000000 /dev/urandom > /dev/shm/x; head -c 60000000 /dev/urandom > x");
    const pid = qemuOf(session);
    const making = session.checkpoint(name === undefined ? {} : { name });
    making.catch(() => {}); // It is awaited below.
    await eventually("the save has begun", () => savedIn(cache).length > 0);
    process.kill(pid, "SIGKILL");
    const error = await settled(making, "the checkpoint").catch((caught) => caught);
    const isLost = [SnapshotError, CommunicationError, SessionClosedError].some((type) => error instanceof type);
    assert.ok(isLost, String(error));
    await eventually("the session knows", () => session.closed);
    await assert.rejects(session.exec("true"), SessionClosedError);
    await session.close();
    await eventually("no file is left", () => savedIn(cache).length === 0);
  }
  assert.deepEqual(await scheduler.checkpoints(), []);
});

testIn("a checkpoint of a machine that stands still can be given up; when it goes on the session does, and can be saved", async () => {
  await using scheduler = await open();
  await using session = await scheduler.session({ language: "raw" });
  await session.exec("n=1");
  const pid = qemuOf(session), stop = new AbortController(), reason = new Error("enough");
  process.kill(pid, "SIGSTOP");
  const making = session.checkpoint({ signal: stop.signal });
  making.catch(() => {}); // It is awaited below.
  await sleep(50); // What is sent waits in QEMU's pipes.
  stop.abort(reason);
  await assert.rejects(settled(making, "the checkpoint"), (error) => error === reason);
  const next = session.exec("echo $n");
  process.kill(pid, "SIGCONT");
  assert.equal((await settled(next, "the next execution")).stdout, "1\n");
  await using checkpoint = await session.checkpoint();
  await using copy = await checkpoint.restore();
  assert.deepEqual([(await copy.exec("echo $n")).stdout, (await session.exec("echo $n")).stdout], ["1\n", "1\n"]);
});

testIn("a machine that is killed while it is restored is an error, and the checkpoint serves again", async () => {
  await using scheduler = await open();
  await using session = await scheduler.session({ language: "raw" });
  await using checkpoint = await session.checkpoint();
  const original = descendants().filter((line) => line.includes("qemu")).map((line) => Number.parseInt(line));
  const killNext = async () => {
    let pid: number | undefined;
    await eventually("its machine is there", () => {
      pid = descendants().filter((line) => line.includes("sbx-jail") || line.includes("qemu")).map((line) => Number.parseInt(line))
        .find((each) => !original.includes(each) && isQemuOrStarting(each));
      return pid !== undefined;
    });
    process.kill(pid as number, "SIGKILL");
  };
  const isQemuOrStarting = (pid: number) => descendants(pid).length === 0;
  const restoring = checkpoint.restore();
  restoring.catch(() => {}); // It is awaited below.
  await killNext();
  await assert.rejects(settled(restoring, "the restore"), (error) => error instanceof CommunicationError || error instanceof SnapshotError);
  const rolling = session.rollback(checkpoint);
  rolling.catch(() => {}); // It is awaited below.
  await killNext();
  await assert.rejects(settled(rolling, "the rollback"), (error) => error instanceof CommunicationError || error instanceof SnapshotError);
  assert.equal((await session.exec("echo alive")).stdout, "alive\n", "the session goes on as it was");
  await using restored = await checkpoint.restore();
  assert.equal((await restored.exec("echo again")).stdout, "again\n");
});

const mountReason = skip || (process.platform === "linux" && process.getuid?.() === 0 && canMount() ? false : "needs the right to mount");
testIn("a full disk: the checkpoint is refused, the session goes on, and nothing is left", async (_t, cache) => {
  assert.equal(spawnSync("mount", ["-t", "tmpfs", "-o", "size=24m", "tmpfs", cache]).status, 0);
  try {
    await using scheduler = await open();
    await using session = await scheduler.session({ language: "raw" });
    await session.exec("n=5");
    for (const options of [{}, { name: "named" }]) {
      await assert.rejects(session.checkpoint(options), (error) => {
        assert.ok(error instanceof SnapshotError, String(error));
        assert.match(error.message, /^Cannot save the VM: no space is left in \//);
        return true;
      });
      assert.deepEqual(savedIn(cache), []);
      assert.equal((await session.exec("echo $n")).stdout, "5\n");
    }
    await assert.rejects(session.fork(2), /no space is left/);
    assert.equal(spawnSync("mount", ["-o", "remount,size=400m", cache]).status, 0);
    const [fork] = await session.fork(1);
    assert.equal((await fork?.exec("echo $n"))?.stdout, "5\n", "with room it works");
    await fork?.close();
  } finally {
    assert.deepEqual(savedIn(cache), []);
    assert.equal(spawnSync("umount", ["-l", cache]).status, 0);
  }
}, mountReason);

testIn("a process that is killed leaves its checkpoints to the next one to remove, and never half of a named one", async (t, cache) => {
  const env = { EXEC_SANDBOX_CACHE_DIR: cache, EXEC_SANDBOX_IMAGES_DIR: IMAGES, EXEC_SANDBOX_SNAPSHOT_CACHE_DIR: SNAPSHOTS };
  for (const args of [[], ["named"]]) {
    const script = startScript(t, "checkpoint.ts", args, env);
    await script.said("made");
    await eventually("another is being made", () => savedIn(cache).filter((name) => name === "ram").length !== 1);
    script.raw.kill("SIGKILL");
    await script.ended;
  }
  await using scheduler = await open();
  await using session = await scheduler.restore("named0");
  assert.equal((await session.exec("echo alive")).stdout, "alive\n");
  await session.checkpoint({ name: "after" });
  const names = () => readdirSync(path.join(cache, "checkpoints")).filter((name) => name !== "named1").sort();
  assert.deepEqual(names(), ["after", "named0"]);
  await eventually("the next process has removed them", () => readdirSync(path.join(cache, "run")).length === 2);
});

testIn(
  "what is left of a checkpoint that somebody began to remove takes no name; what another version described does",
  async (_t, cache) => {
    await using scheduler = await open();
    await using session = await scheduler.session({ language: "raw" });
    await session.exec("n=1");
    const place = (name: string) => path.join(cache, "checkpoints", name);
    for (const name of ["half", "newer"]) {
      mkdirSync(place(name), { recursive: true, mode: 0o700 });
      writeFileSync(path.join(place(name), "ram"), "what is left");
    }
    writeFileSync(path.join(place("newer"), "meta.json"), JSON.stringify({ format: 99 }));
    assert.deepEqual(await scheduler.checkpoints(), []);
    await session.checkpoint({ name: "half" });
    await using restored = await scheduler.restore("half");
    assert.equal((await restored.exec("echo $n")).stdout, "1\n");
    await assert.rejects(session.checkpoint({ name: "newer" }), /there is one of that name/);
    assert.equal(readFileSync(path.join(place("newer"), "ram"), "utf8"), "what is left");
    await scheduler.removeCheckpoint("half");
    assert.deepEqual(readdirSync(path.join(cache, "checkpoints")), ["newer"]);
  },
);

testIn("what is kept is bounded, and another copy of QEMU is another QEMU", async (_t, cache) => {
  mkdirSync(path.join(cache, "checkpoints"), { mode: 0o700 });
  const full = path.join(cache, "checkpoints", "full");
  await using scheduler = await open();
  await using session = await scheduler.session({ language: "raw" });
  await using small = await session.checkpoint();
  await session.checkpoint({ name: "one" });
  cpSync(path.join(cache, "checkpoints", "one"), full, { recursive: true });
  const file = path.join(full, "meta.json"), meta = JSON.parse(readFileSync(file, "utf8"));
  meta.files.sizeBytes = 2 ** 34;
  chmodSync(file, 0o600);
  writeFileSync(file, JSON.stringify({ ...meta, name: "full" }));
  await assert.rejects(session.checkpoint({ name: "two" }), /all in \S+ may take 17179869184 bytes, got \d+ and \d+ more/);
  assert.deepEqual(readdirSync(path.join(cache, "checkpoints")).sort(), ["full", "one"]);
  await using copy = await small.restore();
  assert.equal((await copy.exec("echo alive")).stdout, "alive\n", "those without a name have room of their own");
});

const foreign = foreignQemu();
testIn("another QEMU stops the machine to save it, and refuses what ours saved", async () => {
  {
    await using scheduler = await open();
    await using session = await scheduler.session({ language: "raw" });
    await session.checkpoint({ name: "ours" });
  }
  await withEnv({ EXEC_SANDBOX_QEMU: foreign ?? "" }, async () => {
    await using scheduler = await open();
    await assert.rejects(
      scheduler.restore("ours"),
      /^SnapshotError: Cannot restore the checkpoint "ours": QEMU( version)? was \S+ and is \S+$/,
    );
    await using session = await scheduler.session({ language: "raw" });
    await session.exec("n=1");
    await using checkpoint = await session.checkpoint();
    await session.exec("n=2");
    await using copy = await checkpoint.restore();
    assert.equal((await copy.exec("echo $n")).stdout, "1\n");
    await session.rollback(checkpoint);
    assert.equal((await session.exec("echo $n")).stdout, "1\n");
  });
}, skip || (foreign === undefined ? "needs a distribution's QEMU of version 9.0 or newer" : false));

function canMount(): boolean {
  return spawnSync("unshare", ["-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).status === 0;
}

function foreignQemu(): string | undefined {
  const { stdout } = spawnSync("qemu-system-x86_64", ["--version"], { encoding: "utf8" });
  if (!/version (9|\d\d)\./.test(stdout ?? "")) return undefined;
  return spawnSync("sh", ["-c", "command -v qemu-system-x86_64"], { encoding: "utf8" }).stdout.trim();
}

noLeftovers();
