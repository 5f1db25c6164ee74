/** HTTP head: the Host of every request on a connection, and where each request ends (RFC 9112). Whatever two servers might read differently is refused. */
import { concat } from "../channel/wire.ts";
import { normalName } from "./domain.ts";
import { GO_ON, type Inspector, type Step } from "./inspector.ts";
import { HTTP_PORT, type NetworkReason } from "./policy.ts";

/** Request line and fields of one request. */
export const HEAD_MAX_BYTES = 32_768;
/** Length and extensions of one chunk. */
const CHUNK_LINE_MAX_BYTES = 256;
/** What a client may say before its upgrade is answered. */
const UPGRADE_HELD_MAX_BYTES = 65_536;
const TOKEN = "[!#$%&'*+.^_`|~0-9A-Za-z-]+";
const REQUEST_LINE = new RegExp(`^(${TOKEN}) ([\\x21-\\x7e\\x80-\\xff]+) HTTP/1\\.([01])$`);
const FIELD = new RegExp(`^(${TOKEN}):[ \\t]*(.*?)[ \\t]*$`);

/** What the head of a request says. */
export type Head =
  | {
    readonly kind: "head";
    /** In its normal spelling. */
    readonly host: string;
    readonly body: { readonly kind: "length"; readonly bytes: number } | { readonly kind: "chunked" };
    /** It asks for WebSocket. */
    readonly isUpgrade: boolean;
  }
  | { readonly kind: "refused"; readonly reason: NetworkReason };

/** Reads a head: everything up to, and without, its empty line. Never throws. */
export function parseHead(bytes: Uint8Array): Head {
  const text = latin1(bytes);
  // deno-lint-ignore no-control-regex
  if (/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/.test(text)) return refused("not-http");
  const [line = "", ...lines] = text.split("\r\n");
  if (/[\r\n]/.test(line)) return refused("not-http");
  const [, method, target = "", minor] = REQUEST_LINE.exec(line) ?? [];
  if (method === undefined) return refused(line === "PRI * HTTP/2.0" ? "http2" : "not-http");
  if (method === "CONNECT") return refused("connect");
  const fields = readFields(lines);
  if (!fields) return refused("smuggling");
  const hosts = fields.get("host") ?? [];
  if (hosts.length !== 1) return refused(hosts.length === 0 ? "no-host" : "smuggling");
  const host = hostOf(hosts[0] ?? "");
  if (host === undefined) return refused("host");
  const reason = checkTarget(method, target, host);
  if (reason !== undefined) return refused(reason);
  const body = bodyOf(fields, minor === "1");
  if (!body) return refused("smuggling");
  const upgrade = fields.get("upgrade")?.join(",").toLowerCase();
  const isUpgrade = method === "GET" && upgrade === "websocket" && body.kind === "length" && body.bytes === 0;
  return { kind: "head", host, body, isUpgrade };
}

/** Names in lower case, each with its values in order. Undefined when a line is no field, or goes on in the next. */
function readFields(lines: readonly string[]): Map<string, string[]> | undefined {
  const fields = new Map<string, string[]>();
  for (const line of lines) {
    const [, name, value = ""] = FIELD.exec(line) ?? [];
    if (name === undefined || /[\r\n]/.test(line)) return undefined;
    const key = name.toLowerCase(), values = fields.get(key);
    if (values) values.push(value);
    else fields.set(key, [value]);
  }
  return fields;
}

/** A name, with our own port or none. */
function hostOf(text: string): string | undefined {
  const [, name = "", port] = /^([^:]*)(?::(\d{1,5}))?$/.exec(text) ?? [];
  return port === undefined || Number(port) === HTTP_PORT ? normalName(name) : undefined;
}

/** An absolute target counts more than Host to a server, so both must say the same. */
function checkTarget(method: string, target: string, host: string): NetworkReason | undefined {
  if (target.startsWith("/")) return undefined;
  if (target === "*") return method === "OPTIONS" ? undefined : "not-http";
  const [, authority] = /^http:\/\/([^/?#@\\]*)(?:[/?]|$)/i.exec(target) ?? [];
  if (authority === undefined) return "not-http";
  return hostOf(authority) === host ? undefined : "host";
}

function bodyOf(
  fields: ReadonlyMap<string, readonly string[]>,
  isHttp11: boolean,
): { kind: "length"; bytes: number } | { kind: "chunked" } | undefined {
  const lengths = fields.get("content-length") ?? [], encodings = fields.get("transfer-encoding") ?? [];
  if (encodings.length > 0) {
    const isPlain = isHttp11 && lengths.length === 0 && encodings.length === 1 && encodings[0]?.toLowerCase() === "chunked";
    return isPlain ? { kind: "chunked" } : undefined;
  }
  if (lengths.length === 0) return { kind: "length", bytes: 0 };
  return lengths.length === 1 && /^\d{1,15}$/.test(lengths[0] ?? "") ? { kind: "length", bytes: Number(lengths[0]) } : undefined;
}

/** What comes next. `tail`: the line break behind a chunk. */
type State =
  | { readonly at: "head" | "chunk-line" | "tail" | "trailer" | "upgrade" | "open" }
  | { readonly at: "body"; leftBytes: number; readonly next: "head" | "tail" };

/** Lets requests go on while each asks for a host that may be asked for. */
export class HttpInspector implements Inspector {
  readonly #isAllowed: (name: string) => boolean;
  #name: string | undefined;
  #state: State = { at: "head" };
  #held: Uint8Array = new Uint8Array(0);
  /** How far `#held` has been searched for the end that is waited for. */
  #searched = 0;
  #requests = 0;
  #reply = "";

  /** `isAllowed` gets names in their normal spelling. */
  constructor(isAllowed: (name: string) => boolean) {
    this.#isAllowed = isAllowed;
  }

  get name(): string | undefined {
    return this.#name;
  }

  push(bytes: Uint8Array): Step {
    if (this.#state.at === "open") return { forward: [bytes] };
    this.#held = this.#held.length === 0 ? new Uint8Array(bytes) : concat(this.#held, bytes);
    return this.#run();
  }

  end(): Step {
    const isWhole = this.#state.at === "open" || this.#state.at === "upgrade" || (this.#state.at === "head" && this.#held.length === 0);
    return isWhole ? GO_ON : { forward: [], refusal: "incomplete" };
  }

  /** Whether the server agreed to the upgrade: only then what follows is no HTTP. */
  pushReply(bytes: Uint8Array): Step {
    if (this.#state.at !== "upgrade") return GO_ON;
    this.#reply += latin1(bytes.subarray(0, 64));
    if (this.#reply.length < 13 && !this.#reply.includes("\n")) return GO_ON;
    this.#state = /^HTTP\/1\.1 101[ \r]/.test(this.#reply) ? { at: "open" } : { at: "head" };
    return this.#run();
  }

  #run(): Step {
    const forward: Uint8Array[] = [];
    while (this.#held.length > 0) {
      const step = this.#step();
      if (step === undefined) break; // More is needed.
      if (step.refusal !== undefined) return { forward, refusal: step.refusal };
      forward.push(...step.forward);
    }
    return { forward };
  }

  #step(): Step | undefined {
    switch (this.#state.at) {
      case "head":
        return this.#readHead();
      case "body":
        return this.#readBody(this.#state);
      case "chunk-line":
        return this.#readChunkLine();
      case "tail":
        return this.#readTail();
      case "trailer":
        return this.#readTrailer();
      case "upgrade":
        return this.#held.length > UPGRADE_HELD_MAX_BYTES ? refuse("limit") : undefined;
      case "open":
        return this.#release(this.#held.length, { at: "open" });
    }
  }

  #readHead(): Step | undefined {
    const end = this.#find("\r\n\r\n", HEAD_MAX_BYTES);
    if (end === undefined) {
      if (this.#held.length > HEAD_MAX_BYTES) return refuse("limit");
      // What cannot become a request is refused without waiting for its end, which may never come.
      return isPlausible(this.#held) ? undefined : refuse("not-http");
    }
    const head = parseHead(this.#held.subarray(0, end));
    if (head.kind === "refused") return refuse(head.reason);
    this.#name = head.host;
    if (!this.#isAllowed(head.host)) return refuse("host");
    this.#requests += 1;
    // Only the first answer on a connection is known to be the answer to this.
    if (head.isUpgrade && this.#requests > 1) return refuse("upgrade");
    return this.#release(end + 4, head.isUpgrade ? { at: "upgrade" } : afterHead(head.body));
  }

  #readBody(state: Extract<State, { at: "body" }>): Step {
    const byteCount = Math.min(state.leftBytes, this.#held.length);
    state.leftBytes -= byteCount;
    return this.#release(byteCount, state.leftBytes === 0 ? { at: state.next } : state);
  }

  #readChunkLine(): Step | undefined {
    const end = this.#find("\r\n", CHUNK_LINE_MAX_BYTES);
    if (end === undefined) return this.#held.length > CHUNK_LINE_MAX_BYTES ? refuse("smuggling") : undefined;
    // Extensions are allowed by the letter, and are how chunks are smuggled; nobody uses them.
    const [, digits] = /^([0-9A-Fa-f]{1,12})$/.exec(latin1(this.#held.subarray(0, end))) ?? [];
    if (digits === undefined) return refuse("smuggling");
    const leftBytes = Number.parseInt(digits, 16);
    return this.#release(end + 2, leftBytes === 0 ? { at: "trailer" } : { at: "body", leftBytes, next: "tail" });
  }

  #readTail(): Step | undefined {
    if (this.#held[0] !== 13 || (this.#held.length > 1 && this.#held[1] !== 10)) return refuse("smuggling");
    return this.#held.length < 2 ? undefined : this.#release(2, { at: "chunk-line" });
  }

  /** Fields after the last chunk mean nothing to anybody, and are one more thing to read differently. */
  #readTrailer(): Step | undefined {
    if (this.#held[0] !== 13 || (this.#held.length > 1 && this.#held[1] !== 10)) return refuse("smuggling");
    return this.#held.length < 2 ? undefined : this.#release(2, { at: "head" });
  }

  #find(end: string, maxBytes: number): number | undefined {
    const from = Math.max(0, this.#searched - end.length);
    for (let at = this.#held.indexOf(13, from); at >= 0 && at <= maxBytes; at = this.#held.indexOf(13, at + 1)) {
      if (this.#held.length < at + end.length) break;
      if (latin1(this.#held.subarray(at, at + end.length)) === end) return at;
    }
    this.#searched = Math.min(this.#held.length, maxBytes);
    return undefined;
  }

  #release(byteCount: number, next: State): Step {
    const released = this.#held.subarray(0, byteCount);
    this.#held = this.#held.subarray(byteCount);
    this.#searched = 0;
    this.#state = next;
    return { forward: [released] };
  }
}

function afterHead(body: { kind: "length"; bytes: number } | { kind: "chunked" }): State {
  if (body.kind === "chunked") return { at: "chunk-line" };
  return body.bytes === 0 ? { at: "head" } : { at: "body", leftBytes: body.bytes, next: "head" };
}

/** What came can still become a request line. */
function isPlausible(held: Uint8Array): boolean {
  const line = latin1(held.subarray(0, 1024)).split("\n")[0] ?? "";
  if (line.length === held.length) {
    return new RegExp(`^${TOKEN}(?: [\\x21-\\x7e\\x80-\\xff]*(?: [HTP/1.0\\r]*)?)?$`).test(line) && !line.startsWith("PRI * HTTP/2");
  }
  return line.length >= 1024 || REQUEST_LINE.test(line.replace(/\r$/, ""));
}

function refused(reason: NetworkReason): Head {
  return { kind: "refused", reason };
}

function refuse(refusal: NetworkReason): Step {
  return { forward: [], refusal };
}

function latin1(bytes: Uint8Array): string {
  let text = "";
  // In parts: the arguments of one call are limited.
  for (let at = 0; at < bytes.length; at += 4096) text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  return text;
}
