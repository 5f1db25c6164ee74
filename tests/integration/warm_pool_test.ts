/** Warm pool in real VMs: hits and misses, what a warm VM shows of its past, who gets its room, and what its end does to whoever wants it. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import test, { after, before } from "node:test";
import {
  type ExecutionResult,
  type Language,
  Scheduler,
  type SchedulerConfig,
  type SchedulerHooks,
  SessionClosedError,
  VmCapacityError,
} from "../../src/mod.ts";
import { keepingWarnings, memoryFor, qemuPids, withGates } from "../support/ahead.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { descendants } from "../support/vm.ts";
import { eventually, settled } from "../support/waiting.ts";

const skip = reasonToSkip() ?? false;
const options = { skip, timeout: 300_000 };
const LANGUAGES: readonly Language[] = ["python", "javascript", "raw"];
const IMAGES = imagesDirectory();
const log = { debug() {}, info() {}, warning() {}, error() {} };

/** Templates of this file alone: some of its tests damage them. */
let snapshots = "";
before(() => void (snapshots = mkdtempSync(path.join(os.tmpdir(), "sbx-test-"))));
after(() => rmSync(snapshots, { recursive: true, force: true }));

const open = (config: SchedulerConfig = {}, hooks: SchedulerHooks = { log }) =>
  Scheduler.open({ warmPoolSize: 1, imagesDir: IMAGES, snapshotCacheDir: snapshots, ...config }, hooks);

/** What a result says about its start, and the times that must agree with it. */
function startOf({ start, warmPoolHit, timing }: ExecutionResult): string {
  assert.equal(warmPoolHit, start === "warm");
  assert.equal(timing.bootMs === 0, start === "warm", JSON.stringify(timing));
  assert.ok(timing.setupMs >= 1 && timing.executeMs >= 1 && timing.totalMs >= timing.executeMs);
  return start;
}

const PRINT: Readonly<Record<Language, string>> = { python: "print('hi')", javascript: "console.log('hi')", raw: "echo hi" };

test("a run and a session take a warm VM where there is one, and another takes its place", options, async () => {
  await using scheduler = await open();
  await scheduler.ready();
  assert.equal(qemuPids().length, LANGUAGES.length);
  for (const language of LANGUAGES) {
    const result = await scheduler.run({ language, code: PRINT[language] });
    assert.deepEqual([result.stdout, startOf(result)], ["hi\n", "warm"], language);
    await scheduler.ready();
    await using session = await scheduler.session({ language });
    const { stdout, start, warmPoolHit } = await session.exec(PRINT[language]);
    assert.deepEqual([stdout, start, warmPoolHit], ["hi\n", "warm", true], language);
    await scheduler.ready();
    assert.equal(qemuPids().length, LANGUAGES.length + 1, "the session's and a full pool");
  }
});

test("another memory size, and a log that only a console has, are no hits", options, async () => {
  await using scheduler = await open();
  await scheduler.ready();
  assert.equal(startOf(await scheduler.run({ language: "raw", code: "echo", memoryMb: 192 })), "template");
  let text = "";
  assert.equal(startOf(await scheduler.run({ language: "raw", code: "echo", onBootLog: (piece) => text += piece })), "template");
  assert.ok(text.includes("Linux"), "the template's boot");
  assert.equal(startOf(await scheduler.run({ language: "raw", code: "echo" })), "warm", "nobody took it meanwhile");
});

/** What code can see of what ran before it. Pids and free memory differ between any two machines. */
const TRACES: Readonly<Record<Language, string>> = {
  python: `
import os, sys, gc
print(sorted(globals()), sorted(sys.modules), sorted(os.listdir("/home/user")), sorted(os.listdir("/tmp")), sorted(os.environ), os.getcwd())
try: raise ValueError("x")
except ValueError as error: print(error.__traceback__.tb_frame.f_code.co_filename, sys.exc_info()[0], hasattr(sys, "last_value"))
print(sys.argv, sys.getswitchinterval(), sys.getrecursionlimit())`,
  javascript: `
const fs = require("node:fs");
console.log(Object.getOwnPropertyNames(globalThis).sort().join(), fs.readdirSync("/home/user").join(), fs.readdirSync("/tmp").join());
console.log(Object.keys(process.env).sort().join(), process.cwd(), process.argv.length, process.listenerCount("exit"), performance.now() < 5000, process.uptime() < 5);
console.log(new Error("x").stack.split("\\n")[1]);`,
  raw:
    'set | grep -v -E "^(RANDOM|SECONDS|EPOCH|SRANDOM|BASH_MONOSECONDS|PPID|BASHPID|_)" ; declare -F; alias; history; jobs; ls -A /home/user /tmp; trap; echo "$0 $# $? $- $_"; shopt -p; pwd; compgen -v',
};

test("a warm VM shows what a fresh clone shows: no names, files, history or counters of what it has executed", options, async () => {
  await using warm = await open(), fresh = await open({ warmPoolSize: 0 });
  await warm.ready();
  for (const language of LANGUAGES) {
    const ofWarm = await warm.run({ language, code: TRACES[language], env: { GIVEN: "1" } });
    const ofFresh = await fresh.run({ language, code: TRACES[language], env: { GIVEN: "1" } });
    assert.deepEqual([startOf(ofWarm), startOf(ofFresh)], ["warm", "template"]);
    assert.ok(ofWarm.stdout.length > 100, language);
    assert.deepEqual([ofWarm.stdout, ofWarm.stderr, ofWarm.exitCode], [ofFresh.stdout, ofFresh.stderr, 0], language);
  }
});

const DRAWS: Readonly<Record<Language, string>> = {
  python: "import random, uuid, os, time; print(random.random(), uuid.uuid4(), os.urandom(8).hex()); print(time.time())",
  javascript: "console.log(Math.random(), crypto.randomUUID(), require('node:crypto').randomInt(1e9)); console.log(Date.now() / 1000)",
  raw: "echo $RANDOM $RANDOM $RANDOM $(cat /proc/sys/kernel/random/uuid); date +%s.%N",
};

test("identity, environment, files, draws and clock belong to the claim", options, async () => {
  await using scheduler = await open();
  for (const language of LANGUAGES) {
    const draws = new Set<string>();
    for (let count = 0; count < 4; count++) {
      await scheduler.ready();
      const result = await scheduler.run({ language, code: DRAWS[language], files: { "in.txt": "given" } });
      const [drawn = "", time = ""] = result.stdout.split("\n");
      assert.equal(startOf(result), "warm");
      draws.add(drawn);
      assert.ok(Math.abs(Date.now() / 1000 - Number(time)) < 5, `${language}: ${time} is now`);
    }
    assert.equal(draws.size, 4, [...draws].join());
  }
  await scheduler.ready();
  const seen = await scheduler.run({ language: "raw", code: "cat in.txt; echo $WHO", files: { "in.txt": "given " }, env: { WHO: "me" } });
  assert.deepEqual([seen.stdout, startOf(seen)], ["given me\n", "warm"]);
  await scheduler.ready();
  const later = await scheduler.run({ language: "raw", code: "ls -A; echo $WHO" });
  assert.deepEqual([later.stdout, startOf(later)], ["\n", "warm"]);
});

test("a warm VM that was killed is not used, and another takes its place", options, async () => {
  await using scheduler = await open();
  await scheduler.ready();
  const pids = qemuPids();
  for (const pid of pids) process.kill(pid, "SIGKILL");
  const results = await Promise.all(LANGUAGES.map((language) => scheduler.run({ language, code: PRINT[language] })));
  assert.deepEqual(results.map(({ stdout }) => stdout), ["hi\n", "hi\n", "hi\n"], "unseen by the caller");
  await eventually("the pool is full again", async () => {
    await scheduler.ready();
    return qemuPids().length === LANGUAGES.length && !qemuPids().some((pid) => pids.includes(pid));
  });
  assert.equal(startOf(await scheduler.run({ language: "raw", code: "echo" })), "warm");
});

test("a warm VM that stands still when it is claimed is replaced; the caller sees a start from the template", options, async () => {
  await using scheduler = await open();
  await scheduler.ready();
  for (const pid of qemuPids()) process.kill(pid, "SIGSTOP");
  const result = await scheduler.run({ language: "raw", code: "echo hi" });
  assert.deepEqual([result.stdout, startOf(result)], ["hi\n", "template"]);
});

test("an abort during a claim is the caller's, and gives everything back", options, async () => {
  await withGates(async (gates) => {
    await using scheduler = await open();
    await scheduler.ready();
    for (const pid of qemuPids()) process.kill(pid, "SIGSTOP");
    const controller = new AbortController(), reason = new Error("enough");
    const running = scheduler.run({ language: "raw", code: "echo", signal: controller.signal });
    setTimeout(() => controller.abort(reason), 50);
    await assert.rejects(settled(running, "the abort"), (error) => error === reason);
    await scheduler.close();
    assert.deepEqual(gates.map(({ held }) => held), [{ memoryMiB: 0, reservedMiB: 0, cpus: 0 }]);
  });
  assert.deepEqual(descendants(), []);
});

test("the pool gives its room to whoever asks for it, and takes it again when it is free", options, async () => {
  await withGates(async (gates) => {
    await using scheduler = await open(memoryFor(3));
    await scheduler.ready();
    await using large = await scheduler.session({ language: "raw", memoryMb: 3 * 256 });
    const [gate] = gates;
    assert.deepEqual([large.closed, gate?.held.reservedMiB, qemuPids().length <= 2], [false, 0, true]);
    await large.close();
    await scheduler.ready();
    assert.equal(startOf(await scheduler.run({ language: "raw", code: "echo" })), "warm");
    await scheduler.close();
    assert.deepEqual(gate?.held, { memoryMiB: 0, reservedMiB: 0, cpus: 0 });
  });
});

test("a pool that the budget can never hold is said to be so, and runs go on", options, async () => {
  await using scheduler = await open({ ...memoryFor(2), warmPoolSize: 1 });
  await assert.rejects(scheduler.ready(), (error) => {
    assert.ok(error instanceof VmCapacityError);
    assert.match(error.message, /^Cannot fill the warm pool: 1 VMs with 256 MB for each of 3 languages are 768 MB, .* 612 MB in all$/);
    return true;
  });
  assert.equal((await scheduler.run({ language: "python", code: "print(1)" })).stdout, "1\n");
});

test("a scheduler that is closed while its pool fills leaves nothing; ready says why", options, async () => {
  for (const ms of [0, 20, 100, 300]) {
    await withGates(async (gates) => {
      const scheduler = await open({ warmPoolSize: 2 });
      const ready = assert.rejects(scheduler.ready(), SessionClosedError);
      await new Promise((resolve) => setTimeout(resolve, ms));
      await scheduler.close();
      await ready;
      assert.deepEqual(descendants(), [], `after ${ms} ms`);
      for (const { held } of gates) assert.deepEqual(held, { memoryMiB: 0, reservedMiB: 0, cpus: 0 });
    });
  }
});

test("two schedulers fill their pools at once and do not see each other", options, async () => {
  await using first = await open(), second = await open();
  await Promise.all([first.ready(), second.ready()]);
  assert.equal(qemuPids().length, 2 * LANGUAGES.length);
  const results = await Promise.all([first, second].map((scheduler) => scheduler.run({ language: "raw", code: "echo hi" })));
  assert.deepEqual(results.map(startOf), ["warm", "warm"]);
  await first.close();
  assert.equal(startOf(await second.run({ language: "python", code: "1" })), "warm");
});

test("fifty runs at once with a pool of two: each is right, two are warm, and the pool is full again", options, async () => {
  await withGates(async (gates) => {
    await using scheduler = await open({ warmPoolSize: 2 });
    await scheduler.ready();
    const results = await Promise.all(Array.from({ length: 50 }, (_, at) => scheduler.run({ language: "raw", code: `echo ${at}` })));
    assert.deepEqual(results.map(({ stdout }) => stdout), Array.from({ length: 50 }, (_, at) => `${at}\n`));
    assert.ok(results.filter((result) => startOf(result) === "warm").length >= 2);
    await scheduler.ready();
    await eventually("only the pool is left", () => qemuPids().length <= 2 * LANGUAGES.length + 2);
    await scheduler.close();
    assert.deepEqual([gates.map(({ held }) => held), descendants()], [[{ memoryMiB: 0, reservedMiB: 0, cpus: 0 }], []]);
  });
});

test("where no template can be kept there is no pool: ready says why, it is said once, and runs boot", options, async (t) => {
  const { warnings, log } = keepingWarnings();
  await using scheduler = await open({ snapshotCacheDir: "/proc/no-such-place" }, { log });
  await assert.rejects(settled(scheduler.ready({ signal: t.signal }), "the failure"), /Cannot keep \w+ VMs warm: no template can be kept/);
  await assert.rejects(settled(scheduler.ready(), "the next failure"), /no template can be kept/);
  assert.equal(startOf(await scheduler.run({ language: "raw", code: "echo hi" })), "cold");
  assert.equal(warnings.filter((warning) => warning.includes("the warm pool cannot be filled")).length, 1);
});

noLeftovers();
