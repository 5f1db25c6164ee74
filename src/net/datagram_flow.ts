/** Datagram flows: UDP of the guest to one address, and its questions to the resolver. */
import dgram from "node:dgram";
import type { EventGate } from "./events.ts";
import type { NetworkReason, Verdict } from "./policy.ts";
import type { FlowOwner, PortStream } from "./port.ts";
import type { Resolver } from "./resolver.ts";
import type { FlowTarget } from "./tcp_flow.ts";

/** Nothing either way for so long ends a flow. */
export const UDP_IDLE_MS = 120_000;
/** Datagrams that the system has not taken yet. */
const PENDING_MAX = 64;
/** Questions of one flow under way. */
const QUESTIONS_MAX = 16;

/** What a UDP flow works with. */
export interface UdpFlowParts {
  readonly stream: PortStream;
  readonly target: FlowTarget;
  readonly decide: () => Verdict;
  readonly events: EventGate;
  readonly now: () => number;
  readonly onOver: () => void;
}

/** Datagrams between the guest and one address; whatever cannot go on at once is dropped. */
export class UdpFlow implements FlowOwner {
  readonly #parts: UdpFlowParts;
  readonly #startedAt: number;
  #socket: dgram.Socket | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Datagrams that came before the socket was there. */
  #early: Uint8Array[] = [];
  #isConnected = false;
  #pending = 0;
  #sentBytes = 0;
  #receivedBytes = 0;
  #isOver = false;

  /** Nothing happens before `start`. */
  constructor(parts: UdpFlowParts) {
    this.#parts = parts;
    this.#startedAt = parts.now();
  }

  /** Begins; `isLimited` refuses it for the number of others. */
  start(isLimited: boolean): void {
    const { target: { dial }, decide, stream } = this.#parts, verdict = decide();
    if (!verdict.isAllowed) return this.#end("refused", verdict.reason, "refused");
    if (isLimited || !dial.address) return this.#end("refused", "limit", "limit");
    const socket = dgram.createSocket(dial.address.family === 4 ? "udp4" : "udp6");
    this.#socket = socket;
    // The system says that the port is closed: a program may go on all the same.
    socket.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "ECONNREFUSED") this.#end("failed", "unreachable", "unreachable");
    });
    socket.on("message", (bytes) => {
      this.#receivedBytes += bytes.length;
      this.#touch();
      stream.writeDatagram(bytes);
    });
    // Connected: nobody else's datagrams come in.
    socket.connect(dial.port, dial.address.text, () => this.#onConnected());
    this.#touch();
  }

  /** The policy has changed. */
  review(): void {
    const verdict = this.#parts.decide();
    if (!verdict.isAllowed) this.#end("refused", verdict.reason, "refused");
  }

  onData(bytes: Uint8Array): void {
    if (this.#isOver) return;
    if (this.#isConnected) return this.#send(bytes);
    if (this.#early.length < PENDING_MAX) this.#early.push(bytes);
    else this.#parts.stream.consumed(bytes.length);
  }

  onEnd(): void {
    this.#parts.stream.finish();
    this.#end("allowed", undefined, undefined);
  }

  onGone(): void {
    this.#end("allowed", undefined, undefined);
  }

  #onConnected(): void {
    if (this.#isOver) return;
    this.#isConnected = true;
    this.#parts.stream.accept(false);
    const early = this.#early;
    this.#early = [];
    for (const bytes of early) this.#send(bytes);
  }

  #send(bytes: Uint8Array): void {
    const { stream } = this.#parts,
      onSent = () => {
        this.#pending -= 1;
        stream.consumed(bytes.length);
      };
    if (!this.#socket || this.#pending >= PENDING_MAX) return stream.consumed(bytes.length);
    this.#pending += 1;
    this.#sentBytes += bytes.length;
    this.#touch();
    this.#socket.send(bytes, onSent);
  }

  #touch(): void {
    clearTimeout(this.#timer);
    if (this.#isOver) return;
    this.#timer = setTimeout(() => {
      this.#parts.stream.finish();
      this.#end("allowed", undefined, undefined);
    }, UDP_IDLE_MS);
    this.#timer.unref?.();
  }

  #end(verdict: "allowed" | "refused" | "failed", reason: NetworkReason | undefined, code: string | undefined): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearTimeout(this.#timer);
    const { stream, target, events, now, onOver } = this.#parts;
    if (code !== undefined) stream.reset(code);
    this.#socket?.close();
    events.emit({
      kind: "udp",
      verdict,
      reason: reason ?? null,
      name: target.name ?? null,
      address: target.address.text,
      port: target.port,
      sentBytes: this.#sentBytes,
      receivedBytes: this.#receivedBytes,
      durationMs: Math.ceil(now() - this.#startedAt),
    });
    onOver();
  }
}

/** Questions to the resolver and their answers, a message each. */
export class DnsFlow implements FlowOwner {
  readonly #stream: PortStream;
  readonly #resolver: Resolver;
  readonly #transport: "udp" | "tcp";
  #questions = 0;

  /** Answers from now on. */
  constructor(stream: PortStream, resolver: Resolver, transport: "udp" | "tcp") {
    this.#stream = stream;
    this.#resolver = resolver;
    this.#transport = transport;
    // The guest's side does not wait for it, and is told all the same.
    queueMicrotask(() => stream.accept(false));
  }

  onData(bytes: Uint8Array): void {
    this.#stream.consumed(bytes.length);
    if (this.#questions >= QUESTIONS_MAX) return;
    this.#questions += 1;
    void this.#resolver.answer(bytes, this.#transport).then((answer) => {
      this.#questions -= 1;
      if (answer) this.#stream.writeDatagram(answer);
    });
  }

  onEnd(): void {
    // Over TCP a client may have ended its half and still wait: but resolvers do not, and the guest's side ends the flow with it.
    this.#stream.finish();
  }

  onGone(): void {}
}
