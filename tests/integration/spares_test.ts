/** Spare QEMUs: made for templates in use alone, taken by the next start, and never missed when they are dead. Templates that change under them and under a pool. */
import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, readdirSync, renameSync, rmSync, truncateSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import test, { after, before } from "node:test";
import { OutcomeUnknownError, Scheduler, type SchedulerConfig } from "../../src/mod.ts";
import { memoryFor, qemuPids, withGates } from "../support/ahead.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { descendants, qemuOf } from "../support/vm.ts";
import { eventually, settled } from "../support/waiting.ts";

const skip = reasonToSkip() ?? false;
const options = { skip, timeout: 300_000 };
const IMAGES = imagesDirectory();
const raw = { language: "raw", code: "echo hi" } as const;
const log = { debug() {}, info() {}, warning() {}, error() {} };

let snapshots = "";
before(() => void (snapshots = mkdtempSync(path.join(os.tmpdir(), "sbx-test-"))));
after(() => rmSync(snapshots, { recursive: true, force: true }));

const open = (config: SchedulerConfig = {}) =>
  Scheduler.open({ imagesDir: IMAGES, snapshotCacheDir: snapshots, spareVms: 2, ...config }, { log });

/** Uses the shell's template until there is a spare, and gives its QEMU. */
async function spareOf(scheduler: Scheduler): Promise<number> {
  for (let run = 0; run < 2; run++) assert.equal((await scheduler.run(raw)).stdout, "hi\n");
  await eventually("a spare, and nothing else", () => qemuPids().length === 1);
  return qemuPids()[0]!;
}

/** Whether the next start takes `pid`, and not another. */
async function takes(scheduler: Scheduler, pid: number): Promise<boolean> {
  await using session = await scheduler.session({ language: "raw" });
  const { stdout, start } = await session.exec("echo hi");
  assert.deepEqual([stdout, start], ["hi\n", "template"]);
  return qemuOf(session) === pid;
}

test("one start makes no spare, a second one does; the next start takes it, and another takes its place", options, async () => {
  await using scheduler = await open();
  assert.equal((await scheduler.run(raw)).stdout, "hi\n");
  await eventually("the run's VM is dead", () => qemuPids().length === 0);
  await using session = await scheduler.session({ language: "python" });
  assert.equal((await session.exec("1")).exitCode, 0);
  assert.equal(qemuPids().length, 1, "each template was used once");
  await session.close();
  const pid = await spareOf(scheduler);
  assert.ok(await takes(scheduler, pid));
  await eventually("another spare", () => qemuPids().length === 1 && qemuPids()[0] !== pid);
});

test("nothing is spawned ahead unless it is asked for", options, async () => {
  await using scheduler = await open({ spareVms: 0 });
  for (let run = 0; run < 4; run++) assert.equal((await scheduler.run(raw)).stdout, "hi\n");
  await eventually("the runs' VMs are dead", () => qemuPids().length === 0);
  await new Promise((resolve) => setTimeout(resolve, 500)); // Five times what a spare takes.
  assert.deepEqual(qemuPids(), []);
});

test("a run from a spare is counted from its claim", options, async () => {
  await using scheduler = await open();
  await spareOf(scheduler);
  const { timing, start, warmPoolHit, externalCpuTimeMs } = await scheduler.run(raw);
  assert.deepEqual([start, warmPoolHit], ["template", false]);
  assert.ok(timing.bootMs >= 1 && timing.setupMs >= 1 && timing.totalMs >= timing.bootMs, JSON.stringify(timing));
  assert.ok(externalCpuTimeMs === null || externalCpuTimeMs >= 1);
});

test("there are at most two spares; who needs a console has none of them", options, async () => {
  await using scheduler = await open();
  const codes = { python: "print(1)", javascript: "console.log(1)", raw: "echo 1" } as const;
  for (const language of ["python", "javascript", "raw"] as const) {
    for (let run = 0; run < 3; run++) await scheduler.run({ language, code: codes[language] });
  }
  await eventually("two spares", () => qemuPids().length === 2);
  const spares = qemuPids();
  let text = "";
  assert.equal((await scheduler.run({ ...raw, onBootLog: (piece) => text += piece })).stdout, "hi\n");
  assert.ok(text.includes("Linux"));
  assert.ok(spares.every((pid) => qemuPids().includes(pid)), "both are still there");
});

test("a spare that was killed is not used, whenever that was", options, async () => {
  await using scheduler = await open();
  const early = await spareOf(scheduler);
  process.kill(early, "SIGKILL");
  await eventually("it is dead", () => !qemuPids().includes(early));
  assert.equal((await scheduler.run(raw)).stdout, "hi\n");
  const late = await spareOf(scheduler);
  process.kill(late, "SIGKILL"); // Not noticed yet when it is claimed.
  assert.equal((await scheduler.run(raw)).stdout, "hi\n");
  assert.equal(readdirSync(snapshots).filter((name) => name.startsWith("raw-")).length, 1, "the template was not made anew");
});

test(
  "a spare that dies after it was claimed, before it has loaded anything, is replaced unseen, and the code runs once",
  options,
  async () => {
    await using scheduler = await open();
    const pid = await spareOf(scheduler);
    process.kill(pid, "SIGSTOP");
    let output = "";
    const running = scheduler.run({ ...raw, onStdout: (piece) => output += piece });
    await new Promise((resolve) => setTimeout(resolve, 100)); // What is sent to it waits in its sockets.
    process.kill(pid, "SIGKILL");
    const result = await settled(running, "another machine");
    assert.deepEqual([result.stdout, output], ["hi\n", "hi\n"]);
  },
);

test("a spare gives way to a request that needs its room, and nothing is held when all is over", options, async () => {
  await withGates(async (gates) => {
    await using scheduler = await open(memoryFor(2));
    const pid = await spareOf(scheduler);
    await using session = await scheduler.session({ language: "raw", memoryMb: 2 * 256 + 90 });
    assert.equal((await session.exec("echo hi")).stdout, "hi\n");
    await eventually("the spare is gone", () => !qemuPids().includes(pid));
    await scheduler.close();
    assert.deepEqual([gates.map(({ held }) => held), descendants()], [[{ memoryMiB: 0, reservedMiB: 0, cpus: 0 }], []]);
  });
});

const template = () => path.join(snapshots, readdirSync(snapshots).find((name) => name.startsWith("raw-256-"))!);

/** What can happen to a template's files while QEMUs have them open. */
const CHANGES: ReadonlyArray<readonly [string, () => void]> = [
  ["deleted", () => rmSync(template(), { recursive: true })],
  ["replaced", () => {
    renameSync(template(), `${snapshots}/old`);
    rmSync(`${snapshots}/old`, { recursive: true });
  }],
  ["cut off", () => {
    chmodSync(path.join(template(), "ram"), 0o600);
    truncateSync(path.join(template(), "ram"), 4096);
  }],
];

for (const [name, change] of CHANGES) {
  test(`a template that is ${name} under a spare: the next run makes another, and is right`, options, async () => {
    await using scheduler = await open(), other = await open();
    const pid = await spareOf(scheduler);
    change();
    if (name === "replaced") await other.prepare("raw");
    assert.equal(await takes(scheduler, pid), false);
    assert.equal((await scheduler.run(raw)).stdout, "hi\n");
    await eventually("it is gone", () => !qemuPids().includes(pid));
  });

  test(`a template that is ${name} under a warm pool: a run is right, or is told that its machine died`, options, async () => {
    await using scheduler = await open({ warmPoolSize: 1, spareVms: 0 });
    await scheduler.ready();
    change();
    const result = await scheduler.run(raw).catch((error) => {
      assert.ok(name === "cut off" && error instanceof OutcomeUnknownError, String(error));
      return undefined;
    });
    if (result) assert.equal(result.stdout, "hi\n");
    await scheduler.ready();
    const next = await scheduler.run(raw);
    assert.deepEqual([next.stdout, next.start], ["hi\n", "warm"]);
  });
}

noLeftovers();
