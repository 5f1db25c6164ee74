/** Mux: streams over one byte pipe, each direction of each with its own credit. */
import type { Duplex } from "node:stream";
import { assert, CommunicationError, messageOf } from "../base/errors.ts";
import { FRAME_MAX_BYTES, STREAM_CREDIT_BYTES, STREAMS_MAX } from "../base/limits.ts";
import { concat, decodeCredit, encodeCredit, encodeFrame, type Frame, FrameDecoder, KIND, type Kind, WireError } from "./wire.ts";

const GRANT_AT_BYTES = STREAM_CREDIT_BYTES / 2;
/** An agent never grants more than it has consumed. What a guest that has been taken over grants is memory of ours: it is sent without waiting. */
const CREDIT_MAX_BYTES = 64 * STREAM_CREDIT_BYTES;
const text = new TextEncoder();

/** How a stream ended, by the guest's own word. */
export type Answer = { readonly kind: "result" | "error"; readonly payload: Uint8Array };

/**
 * Called with each DATA payload and its flags. The view is valid during the call only, unless it has a buffer of its own (`owned`). Where a promise is returned, the bytes count as
 * consumed once it has settled; until then the guest gets no new credit for them.
 */
export type DataHandler = (flags: number, payload: Uint8Array) => void | Promise<void>;

/** A channel as another takes it up. */
export interface HandOver {
  /** Nobody reads it; what comes waits in it. */
  readonly pipe: Duplex;
  readonly firstStream: number;
}

/** The host's end of the channel. A failure of the pipe or of the peer ends every stream at once. */
export class Mux {
  readonly #pipe: Duplex;
  readonly #onData = (chunk: Uint8Array) => this.#receive(chunk);
  readonly #decoder = new FrameDecoder();
  readonly #streams = new Map<number, MuxStream>();
  readonly #closed = new AbortController();
  readonly #onHello: (payload: Uint8Array) => void;
  #outgoing: Uint8Array[] = [];
  #isHeld = false;
  #nextStream: number;

  /**
   * Reads `pipe` from now on; `onHello` gets the payload of each HELLO of the guest and may throw `WireError`. `firstStream` is what `handOver`
   * gave for a pipe that was another's.
   */
  constructor(pipe: Duplex, onHello: (payload: Uint8Array) => void, firstStream = 1) {
    this.#pipe = pipe;
    this.#onHello = onHello;
    this.#nextStream = firstStream;
    pipe.on("data", this.#onData);
    // A guest that only stops speaking is as lost as one that has gone.
    for (const event of ["end", "close"]) {
      pipe.on(event, () => this.#close(new CommunicationError("Cannot reach the guest: the control channel was closed")));
    }
    pipe.on("error", (cause) => this.#close(new CommunicationError(`Cannot reach the guest: ${messageOf(cause)}`, { cause })));
  }

  /** Aborts with a `CommunicationError` when the channel can no longer be used. */
  get closed(): AbortSignal {
    return this.#closed.signal;
  }

  /** Says HELLO; after `hold` it leaves before all that was queued meanwhile. */
  hello(message: unknown): void {
    const queued = this.#isHeld ? this.#outgoing.splice(0) : [];
    this.#isHeld = false;
    this.send(0, KIND.hello, 0, text.encode(JSON.stringify(message)));
    this.#outgoing.push(...queued);
  }

  /** Sends what is queued now; what comes later waits for `hello` or `unhold`. What can wait is bounded by the credit of the streams. */
  hold(): void {
    this.#flush();
    this.#isHeld = true;
  }

  /** Goes on without a HELLO. */
  unhold(): void {
    this.#isHeld = false;
    if (this.#outgoing.length > 0) this.#flush();
  }

  /** Opens a stream with `message` (JSON, at most 65,536 bytes). Throws `CommunicationError` when the channel is closed. */
  open(message: unknown, onData: DataHandler = () => {}): MuxStream {
    this.#closed.signal.throwIfAborted();
    if (this.#streams.size >= STREAMS_MAX) {
      throw new CommunicationError(`Cannot open another stream to the guest: at most ${STREAMS_MAX} may be open at once`);
    }
    const stream = new MuxStream(this, this.#nextStream++, onData);
    this.#streams.set(stream.id, stream);
    this.send(stream.id, KIND.open, 0, text.encode(JSON.stringify(message)));
    return stream;
  }

  /** Queues one frame. Everything queued in one turn of the event loop leaves in one write. */
  send(stream: number, kind: Kind, flags: number, payload?: Uint8Array): void {
    if (this.#closed.signal.aborted) return;
    if (this.#outgoing.length === 0 && !this.#isHeld) queueMicrotask(() => this.#flush());
    this.#outgoing.push(encodeFrame({ stream, kind, flags, ...(payload ? { payload } : {}) }));
  }

  /** Ends every stream, with `reason`, and stops reading. The pipe itself belongs to whoever made it. */
  close(reason = new CommunicationError("Cannot reach the guest: the control channel was closed by us")): void {
    this.#close(reason);
  }

  /**
   * Stops reading, so that another may speak to the guest from here on: returns the pipe and the first stream that has not been used. No stream may be
   * open. `closed` still aborts with the pipe.
   */
  handOver(): HandOver {
    this.#closed.signal.throwIfAborted();
    assert(this.#streams.size === 0 && this.#decoder.pendingBytes === 0, "a channel is handed over while it is in use");
    this.#flush();
    this.#pipe.pause();
    this.#pipe.off("data", this.#onData);
    return { pipe: this.#pipe, firstStream: this.#nextStream };
  }

  #flush(): void {
    if (this.#isHeld || this.#outgoing.length === 0) return;
    const frames = this.#outgoing;
    this.#outgoing = [];
    if (!this.#closed.signal.aborted) this.#pipe.write(frames.length === 1 && frames[0] ? frames[0] : concat(...frames));
  }

  #receive(chunk: Uint8Array): void {
    if (this.#closed.signal.aborted) return;
    try {
      for (const frame of this.#decoder.push(chunk)) this.#dispatch(frame);
    } catch (cause) {
      if (!(cause instanceof WireError)) throw cause;
      this.#close(new CommunicationError(`Cannot understand the guest: ${cause.message}`, { cause }));
    }
  }

  #dispatch(frame: Frame): void {
    if (frame.kind === KIND.hello) return this.#onHello(frame.payload);
    if (frame.stream >= this.#nextStream) throw new WireError("stream", `stream ${frame.stream} was never opened`);
    const stream = this.#streams.get(frame.stream);
    if (!stream) return; // Over already; the frame crossed our own on the way.
    stream.receive(frame);
    if (frame.kind === KIND.result || frame.kind === KIND.error) this.#streams.delete(frame.stream);
  }

  #close(reason: CommunicationError): void {
    if (this.#closed.signal.aborted) return;
    this.#outgoing = [];
    this.#closed.abort(reason);
    for (const stream of this.#streams.values()) stream.fail(reason);
    this.#streams.clear();
  }
}

/** One request and its answers. */
export class MuxStream {
  readonly id: number;
  /** How the guest ended the stream; rejects with a `CommunicationError` when the channel is lost first. */
  readonly answer: Promise<Answer>;
  readonly #mux: Mux;
  readonly #onData: DataHandler;
  readonly #settle: { resolve(answer: Answer): void; reject(reason: unknown): void };
  #isOver = false;
  #sendCreditBytes = STREAM_CREDIT_BYTES;
  #receiveCreditBytes = STREAM_CREDIT_BYTES;
  #consumedBytes = 0;
  #heldBytes = 0;
  #isReleased = false;
  #hasEnded = false;
  #frameCount = 0;
  #sending: Promise<void> | undefined;
  #wakeSender: (() => void) | undefined;

  /** Made by `Mux.open` only. */
  constructor(mux: Mux, id: number, onData: DataHandler) {
    this.#mux = mux;
    this.id = id;
    this.#onData = onData;
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    this.answer = promise;
    this.#settle = { resolve, reject };
    promise.catch(() => {}); // Whoever waits sees it; a stream nobody waits for is no uncaught exception.
  }

  /** Sends `bytes` as DATA frames, after those of earlier calls, waiting for credit where needed. Returns early when the stream is over. */
  send(bytes: Uint8Array, flags: number): Promise<void> {
    // The first call starts at once: what it sends leaves in one write with the frame that opened the stream.
    const sending = this.#sending ? this.#sending.then(() => this.#send(bytes, flags)) : this.#send(bytes, flags);
    const turn = sending.finally(() => {
      if (this.#sending === turn) this.#sending = undefined;
    });
    this.#sending = turn;
    return turn;
  }

  async #send(bytes: Uint8Array, flags: number): Promise<void> {
    let rest = bytes;
    while (rest.length > 0 && !this.#isOver) {
      if (this.#sendCreditBytes === 0) {
        await new Promise<void>((resolve) => this.#wakeSender = resolve);
        continue;
      }
      const part = rest.subarray(0, Math.min(rest.length, this.#sendCreditBytes, FRAME_MAX_BYTES));
      this.#sendCreditBytes -= part.length;
      this.#mux.send(this.id, KIND.data, flags, part);
      rest = rest.subarray(part.length);
    }
  }

  /** No more DATA from us. May be called twice. */
  end(): void {
    if (!this.#isOver && !this.#hasEnded) this.#mux.send(this.id, KIND.end, 0);
    this.#hasEnded = true;
  }

  /** Bytes that came and that our own consumer has not taken yet. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** Frames that came so far: does not change while the guest is silent. */
  get frameCount(): number {
    return this.#frameCount;
  }

  /** We said all we have to say, or cannot go on without more credit. */
  get isAwaitingGuest(): boolean {
    return this.#hasEnded || this.#wakeSender !== undefined;
  }

  /** Nobody consumes any more: what came and what comes counts as taken. */
  release(): void {
    this.#isReleased = true;
    const heldBytes = this.#heldBytes;
    this.#heldBytes = 0;
    this.#grant(heldBytes);
  }

  /** Asks the guest to interrupt what the stream does, and to kill it `graceMs` later. The answer still comes. */
  cancel(graceMs: number): void {
    if (!this.#isOver) this.#mux.send(this.id, KIND.cancel, 0, text.encode(JSON.stringify({ graceMs })));
  }

  /** For the mux: one frame of this stream. Throws `WireError` when the guest breaks the rules. */
  receive(frame: Frame): void {
    this.#frameCount += 1;
    switch (frame.kind) {
      case KIND.data:
        return this.#receiveData(frame);
      case KIND.credit:
        this.#sendCreditBytes += decodeCredit(frame.payload);
        if (this.#sendCreditBytes > CREDIT_MAX_BYTES) throw new WireError("credit", `credit is at most ${CREDIT_MAX_BYTES} bytes`);
        return this.#wake();
      case KIND.end:
        return;
      case KIND.result:
      case KIND.error:
        this.#isOver = true;
        this.#wake();
        // A copy: the payload is a view into a chunk that may be large.
        return this.#settle.resolve({ kind: frame.kind === KIND.result ? "result" : "error", payload: frame.payload.slice() });
      default:
        throw new WireError("unknown_kind", `frames of kind ${frame.kind} never come from the guest`);
    }
  }

  /** For the mux: the channel is lost. */
  fail(reason: unknown): void {
    this.#isOver = true;
    this.#wake();
    this.#settle.reject(reason);
  }

  #receiveData(frame: Frame): void {
    this.#receiveCreditBytes -= frame.payload.length;
    if (this.#receiveCreditBytes < 0) {
      throw new WireError("credit", `stream ${this.id} got ${-this.#receiveCreditBytes} bytes beyond its credit`);
    }
    const byteCount = frame.payload.length;
    const consumed = this.#onData(frame.flags, frame.payload);
    if (consumed === undefined) return this.#grant(byteCount);
    if (this.#isReleased) this.#grant(byteCount);
    else this.#heldBytes += byteCount;
    const onConsumed = () => {
      if (this.#isReleased) return;
      this.#heldBytes -= byteCount;
      this.#grant(byteCount);
    };
    consumed.then(onConsumed, onConsumed);
  }

  #grant(byteCount: number): void {
    this.#consumedBytes += byteCount;
    if (this.#consumedBytes < GRANT_AT_BYTES || this.#isOver) return;
    this.#mux.send(this.id, KIND.credit, 0, encodeCredit(this.#consumedBytes));
    this.#receiveCreditBytes += this.#consumedBytes;
    this.#consumedBytes = 0;
  }

  #wake(): void {
    this.#wakeSender?.();
    this.#wakeSender = undefined;
  }
}
