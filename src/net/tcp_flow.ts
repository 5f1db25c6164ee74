/** TCP flow: a connection that the guest wants: verdict, dial, then a relay that looks at what it shows. */
import type { Address } from "./address.ts";
import { dial, DialError, type DialTarget, type Proxy } from "./dial.ts";
import type { EventGate } from "./events.ts";
import { HttpInspector } from "./http_head.ts";
import type { Inspector } from "./inspector.ts";
import { isNameIn, type NetworkReason, type Verdict } from "./policy.ts";
import type { FlowOwner, PortStream } from "./port.ts";
import { Relay, type RelayEnd } from "./relay.ts";
import { TlsInspector } from "./sni.ts";

/** What a flow is told about where it leads. */
export interface FlowTarget {
  /** As the guest asked. */
  readonly address: Address;
  readonly port: number;
  /** The likeliest name, before the connection shows one. */
  readonly name: string | undefined;
  /** Where the host connects to. */
  readonly dial: DialTarget;
}

/** What a flow works with. */
export interface TcpFlowParts {
  readonly stream: PortStream;
  readonly target: FlowTarget;
  /** The policy's word on it, now; asked again when the policy changes. */
  readonly decide: () => Verdict;
  readonly proxy: Proxy | undefined;
  readonly events: EventGate;
  /** There are so few flows that each may have much under way. */
  readonly isWide: () => boolean;
  readonly now: () => number;
  /** Called once, when nothing of it is left. */
  readonly onOver: () => void;
}

/** One connection of the guest's. */
export class TcpFlow implements FlowOwner {
  readonly #parts: TcpFlowParts;
  readonly #startedAt: number;
  readonly #over = new AbortController();
  #relay: Relay | undefined;
  #inspector: Inspector | undefined;
  #isDialling = false;

  /** Decides, and dials where it may. */
  constructor(parts: TcpFlowParts) {
    this.#parts = parts;
    this.#startedAt = parts.now();
  }

  /** It has asked for a connection that is not there yet. */
  get isDialling(): boolean {
    return this.#isDialling;
  }

  /** Begins; `isLimited` refuses it for the number of others. */
  start(isLimited: boolean): void {
    const verdict = this.#parts.decide();
    if (!verdict.isAllowed) return this.#refuse(verdict.reason);
    if (isLimited) return this.#refuse("limit", "limit");
    this.#isDialling = true;
    void this.#dial(verdict).finally(() => this.#isDialling = false);
  }

  /** The policy has changed. */
  review(): void {
    if (this.#over.signal.aborted) return;
    const verdict = this.#parts.decide();
    if (verdict.isAllowed && verdict.names && this.#inspector?.name !== undefined && !verdict.names.includes(this.#inspector.name)) {
      return this.#cut("name");
    }
    if (!verdict.isAllowed) this.#cut(verdict.reason);
  }

  onData(bytes: Uint8Array): void {
    this.#relay?.onData(bytes);
  }

  onEnd(): void {
    if (this.#relay) this.#relay.onEnd();
    else this.#finish("failed", "reset"); // The guest closes what it was not given yet.
  }

  onDrain(): void {
    this.#relay?.onDrain();
  }

  onGone(code: string): void {
    if (this.#relay) this.#relay.onGone(code);
    else this.#finish("failed", "reset");
  }

  async #dial(verdict: Extract<Verdict, { isAllowed: true }>): Promise<void> {
    const { target, proxy, stream, isWide } = this.#parts;
    try {
      const { socket, said } = await dial(target.dial, { proxy, signal: this.#over.signal });
      if (stream.isOver) return void socket.destroy();
      stream.accept(isWide());
      this.#inspector = this.#inspectorOf(verdict);
      this.#relay = new Relay({ socket, stream, said, inspector: this.#inspector, onEnd: (end) => this.#onRelayEnd(end) });
    } catch (error) {
      if (this.#over.signal.aborted) return;
      const reason = error instanceof DialError ? error.reason : "unreachable";
      stream.reset(codeOf(reason));
      this.#finish("failed", reason);
    }
  }

  #inspectorOf({ inspection, names }: Extract<Verdict, { isAllowed: true }>): Inspector | undefined {
    if (inspection === "none") return undefined;
    // Asked each time: the list may change between two requests.
    const isAllowed = (name: string) => {
      const verdict = this.#parts.decide();
      return verdict.isAllowed && isNameIn(verdict.names)(name);
    };
    const inspector = inspection === "tls" ? new TlsInspector(isAllowed) : new HttpInspector(isAllowed);
    return names === undefined ? new Observer(inspector) : inspector;
  }

  #refuse(reason: NetworkReason, code = codeOf(reason)): void {
    this.#parts.stream.reset(code);
    this.#finish("refused", reason);
  }

  #cut(reason: NetworkReason): void {
    if (this.#relay) this.#relay.cut(reason);
    else this.#refuse(reason);
  }

  #onRelayEnd({ reason, verdict }: RelayEnd): void {
    this.#finish(verdict, reason);
  }

  #finish(verdict: "allowed" | "refused" | "failed", reason: NetworkReason | undefined): void {
    if (this.#over.signal.aborted) return;
    this.#over.abort(new DialError("reset"));
    const { target, events, now, onOver } = this.#parts;
    events.emit({
      kind: "tcp",
      verdict,
      reason: reason ?? null,
      name: this.#inspector?.name ?? target.name ?? null,
      address: target.address.text,
      port: target.port,
      sentBytes: this.#relay?.sentBytes ?? 0,
      receivedBytes: this.#relay?.receivedBytes ?? 0,
      durationMs: Math.ceil(now() - this.#startedAt),
    });
    onOver();
  }
}

/** Reads the first name for the log, and lets everything go on. */
class Observer implements Inspector {
  #inspector: Inspector | undefined;
  #name: string | undefined;

  constructor(inspector: Inspector) {
    this.#inspector = inspector;
  }

  get name(): string | undefined {
    return this.#name;
  }

  push(bytes: Uint8Array) {
    const step = this.#inspector?.push(bytes);
    this.#name ??= this.#inspector?.name;
    if (step?.refusal !== undefined || this.#name !== undefined) this.#inspector = undefined;
    return { forward: [bytes] };
  }

  end() {
    return { forward: [] };
  }
}

/** What the guest is told: no more than it would learn from a network. */
function codeOf(reason: NetworkReason): string {
  if (reason === "timeout" || reason === "unreachable" || reason === "limit") return reason;
  // The guest's kernel believes no packet that comes from such an address, so a refusal in its name would not be heard.
  if (reason === "reserved" || reason === "unspecified" || reason === "multicast") return "unreachable";
  return reason === "proxy" || reason === "not-found" ? "unreachable" : "refused";
}
