/** SNI: the name in a TLS ClientHello, however it is cut into segments and records (RFC 8446, RFC 6066). Pure. */
import { concat } from "../channel/wire.ts";
import { normalName } from "./domain.ts";
import { GO_ON, type Inspector, type Step } from "./inspector.ts";
import type { NetworkReason } from "./policy.ts";

/** The whole hello with the headers of its records. Large ones, with post-quantum keys and tickets, have 4 KiB. */
export const HELLO_MAX_BYTES = 16_384;
const RECORD_HEADER_BYTES = 5;
/** RFC 8446: what a plain record may hold. */
const RECORD_MAX_BYTES = 16_384;
const CONTENT = { changeCipherSpec: 20, handshake: 22 } as const;
const CLIENT_HELLO = 1;
const EXTENSION = { serverName: 0, encryptedClientHello: 0xfe0d } as const;

/** What a ClientHello says. */
export type ClientHello =
  | { readonly kind: "hello"; readonly serverName: string | undefined; readonly hasEncryptedHello: boolean }
  | { readonly kind: "malformed" };

const MALFORMED: ClientHello = { kind: "malformed" };

/** Reads the body of a ClientHello, without the four bytes before it. Never throws. */
export function parseClientHello(body: Uint8Array): ClientHello {
  const reader = new Reader(body);
  reader.skip(2 + 32); // Version, random.
  reader.skip(reader.u8()); // Session.
  reader.skip(reader.u16()); // Cipher suites.
  reader.skip(reader.u8()); // Compression.
  if (reader.isBroken) return MALFORMED;
  if (reader.isAtEnd) return { kind: "hello", serverName: undefined, hasEncryptedHello: false };
  const extensions = new Reader(reader.take(reader.u16()));
  if (reader.isBroken || !reader.isAtEnd) return MALFORMED;
  let serverName: string | undefined, hasEncryptedHello = false;
  const seen = new Set<number>();
  while (!extensions.isAtEnd) {
    const type = extensions.u16(), data = extensions.take(extensions.u16());
    if (extensions.isBroken || seen.has(type)) return MALFORMED;
    seen.add(type);
    if (type === EXTENSION.encryptedClientHello) hasEncryptedHello = true;
    if (type !== EXTENSION.serverName) continue;
    serverName = readServerName(data);
    if (serverName === undefined) return MALFORMED;
  }
  return { kind: "hello", serverName, hasEncryptedHello };
}

/** One entry, and that a host name: servers differ in what they make of more. */
function readServerName(data: Uint8Array): string | undefined {
  const list = new Reader(data);
  const entries = new Reader(list.take(list.u16()));
  const type = entries.u8(), name = entries.take(entries.u16());
  const isWhole = !list.isBroken && list.isAtEnd && !entries.isBroken && entries.isAtEnd;
  return isWhole && type === 0 && name.length > 0 ? String.fromCharCode(...name.subarray(0, 256)) : undefined;
}

/**
 * Lets a connection go on once its ClientHello asks for a name that may be asked for. A second hello, which a server may demand, is looked at
 * too; the rest is the server's.
 */
export class TlsInspector implements Inspector {
  readonly #isAllowed: (name: string) => boolean;
  #name: string | undefined;
  #state: "hello" | "between" | "open" = "hello";
  /** What is not let go yet. */
  #held: Uint8Array = new Uint8Array(0);
  #hellos = 0;

  /** `isAllowed` gets names in their normal spelling. */
  constructor(isAllowed: (name: string) => boolean) {
    this.#isAllowed = isAllowed;
  }

  get name(): string | undefined {
    return this.#name;
  }

  push(bytes: Uint8Array): Step {
    if (this.#state === "open") return { forward: [bytes] };
    this.#held = this.#held.length === 0 ? new Uint8Array(bytes) : concat(this.#held, bytes);
    const forward: Uint8Array[] = [];
    while (this.#held.length > 0) {
      const step = this.#state === "hello" ? this.#readHello() : this.#readBetween();
      if (step === undefined) break; // More is needed.
      if (step.refusal !== undefined) return { forward, refusal: step.refusal };
      forward.push(...step.forward);
    }
    return { forward };
  }

  end(): Step {
    return this.#state === "open" || (this.#state === "between" && this.#held.length === 0)
      ? GO_ON
      : { forward: [], refusal: "incomplete" };
  }

  /** A whole hello, from one or more records. */
  #readHello(): Step | undefined {
    const bytes = this.#held, parts: Uint8Array[] = [], start: number[] = [];
    let at = 0, bodyBytes: number | undefined, partBytes = 0;
    while (bodyBytes === undefined || partBytes < bodyBytes + 4) {
      if (at > 0 && bytes.length === at) break;
      const record = recordAt(bytes, at);
      if (record === "malformed" || (record && (record.type !== CONTENT.handshake || record.length === 0))) return refuse("not-tls");
      if (record === undefined) break;
      const part = bytes.subarray(at + RECORD_HEADER_BYTES, at + RECORD_HEADER_BYTES + record.length);
      parts.push(part);
      partBytes += part.length;
      start.push(...part.subarray(0, 4 - start.length));
      if (start.length > 0 && start[0] !== CLIENT_HELLO) return refuse("not-tls");
      if (start.length === 4) bodyBytes = ((start[1] ?? 0) << 16) | ((start[2] ?? 0) << 8) | (start[3] ?? 0);
      if (bodyBytes !== undefined && bodyBytes > HELLO_MAX_BYTES) return refuse("limit");
      if (part.length < record.length) break;
      at += RECORD_HEADER_BYTES + record.length;
    }
    const isWhole = bodyBytes !== undefined && partBytes >= bodyBytes + 4 && at > 0 && bytes.length >= at;
    if (!isWhole || bodyBytes === undefined) return bytes.length > HELLO_MAX_BYTES + 1_024 ? refuse("limit") : undefined;
    // Whatever else shares the hello's last record would not have been looked at.
    if (partBytes > bodyBytes + 4) return refuse("not-tls");
    const refusal = this.#check(parseClientHello(concat(...parts).subarray(4)));
    return refusal === undefined ? this.#release(at, "between") : refuse(refusal);
  }

  #check(hello: ClientHello): NetworkReason | undefined {
    if (hello.kind === "malformed") return "not-tls";
    this.#hellos += 1;
    if (this.#hellos > 2) return "not-tls";
    if (hello.serverName === undefined) return hello.hasEncryptedHello ? "encrypted-client-hello" : "no-server-name";
    const name = normalName(hello.serverName);
    this.#name = name;
    // The outer name of an encrypted hello says nothing about the inner one, which decides.
    if (hello.hasEncryptedHello) return "encrypted-client-hello";
    return name !== undefined && this.#isAllowed(name) ? undefined : "server-name";
  }

  /** After a hello: another one, or whatever the server is to make of it. */
  #readBetween(): Step | undefined {
    const record = recordAt(this.#held, 0);
    if (record === undefined) return undefined;
    if (record === "malformed") return refuse("not-tls");
    if (record.type === CONTENT.changeCipherSpec) {
      const end = RECORD_HEADER_BYTES + record.length;
      return this.#held.length < end ? undefined : this.#release(end, "between");
    }
    if (record.type !== CONTENT.handshake) return this.#release(this.#held.length, "open");
    if (record.length === 0) return refuse("not-tls");
    if (this.#held.length === RECORD_HEADER_BYTES) return undefined;
    if (this.#held[RECORD_HEADER_BYTES] !== CLIENT_HELLO) return this.#release(this.#held.length, "open");
    this.#state = "hello";
    return GO_ON;
  }

  #release(byteCount: number, next: "between" | "open"): Step {
    const released = this.#held.subarray(0, byteCount);
    this.#held = this.#held.subarray(byteCount);
    this.#state = next;
    return { forward: [released] };
  }
}

function refuse(refusal: NetworkReason): Step {
  return { forward: [], refusal };
}

/** The header at `at`; undefined while it is not all there and could still become one. */
function recordAt(bytes: Uint8Array, at: number): { readonly type: number; readonly length: number } | "malformed" | undefined {
  const type = bytes[at], major = bytes[at + 1], minor = bytes[at + 2];
  if (type === undefined) return undefined;
  if (type < CONTENT.changeCipherSpec || type > 24) return "malformed";
  if ((major !== undefined && major !== 3) || (minor !== undefined && minor > 4)) return "malformed";
  if (bytes.length < at + RECORD_HEADER_BYTES) return undefined;
  const length = ((bytes[at + 3] ?? 0) << 8) | (bytes[at + 4] ?? 0);
  return length > RECORD_MAX_BYTES + 256 ? "malformed" : { type, length };
}

/** Reads numbers and parts; what is beyond the end makes it broken, and everything empty. */
class Reader {
  readonly #bytes: Uint8Array;
  #at = 0;
  isBroken = false;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get isAtEnd(): boolean {
    return this.isBroken || this.#at === this.#bytes.length;
  }

  u8(): number {
    return this.take(1)[0] ?? 0;
  }

  u16(): number {
    const [high = 0, low = 0] = this.take(2);
    return high * 256 + low;
  }

  take(count: number): Uint8Array {
    const end = this.#at + count;
    if (this.isBroken || end > this.#bytes.length) {
      this.isBroken = true;
      return new Uint8Array(0);
    }
    const part = this.#bytes.subarray(this.#at, end);
    this.#at = end;
    return part;
  }

  skip(count: number): void {
    this.take(count);
  }
}
