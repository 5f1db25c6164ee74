/** Idle timer: tells when something has not been used for a while. */

/** Calls back once nothing has been in use for a time. */
export class IdleTimer {
  readonly #ms: number;
  readonly #onIdle: () => void;
  #useCount = 0;
  #idleSince = performance.now();
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** Counts from now on. */
  constructor(ms: number, onIdle: () => void) {
    this.#ms = ms;
    this.#onIdle = onIdle;
    this.#arm(ms);
  }

  /** In use until what is returned is disposed. */
  use(): Disposable {
    this.#useCount += 1;
    let isHeld = true;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        this.#useCount -= 1;
        this.#idleSince = performance.now();
      },
    };
  }

  /** Never calls back any more. */
  stop(): void {
    clearTimeout(this.#timer);
  }

  /** One timer that looks again, not a new one with each use. */
  #arm(ms: number): void {
    this.#timer = setTimeout(() => {
      const leftMs = this.#useCount > 0 ? this.#ms : this.#idleSince + this.#ms - performance.now();
      if (leftMs <= 0) this.#onIdle();
      else this.#arm(Math.ceil(leftMs));
    }, ms);
  }
}
