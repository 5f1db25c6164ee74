/** Relay: copies between a socket of the host and a flow of the guest, with credit and half-close both ways. */
import type { Socket } from "node:net";
import { reasonOf } from "./dial.ts";
import type { Inspector, Step } from "./inspector.ts";
import type { NetworkReason } from "./policy.ts";
import { CLOSED, type FlowOwner, type PortStream } from "./port.ts";

/** How a relay ended. */
export interface RelayEnd {
  /** Undefined: both sides said all they had to say. */
  readonly reason: NetworkReason | undefined;
  /** `refused`: the guest was cut off for what it sent. `allowed`, with the reason `reset`: the guest's program broke it off. */
  readonly verdict: "allowed" | "refused" | "failed";
}

/** What a relay works with. It owns the socket. */
export interface RelayParts {
  readonly socket: Socket;
  readonly stream: PortStream;
  /** What the far side said before the relay was there. */
  readonly said?: Uint8Array | undefined;
  /** Looks at what the guest sends; undefined: it may send anything. */
  readonly inspector?: Inspector | undefined;
  /** Called once. */
  readonly onEnd: (end: RelayEnd) => void;
}

/** One connection, once both sides are there. */
export class Relay implements FlowOwner {
  readonly #parts: RelayParts;
  #sentBytes = 0;
  #receivedBytes = 0;
  #isOver = false;
  #isGuestDone = false;
  #isFarSideDone = false;

  /** Copies from now on. */
  constructor(parts: RelayParts) {
    this.#parts = parts;
    const { socket, said } = parts;
    socket.on("data", (chunk: Uint8Array) => this.#toGuest(chunk));
    socket.on("end", () => this.#onFarEnd());
    socket.on("error", (error: NodeJS.ErrnoException) => {
      const reason = reasonOf(error);
      this.#finish(reason === "reset" && this.#isFarSideDone ? DONE : { reason, verdict: "failed" }, "reset");
    });
    // What the guest is still to be sent waits in its stream, which needs the socket no more.
    socket.on("close", () => this.#isDone ? this.#finish(DONE, undefined) : this.#finish({ reason: "reset", verdict: "failed" }, "reset"));
    if (said) this.#toGuest(said);
    socket.resume();
  }

  /** Bytes of the guest that have gone on. */
  get sentBytes(): number {
    return this.#sentBytes;
  }

  /** Bytes for the guest. */
  get receivedBytes(): number {
    return this.#receivedBytes;
  }

  /** Cuts both sides off. */
  cut(reason: NetworkReason): void {
    this.#finish({ reason, verdict: "refused" }, "refused");
  }

  onData(bytes: Uint8Array): void {
    const { inspector } = this.#parts;
    if (inspector) this.#take(inspector.push(bytes));
    else this.#toFarSide(bytes);
  }

  onEnd(): void {
    const step = this.#parts.inspector?.end();
    if (step) this.#take(step);
    if (this.#isOver) return;
    this.#isGuestDone = true;
    this.#parts.socket.end();
  }

  onDrain(): void {
    this.#parts.socket.resume();
  }

  onGone(code: string): void {
    // A connection that is open when its VM ends was none that failed, nor is one whose last words come to a program that has closed it.
    const isFine = code === CLOSED || (code === "reset" && this.#isGuestDone);
    this.#finish(isFine ? DONE : { reason: "reset", verdict: "allowed" }, undefined);
  }

  get #isDone(): boolean {
    return this.#isGuestDone && this.#isFarSideDone;
  }

  #toGuest(bytes: Uint8Array): void {
    if (this.#isOver) return;
    this.#receivedBytes += bytes.length;
    const { stream, socket, inspector } = this.#parts;
    if (!stream.write(bytes)) socket.pause();
    if (inspector?.pushReply) this.#take(inspector.pushReply(bytes));
  }

  #onFarEnd(): void {
    if (this.#isOver) return;
    this.#isFarSideDone = true;
    this.#parts.stream.end();
  }

  #take({ forward, refusal }: Step): void {
    for (const bytes of forward) this.#toFarSide(bytes);
    if (refusal !== undefined) this.cut(refusal);
  }

  #toFarSide(bytes: Uint8Array): void {
    if (this.#isOver || bytes.length === 0) return;
    this.#sentBytes += bytes.length;
    this.#parts.socket.write(bytes, () => this.#parts.stream.consumed(bytes.length));
  }

  #finish(end: RelayEnd, code: string | undefined): void {
    if (this.#isOver) return;
    this.#isOver = true;
    const { socket, stream, onEnd } = this.#parts;
    if (code !== undefined) stream.reset(code);
    // A reset is a reset on the other side too, not the end of a whole answer.
    if (!socket.destroyed) socket.resetAndDestroy();
    onEnd(end);
  }
}

const DONE: RelayEnd = { reason: undefined, verdict: "allowed" };
