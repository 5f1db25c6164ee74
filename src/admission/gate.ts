/**
 * Gate: VMs wait here until the budget has room for them. Memory is held as long as a VM lives, a CPU slot only while it works. Each has a line of
 * its own, and whoever holds a slot never waits for memory: so somebody who waits for memory holds up nobody who needs a slot alone, and
 * those who hold the memory can always finish.
 */
import { VmCapacityError } from "../base/errors.ts";
import type { Budget } from "./budget.ts";
import { Line, type LineWords, type Reservation, type WaitOptions } from "./line.ts";

const MEMORY_WORDS: LineWords = {
  action: (memoryMiB) => `Cannot start a VM with ${memoryMiB} MB`,
  inUse: (used, limit) => `in use: ${used} of ${limit} MB`,
  hint: "Close sessions that are not needed, ask for less memory, or raise memoryOvercommitRatio.",
};
const SLOT_WORDS: LineWords = {
  action: () => "Cannot run",
  inUse: (used, limit) => `in use: ${used} of ${limit} CPU slots`,
  hint: "Run less at once, or raise cpuOvercommitRatio.",
};

/** Grants parts of one budget. */
export class Gate {
  /** What is granted in all, at most. */
  readonly budget: Budget;
  readonly #memory: Line;
  readonly #slots: Line;
  #watchers: Array<() => void> = [];

  /** `budget` is never exceeded. */
  constructor(budget: Budget) {
    this.budget = budget;
    const onChange = () => this.#tellWatchers();
    this.#memory = new Line(budget.memoryMiB, MEMORY_WORDS, onChange);
    this.#slots = new Line(budget.cpus, SLOT_WORDS, onChange);
  }

  /** What is held, in use and reserved. */
  get held(): Budget & { readonly reservedMiB: number } {
    return { memoryMiB: this.#memory.used, reservedMiB: this.#memory.reserved, cpus: this.#slots.used };
  }

  /** Somebody waits for memory or for a slot. */
  get isContended(): boolean {
    return !this.#memory.isEmpty || !this.#slots.isEmpty;
  }

  /** Nobody works, nobody waits. */
  get isQuiet(): boolean {
    return this.#slots.used === 0 && !this.isContended;
  }

  /**
   * Memory for a VM, at once where it is free and nobody waits; what is reserved is evicted for it. Disposing the grant gives it back. Throws `VmCapacityError`
   * when so much can never be had; rejects with it after too long a time, and with the signal's reason.
   */
  hold(memoryMiB: number, options: WaitOptions = {}): Disposable | Promise<Disposable> {
    this.checkMemory(memoryMiB);
    return this.#memory.take(memoryMiB, options);
  }

  /** A CPU slot, at once where one is free and nobody waits. Otherwise as `hold`. */
  occupy(options: WaitOptions = {}): Disposable | Promise<Disposable> {
    return this.#slots.take(1, options);
  }

  /** Memory for a VM that nobody has asked for, if there is room and nobody waits; `evict` is called when somebody needs it more. */
  reserve(memoryMiB: number, options: { readonly worth: number; readonly evict: () => void }): Reservation | undefined {
    return this.#memory.reserve(memoryMiB, options);
  }

  /** A slot for work that nobody has asked for, if one is free and nobody waits; `evict` is called when somebody needs it more. */
  reserveSlot(options: { readonly worth: number; readonly evict: () => void }): Reservation | undefined {
    return this.#slots.reserve(1, options);
  }

  /** Throws `VmCapacityError` when so much memory can never be had. */
  checkMemory(memoryMiB: number): void {
    if (memoryMiB <= this.budget.memoryMiB) return;
    throw new VmCapacityError(
      `Cannot start a VM with ${memoryMiB} MB: the budget of this host is ${this.budget.memoryMiB} MB in all`,
      { retry: "never", hint: "Ask for less memory, or raise memoryOvercommitRatio." },
    );
  }

  /** Resolves at the next moment in which nobody works and nobody waits; at once when that is now. Rejects with the signal's reason. */
  async quiet(signal: AbortSignal): Promise<void> {
    while (!this.isQuiet) await this.changed(signal);
  }

  /** Resolves when something was given back or somebody has left. Rejects with the signal's reason. */
  changed(signal: AbortSignal): Promise<void> {
    if (signal.aborted) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        this.#watchers = this.#watchers.filter((watcher) => watcher !== onChange);
        reject(signal.reason);
      };
      const onChange = () => {
        signal.removeEventListener("abort", onAbort);
        resolve();
      };
      signal.addEventListener("abort", onAbort, { once: true });
      this.#watchers.push(onChange);
    });
  }

  #tellWatchers(): void {
    for (const watcher of this.#watchers.splice(0)) watcher();
  }
}
