/** Waiting: permits that are handed over and can be abandoned, deadlines, one flight per key. */

/** FIFO permits; a released permit is handed to the next waiter, so the limit holds. */
export class Semaphore {
  #free: number;
  readonly #waiters: Array<() => void> = [];

  /** `limit`: how many may hold a permit at once, an integer ≥ 1. */
  constructor(limit: number) {
    if (!Number.isInteger(limit) || limit < 1) {
      throw new RangeError(`Cannot create a semaphore: limit must be an integer of at least 1, got ${limit}`);
    }
    this.#free = limit;
  }

  /** Waits its turn; the permit returns when disposed. Rejects with the signal's reason when aborted first. */
  async acquire(signal?: AbortSignal): Promise<Disposable> {
    signal?.throwIfAborted();
    const permit = this.tryAcquire();
    if (permit) return permit;
    await this.#wait(signal);
    return this.#permit();
  }

  /** A permit that is free now, or undefined. */
  tryAcquire(): Disposable | undefined {
    if (this.#free === 0) return undefined;
    this.#free -= 1;
    return this.#permit();
  }

  #permit(): Disposable {
    let isHeld = true;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        const next = this.#waiters.shift();
        if (next) next();
        else this.#free += 1;
      },
    };
  }

  #wait(signal?: AbortSignal): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const onAbort = () => {
      this.#waiters.splice(this.#waiters.indexOf(grant), 1);
      reject(signal?.reason);
    };
    const grant = () => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    };
    signal?.addEventListener("abort", onAbort, { once: true });
    this.#waiters.push(grant);
    return promise;
  }
}

/** Waits for `promise`, but no longer than until `signal` aborts; then rejects with its reason. The promise itself goes on. */
export function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  if (signal.aborted) {
    promise.catch(() => {}); // Nobody waits for it any more; its failure has no reader.
    return Promise.reject(signal.reason);
  }
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}

/**
 * Does `work` on every item, at most `limit` at once, in their order. The first failure, or an abort of `signal`, aborts the signal that the
 * others were given; rejects with it once none is under way any more.
 */
export async function concurrently<T>(
  items: Iterable<T>,
  { limit, signal }: { readonly limit: number; readonly signal?: AbortSignal | undefined },
  work: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const failed = new AbortController();
  const onAbort = () => failed.abort(signal?.reason);
  if (signal?.aborted) onAbort();
  signal?.addEventListener("abort", onAbort, { once: true });
  const queue = items[Symbol.iterator]();
  const worker = async () => {
    try {
      while (!failed.signal.aborted) {
        const { done, value } = queue.next();
        if (done) return;
        await work(value, failed.signal);
      }
    } catch (error) {
      failed.abort(error);
    }
  };
  try {
    await Promise.all(Array.from({ length: limit }, worker));
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
  failed.signal.throwIfAborted();
}

/** A signal that aborts with `reason()` after `ms`, unless disposed first. */
export class Deadline implements Disposable {
  readonly #controller = new AbortController();
  #timer: ReturnType<typeof setTimeout>;

  /** `reason` is called only when the time is up. While `isPaused` then says so, the whole time starts anew. */
  constructor(ms: number, reason: () => unknown, isPaused: () => boolean = () => false) {
    const onTime = () => {
      if (isPaused()) this.#timer = setTimeout(onTime, ms);
      else this.#controller.abort(reason());
    };
    this.#timer = setTimeout(onTime, ms);
  }

  /** Aborts when the time is up. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}

/** Resolves after `ms`; rejects with the signal's reason when aborted first. */
export function delay(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}

/** True when `promise` settles within `ms`, whichever way. */
export function settlesWithin(promise: Promise<unknown>, ms: number): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(false), ms);
    const settled = () => {
      clearTimeout(timer);
      resolve(true);
    };
    promise.then(settled, settled);
  });
}

/** One flight per key: callers of the same key share the first caller's work while it lasts. */
export class Singleflight<T> {
  readonly #flights = new Map<string, Promise<T>>();

  /** Joins the flight of `key`, or starts it. */
  run(key: string, work: () => Promise<T>): Promise<T> {
    const current = this.#flights.get(key);
    if (current) return current;
    // Through a promise, so that work which throws at once is a failed flight like any other.
    const flight = Promise.try(work).finally(() => this.#flights.delete(key));
    this.#flights.set(key, flight);
    return flight;
  }

  /** Resolves when no flight is under way any more, however they ended. */
  async settled(): Promise<void> {
    while (this.#flights.size > 0) await Promise.allSettled(this.#flights.values());
  }
}
