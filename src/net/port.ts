/** Port: the host's end of a guest's net port: flows over one byte pipe, each direction with its own credit (ARCHITECTURE, "Network"). */
import type { Duplex } from "node:stream";
import { messageOf } from "../base/errors.ts";
import { FRAME_MAX_BYTES } from "../base/limits.ts";
import {
  concat,
  decodeCredit,
  encodeCredit,
  encodeFrame,
  type Frame,
  FrameDecoder,
  KIND,
  type Kind,
  owned,
  WireError,
} from "../channel/wire.ts";

/** What each direction of a flow may have on the way at first: with thousands of flows that is all the memory they take. */
export const FIRST_CREDIT_BYTES = 65_536;
/** What a flow that moves bytes may have. */
export const WIDE_CREDIT_BYTES = 262_144;
/** What a guest may grant. */
const CREDIT_MAX_BYTES = 1_048_576;
/** Flows that a guest may have open. */
export const FLOWS_MAX = 4_096;
/** With more than that unsent the guest is not read, and nobody else for it. */
const BACKLOG_MAX_BYTES = 1_048_576;
/** The code of flows that end with their VM. */
export const CLOSED = "closed";
const HELLO_MAX_BYTES = 1_024;
const encoder = new TextEncoder(), decoder = new TextDecoder();

/** What is told of a flow. Nothing is called after `onGone`. */
export interface FlowOwner {
  /** The guest is connected: for flows that the host opened. */
  onAccept?(): void;
  /** Bytes, or one datagram, in a buffer of their own. To be acknowledged by `stream.consumed`. */
  onData(bytes: Uint8Array): void;
  /** The guest says no more. */
  onEnd(): void;
  /** All that `write` took has left. */
  onDrain?(): void;
  /** The guest ended it: `code` is what the guest said; or the port has gone: `CLOSED`. */
  onGone(code: string): void;
}

/** Who hears of the port. */
export interface PortOwner {
  /** The guest opens a flow; answered by `accept` or `refuse`. Throws `WireError` for what no guest of ours would say. */
  onOpen(stream: PortStream, message: Readonly<Record<string, unknown>>): FlowOwner;
  /** The guest's side is there, for the first time or anew. */
  onReady(): void;
  /** Nothing will come any more. `violation` is set when the guest broke the rules. */
  onClosed(violation: WireError | undefined): void;
}

/** One flow. */
export class PortStream {
  readonly id: number;
  readonly #port: NetPort;
  readonly #queue: Uint8Array[] = [];
  #sendCreditBytes = FIRST_CREDIT_BYTES;
  #windowBytes = FIRST_CREDIT_BYTES;
  #receiveCreditBytes = FIRST_CREDIT_BYTES;
  #consumedBytes = 0;
  #owner: FlowOwner | undefined;
  #isOver = false;
  #hasEnded = false;
  #isEndSent = false;
  #isEndReceived = false;
  #isAccepted: boolean;

  /** Made by `NetPort` only. */
  constructor(port: NetPort, id: number) {
    this.#port = port;
    this.id = id;
    this.#isAccepted = id % 2 === 1; // Of the guest's flows only: ours are accepted by the guest.
  }

  /** Nothing more can be sent, and nothing more comes. */
  get isOver(): boolean {
    return this.#isOver;
  }

  /** Tells the guest that it is connected, and gives it more credit than the first where there is room. */
  accept(isWide: boolean): void {
    if (this.#isOver || this.#isAccepted) return;
    this.#isAccepted = true;
    this.#port.send(this.id, KIND.accept);
    if (isWide) this.widen();
  }

  /** Lets more be on the way. */
  widen(): void {
    if (this.#isOver || this.#windowBytes === WIDE_CREDIT_BYTES) return;
    this.#windowBytes = WIDE_CREDIT_BYTES;
    this.#grant(WIDE_CREDIT_BYTES - FIRST_CREDIT_BYTES);
  }

  /** Sends bytes as credit allows; false when some must wait: then the source should, until `onDrain`. */
  write(bytes: Uint8Array): boolean {
    if (this.#isOver || this.#hasEnded) return true;
    this.#queue.push(bytes);
    return this.pump();
  }

  /** Sends one datagram whole, or drops it where it cannot leave at once. */
  writeDatagram(bytes: Uint8Array): boolean {
    if (this.#isOver || bytes.length > Math.min(FRAME_MAX_BYTES, this.#sendCreditBytes) || this.#port.isCongested) return false;
    this.#sendCreditBytes -= bytes.length;
    this.#port.send(this.id, KIND.data, bytes);
    return true;
  }

  /** No more from us, after what waits. */
  end(): void {
    if (this.#isOver || this.#hasEnded) return;
    this.#hasEnded = true;
    this.pump();
  }

  /** Ends the flow both ways at once; its owner is told nothing. */
  reset(code: string): void {
    if (this.#isOver) return;
    this.#port.send(this.id, KIND.error, encoder.encode(JSON.stringify({ code })));
    this.#finish();
  }

  /** Ends a flow of datagrams, which has one END for both directions. */
  finish(): void {
    if (this.#isOver) return;
    this.#port.send(this.id, KIND.end);
    this.#finish();
  }

  /** So many bytes of the guest have gone on. */
  consumed(byteCount: number): void {
    this.#consumedBytes += byteCount;
    if (this.#isOver || this.#isEndReceived || this.#consumedBytes < this.#windowBytes / 2) return;
    const grantedBytes = this.#consumedBytes;
    this.#consumedBytes = 0;
    this.#grant(grantedBytes);
  }

  /** For the port. */
  own(owner: FlowOwner): void {
    this.#owner = owner;
  }

  /** For the port: sends what waits; true when nothing waits any more. */
  pump(): boolean {
    for (let first = this.#queue[0]; first !== undefined && !this.#isOver; first = this.#queue[0]) {
      if (this.#sendCreditBytes === 0) return false;
      if (this.#port.isCongested) {
        this.#port.waitForRoom(this);
        return false;
      }
      const part = first.subarray(0, Math.min(first.length, this.#sendCreditBytes, FRAME_MAX_BYTES));
      if (part.length === first.length) this.#queue.shift();
      else this.#queue[0] = first.subarray(part.length);
      if (part.length === 0) continue;
      this.#sendCreditBytes -= part.length;
      this.#port.send(this.id, KIND.data, part);
    }
    if (this.#hasEnded && !this.#isEndSent && !this.#isOver) {
      this.#isEndSent = true;
      this.#port.send(this.id, KIND.end);
      if (this.#isEndReceived) this.#finish();
    }
    return true;
  }

  /** For the port: nothing waits any more. */
  drained(): void {
    this.#owner?.onDrain?.();
  }

  /** For the port: one frame of this flow. Throws `WireError` when the guest breaks the rules. */
  receive(frame: Frame): void {
    switch (frame.kind) {
      case KIND.data:
        return this.#receiveData(frame);
      case KIND.credit:
        this.#sendCreditBytes += decodeCredit(frame.payload);
        if (this.#sendCreditBytes > CREDIT_MAX_BYTES) throw new WireError("credit", `credit is at most ${CREDIT_MAX_BYTES} bytes`);
        if (this.#queue.length > 0 && this.pump()) this.drained();
        return;
      case KIND.end:
        if (this.#isEndReceived) throw new WireError("content", `flow ${this.id} ended twice`);
        this.#isEndReceived = true;
        this.#owner?.onEnd();
        if (this.#isEndSent) this.#finish();
        return;
      case KIND.accept:
        if (this.id % 2 === 0) throw new WireError("content", `flow ${this.id} is not the guest's to accept`);
        return this.#owner?.onAccept?.();
      case KIND.error:
        return this.fail(codeOf(frame.payload));
      default:
        throw new WireError("unknown_kind", `frames of kind ${frame.kind} never come from the guest`);
    }
  }

  /** For the port: the flow is over without a word of ours. */
  fail(code: string): void {
    if (this.#isOver) return;
    const owner = this.#owner;
    this.#finish();
    owner?.onGone(code);
  }

  #receiveData({ payload, flags }: Frame): void {
    if (flags !== 0) throw new WireError("flags", `data of a flow has no flags, got ${flags}`);
    if (this.#isEndReceived) throw new WireError("content", `flow ${this.id} got data after its end`);
    this.#receiveCreditBytes -= payload.length;
    if (this.#receiveCreditBytes < 0) {
      throw new WireError("credit", `flow ${this.id} got ${-this.#receiveCreditBytes} bytes beyond its credit`);
    }
    this.#owner?.onData(owned(payload));
  }

  #grant(byteCount: number): void {
    this.#receiveCreditBytes += byteCount;
    this.#port.send(this.id, KIND.credit, encodeCredit(byteCount));
  }

  #finish(): void {
    this.#isOver = true;
    this.#owner = undefined;
    this.#queue.length = 0;
    this.#port.forget(this);
  }
}

/** The port. Owns the pipe: it is destroyed when the port is closed. */
export class NetPort {
  readonly #pipe: Duplex;
  readonly #owner: PortOwner;
  readonly #streams = new Map<number, PortStream>();
  readonly #waiting = new Set<PortStream>();
  #decoder = new FrameDecoder();
  #outgoing: Uint8Array[] = [];
  #unsentBytes = 0;
  #lastGuestId = 0;
  #nextHostId = 1;
  #guestFlows = 0;
  #isReady = false;
  #isClosed = false;

  /** Reads `pipe` from now on. */
  constructor(pipe: Duplex, owner: PortOwner) {
    this.#pipe = pipe;
    this.#owner = owner;
    pipe.on("data", (chunk: Uint8Array) => this.#receive(chunk));
    pipe.on("drain", () => this.#onDrain());
    for (const event of ["end", "close", "error"]) pipe.on(event, () => this.#close(undefined));
  }

  /** The guest's side speaks. */
  get isReady(): boolean {
    return this.#isReady && !this.#isClosed;
  }

  /** Flows that are open, whoever opened them. */
  get flowCount(): number {
    return this.#streams.size;
  }

  /** What waits to be read by the guest is so much that nothing should be added. */
  get isCongested(): boolean {
    return this.#unsentBytes + this.#pipe.writableLength > BACKLOG_MAX_BYTES;
  }

  /** Opens a flow to the guest; undefined while its side is not there. */
  open(message: unknown, owner: FlowOwner): PortStream | undefined {
    if (!this.isReady) return undefined;
    const stream = new PortStream(this, this.#nextHostId);
    this.#nextHostId += 2;
    stream.own(owner);
    this.#streams.set(stream.id, stream);
    this.send(stream.id, KIND.open, encoder.encode(JSON.stringify(message)));
    return stream;
  }

  /** Ends every flow and the pipe. */
  close(): void {
    this.#close(undefined);
  }

  /** For streams: queues one frame. Everything queued in one turn of the event loop leaves together. */
  send(stream: number, kind: Kind, payload?: Uint8Array): void {
    if (this.#isClosed) return;
    if (this.#outgoing.length === 0) queueMicrotask(() => this.#flush());
    const frame = encodeFrame({ stream, kind, ...(payload ? { payload } : {}) });
    this.#outgoing.push(frame);
    this.#unsentBytes += frame.length;
    if (this.#unsentBytes > FRAME_MAX_BYTES) this.#flush();
  }

  /** For streams: `stream` has something to send when there is room again. */
  waitForRoom(stream: PortStream): void {
    this.#waiting.add(stream);
  }

  /** For streams: it is over. */
  forget(stream: PortStream): void {
    this.#waiting.delete(stream);
    if (this.#streams.delete(stream.id) && stream.id % 2 === 0) this.#guestFlows -= 1;
  }

  #flush(): void {
    const frames = this.#outgoing;
    if (frames.length === 0 || this.#isClosed) return;
    this.#outgoing = [];
    this.#unsentBytes = 0;
    this.#pipe.write(frames.length === 1 && frames[0] ? frames[0] : concat(...frames));
    // A guest that makes us answer and does not read the answers is not heard until it does.
    if (this.isCongested) this.#pipe.pause();
  }

  #onDrain(): void {
    if (this.#isClosed) return;
    this.#pipe.resume();
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const stream of waiting) if (stream.pump()) stream.drained();
  }

  #receive(chunk: Uint8Array): void {
    if (this.#isClosed) return;
    try {
      for (const frame of this.#decoder.push(chunk)) {
        this.#dispatch(frame);
        if (this.#isClosed) return;
      }
    } catch (cause) {
      this.#close(cause instanceof WireError ? cause : new WireError("content", messageOf(cause)));
    }
  }

  #dispatch(frame: Frame): void {
    if (frame.kind === KIND.hello) return this.#onHello(frame.payload);
    if (!this.#isReady) throw new WireError("content", "the guest must say HELLO first");
    if (frame.kind === KIND.open) return this.#onOpen(frame);
    const isKnown = frame.stream % 2 === 0 ? frame.stream <= this.#lastGuestId : frame.stream < this.#nextHostId;
    if (!isKnown) throw new WireError("stream", `flow ${frame.stream} was never opened`);
    this.#streams.get(frame.stream)?.receive(frame); // Without one the frame crossed our own on the way.
  }

  #onHello(payload: Uint8Array): void {
    const message = payload.length <= HELLO_MAX_BYTES ? parseMessage(payload) : undefined;
    if (message?.["protocol"] !== 1) throw new WireError("content", "HELLO says protocol 1");
    for (const stream of [...this.#streams.values()]) stream.fail("reset");
    this.#lastGuestId = 0;
    this.#nextHostId = 1;
    this.#isReady = true;
    // The same bytes: the guest's side may be a new one and finds the border of the frames by them.
    this.send(0, KIND.hello, payload);
    this.#owner.onReady();
  }

  #onOpen({ stream: id, payload }: Frame): void {
    if (id % 2 !== 0 || id <= this.#lastGuestId) throw new WireError("stream", `the guest opens even ids that grow, got ${id}`);
    this.#lastGuestId = id;
    const message = parseMessage(payload);
    if (!message) throw new WireError("content", "OPEN carries a JSON object");
    const stream = new PortStream(this, id);
    if (this.#guestFlows >= FLOWS_MAX) return this.send(id, KIND.error, encoder.encode(JSON.stringify({ code: "limit" })));
    this.#guestFlows += 1;
    this.#streams.set(id, stream);
    stream.own(this.#owner.onOpen(stream, message));
  }

  #close(violation: WireError | undefined): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#outgoing = [];
    for (const stream of [...this.#streams.values()]) stream.fail(violation ? "reset" : CLOSED);
    this.#pipe.destroy();
    this.#owner.onClosed(violation);
  }
}

function codeOf(payload: Uint8Array): string {
  const code = parseMessage(payload)?.["code"];
  if (typeof code !== "string" || code.length > 64) throw new WireError("content", "ERROR carries a code");
  return code;
}

function parseMessage(payload: Uint8Array): Readonly<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(decoder.decode(payload));
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value as Record<string, unknown> : undefined;
  } catch {
    return undefined; // Not JSON and not an object are the same mistake of the guest.
  }
}
