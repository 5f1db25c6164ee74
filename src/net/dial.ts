/** Dial: the host's own connections for a guest, straight or through the proxy that the host's environment names. */
import { Buffer } from "node:buffer";
import net, { type Socket } from "node:net";
import tls from "node:tls";
import { InputValidationError } from "../base/errors.ts";
import type { Address } from "./address.ts";
import { NoProxy } from "./no_proxy.ts";
import type { NetworkReason } from "./policy.ts";

/** A far side that has not answered by then is not going to. */
export const DIAL_TIMEOUT_MS = 15_000;
const PROXY_HEAD_MAX_BYTES = 16_384;

/** Where to. */
export interface DialTarget {
  /** What the host resolved itself; undefined where only the proxy knows it. */
  readonly address: Address | undefined;
  readonly port: number;
  /** What a proxy is told, so that its own rules are about names; undefined: the address. */
  readonly name: string | undefined;
}

/** Why there is no connection. */
export class DialError extends Error {
  override readonly name = "DialError";
  readonly reason: NetworkReason;
  /** `reason` is what the guest and the log are told. */
  constructor(reason: NetworkReason) {
    super(`Cannot connect: ${reason}`);
    this.reason = reason;
  }
}

/** A connection, and what its far side has already said. */
export interface Dialled {
  readonly socket: Socket;
  readonly said: Uint8Array | undefined;
}

/** The proxy of the host's environment. */
export class Proxy {
  readonly #url: URL;
  readonly #exceptions: NoProxy;

  private constructor(url: URL, exceptions: NoProxy) {
    this.#url = url;
    this.#exceptions = exceptions;
  }

  /** What `HTTPS_PROXY` and `NO_PROXY` say, in either case; undefined without. Throws `InputValidationError` for what is no proxy's URL. */
  static of(env: Readonly<Record<string, string | undefined>>): Proxy | undefined {
    const text = (env["https_proxy"] || env["HTTPS_PROXY"] || "").trim();
    if (text === "") return undefined;
    const url = URL.parse(text.includes("://") ? text : `http://${text}`);
    if (!url || (url.protocol !== "http:" && url.protocol !== "https:") || url.hostname === "") {
      // The value may have a password in it.
      throw new InputValidationError("Cannot use HTTPS_PROXY: it must be the URL of an HTTP proxy, http://HOST:PORT");
    }
    return new Proxy(url, new NoProxy(env["no_proxy"] || env["NO_PROXY"] || ""));
  }

  /** Entries of `NO_PROXY` that say nothing, and so except nothing. */
  get unreadExceptions(): readonly string[] {
    return this.#exceptions.unread;
  }

  /** True unless `NO_PROXY` says that connections there are made without it. */
  isFor(target: DialTarget): boolean {
    return !this.#exceptions.has(target);
  }

  /** The connection to the proxy itself. */
  connect(): Socket {
    const host = this.#url.hostname.replace(/^\[|\]$/g, ""), isTls = this.#url.protocol === "https:";
    const port = Number(this.#url.port || (isTls ? 443 : 80));
    return isTls
      ? tls.connect({ host, port, ...(net.isIP(host) ? {} : { servername: host }), ALPNProtocols: ["http/1.1"] })
      : net.connect({ host, port, allowHalfOpen: true });
  }

  /** What it is asked. */
  request({ name, address, port }: DialTarget): string {
    const host = name ?? (address?.family === 6 ? `[${address.text}]` : address?.text ?? ""), to = `${host}:${port}`;
    const { username, password } = this.#url;
    const login = Buffer.from(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`).toString("base64");
    return `CONNECT ${to} HTTP/1.1\r\nHost: ${to}\r\n${username === "" ? "" : `Proxy-Authorization: Basic ${login}\r\n`}\r\n`;
  }
}

/** Connects. Rejects with `DialError`, and with the signal's reason when aborted; nothing is left open then. The caller owns the socket, which is paused. */
export async function dial(
  target: DialTarget,
  options: { readonly proxy: Proxy | undefined; readonly signal: AbortSignal },
): Promise<Dialled> {
  options.signal.throwIfAborted();
  const proxy = options.proxy?.isFor(target) ? options.proxy : undefined;
  if (!proxy && !target.address) throw new DialError("not-found");
  const socket = proxy ? proxy.connect() : net.connect({ host: target.address?.text, port: target.port, allowHalfOpen: true });
  const { promise, resolve, reject } = Promise.withResolvers<Dialled>();
  const onAbort = () => reject(options.signal.reason);
  const timer = setTimeout(() => reject(new DialError("timeout")), DIAL_TIMEOUT_MS);
  options.signal.addEventListener("abort", onAbort, { once: true });
  const onError = (error: NodeJS.ErrnoException) => reject(new DialError(proxy ? "proxy" : reasonOf(error)));
  socket.on("error", onError);
  socket.on("close", () => reject(new DialError(proxy ? "proxy" : "reset")));
  socket.once(socket instanceof tls.TLSSocket ? "secureConnect" : "connect", () => {
    if (!proxy) return resolve({ socket, said: undefined });
    socket.write(proxy.request(target));
    readProxyAnswer(socket).then((said) => resolve({ socket, said }), reject);
  });
  try {
    const dialled = await promise;
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 60_000);
    return dialled;
  } catch (error) {
    socket.on("error", () => {}); // It is being thrown away.
    socket.destroy();
    throw error;
  } finally {
    clearTimeout(timer);
    options.signal.removeEventListener("abort", onAbort);
    socket.removeListener("error", onError);
    if (!socket.destroyed) socket.pause();
    // Between here and the owner's own listener: an error without one would end this process.
    socket.on("error", () => {});
  }
}

/** What the system's error means to a guest. */
export function reasonOf({ code }: { readonly code?: string | undefined }): NetworkReason {
  switch (code) {
    case "ECONNREFUSED":
      return "refused";
    case "ETIMEDOUT":
      return "timeout";
    case "EMFILE":
    case "ENFILE":
    case "EAGAIN":
    case "EADDRNOTAVAIL":
    case "ENOBUFS":
      return "limit";
    case "ECONNRESET":
    case "EPIPE":
      return "reset";
    default:
      return "unreachable";
  }
}

/** Reads until the head of the answer is there; what came behind it is the far side's. */
function readProxyAnswer(socket: Socket): Promise<Uint8Array | undefined> {
  return new Promise((resolve, reject) => {
    let held = Buffer.alloc(0);
    const onData = (chunk: Uint8Array) => {
      held = Buffer.concat([held, chunk]);
      const end = held.indexOf("\r\n\r\n");
      if (end < 0 && held.length <= PROXY_HEAD_MAX_BYTES) return;
      socket.removeListener("data", onData);
      socket.pause();
      const [, status] = /^HTTP\/1\.[01] (\d{3})/.exec(held.subarray(0, 64).toString("latin1")) ?? [];
      if (end >= 0 && status?.startsWith("2")) resolve(held.length > end + 4 ? Uint8Array.from(held.subarray(end + 4)) : undefined);
      else reject(new DialError(status === "502" || status === "503" || status === "504" ? "unreachable" : "proxy"));
    };
    socket.on("data", onData);
  });
}
