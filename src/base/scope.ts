/** Ownership: what a scope acquired, released in reverse; stops where a process may still live. */
import { CleanupError } from "./errors.ts";

interface Step {
  readonly name: string;
  readonly isBarrier: boolean;
  dispose(): void | PromiseLike<void>;
}

/** Owns resources in the order they were acquired. */
export class Scope implements AsyncDisposable {
  #steps: Step[] = [];
  #releasing: Promise<void> | undefined;

  /** Own `resource`; released after everything acquired later. */
  use<T extends AsyncDisposable>(name: string, resource: T): T {
    this.#steps.push({ name, isBarrier: false, dispose: () => resource[Symbol.asyncDispose]() });
    return resource;
  }

  /** Run `release` when everything acquired later is gone. */
  defer(name: string, release: () => void | PromiseLike<void>): void {
    this.#steps.push({ name, isBarrier: false, dispose: release });
  }

  /** Own `resource`; if it cannot be released, nothing acquired before it is touched. */
  barrier<T extends AsyncDisposable>(name: string, resource: T): T {
    this.#steps.push({ name, isBarrier: true, dispose: () => resource[Symbol.asyncDispose]() });
    return resource;
  }

  /** Hand everything to a new owner; this scope then releases nothing. */
  move(): Scope {
    const next = new Scope();
    next.#steps = this.#steps;
    this.#steps = [];
    return next;
  }

  /** Two disposals at once are one: a second must not release what lies below a step that the first still waits for. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#releasing ??= this.#release().finally(() => this.#releasing = undefined);
    return this.#releasing;
  }

  async #release(): Promise<void> {
    const failures: Array<{ step: string; cause: unknown }> = [];
    const leftovers: string[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step.dispose();
      } catch (cause) {
        failures.push({ step: step.name, cause });
        leftovers.push(step.name);
        if (step.isBarrier) leftovers.push(...this.#steps.splice(0).reverse().map((below) => below.name));
      }
    }
    if (failures.length > 0) throw new CleanupError({ failures, leftovers });
  }
}

/** The failure that started it: a disposal failure wraps the error of the body. */
export function primaryError(error: unknown): unknown {
  let current = error;
  while (current instanceof SuppressedError) current = current.suppressed;
  return current;
}
