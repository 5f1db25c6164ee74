/** Line: those who want a part of one resource, first come, first served. */
import { VmCapacityError } from "../base/errors.ts";
import { type Reclaimable, toReclaim } from "./budget.ts";

/** How long somebody waits while nobody is admitted, before the caller is told. Longer than any execution may take. */
export const ADMISSION_TIMEOUT_MS = 330_000;
const WAITING_MAX = 10_000;

/** How somebody waits. */
export interface WaitOptions {
  readonly signal?: AbortSignal | undefined;
  /** Without anybody being admitted. Default `ADMISSION_TIMEOUT_MS`. */
  readonly timeoutMs?: number;
}

/** Part of a resource that is held for nobody in particular. Disposing gives it back; so does an eviction, which calls `evict` first. */
export interface Reservation extends Disposable {
  /** The part becomes the caller's own: it is not reclaimed any more. Undefined when it was given back, or when others wait before the caller. */
  claim(): Disposable | undefined;
}

/** What is said when somebody cannot be admitted. */
export interface LineWords {
  /** Begins each message: `Cannot start a VM with 256 MB`. */
  action(need: number): string;
  /** `700 of 1000 MB in use`. */
  inUse(used: number, limit: number): string;
  readonly hint: string;
}

interface Waiter {
  readonly need: number;
  readonly admit: () => void;
}

interface Reserved extends Reclaimable {
  readonly evict: () => void;
}

/** One resource. The head of the line is never overtaken, so a large request is not starved by small ones. */
export class Line {
  readonly #limit: number;
  readonly #words: LineWords;
  readonly #onChange: () => void;
  readonly #waiters: Waiter[] = [];
  readonly #reserved = new Set<Reserved>();
  #used = 0;
  #reservedAmount = 0;
  #admittedAt = 0;

  /** At most `limit` is ever held, reservations included. `onChange` is called whenever something came back or somebody left. */
  constructor(limit: number, words: LineWords, onChange: () => void) {
    this.#limit = limit;
    this.#words = words;
    this.#onChange = onChange;
  }

  /** Held by somebody who uses it. */
  get used(): number {
    return this.#used;
  }

  /** Held by what can be evicted. */
  get reserved(): number {
    return this.#reservedAmount;
  }

  /** Nobody waits. */
  get isEmpty(): boolean {
    return this.#waiters.length === 0;
  }

  /**
   * A part of the resource, at once where it is free and nobody waits. Rejects with `VmCapacityError` when too many wait already or when nobody was
   * admitted for too long: a line that moves is no lack of capacity; and with the signal's reason.
   */
  take(need: number, options: WaitOptions = {}): Disposable | Promise<Disposable> {
    if (options.signal?.aborted) return Promise.reject(options.signal.reason);
    if (this.isEmpty && this.#makeRoom(need)) return this.#grant(need);
    return this.#wait(need, options);
  }

  /** A part of what is free, as long as nobody who wants it for use has to wait. Undefined when there is not enough, or when somebody waits. */
  reserve(amount: number, { worth, evict }: { readonly worth: number; readonly evict: () => void }): Reservation | undefined {
    if (!this.isEmpty || this.#used + this.#reservedAmount + amount > this.#limit) return undefined;
    const reserved: Reserved = { amount, worth, evict };
    this.#reserved.add(reserved);
    this.#reservedAmount += amount;
    return {
      claim: () => {
        if (!this.isEmpty || !this.#forget(reserved)) return undefined;
        return this.#grant(amount);
      },
      [Symbol.dispose]: () => {
        if (this.#forget(reserved)) this.#admit();
      },
    };
  }

  /** Whether `need` is free, after evictions where these help. */
  #makeRoom(need: number): boolean {
    const missing = this.#used + this.#reservedAmount + need - this.#limit;
    if (missing <= 0) return true;
    const chosen = toReclaim(this.#reserved, missing);
    for (const reserved of chosen) {
      this.#forget(reserved);
      reserved.evict();
    }
    return chosen.length > 0;
  }

  #forget(reserved: Reserved): boolean {
    if (!this.#reserved.delete(reserved)) return false;
    this.#reservedAmount -= reserved.amount;
    return true;
  }

  #grant(need: number): Disposable {
    this.#used += need;
    let isHeld = true;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        this.#used -= need;
        this.#admit();
      },
    };
  }

  /** As many of those who wait longest as there is room for. */
  #admit(): void {
    for (let head = this.#waiters[0]; head && this.#makeRoom(head.need); head = this.#waiters[0]) {
      this.#waiters.shift();
      this.#admittedAt = performance.now();
      head.admit();
    }
    this.#onChange();
  }

  #wait(need: number, { signal, timeoutMs = ADMISSION_TIMEOUT_MS }: WaitOptions): Promise<Disposable> {
    const { action, inUse } = this.#words;
    if (this.#waiters.length >= WAITING_MAX) {
      return Promise.reject(new VmCapacityError(`${action(need)}: at most ${WAITING_MAX} may wait for room, and they do`));
    }
    return new Promise((resolve, reject) => {
      const settle = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", onAbort);
      };
      const leave = (reason: unknown) => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
        settle();
        reject(reason);
        this.#admit();
      };
      const onAbort = () => leave(signal?.reason);
      const queuedAt = performance.now();
      const onTime = () => {
        const leftMs = Math.max(queuedAt, this.#admittedAt) + timeoutMs - performance.now();
        if (leftMs > 0) return void (timer = setTimeout(onTime, leftMs + 1));
        const message = `${action(need)}: no room after ${timeoutMs} ms (${inUse(this.#used, this.#limit)})`;
        leave(new VmCapacityError(message, { hint: this.#words.hint }));
      };
      let timer = setTimeout(onTime, timeoutMs + 1);
      const admit = () => {
        settle();
        resolve(this.#grant(need));
      };
      const waiter: Waiter = { need, admit };
      signal?.addEventListener("abort", onAbort, { once: true });
      this.#waiters.push(waiter);
    });
  }
}
