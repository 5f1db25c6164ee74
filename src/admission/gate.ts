/** Gate: VMs wait here, first come, first served, until the budget has room for them. */
import { VmCapacityError } from "../base/errors.ts";
import type { Budget } from "./budget.ts";

/** How long a VM waits for room while nobody is admitted, before the caller is told. Longer than any execution may take. */
export const ADMISSION_TIMEOUT_MS = 330_000;
const WAITING_MAX = 10_000;

interface Waiter {
  readonly need: Budget;
  readonly admit: () => void;
}

/** Grants parts of one budget. */
export class Gate {
  readonly #budget: Budget;
  readonly #waiters: Waiter[] = [];
  #used: { memoryMiB: number; cpus: number } = { memoryMiB: 0, cpus: 0 };
  #admittedAt = 0;

  /** `budget` is never exceeded. */
  constructor(budget: Budget) {
    this.#budget = budget;
  }

  /**
   * Waits for room; disposing the grant gives it back. Throws `VmCapacityError` when `need` can never fit, when too many wait already or
   * when nobody was admitted for `timeoutMs`: a queue that moves is no lack of capacity; rejects with the signal's reason.
   */
  async acquire(
    need: Budget,
    options: { readonly signal?: AbortSignal | undefined; readonly timeoutMs?: number } = {},
  ): Promise<Disposable> {
    options.signal?.throwIfAborted();
    if (need.memoryMiB > this.#budget.memoryMiB || need.cpus > this.#budget.cpus) {
      throw new VmCapacityError(
        `Cannot start a VM with ${need.memoryMiB} MB: the budget of this host is ${this.#budget.memoryMiB} MB in all`,
        { retry: "never", hint: "Ask for less memory, or raise memoryOvercommitRatio." },
      );
    }
    if (this.#waiters.length > 0 || !this.#fits(need)) await this.#wait(need, options);
    else this.#take(need);
    let isHeld = true;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        this.#used = { memoryMiB: this.#used.memoryMiB - need.memoryMiB, cpus: this.#used.cpus - need.cpus };
        this.#admitNext();
      },
    };
  }

  #fits(need: Budget): boolean {
    return this.#used.memoryMiB + need.memoryMiB <= this.#budget.memoryMiB && this.#used.cpus + need.cpus <= this.#budget.cpus;
  }

  #take(need: Budget): void {
    this.#used = { memoryMiB: this.#used.memoryMiB + need.memoryMiB, cpus: this.#used.cpus + need.cpus };
  }

  /** The head of the queue is never overtaken: a large request is not starved by small ones. */
  #admitNext(): void {
    for (let head = this.#waiters[0]; head && this.#fits(head.need); head = this.#waiters[0]) {
      this.#waiters.shift();
      this.#admittedAt = performance.now();
      this.#take(head.need);
      head.admit();
    }
  }

  #wait(need: Budget, options: { readonly signal?: AbortSignal | undefined; readonly timeoutMs?: number }): Promise<void> {
    if (this.#waiters.length >= WAITING_MAX) {
      throw new VmCapacityError(`Cannot start a VM: at most ${WAITING_MAX} may wait for room, and they do`);
    }
    const timeoutMs = options.timeoutMs ?? ADMISSION_TIMEOUT_MS;
    return new Promise((resolve, reject) => {
      const leave = (reason: unknown) => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
        settle();
        reject(reason);
        this.#admitNext();
      };
      const onAbort = () => leave(options.signal?.reason);
      const queuedAt = performance.now();
      const onTime = () => {
        const leftMs = Math.max(queuedAt, this.#admittedAt) + timeoutMs - performance.now();
        if (leftMs <= 0) return leave(this.#timeoutError(need, timeoutMs));
        timer = setTimeout(onTime, leftMs + 1);
      };
      let timer = setTimeout(onTime, timeoutMs + 1);
      const settle = () => {
        clearTimeout(timer);
        options.signal?.removeEventListener("abort", onAbort);
      };
      const waiter: Waiter = {
        need,
        admit: () => {
          settle();
          resolve();
        },
      };
      options.signal?.addEventListener("abort", onAbort, { once: true });
      this.#waiters.push(waiter);
    });
  }

  #timeoutError(need: Budget, timeoutMs: number): VmCapacityError {
    const { memoryMiB, cpus } = this.#used;
    return new VmCapacityError(
      `Cannot start a VM with ${need.memoryMiB} MB: no room after ${timeoutMs} ms (in use: ${memoryMiB} of ${this.#budget.memoryMiB} MB, ` +
        `${cpus} of ${this.#budget.cpus} slots)`,
    );
  }
}
