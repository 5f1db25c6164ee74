/** Execution stream: what an execution shows, as an async iterable that holds the guest back while nobody takes it. */
import { InputValidationError } from "../base/errors.ts";
import type { EventSink, OutputEvent } from "./execute.ts";
import type { ExecutionResult } from "../base/result.ts";

/** One event; `result` is the last. Texts of at most 64 KiB. */
export type ExecutionEvent = OutputEvent | { readonly type: "result"; readonly result: ExecutionResult };

/** Starts the execution. An abort of `leaving` interrupts it. */
export type StartExecution = (events: EventSink, leaving: AbortSignal) => Promise<ExecutionResult>;

/**
 * The events of one execution, for one loop. It starts with the first `next`; leaving the loop early interrupts the code and waits until it
 * has stopped. While the loop does not come back, the guest is held back, and its time-out goes on.
 */
export class ExecutionStream implements AsyncIterableIterator<ExecutionEvent, void, void> {
  readonly #start: StartExecution;
  readonly #leaving = new AbortController();
  readonly #events: ExecutionEvent[] = [];
  #running: Promise<void> | undefined;
  #failure: { readonly error: unknown } | undefined;
  #isOver = false;
  #wake: (() => void) | undefined;
  #drained: PromiseWithResolvers<void> | undefined;

  /** Nothing starts before the first `next`. */
  constructor(start: StartExecution) {
    this.#start = start;
  }

  /** The next event; rejects with the error of the execution once everything before it was taken. */
  async next(): Promise<IteratorResult<ExecutionEvent, void>> {
    if (this.#wake) throw new InputValidationError("Cannot read the events: another call of next() waits already");
    this.#running ??= this.#run();
    for (;;) {
      const event = this.#events.shift();
      if (this.#events.length === 0) this.#settleDrained();
      if (event) return { done: false, value: event };
      if (this.#failure) {
        const { error } = this.#failure;
        this.#failure = undefined;
        throw error;
      }
      if (this.#isOver) return { done: true, value: undefined };
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }

  /** Interrupts the execution and waits until it has stopped. */
  async return(): Promise<IteratorResult<ExecutionEvent, void>> {
    const isRunning = this.#running !== undefined && !this.#isOver;
    this.#running ??= Promise.resolve();
    if (isRunning) this.#leaving.abort(new InputValidationError("Cannot go on: the loop over the events was left"));
    this.#finish();
    await this.#running;
    this.#failure = undefined; // Nobody reads on.
    return { done: true, value: undefined };
  }

  /** Itself: one loop. */
  [Symbol.asyncIterator](): this {
    return this;
  }

  /** What the guest waits for while the loop does not come back. */
  #untilDrained(): Promise<void> | undefined {
    if (this.#events.length === 0 || this.#isOver) return undefined;
    this.#drained ??= Promise.withResolvers<void>();
    return this.#drained.promise;
  }

  async #run(): Promise<void> {
    const sink: EventSink = { push: (event) => this.#add(event), drained: () => this.#untilDrained() };
    try {
      this.#add({ type: "result", result: await this.#start(sink, this.#leaving.signal) });
    } catch (error) {
      this.#failure = { error };
    }
    this.#isOver = true;
    this.#rouse();
  }

  #add(event: ExecutionEvent): void {
    if (this.#leaving.signal.aborted) return;
    this.#events.push(event);
    this.#rouse();
  }

  /** No more events for anybody. */
  #finish(): void {
    this.#isOver = true;
    this.#events.length = 0;
    this.#settleDrained();
    this.#rouse();
  }

  #settleDrained(): void {
    this.#drained?.resolve();
    this.#drained = undefined;
  }

  #rouse(): void {
    this.#wake?.();
    this.#wake = undefined;
  }
}
