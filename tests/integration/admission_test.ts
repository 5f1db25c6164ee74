/** Admission in real VMs: an idle session holds memory and no CPU slot; who has to wait gets his turn, and may give it up. */
import assert from "node:assert/strict";
import os from "node:os";
import test from "node:test";
import { Scheduler, type SchedulerConfig, SessionClosedError, VmCapacityError } from "../../src/mod.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { reasonToSkip } from "../support/scheduler.ts";
import { descendants } from "../support/vm.ts";
import { settled } from "../support/waiting.ts";

const skip = reasonToSkip() ?? false;
const TIMEOUT_MS = 300_000;
const log = { debug() {}, info() {}, warning() {}, error() {} };
const raw = { language: "raw" } as const;
const HOST_MIB = os.totalmem() / 1_048_576;

/** A scheduler with so many slots, and memory for so many VMs of 256 MB. */
function open({ slots, machines }: { readonly slots?: number; readonly machines?: number }): Promise<Scheduler> {
  const config: SchedulerConfig = {
    hostMemoryReserveRatio: 0.95,
    ...(slots === undefined ? {} : { cpuOvercommitRatio: (slots + 0.5) / os.availableParallelism() }),
    ...(machines === undefined ? {} : { memoryOvercommitRatio: (256 * machines + 100) / (0.05 * HOST_MIB) }),
  };
  return Scheduler.open(config, { log });
}

test(
  "twenty idle sessions hold no slot: a run and executions go on beside them with a single one",
  { skip, timeout: TIMEOUT_MS },
  async () => {
    await using scheduler = await open({ slots: 1, machines: 25 });
    const sessions = await Promise.all(Array.from({ length: 20 }, () => scheduler.session(raw)));
    assert.equal((await settled(scheduler.run({ ...raw, code: "echo run" }), "a run")).stdout, "run\n");
    const outputs = await settled(Promise.all(sessions.map((session, at) => session.exec(`echo ${at}`))), "an execution in each");
    assert.deepEqual(outputs.map(({ stdout }) => stdout), sessions.map((_, at) => `${at}\n`));
    const server = await sessions[0]!.spawn("sleep", ["1000"]);
    assert.equal((await settled(sessions[1]!.exec("echo beside"), "an execution beside a process")).stdout, "beside\n");
    await server.kill();
  },
);

test("three sessions execute at once on this host, whatever its processors", { skip, timeout: TIMEOUT_MS }, async () => {
  await using scheduler = await Scheduler.open({}, { log });
  const sessions = await Promise.all([1, 2, 3].map(() => scheduler.session(raw)));
  const started = sessions.map(() => Promise.withResolvers<void>());
  const running = sessions.map((session, at) => session.exec("echo on; sleep 1000", { onStdout: () => started[at]!.resolve() }));
  await settled(Promise.all(started.map(({ promise }) => promise)), "each has begun");
  for (const session of sessions) assert.ok(await session.interrupt());
  assert.deepEqual((await Promise.all(running)).map(({ stdout, exitCode }) => [stdout, exitCode]), Array(3).fill(["on\n", 130]));
});

test(
  "an execution waits for a slot: first come, first served; given up or closed, it leaves the line",
  { skip, timeout: TIMEOUT_MS },
  async () => {
    await using scheduler = await open({ slots: 1 });
    const [busy, second, third, closed] = await Promise.all([1, 2, 3, 4].map(() => scheduler.session(raw)));
    const started = Promise.withResolvers<void>(), order: string[] = [];
    const blocking = busy!.exec("echo on; sleep 1000", { onStdout: () => started.resolve() });
    blocking.then(() => order.push("busy"), () => {});
    await settled(started.promise, "the slot is taken");
    const controller = new AbortController(), reason = new Error("enough");
    const givenUp = second!.exec("echo never", { signal: controller.signal });
    const refused = closed!.exec("echo never"), waiting = third!.exec("echo third");
    for (const promise of [givenUp, refused]) promise.catch(() => {}); // Looked at below.
    void waiting.then(() => order.push("third"));
    const run = scheduler.run({ ...raw, code: "echo run" });
    void run.then(() => order.push("run"));
    controller.abort(reason);
    await assert.rejects(settled(givenUp, "the abort"), (error) => error === reason);
    await closed!.close();
    await assert.rejects(settled(refused, "the end"), SessionClosedError);
    assert.deepEqual([order, second!.execCount, third!.execCount], [[], 0, 0]);
    assert.ok(await busy!.interrupt());
    await settled(Promise.all([blocking, waiting, run]), "everybody's turn");
    assert.deepEqual(order, ["busy", "third", "run"]);
    assert.equal((await second!.exec("echo free")).stdout, "free\n");
  },
);

test("memory is held as long as a session lives: what does not fit waits until one is closed", { skip, timeout: TIMEOUT_MS }, async () => {
  await using scheduler = await open({ machines: 2 });
  const [first, second] = await Promise.all([1, 2].map(() => scheduler.session(raw)));
  let isOver = false;
  const run = scheduler.run({ ...raw, code: "echo run" }).finally(() => isOver = true);
  assert.equal((await first!.exec("echo beside")).stdout, "beside\n");
  assert.equal(isOver, false);
  await assert.rejects(scheduler.run({ ...raw, code: "echo", memoryMb: 3 * 256 }), VmCapacityError);
  await second!.close();
  assert.equal((await settled(run, "room")).stdout, "run\n");
  await first!.close();
  await scheduler.close();
  assert.deepEqual(descendants(), []);
});

noLeftovers();
