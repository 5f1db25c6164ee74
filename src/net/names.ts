/** Names: which addresses one VM was told for which name, and until when that counts. */
import { type Address, addressOf } from "./address.ts";

/** Connections may still be made so long after an answer's own time: programs keep addresses a little longer than they should. */
export const GRACE_MS = 60_000;
/** Pairs of name and address that one VM may have. */
export const RECORDS_MAX = 8_192;
/** 198.18.0.0/15 (RFC 2544): belongs to nobody, and so never to a name. */
const STAND_IN_BASE = [198, 18] as const;
const STAND_INS_MAX = 131_070;

/** What is known of an address. */
export interface Known {
  /** Valid names, the one that was asked for last at the end. */
  readonly names: readonly string[];
  /** Names that are too old, and no valid one. */
  readonly hasExpired: boolean;
  /** The address stands for a name whose real one the guest is not told. */
  readonly isStandIn: boolean;
}

/** The answers that one VM was given. */
export class Names {
  readonly #now: () => number;
  /** Address to name to the end of its time. */
  readonly #byAddress = new Map<string, Map<string, number>>();
  readonly #standIns = new Map<string, Address>();
  readonly #standInTexts = new Set<string>();
  #records = 0;

  /** `now` counts milliseconds. */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** Remembers an answer. False when there are too many. */
  record(name: string, addresses: readonly Address[], ttlSeconds: number): boolean {
    if (this.#records + addresses.length > RECORDS_MAX) this.#prune();
    if (this.#records + addresses.length > RECORDS_MAX) return false;
    const until = this.#now() + ttlSeconds * 1000 + GRACE_MS;
    for (const { text } of addresses) {
      const names = this.#byAddress.get(text) ?? new Map<string, number>();
      if (!names.delete(name)) this.#records += 1;
      names.set(name, until);
      this.#byAddress.set(text, names);
    }
    return true;
  }

  /** The address that stands for `name` in this VM; undefined when there are no more. */
  standIn(name: string): Address | undefined {
    const known = this.#standIns.get(name);
    if (known) return known;
    const number = this.#standIns.size + 1;
    if (number > STAND_INS_MAX || this.#standIns.size >= RECORDS_MAX) return undefined;
    const address = addressOf(Uint8Array.of(STAND_IN_BASE[0], STAND_IN_BASE[1] + (number >> 16), (number >> 8) & 255, number & 255));
    this.#standIns.set(name, address);
    this.#standInTexts.add(address.text);
    return address;
  }

  /** What is known of `address`. */
  find(address: Address): Known {
    const names = this.#byAddress.get(address.text), now = this.#now();
    const valid = [...names ?? []].filter(([, until]) => until > now).map(([name]) => name);
    return { names: valid, hasExpired: valid.length === 0 && names !== undefined, isStandIn: this.#standInTexts.has(address.text) };
  }

  /** True when `name` was answered and still counts: asking again tells nobody anything new. */
  isKnown(name: string): boolean {
    const now = this.#now();
    for (const names of this.#byAddress.values()) if ((names.get(name) ?? 0) > now) return true;
    return false;
  }

  #prune(): void {
    const now = this.#now();
    for (const [address, names] of this.#byAddress) {
      for (const [name, until] of names) {
        if (until <= now && names.delete(name)) this.#records -= 1;
      }
      if (names.size === 0) this.#byAddress.delete(address);
    }
  }
}
