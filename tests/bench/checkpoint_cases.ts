/** Checkpoint cases: how long a machine stands still while it is saved, and how soon copies of a session answer. */
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import path from "node:path";
import { randomBytes } from "node:crypto";
import { resolveConfig } from "../../src/config/config.ts";
import { Scheduler } from "../../src/mod.ts";
import { silentLogger } from "../../src/base/log.ts";
import { launch } from "../../src/vm/launch.ts";
import { RawSave } from "../../src/vm/save.ts";
import { type Bench, execute, templateOf } from "./cases.ts";
import { measure, type Measurement, timed } from "./measure.ts";

/** Memory that the program has touched, on top of what the language itself has. */
const TOUCH = "import os; x = os.urandom(75_000_000)";

/** A Python machine with 75 MB touched, saved again and again: from stop to go. */
export async function savePause(bench: Bench, count: number): Promise<Measurement> {
  const savesRoot = mkdtempSync(path.join(resolveConfig().cacheDir, "bench-"));
  chmodSync(savesRoot, 0o700);
  try {
    const files = await templateOf(bench, "python", 256);
    const hypervisor = { ...bench.hypervisor, savesRoot };
    await using vm = await launch(hypervisor, { language: "python", memoryMiB: 256, origin: { kind: "clone", files }, isSavable: true });
    await execute(vm, TOUCH);
    return await measure("checkpoint of 75 MB touched: the machine stands still", { count, warmUps: 1 }, async () => {
      await vm.guest.hold();
      await using save = await RawSave.take(vm, { memoryMiB: 256, isLive: bench.hypervisor.qemu.isOwn });
      await vm.guest.resume(randomBytes(64));
      return save.pauseMs;
    });
  } finally {
    rmSync(savesRoot, { recursive: true, force: true });
  }
}

/** The same through the library: until the checkpoint is whole, until a restored session answers, and until two forks do. */
export async function copies(count: number): Promise<Measurement[]> {
  await using scheduler = await Scheduler.open({}, { log: silentLogger() });
  await using session = await scheduler.session({ language: "python" });
  await session.exec(TOUCH);
  const restored: number[] = [], rolledBack: number[] = [];
  const checkpointed = await measure("session.checkpoint() of 75 MB touched", { count, warmUps: 1 }, async () => {
    const startedAt = performance.now();
    await using checkpoint = await session.checkpoint();
    const ms = performance.now() - startedAt;
    restored.push(
      await timed(async () => {
        await using copy = await checkpoint.restore();
        await copy.exec("pass");
      }),
    );
    rolledBack.push(
      await timed(async () => {
        await session.rollback(checkpoint);
        await session.exec("pass");
      }),
    );
    return ms;
  });
  const forked = await measure("session.fork(2) of 75 MB touched, to both answering", { count, warmUps: 1 }, async () => {
    const startedAt = performance.now();
    const forks = await session.fork(2);
    await Promise.all(forks.map((fork) => fork.exec("pass")));
    const ms = performance.now() - startedAt;
    await Promise.all(forks.map((fork) => fork.close()));
    return ms;
  });
  return [
    checkpointed,
    { name: "checkpoint.restore() and an answer", unit: "ms", samples: restored.slice(1) },
    { name: "session.rollback() and an answer", unit: "ms", samples: rolledBack.slice(1) },
    forked,
  ];
}
