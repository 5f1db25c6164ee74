/** Resolver: answers one VM's questions: allowed names only, addresses alone, nothing special, and remembers what it said. */
import { type Address, classOf } from "./address.ts";
import { encodeAnswer, encodeRefusal, parseQuery, type Question, RCODE, TYPE } from "./dns.ts";
import { normalName } from "./domain.ts";
import { Bucket, type EventGate } from "./events.ts";
import type { NameSource } from "./name_source.ts";
import type { Names } from "./names.ts";
import type { Pins } from "./pins.ts";
import { freeChars, mayResolve, type NetworkPolicy, type NetworkReason } from "./policy.ts";
import type { Rcode } from "./dns.ts";

/** Questions of one VM: at once, and per second after that. */
const QUERIES = { burst: 500, perSecond: 100 } as const;
/** Look-ups of one VM at once. */
export const LOOKUPS_MAX = 64;
/** Characters that a guest may choose in the names it asks for below an allowed one: 4 KiB, and 32 bytes a second after that. */
export const FREE_CHARS = { burst: 4_096, perSecond: 32 } as const;
/** Addresses of one answer: even plain DNS has room for them. */
const ADDRESSES_MAX = 24;
/** Shorter ones make every connection a question, longer ones keep old addresses. */
const TTL = { minSeconds: 10, maxSeconds: 300 } as const;

/** What a resolver works with. */
export interface ResolverParts {
  readonly policy: () => NetworkPolicy;
  readonly names: Names;
  readonly source: NameSource;
  readonly pins: Pins;
  readonly events: EventGate;
  /** The host reaches IPv6 addresses. */
  readonly hasIpv6: boolean;
  /** The host's own addresses, in their canonical text. */
  readonly ownAddresses: () => ReadonlySet<string>;
  /** A proxy makes the connections to this name, so that it may know an address where the host does not. */
  readonly isProxied: (name: string) => boolean;
  readonly now: () => number;
}

/** One VM's resolver. */
export class Resolver {
  readonly #parts: ResolverParts;
  readonly #queries: Bucket;
  readonly #freeChars: Bucket;
  #lookups = 0;

  /** Without questions so far. */
  constructor(parts: ResolverParts) {
    this.#parts = parts;
    this.#queries = new Bucket({ ...QUERIES, now: parts.now });
    this.#freeChars = new Bucket({ ...FREE_CHARS, now: parts.now });
  }

  /** The message that answers `message`; undefined when none is due. Never rejects. */
  async answer(message: Uint8Array, transport: "udp" | "tcp"): Promise<Uint8Array | undefined> {
    const query = parseQuery(message);
    if (query.kind === "ignored") return undefined;
    if (query.kind === "refused") return encodeRefusal(query.id, query.rcode);
    const { question } = query;
    if (!this.#queries.take()) return this.#refuse(question, { name: null, reason: "limit", rcode: RCODE.refused }, transport);
    const name = normalName(question.name), policy = this.#parts.policy();
    if (name === undefined || !mayResolve(policy, name)) {
      const reason = policy.kind === "off" ? "off" : name === undefined ? "malformed" : "name";
      return this.#refuse(question, { name: name ?? null, reason, rcode: RCODE.notFound }, transport);
    }
    if (question.type !== TYPE.a && question.type !== TYPE.aaaa) return encodeAnswer(question, { rcode: RCODE.ok }, transport);
    return await this.#resolve(question, name, transport);
  }

  async #resolve(question: Question, name: string, transport: "udp" | "tcp"): Promise<Uint8Array> {
    const { pins, names, source, hasIpv6, isProxied } = this.#parts, family = question.type === TYPE.a ? 4 : 6;
    if (pins.has(name)) return this.#standIn(question, name, transport);
    if (family === 6 && !hasIpv6) return encodeAnswer(question, { rcode: RCODE.ok }, transport);
    const chars = names.isKnown(name) ? 0 : freeChars(this.#parts.policy(), name);
    if (this.#lookups >= LOOKUPS_MAX || !this.#freeChars.take(chars)) {
      return this.#refuse(question, { name, reason: "limit", rcode: RCODE.failed }, transport);
    }
    this.#lookups += 1;
    const startedAt = this.#parts.now();
    const found = await source.find(name, family).finally(() => this.#lookups -= 1);
    const durationMs = Math.ceil(this.#parts.now() - startedAt);
    // The policy may have changed meanwhile.
    if (!mayResolve(this.#parts.policy(), name)) return this.#refuse(question, { name, reason: "name", rcode: RCODE.notFound }, transport);
    if (found.kind !== "found") {
      if (isProxied(name)) return this.#standIn(question, name, transport);
      const isAbsent = found.kind === "not-found";
      return this.#refuse(question, {
        name,
        reason: isAbsent ? "not-found" : "unreachable",
        rcode: isAbsent ? RCODE.notFound : RCODE.failed,
        durationMs,
      }, transport);
    }
    const own = this.#parts.ownAddresses();
    const reasonOf = (address: Address) => classOf(address) ?? (own.has(address.text) ? "own" : undefined);
    const special = found.addresses.map(reasonOf).find((reason) => reason !== undefined);
    const addresses = found.addresses.filter((address) => address.family === family && reasonOf(address) === undefined).slice(
      0,
      ADDRESSES_MAX,
    );
    if (addresses.length === 0 && special) {
      return this.#refuse(question, { name, reason: special, rcode: RCODE.notFound, durationMs }, transport);
    }
    return this.#tell(question, { name, addresses, ttlSeconds: found.ttlSeconds, durationMs }, transport);
  }

  /** An address of nobody's, which only this host knows what to do with. */
  #standIn(question: Question, name: string, transport: "udp" | "tcp"): Uint8Array {
    if (question.type !== TYPE.a) return encodeAnswer(question, { rcode: RCODE.ok }, transport);
    const address = this.#parts.names.standIn(name);
    if (!address) return this.#refuse(question, { name, reason: "limit", rcode: RCODE.failed }, transport);
    return this.#tell(question, { name, addresses: [address], ttlSeconds: TTL.maxSeconds, durationMs: 0 }, transport);
  }

  #tell(
    question: Question,
    { name, addresses, ttlSeconds: found, durationMs }: {
      name: string;
      addresses: readonly Address[];
      ttlSeconds: number;
      durationMs: number;
    },
    transport: "udp" | "tcp",
  ): Uint8Array {
    const ttlSeconds = Math.min(TTL.maxSeconds, Math.max(TTL.minSeconds, found));
    if (!this.#parts.names.record(name, addresses, ttlSeconds)) {
      return this.#refuse(question, { name, reason: "limit", rcode: RCODE.failed }, transport);
    }
    this.#parts.events.emit({ kind: "dns", verdict: "allowed", name, address: addresses[0]?.text ?? null, durationMs });
    return encodeAnswer(question, { rcode: RCODE.ok, addresses: addresses.map(({ bytes }) => bytes), ttlSeconds }, transport);
  }

  #refuse(
    question: Question,
    refusal: { readonly name: string | null; readonly reason: NetworkReason; readonly rcode: Rcode; readonly durationMs?: number },
    transport: "udp" | "tcp",
  ): Uint8Array {
    const { name, reason, rcode, durationMs = 0 } = refusal;
    const verdict = reason === "not-found" || reason === "unreachable" ? "failed" : "refused";
    this.#parts.events.emit({ kind: "dns", verdict, reason, name, durationMs });
    return encodeAnswer(question, { rcode }, transport);
  }
}
