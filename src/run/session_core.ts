/** Session core: whose turn it is, which machine has it, and when the session is over. */
import { abortable, Semaphore } from "../base/async.ts";
import { CommunicationError, OutcomeUnknownError, SessionClosedError } from "../base/errors.ts";
import type { GuestChannel } from "../channel/guest.ts";
import { BackgroundOutput } from "./background_output.ts";
import { IdleTimer } from "./idle_timer.ts";
import type { Machine } from "./machine.ts";
import type { MachineNetwork } from "./network.ts";

/** What a core is made of. It owns the machine. */
export interface SessionCoreParts {
  readonly machine: Machine;
  /** The machine's network; undefined where there is none to be had. Ends with the session. */
  readonly network: MachineNetwork | undefined;
  readonly idleTimeoutSeconds: number;
  /** Called once, when the session has ended. */
  readonly onEnd: () => void;
}

/** One machine at a time, and the calls of its session. */
export class SessionCore implements AsyncDisposable {
  readonly #parts: SessionCoreParts;
  readonly #idle: IdleTimer;
  /** One execution at a time. */
  readonly #turns = new Semaphore(1);
  /** Aborts when the session was ended on purpose: what runs ends with that reason. */
  readonly #closing = new AbortController();
  /** Aborts when the session has ended, for whatever reason: what waits ends with it. */
  readonly #ended = new AbortController();
  #machine: Machine;
  #networkEnd: Promise<void> | undefined;
  #starting: Promise<void> | undefined;
  #background = new BackgroundOutput();
  /** Calls beside the executions that are under way. */
  #callCount = 0;
  #onLastCall: (() => void) | undefined;
  /** Calls wait for it while the session is alone with its machine. */
  #barrier: Promise<void> | undefined;

  /** Watches the machine from now on. */
  constructor(parts: SessionCoreParts) {
    this.#parts = parts;
    const { idleTimeoutSeconds } = parts;
    this.#idle = new IdleTimer(idleTimeoutSeconds * 1000, () => this.end(`it was not used for ${idleTimeoutSeconds} s`));
    this.#machine = parts.machine;
    this.#watch(parts.machine);
  }

  get machine(): Machine {
    return this.#machine;
  }

  /** The network of whichever machine it has. */
  get network(): MachineNetwork | undefined {
    return this.#parts.network;
  }

  get guest(): GuestChannel {
    return this.#machine.guest;
  }

  /** Output that came while nothing ran. */
  get background(): BackgroundOutput {
    return this.#background;
  }

  /** While the code whose turn it is waits for a CPU slot: settles when it was sent, or never will be. */
  get starting(): Promise<void> | undefined {
    return this.#starting;
  }

  get isClosed(): boolean {
    return this.#ended.signal.aborted;
  }

  /** Aborts with a `SessionClosedError` when the session was closed on purpose. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  /** Aborts when the session has ended, for whatever reason. */
  get ended(): AbortSignal {
    return this.#ended.signal;
  }

  /** The session is in use until this is disposed. */
  keepInUse(): Disposable {
    return this.#idle.use();
  }

  /** Makes a call unless the session has ended. A session that is closed meanwhile ends it. */
  async use<T>(work: () => Promise<T>): Promise<T> {
    this.#ended.signal.throwIfAborted();
    using _use = this.#idle.use();
    return await abortable(work(), this.#closing.signal);
  }

  /** As `use`, for what must not be cut off by `alone`: it waits for that, and is waited for. */
  async call<T>(work: () => Promise<T>): Promise<T> {
    return await this.use(async () => {
      while (this.#barrier) await abortable(this.#barrier, this.#ended.signal);
      this.#callCount += 1;
      try {
        return await work();
      } finally {
        this.#callCount -= 1;
        if (this.#callCount === 0) this.#onLastCall?.();
      }
    });
  }

  /** Runs `work` when everything that was asked for earlier is over. What starts at once is sent before any other call can be made. */
  async inTurn<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    return await this.use(async () => {
      signal?.throwIfAborted();
      using _turn = this.#turns.tryAcquire() ?? await this.#granted(this.#turns.acquire(signal));
      const slot = this.#machine.occupy(signal);
      using _slot = slot instanceof Promise ? await this.#started(slot) : slot;
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof OutcomeUnknownError)) throw error;
        throw new OutcomeUnknownError(this.#machine.describeLoss(error), { cause: error });
      }
    });
  }

  /** Runs `work` in its turn while no other call is under way; those that come meanwhile wait. */
  async alone<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    return await this.inTurn(signal, async () => {
      const barrier = Promise.withResolvers<void>();
      this.#barrier = barrier.promise;
      try {
        if (this.#callCount > 0) {
          const over = new Promise<void>((resolve) => this.#onLastCall = resolve);
          await abortable(abortable(over, this.#ended.signal), signal);
        }
        return await work();
      } finally {
        this.#onLastCall = undefined;
        this.#barrier = undefined;
        barrier.resolve();
      }
    });
  }

  /** The session goes on with `next`, which was leased to replace its machine. Whoever waits for something of the old one is told `why`. */
  moveTo(next: Machine, why: CommunicationError): void {
    const before = this.#machine;
    this.#machine = next;
    this.#background = new BackgroundOutput();
    this.#watch(next);
    before.guest.close(why);
    this.network?.moveTo(next);
    before.replaceWith(next);
    if (this.isClosed) next.release();
  }

  /** Resolves when the session has ended and nothing of its machine or network is left. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.end("it was closed");
    await this.#networkEnd;
    await this.#machine[Symbol.asyncDispose]();
  }

  /** Ends it without waiting. `why` follows "Cannot use the session: ". */
  end(why: string): void {
    if (!this.isClosed) this.#closing.abort(closedError(why));
    this.#end(why);
  }

  #watch(machine: Machine): void {
    const { lost } = machine;
    const onLost = () => {
      if (machine === this.#machine) this.#end(`its VM was lost: ${machine.describeLoss(lost.reason)}`);
    };
    if (lost.aborted) onLost();
    else lost.addEventListener("abort", onLost, { once: true });
  }

  #end(why: string): void {
    if (this.isClosed) return;
    this.#idle.stop();
    this.#ended.abort(this.#closing.signal.aborted ? this.#closing.signal.reason : closedError(why));
    this.#networkEnd = this.network?.[Symbol.asyncDispose]();
    this.#machine.release();
    this.#parts.onEnd();
  }

  /** A slot that is waited for. What is done with it at once is done before `starting` settles. */
  async #started(slot: Promise<Disposable>): Promise<Disposable> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#starting = promise;
    try {
      return await this.#granted(slot);
    } finally {
      this.#starting = undefined;
      setTimeout(resolve); // Behind all that follows the grant.
    }
  }

  /** What is waited for in a line, unless the session ends first. */
  async #granted(waiting: Promise<Disposable>): Promise<Disposable> {
    try {
      return await abortable(waiting, this.#ended.signal);
    } catch (error) {
      waiting.then((grant) => grant[Symbol.dispose](), () => {}); // Nobody waits for it any more; whoever is next may go.
      throw error;
    }
  }
}

function closedError(why: string): SessionClosedError {
  return new SessionClosedError(`Cannot use the session: ${why}`, { hint: "Open another with scheduler.session()." });
}
