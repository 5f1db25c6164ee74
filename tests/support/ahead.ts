/** Machines started ahead, in tests: where their QEMUs are, what the supply behind a scheduler holds, and budgets for so many of them. */
import os from "node:os";
import { Gate } from "../../src/admission/gate.ts";
import type { SchedulerConfig, SchedulerHooks } from "../../src/mod.ts";
import { descendants } from "./vm.ts";

/** The pids of all QEMUs below this process, in the order of their start. */
export function qemuPids(): number[] {
  return descendants().filter((line) => line.includes("qemu")).map((line) => Number.parseInt(line)).sort((a, b) => a - b);
}

/** Memory for so many machines of 256 MB, and a little more. */
export function memoryFor(machines: number): SchedulerConfig {
  const hostMiB = os.totalmem() / 1_048_576;
  return { hostMemoryReserveRatio: 0.95, memoryOvercommitRatio: (256 * machines + 100) / (0.05 * hostMiB) };
}

/** A logger that keeps the warnings. */
export function keepingWarnings(): { readonly warnings: string[]; readonly log: NonNullable<SchedulerHooks["log"]> } {
  const warnings: string[] = [];
  return {
    warnings,
    log: { debug() {}, info() {}, warning: (message) => void warnings.push(message), error: (message) => void warnings.push(message) },
  };
}

/** Calls `body` with every gate that is made meanwhile: the room of schedulers that are opened in it. */
export async function withGates<T>(body: (gates: readonly Gate[]) => Promise<T>): Promise<T> {
  const gates: Gate[] = [], { occupy } = Gate.prototype;
  Gate.prototype.occupy = function (...args) {
    if (!gates.includes(this)) gates.push(this);
    return occupy.apply(this, args);
  };
  try {
    return await body(gates);
  } finally {
    Gate.prototype.occupy = occupy;
  }
}
