/** The contract of `scheduler.run` in real VMs: the result's shape, `check`, callbacks, limits at their edges, caches that cannot be kept. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync } from "node:fs";
import process from "node:process";
import test, { after, before, type TestContext } from "node:test";
import {
  ExecutionFailedError,
  type ExecutionResult,
  type Language,
  OutputLimitError,
  type RunRequest,
  Scheduler,
  SessionClosedError,
  VmCapacityError,
  VmTimeoutError,
} from "../../src/mod.ts";
import { readPlatform } from "../../src/host/platform.ts";
import { temporaryDirectory } from "../support/leftovers.ts";
import { imagesDirectory } from "../support/scheduler.ts";
import { descendants, openTestScheduler, type TestScheduler } from "../support/vm.ts";

/** What the scheduler logs, as `level message`. */
const logged: string[] = [];
const log = {
  debug() {},
  info() {},
  warning: (message: string) => void logged.push(`warning ${message}`),
  error: (message: string) => void logged.push(`error ${message}`),
};
let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler({}, { log })));
after(() => vms.close());

const run = (language: Language, code: string, more: Partial<RunRequest> = {}): Promise<ExecutionResult> =>
  vms.scheduler.run({ language, code, ...more });
const python = (code: string, more?: Partial<RunRequest>) => run("python", code, more);
const raw = (code: string, more?: Partial<RunRequest>) => run("raw", code, more);

test("ready: at once without a warm pool, refused when aborted or closed", async () => {
  const scheduler = await Scheduler.open({ warmPoolSize: 0 }, { log });
  assert.equal(await scheduler.ready(), undefined);
  assert.equal(await scheduler.ready({ signal: new AbortController().signal }), undefined);
  assert.deepEqual(descendants(), [], "nothing was started for it");
  const reason = new Error("enough");
  await assert.rejects(scheduler.ready({ signal: AbortSignal.abort(reason) }), reason);
  await scheduler.close();
  await assert.rejects(scheduler.ready(), SessionClosedError);
});

test("the default time-out may have a fraction", async () => {
  await using scheduler = await Scheduler.open({ defaultTimeoutSeconds: 1.25 }, { log });
  const result = await scheduler.run({ language: "raw", code: "sleep 60" });
  assert.deepEqual([result.timedOut, result.exitCode], [true, -1]);
  assert.ok(result.executionTimeMs >= 1250, String(result.executionTimeMs));
});

test("a result has the promised fields and no others, and its times are whole and add up", async () => {
  const began = performance.now();
  const result = await raw("echo hi");
  const waitedMs = performance.now() - began;
  assert.deepEqual(Object.keys(result).sort(), [
    "executionTimeMs",
    "exitCode",
    "exposedPorts",
    "externalCpuTimeMs",
    "externalMemoryPeakMb",
    "results",
    "start",
    "stderr",
    "stdout",
    "timedOut",
    "timing",
    "warmPoolHit",
  ]);
  const { setupMs, bootMs, executeMs, totalMs } = result.timing;
  for (const ms of [result.executionTimeMs, result.externalCpuTimeMs, result.externalMemoryPeakMb, setupMs, bootMs, executeMs, totalMs]) {
    assert.ok(Number.isInteger(ms) && (ms ?? 0) >= 1, JSON.stringify(result));
  }
  const sum = setupMs + bootMs + executeMs;
  assert.ok(totalMs <= sum && sum <= totalMs + 3, JSON.stringify(result.timing));
  assert.ok(totalMs <= Math.ceil(waitedMs), `${totalMs} of ${waitedMs} ms`);
});

test("check makes an unsuccessful result an exception that carries it, and leaves others alone", async () => {
  assert.equal((await raw("echo fine", { check: true })).stdout, "fine\n");
  const failed = await raw("echo out; echo err >&2; exit 3", { check: true }).catch((error) => error);
  assert.ok(failed instanceof ExecutionFailedError, String(failed));
  const { stdout, stderr, exitCode } = failed.result;
  assert.deepEqual([stdout, stderr, exitCode, failed.code, failed.retry], ["out\n", "err\n", 3, "SBX_EXECUTION_FAILED", "never"]);
  const late = await raw("echo on; sleep 60", { check: true, timeoutSeconds: 1 }).catch((error) => error);
  assert.ok(late instanceof VmTimeoutError, String(late));
  const { stdout: partial, exitCode: none, timedOut } = late.result as ExecutionResult;
  assert.deepEqual([partial, none, timedOut], ["on\n", -1, true]);
});

test("a callback that throws or rejects is logged once and called no more, and the run goes on", async () => {
  const code = "for i in 1 2 3; do echo $i; sleep 0.2; done";
  for (const [onStdout, name] of [[() => fail(), "throws"], [() => Promise.reject(new Error("late")), "rejects"]] as const) {
    logged.length = 0;
    let calls = 0;
    const result = await raw(code, {
      onStdout: () => {
        calls++;
        return onStdout() as unknown as void;
      },
    });
    assert.deepEqual([result.stdout, result.exitCode, calls], ["1\n2\n3\n", 0, 1], name);
    assert.deepEqual(logged, ["error onStdout threw and is called no more"], name);
  }
});

function fail(): never {
  throw new Error("the caller's own mistake");
}

test("callbacks get each stream's output, all of it, while the code runs", async () => {
  const out: string[] = [], err: string[] = [];
  let duringRun = 0, isOver = false;
  const result = await raw("echo one; echo two >&2; sleep 1; echo three", {
    onStdout: (text) => void (out.push(text), isOver || duringRun++),
    onStderr: (text) => void err.push(text),
  }).finally(() => isOver = true);
  assert.deepEqual([out.join(""), err.join("")], [result.stdout, result.stderr]);
  assert.ok(out.length === 2 && duringRun === 2, JSON.stringify(out));
});

test("onBootLog gets the kernel's and the agent's log, of a clone that of its template", async () => {
  const pieces: string[] = [];
  await raw("true", { onBootLog: (text) => void pieces.push(text) });
  assert.match(pieces.join(""), /Linux version 6\.12/);
});

test("both output caps: their last byte fits, one more ends the run with what fitted", async () => {
  const write = (out: number, err: number) => `import os, sys\nsys.stdout.write('o' * ${out})\nsys.stderr.write('e' * ${err})`;
  const fits = await python(write(1_000_000, 100_000));
  assert.deepEqual([fits.stdout.length, fits.stderr.length, fits.exitCode], [1_000_000, 100_000, 0]);
  for (const [stream, code] of [["stdout", write(1_000_001, 0)], ["stderr", write(0, 100_001)]] as const) {
    let seen = "";
    const callback = { [stream === "stdout" ? "onStdout" : "onStderr"]: (text: string) => void (seen += text) };
    const error = await python(code, callback).catch((caught) => caught);
    assert.ok(error instanceof OutputLimitError, String(error));
    assert.equal(error.result[stream], seen, "callbacks have had the same bytes");
    assert.equal(seen.length, stream === "stdout" ? 1_000_000 : 100_000);
    assert.match(error.message, new RegExp(`${stream} must be at most ${seen.length} bytes`));
  }
});

test("the least memory is enough for every language, and what was asked for is what the guest has", async () => {
  const hello: Record<Language, string> = { python: "print(1)", javascript: "console.log(1)", raw: "echo 1" };
  for (const [language, code] of Object.entries(hello) as [Language, string][]) {
    assert.equal((await run(language, code, { memoryMb: 128 })).stdout, "1\n", language);
  }
  const totalMb = Number((await raw("awk '/MemTotal/ {print $2}' /proc/meminfo", { memoryMb: 512 })).stdout) / 1024;
  assert.ok(totalMb > 440 && totalMb <= 512, String(totalMb));
});

test("the shortest, the longest and a broken time-out are taken", async () => {
  for (const timeoutSeconds of [1, 1.5, 300]) assert.equal((await raw("echo ok", { timeoutSeconds })).stdout, "ok\n");
});

test("a VM that can never fit is refused before anything is made for it", async () => {
  const { memoryBytes } = readPlatform(), phases: string[] = [];
  const scheduler = await Scheduler.open({ memoryOvercommitRatio: 1 }, { log, onProgress: ({ phase }) => void phases.push(phase) });
  const memoryMb = Math.floor(memoryBytes / 2 ** 20);
  await assert.rejects(scheduler.run({ language: "raw", code: "true", memoryMb }), (error) => {
    return error instanceof VmCapacityError && error.retry === "never" && error.message.includes(`${memoryMb} MB`);
  });
  await assert.rejects(scheduler.prepare("raw", { memoryMb }), VmCapacityError);
  assert.deepEqual(phases, []);
  await scheduler.close();
});

test("an abort during a bake ends the caller's wait at once, and not the bake of the other who waits", async (t) => {
  const phases: string[] = [];
  const booting = Promise.withResolvers<void>();
  const onProgress = ({ phase }: { phase: string }) => void (phases.push(phase), booting.resolve());
  const scheduler = await Scheduler.open({ snapshotCacheDir: temporaryDirectory(t), imagesDir: imagesDirectory() }, { log, onProgress });
  const controller = new AbortController(), reason = new Error("enough");
  const aborted = scheduler.run({ language: "raw", code: "echo one", signal: controller.signal });
  const other = scheduler.run({ language: "raw", code: "echo two" });
  other.catch(() => {});
  await booting.promise;
  controller.abort(reason);
  await assert.rejects(aborted, (error) => error === reason);
  assert.ok(!phases.includes("done"), "it did not wait for the bake");
  assert.equal((await other).stdout, "two\n");
  assert.deepEqual(phases, ["booting", "warming", "saving", "done"], "one bake, which has executed code before it is saved");
  await scheduler.close();
});

test("closing a scheduler during a bake ends it, and leaves nothing behind", async (t) => {
  const cache = temporaryDirectory(t), booting = Promise.withResolvers<void>();
  const others = descendants(); // Spares of the other tests' scheduler, which may end meanwhile.
  const scheduler = await Scheduler.open({ snapshotCacheDir: cache, imagesDir: imagesDirectory() }, {
    log,
    onProgress: () => booting.resolve(),
  });
  const running = scheduler.run({ language: "raw", code: "echo" });
  running.catch(() => {});
  await booting.promise;
  await scheduler.close();
  await assert.rejects(running, SessionClosedError);
  assert.deepEqual([readdirSync(cache), descendants().filter((line) => line.includes("sbx") && !others.includes(line))], [[], []]);
});

test("a disk that becomes full during a bake does not stop runs: the VM boots", {
  skip: process.getuid?.() === 0 && process.platform === "linux" ? false : "mounting a small file system needs root",
}, async (t) => {
  using cache = smallFileSystem(t, "size=8m");
  logged.length = 0;
  const scheduler = await Scheduler.open({ snapshotCacheDir: cache.path, imagesDir: imagesDirectory() }, { log });
  for (const word of ["first", "second"]) {
    const { stdout, start } = await scheduler.run({ language: "raw", code: `echo ${word}` });
    assert.deepEqual([stdout, start], [`${word}\n`, "cold"]);
  }
  await scheduler.close();
  assert.equal(logged.filter((line) => line.includes("no template can be kept here")).length, 1, logged.join("\n"));
  assert.deepEqual(readdirSync(cache.path), []);
});

test("a cache directory without any room, or read-only, does not stop runs: the VM boots", {
  skip: process.getuid?.() === 0 && process.platform === "linux" ? false : "mounting a small file system needs root",
}, async (t) => {
  const imagesDir = imagesDirectory(); // Found before the cache directory moves.
  for (const options of ["size=4k", "ro"]) {
    using cache = smallFileSystem(t, options);
    const before = process.env["EXEC_SANDBOX_CACHE_DIR"];
    process.env["EXEC_SANDBOX_CACHE_DIR"] = cache.path;
    const opening = Scheduler.open({ imagesDir }, { log });
    if (before === undefined) delete process.env["EXEC_SANDBOX_CACHE_DIR"];
    else process.env["EXEC_SANDBOX_CACHE_DIR"] = before;
    const scheduler = await opening;
    const { stdout, start } = await scheduler.run({ language: "raw", code: "echo hi" });
    await scheduler.close();
    assert.deepEqual([stdout, start], ["hi\n", "cold"], options);
  }
});

/** A file system in memory, mounted until it is disposed; `options` as of `mount`. */
function smallFileSystem(t: TestContext, options: string): Disposable & { readonly path: string } {
  const directory = temporaryDirectory(t);
  execFileSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", directory]);
  return { path: directory, [Symbol.dispose]: () => void execFileSync("umount", ["-l", directory]) };
}
