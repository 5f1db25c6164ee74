/** Stream I/O: what all methods share: calls with one answer, bodies fed from a source, streams that are stopped. */
import { abortable, Deadline, type Semaphore } from "../base/async.ts";
import { CommunicationError } from "../base/errors.ts";
import { CALL_TIMEOUT_MS, TRANSFER_STALL_MS } from "../base/limits.ts";
import type { Answer, Mux, MuxStream } from "./mux.ts";
import { DATA_FLAG } from "./wire.ts";

/** How long the host waits beyond what the guest was given. */
export interface Graces {
  /** For the guest to end a program that ran out of time. */
  readonly killMs: number;
  /** For the guest to interrupt an aborted execution before it kills it. */
  readonly cancelMs: number;
  /** For the answer itself, on top of either. */
  readonly resultMs: number;
}

/** What opens a stream: a method and its parameters. */
export type Message = { readonly method: string } & Readonly<Record<string, unknown>>;

/** Whose turn a call is, and what ends it. */
export interface CallTurn {
  readonly turns: Semaphore;
  readonly signal?: AbortSignal | undefined;
  /** Follows the message, at most a stream's first credit of bytes: nothing that is sent later comes before its end. */
  readonly body?: Uint8Array;
}

const encoder = new TextEncoder();

/** Environment variables as they cross the channel. */
export function environmentBlock(env: Readonly<Record<string, string>>): Uint8Array {
  return encoder.encode(Object.entries(env).map(([name, value]) => `${name}=${value}\0`).join(""));
}

/**
 * The answer to a message that has nothing else, in its turn. A guest that never gives it is lost. After an abort it is told to stop, if it
 * still can; the turn is over with its answer all the same, for until then the stream is one of those that may be open at once.
 */
export async function callAnswer(mux: Mux, message: Message, { turns, signal, body }: CallTurn): Promise<Answer> {
  signal?.throwIfAborted();
  const turn = turns.tryAcquire() ?? await turns.acquire(signal);
  if (mux.closed.aborted) turn[Symbol.dispose](); // Opening fails then.
  const stream = mux.open(message);
  if (body) {
    void stream.send(body, DATA_FLAG.body);
    stream.end();
  }
  const late = () => new CommunicationError(`Cannot ${message.method} in the guest: no answer after ${CALL_TIMEOUT_MS} ms`);
  const timer = setTimeout(() => mux.close(late()), CALL_TIMEOUT_MS);
  const onOver = () => {
    clearTimeout(timer);
    turn[Symbol.dispose]();
  };
  stream.answer.then(onOver, onOver);
  try {
    return await abortable(stream.answer, signal);
  } catch (error) {
    stream.cancel(0);
    throw error;
  }
}

/** Cancels what `stream` does and waits until it is over; a guest that does not even stop is lost. */
export async function stopStream(
  mux: Mux,
  stream: MuxStream,
  { cancelMs, resultMs }: Pick<Graces, "cancelMs" | "resultMs">,
): Promise<void> {
  stream.release();
  stream.cancel(cancelMs);
  using grace = new Deadline(cancelMs + resultMs, () => new CommunicationError("Cannot stop what the guest does: no answer"));
  await abortable(stream.answer, grace.signal).catch((error) => mux.close(error));
}

/** Feeds a stream's body from a source until either ends, then says END. Disposing it ends the source. */
export class BodySource implements Disposable {
  readonly #failed = new AbortController();
  readonly #iterator: AsyncIterator<Uint8Array>;
  #isOver = false;
  #sentBytes = 0;

  /** Starts at once. */
  constructor(stream: MuxStream, source: AsyncIterable<Uint8Array>) {
    this.#iterator = source[Symbol.asyncIterator]();
    this.#feed(stream).catch((error) => this.#failed.abort(error));
  }

  /** Bytes handed to the stream so far. */
  get sentBytes(): number {
    return this.#sentBytes;
  }

  /** Aborts with what the source threw. */
  get failed(): AbortSignal {
    return this.#failed.signal;
  }

  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#isOver = true;
    // The source may be waiting for something that never comes: nobody waits for its end.
    void Promise.try(() => this.#iterator.return?.()).catch(() => {}); // Its own failure to stop has no reader any more.
  }

  async #feed(stream: MuxStream): Promise<void> {
    for (;;) {
      const { done, value } = await this.#iterator.next();
      if (this.#isOver) return;
      if (done) break;
      await stream.send(value, DATA_FLAG.body);
      this.#sentBytes += value.length;
    }
    this.#isOver = true;
    stream.end();
  }
}

/** A signal that aborts when nothing has moved on `stream` for `TRANSFER_STALL_MS` although `isGuestsTurn`. */
export class StallWatch implements Disposable {
  readonly #controller = new AbortController();
  readonly #timer: ReturnType<typeof setInterval>;
  #lastCount = -1;

  /** Looks from now on. */
  constructor(stream: MuxStream, isGuestsTurn: () => boolean) {
    this.#timer = setInterval(() => {
      const isSilent = isGuestsTurn() && stream.frameCount === this.#lastCount;
      this.#lastCount = isGuestsTurn() ? stream.frameCount : -1;
      if (isSilent) this.#controller.abort(new CommunicationError(`Cannot transfer: the guest was silent for ${TRANSFER_STALL_MS} ms`));
    }, TRANSFER_STALL_MS);
  }

  /** Aborts when the guest has stalled. */
  get stalled(): AbortSignal {
    return this.#controller.signal;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}
