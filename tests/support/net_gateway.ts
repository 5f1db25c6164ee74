/** Net gateway: the wire boundary of the guest's network tests, the host's end of the net port with no policy but the test's. */
import assert from "node:assert/strict";
import type { Duplex } from "node:stream";
import { concat, decodeCredit, encodeCredit, encodeFrame, type Frame, FrameDecoder, KIND, type Kind } from "../../src/channel/wire.ts";

const CREDIT_BYTES = 65_536, WINDOW_BYTES = 524_288;
const text = new TextEncoder(), fromBytes = new TextDecoder();

/** What the guest opened, or what we did. */
export type Open = {
  readonly flow?: string;
  readonly expose?: string;
  readonly address?: string;
  readonly port?: number;
  readonly [key: string]: unknown;
};

/** One flow, from our side. */
export class Flow {
  readonly id: number;
  readonly open: Open;
  readonly #gateway: Gateway;
  readonly #chunks: Uint8Array[] = [];
  /** Woken when anything happens to this flow: with thousands of them nobody can be asked about each. */
  readonly #waiting = new Set<() => void>();
  /** Bytes of the guest in all. */
  receivedBytes = 0;
  hasEnded = false;
  /** The code of the guest's ERROR. */
  failure: string | undefined;
  isAccepted = false;
  isOpen = true;
  /** Chunks are kept for `read`; a test of speed only counts. */
  isKept = true;
  sendCreditBytes = CREDIT_BYTES;
  #grantedBytes = CREDIT_BYTES;
  /** Without it the guest gets no more credit than it begins with. */
  isGranting = true;

  constructor(gateway: Gateway, id: number, open: Open) {
    this.#gateway = gateway;
    this.id = id;
    this.open = open;
  }

  accept(): void {
    this.isAccepted = true;
    this.#gateway.send(this.id, KIND.accept);
    this.grant();
  }

  refuse(code: string): void {
    this.isOpen = false;
    this.#gateway.send(this.id, KIND.error, text.encode(JSON.stringify({ code })));
  }

  end(): void {
    this.#gateway.send(this.id, KIND.end);
  }

  /** Lets the guest send as much as the window has room for. */
  grant(): void {
    const freeBytes = WINDOW_BYTES - (this.#grantedBytes - this.receivedBytes);
    if (!this.isGranting || freeBytes < WINDOW_BYTES / 4) return;
    this.#grantedBytes += freeBytes;
    this.#gateway.send(this.id, KIND.credit, encodeCredit(freeBytes));
  }

  /** Sends all of it, as credit comes. */
  async send(bytes: Uint8Array): Promise<void> {
    let rest = bytes;
    while (rest.length > 0) {
      await this.#until(() => this.sendCreditBytes > 0 || !this.isOpen || this.failure !== undefined);
      if (!this.isOpen || this.failure !== undefined) return;
      const part = rest.subarray(0, Math.min(this.sendCreditBytes, 65_536));
      this.sendCreditBytes -= part.length;
      await this.#gateway.send(this.id, KIND.data, part);
      rest = rest.subarray(part.length);
    }
  }

  /** A datagram, or a message. */
  sendWhole(bytes: Uint8Array): void {
    this.sendCreditBytes -= bytes.length;
    assert.ok(this.sendCreditBytes >= 0, "the guest keeps granting");
    this.#gateway.send(this.id, KIND.data, bytes);
  }

  /** The next chunk of the guest, undefined at its end. */
  async read(): Promise<Uint8Array | undefined> {
    await this.#until(() => this.#chunks.length > 0 || this.hasEnded || this.failure !== undefined);
    return this.#chunks.shift();
  }

  /** Everything until the guest's end. */
  async readAll(): Promise<string> {
    const parts: Uint8Array[] = [];
    for (let part = await this.read(); part; part = await this.read()) parts.push(part);
    return fromBytes.decode(concat(...parts));
  }

  /** Something happened. */
  wake(): void {
    for (const resolve of this.#waiting) resolve();
    this.#waiting.clear();
  }

  async #until(isDone: () => boolean): Promise<void> {
    while (!isDone()) {
      this.#gateway.check();
      await new Promise<void>((resolve) => this.#waiting.add(resolve));
    }
  }

  receive(bytes: Uint8Array): void {
    this.receivedBytes += bytes.length;
    assert.ok(this.receivedBytes <= this.#grantedBytes, "the guest keeps to its credit");
    if (this.isKept) this.#chunks.push(bytes.slice());
    this.grant();
  }
}

/** Speaks the host's side on a VM's net port. `onFlow` decides about each flow of the guest. */
export class Gateway {
  readonly flows = new Map<number, Flow>();
  /** Each HELLO of the guest. */
  hellos = 0;
  readonly #pipe: Duplex;
  readonly #onFlow: (flow: Flow) => void;
  readonly #decoder = new FrameDecoder();
  readonly #waiting = new Set<() => void>();
  #lastGuestId = 0;
  #nextId = 1;
  /** What broke the protocol. */
  violation: unknown;

  constructor(pipe: Duplex, onFlow: (flow: Flow) => void) {
    this.#pipe = pipe;
    this.#onFlow = onFlow;
    pipe.on("data", (chunk: Uint8Array) => {
      try {
        for (const frame of this.#decoder.push(chunk)) this.#take(frame);
      } catch (error) {
        this.violation ??= error;
        this.#wakeAll();
      }
      this.#wake();
    });
    pipe.on("close", () => this.#wakeAll());
  }

  /** Opens a flow to a port of the guest's loopback. */
  expose(kind: "tcp" | "udp", port: number): Flow {
    const flow = new Flow(this, this.#nextId, { expose: kind, port });
    this.#nextId += 2;
    this.flows.set(flow.id, flow);
    this.send(flow.id, KIND.open, text.encode(JSON.stringify(flow.open)));
    return flow;
  }

  /** Resolves when `isDone` is so; rejects when the guest broke the protocol or is gone. */
  async until(isDone: () => boolean): Promise<void> {
    while (!isDone()) {
      this.check();
      await new Promise<void>((resolve) => this.#waiting.add(resolve));
    }
  }

  /** Throws when there is nothing to wait for any more. */
  check(): void {
    if (this.violation) throw this.violation;
    if (this.#pipe.destroyed) throw new Error("the net port was closed");
  }

  /** Resolves when the pipe takes more. */
  send(stream: number, kind: Kind, payload: Uint8Array = new Uint8Array(0)): Promise<void> | undefined {
    if (this.#pipe.write(encodeFrame({ stream, kind, payload }))) return undefined;
    return new Promise((resolve) => this.#pipe.once("drain", resolve));
  }

  /** Bytes that are no frame. */
  raw(bytes: Uint8Array): void {
    this.#pipe.write(bytes);
  }

  #take(frame: Frame): void {
    if (frame.kind === KIND.hello) {
      this.hellos += 1;
      this.#lastGuestId = 0;
      this.#nextId = 1;
      const former = [...this.flows.values()];
      this.flows.clear();
      for (const flow of former) {
        flow.failure ??= "gone";
        flow.wake();
      }
      void this.send(0, KIND.hello, frame.payload);
      return;
    }
    if (frame.kind === KIND.open) {
      assert.ok(frame.stream % 2 === 0 && frame.stream > this.#lastGuestId, "even, and never used before");
      this.#lastGuestId = frame.stream;
      const flow = new Flow(this, frame.stream, JSON.parse(fromBytes.decode(frame.payload)));
      this.flows.set(flow.id, flow);
      return this.#onFlow(flow);
    }
    const flow = this.flows.get(frame.stream);
    if (!flow) {
      assert.ok(frame.stream <= (frame.stream % 2 === 0 ? this.#lastGuestId : this.#nextId), "of a flow that was");
      return;
    }
    this.#apply(flow, frame);
    flow.wake();
  }

  #apply(flow: Flow, frame: Frame): void {
    switch (frame.kind) {
      case KIND.accept:
        flow.isAccepted = true;
        return flow.grant();
      case KIND.data:
        return flow.receive(frame.payload);
      case KIND.credit:
        flow.sendCreditBytes += decodeCredit(frame.payload);
        return;
      case KIND.end:
        flow.hasEnded = true;
        return;
      case KIND.error:
        flow.isOpen = false;
        flow.failure = JSON.parse(fromBytes.decode(frame.payload)).code;
        this.flows.delete(flow.id);
        return;
      default:
        assert.fail(`frames of kind ${frame.kind} never come from the guest`);
    }
  }

  #wakeAll(): void {
    for (const flow of this.flows.values()) flow.wake();
    this.#wake();
  }

  #wake(): void {
    for (const resolve of this.#waiting) resolve();
    this.#waiting.clear();
  }
}
