/** Ahead cases: what a run costs by how far its machine had come before it was asked for, many runs at once, and what machines leave. */
import { setTimeout as sleep } from "node:timers/promises";
import { type Language, Scheduler } from "../../src/mod.ts";
import { qemuPid } from "../../src/qemu/usage.ts";
import type { Vm } from "../../src/vm/vm.ts";
import { type Bench, clone, PRINT, silent } from "./cases.ts";
import { measure, type Measurement, timed } from "./measure.ts";
import { hostMemory, ussOf } from "./session_cases.ts";

/** Long enough for a spare to be there, and for what the run before left to be gone. */
const PAUSE_MS = 100;
const MANY = 20;

/** What a run costs whose QEMU is spawned for it. */
export async function runFromTemplate(language: Language, count: number): Promise<Measurement> {
  await using scheduler = await Scheduler.open({ warmPoolSize: 0, spareVms: 0 }, { log: silent });
  return await measure(
    `run(print) from a template, ${language}`,
    { count, warmUps: 3 },
    () => timed(() => scheduler.run({ code: PRINT[language], language })),
  );
}

/** The same with a spare QEMU. */
export async function runFromSpare(language: Language, count: number): Promise<Measurement> {
  await using scheduler = await Scheduler.open({ warmPoolSize: 0, spareVms: 1 }, { log: silent });
  return await measure(`run(print) from a spare, ${language}`, { count, warmUps: 3 }, async () => {
    await sleep(PAUSE_MS);
    return await timed(() => scheduler.run({ code: PRINT[language], language }));
  });
}

/** The same on a warm VM. */
export async function runWarm(language: Language, count: number): Promise<Measurement> {
  await using scheduler = await Scheduler.open({ warmPoolSize: 1 }, { log: silent });
  return await measure(`run(print) on a warm VM, ${language}`, { count, warmUps: 3 }, async () => {
    await scheduler.ready();
    await sleep(PAUSE_MS);
    return await timed(async () => {
      const { warmPoolHit } = await scheduler.run({ code: PRINT[language], language });
      if (!warmPoolHit) throw new Error("the pool had no VM");
    });
  });
}

/** From the kill of a VM that has executed to its confirmed death; nobody waits for it. */
export async function destroy(bench: Bench, count: number): Promise<Measurement> {
  return await measure("end of a VM, kill to confirmed death", { count, warmUps: 2 }, async () => {
    const vm = await printed(bench);
    return await timed(() => vm[Symbol.asyncDispose]());
  });
}

/** What the tenth of ten clones has for itself alone, which is what its end gives back: what it shares with the others they would still have. */
export async function tenthClone(bench: Bench): Promise<Measurement> {
  await using vms = new AsyncDisposableStack();
  let last: Vm | undefined;
  for (let number = 1; number <= 10; number++) last = vms.use(await printed(bench));
  await sleep(3000); // Idle, not just started.
  const pid = last && (qemuPid(last.child.pid) ?? last.child.pid);
  return { name: "memory (USS) that a tenth clone adds", unit: "MB", samples: [pid === undefined ? NaN : ussOf(pid)] };
}

/** Many runs at once, and as many times the processor time of one. */
export async function manyAtOnce(count: number): Promise<Measurement[]> {
  await using scheduler = await Scheduler.open({ warmPoolSize: 0 }, { log: silent });
  const run = () => scheduler.run({ code: PRINT.python, language: "python" });
  const one = await measure(
    `${MANY} times the CPU time of one run`,
    { count, warmUps: 3 },
    async () => MANY * ((await run()).externalCpuTimeMs ?? NaN),
  );
  const cpu: number[] = [];
  const all = await measure(`${MANY} runs at once, wall`, { count: Math.ceil(count / 2), warmUps: 1 }, () =>
    timed(async () => {
      const results = await Promise.all(Array.from({ length: MANY }, run));
      cpu.push(results.reduce((sum, { externalCpuTimeMs }) => sum + (externalCpuTimeMs ?? NaN), 0));
    }));
  return [one, all, { name: `${MANY} runs at once, CPU time of all`, unit: "ms", samples: cpu.slice(1) }];
}

/** Many runs one after the other, with a warm pool: what this process has grown by in the second half: before that its heaps find their sizes. */
export async function manyWithPool(count: number): Promise<Measurement> {
  await using scheduler = await Scheduler.open({ warmPoolSize: 1 }, { log: silent });
  await scheduler.ready();
  let beforeMiB = NaN;
  for (let number = 0; number < count; number++) {
    if (number === Math.ceil(count / 2)) beforeMiB = hostMemory();
    await scheduler.run({ code: PRINT.python, language: "python" });
  }
  return { name: "growth of the host over many runs with a warm pool", unit: "MB", samples: [Math.max(0, hostMemory() - beforeMiB)] };
}

async function printed(bench: Bench): Promise<Vm> {
  const vm = await clone(bench, "python");
  await vm.guest.exec({ code: PRINT.python, env: {}, timeoutMs: 10_000 }, { onOutput: () => {} });
  return vm;
}
