/** Events: what a VM did on the network, one event for each question, connection and flow of datagrams. */
import type { NetworkReason } from "./policy.ts";

/** One thing that a VM did, told when it was refused or is over. */
export interface NetworkEvent {
  /** When it began: ISO 8601, UTC. */
  readonly time: string;
  /** The VM's id. */
  readonly vm: string;
  /** `expose`: a connection from the host to an exposed port. `suppressed`: `count` events that came too fast were left out. */
  readonly kind: "dns" | "tcp" | "udp" | "expose" | "gateway" | "suppressed";
  /** The name asked for; of a connection the one it showed, or that its address was handed out for. */
  readonly name: string | null;
  /** Where to. */
  readonly address: string | null;
  /** Where to; of `expose` the port in the guest. */
  readonly port: number | null;
  /** `failed`: it was allowed and did not come about, or broke off. */
  readonly verdict: "allowed" | "refused" | "failed";
  /** Why, unless it was allowed and went well. */
  readonly reason: NetworkReason | null;
  /** Bytes of the guest that left. */
  readonly sentBytes: number;
  /** Bytes that came for the guest. */
  readonly receivedBytes: number;
  /** Milliseconds from begin to end. */
  readonly durationMs: number;
  /** Of `suppressed`: how many. */
  readonly count?: number;
}

/** Who hears of events. Must not throw. */
export type OnNetworkEvent = (event: NetworkEvent) => void;

const BURST = 2_000;
const PER_SECOND = 200;

/** Tokens that come back with time. */
export class Bucket {
  readonly #burst: number;
  readonly #perSecond: number;
  readonly #now: () => number;
  #tokens: number;
  #at: number;

  /** `now` counts milliseconds. */
  constructor({ burst, perSecond, now }: { readonly burst: number; readonly perSecond: number; readonly now: () => number }) {
    this.#burst = burst;
    this.#perSecond = perSecond;
    this.#now = now;
    this.#tokens = burst;
    this.#at = now();
  }

  /** Takes `count` tokens; false, and none taken, when there are fewer. */
  take(count = 1): boolean {
    const now = this.#now();
    this.#tokens = Math.min(this.#burst, this.#tokens + ((now - this.#at) / 1000) * this.#perSecond);
    this.#at = now;
    if (this.#tokens < count) return false;
    this.#tokens -= count;
    return true;
  }
}

/** Passes events on, no faster than a disk or a reader can take: a guest must not fill either by asking. */
export class EventGate {
  readonly #vm: string;
  readonly #onEvent: OnNetworkEvent;
  readonly #bucket: Bucket;
  #suppressed = 0;

  /** Events of the VM `vm` for `onEvent`. */
  constructor(vm: string, onEvent: OnNetworkEvent, now: () => number) {
    this.#vm = vm;
    this.#onEvent = onEvent;
    this.#bucket = new Bucket({ burst: BURST, perSecond: PER_SECOND, now });
  }

  /** Tells of one thing, or counts it. */
  emit(event: Pick<NetworkEvent, "kind" | "verdict"> & Partial<NetworkEvent>): void {
    if (!this.#bucket.take()) {
      this.#suppressed += 1;
      return;
    }
    this.flush();
    this.#send(event);
  }

  /** Tells how many were left out. */
  flush(): void {
    const count = this.#suppressed;
    this.#suppressed = 0;
    if (count > 0) this.#send({ kind: "suppressed", verdict: "refused", reason: "limit", count });
  }

  #send(event: Pick<NetworkEvent, "kind" | "verdict"> & Partial<NetworkEvent>): void {
    this.#onEvent({
      time: new Date().toISOString(),
      vm: this.#vm,
      name: null,
      address: null,
      port: null,
      reason: null,
      sentBytes: 0,
      receivedBytes: 0,
      durationMs: 0,
      ...event,
    });
  }
}
