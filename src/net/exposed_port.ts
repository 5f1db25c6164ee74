/** Exposed ports: listeners on the host's loopback whose connections and datagrams go to a port in the guest. */
import dgram from "node:dgram";
import net, { type Socket } from "node:net";
import { VmConfigError } from "../base/errors.ts";
import type { ExposedPort } from "../base/result.ts";
import type { EventGate } from "./events.ts";
import type { NetworkReason } from "./policy.ts";
import type { FlowOwner, NetPort, PortStream } from "./port.ts";
import { Relay } from "./relay.ts";

/** The one address that listeners are bound to. */
export const LISTEN_ADDRESS = "127.0.0.1";
/** A connection waits so long for a server that is not there yet, from when the guest is. */
const GUEST_LISTEN_MS = 5_000;
/** And so long for the guest itself. */
const GUEST_READY_MS = 30_000;
const RETRY_MIN_MS = 20, RETRY_MAX_MS = 250;
/** Connections of one port at once. */
const CONNECTIONS_MAX = 1_024;
/** Senders of one UDP port. */
const SENDERS_MAX = 256;
const SENDER_IDLE_MS = 120_000;

/** A port that is to be reachable. */
export interface PortSpec {
  /** In the guest. */
  readonly internal: number;
  /** On the host; undefined: any that is free. */
  readonly external: number | undefined;
  readonly protocol: "tcp" | "udp";
}

/** What a listener works with. */
export interface ListenerParts {
  /** That of the machine at the moment. */
  readonly port: () => NetPort;
  readonly events: EventGate;
  readonly now: () => number;
  /** Who may hold a port that is taken, in words; undefined where nobody knows. */
  readonly holderOf?: ((port: number, protocol: "tcp" | "udp") => string | undefined) | undefined;
}

/** A port that is reachable. Disposing closes the listener and every connection. */
export interface Listener extends AsyncDisposable {
  readonly exposed: ExposedPort;
}

/** Starts listening. Throws `VmConfigError` when the port cannot be had. The caller owns the listener. */
export async function listen(spec: PortSpec, parts: ListenerParts): Promise<Listener> {
  return await (spec.protocol === "tcp" ? listenTcp(spec, parts) : listenUdp(spec, parts));
}

async function listenTcp(spec: PortSpec, parts: ListenerParts): Promise<Listener> {
  const connections = new Set<Connection>();
  const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
    socket.setNoDelay(true);
    if (connections.size >= CONNECTIONS_MAX) {
      socket.on("error", () => {}); // It is being thrown away.
      return void socket.resetAndDestroy();
    }
    const connection = new Connection(socket, spec.internal, parts, () => connections.delete(connection));
    connections.add(connection);
  });
  const external = await new Promise<number>((resolve, reject) => {
    server.once("error", (error) => reject(listenError(spec, error, parts)));
    server.listen({ port: spec.external ?? 0, host: LISTEN_ADDRESS }, () => resolve((server.address() as net.AddressInfo).port));
  });
  return {
    exposed: exposedOf(spec, external),
    async [Symbol.asyncDispose]() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const connection of [...connections]) connection.close();
      await closed;
    },
  };
}

/** A connection from the host, until the guest's side is there; then a relay. */
class Connection {
  readonly #socket: Socket;
  readonly #internal: number;
  readonly #parts: ListenerParts;
  readonly #onOver: () => void;
  readonly #startedAt: number;
  #relay: Relay | undefined;
  #stream: PortStream | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #retryMs = RETRY_MIN_MS;
  /** When the guest was first asked. */
  #askedAt: number | undefined;
  #isOver = false;

  constructor(socket: Socket, internal: number, parts: ListenerParts, onOver: () => void) {
    this.#socket = socket;
    this.#internal = internal;
    this.#parts = parts;
    this.#onOver = onOver;
    this.#startedAt = parts.now();
    socket.on("error", () => this.#relay ?? this.#finish("failed", "reset"));
    socket.on("close", () => this.#relay ?? this.#finish("failed", "reset"));
    this.#ask();
  }

  close(): void {
    if (this.#relay) this.#relay.cut("off");
    else this.#finish("failed", "off");
  }

  #ask(): void {
    const { now } = this.#parts, port = this.#parts.port();
    const isGuestThere = port.isReady;
    if (isGuestThere) this.#askedAt ??= now();
    const isLate = this.#askedAt === undefined ? now() - this.#startedAt > GUEST_READY_MS : now() - this.#askedAt > GUEST_LISTEN_MS;
    if (isLate) return this.#finish("failed", "refused");
    if (!isGuestThere) return this.#askLater();
    this.#stream = port.open({ expose: "tcp", port: this.#internal }, this.#owner());
  }

  #askLater(): void {
    this.#timer = setTimeout(() => this.#ask(), this.#retryMs);
    this.#retryMs = Math.min(RETRY_MAX_MS, this.#retryMs * 2);
  }

  #owner(): FlowOwner {
    return {
      onAccept: () => this.#connect(),
      onData: (bytes) => this.#relay?.onData(bytes),
      onEnd: () => this.#relay?.onEnd(),
      onDrain: () => this.#relay?.onDrain(),
      onGone: (code) => {
        if (this.#relay) return this.#relay.onGone(code);
        this.#stream = undefined;
        if (!this.#isOver) this.#askLater();
      },
    };
  }

  #connect(): void {
    const stream = this.#stream;
    if (!stream || this.#relay || this.#isOver) return;
    stream.widen();
    this.#relay = new Relay({
      socket: this.#socket,
      stream,
      onEnd: ({ reason, verdict }) => this.#finish(verdict === "refused" ? "failed" : verdict, reason),
    });
  }

  #finish(verdict: "allowed" | "failed", reason: NetworkReason | undefined): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearTimeout(this.#timer);
    this.#stream?.reset("reset");
    if (!this.#relay && !this.#socket.destroyed) this.#socket.resetAndDestroy();
    const { events, now } = this.#parts;
    events.emit({
      kind: "expose",
      verdict,
      reason: reason ?? null,
      port: this.#internal,
      // As seen from the guest, as everywhere: what it sent left.
      sentBytes: this.#relay?.sentBytes ?? 0,
      receivedBytes: this.#relay?.receivedBytes ?? 0,
      durationMs: Math.ceil(now() - this.#startedAt),
    });
    this.#onOver();
  }
}

async function listenUdp(spec: PortSpec, parts: ListenerParts): Promise<Listener> {
  const senders = new Map<string, { readonly stream: PortStream; timer: ReturnType<typeof setTimeout> }>();
  const socket = dgram.createSocket("udp4");
  const external = await new Promise<number>((resolve, reject) => {
    socket.once("error", (error) => reject(listenError(spec, error, parts)));
    socket.bind({ port: spec.external ?? 0, address: LISTEN_ADDRESS, exclusive: true }, () => resolve(socket.address().port));
  });
  socket.removeAllListeners("error");
  socket.on("error", () => {}); // A sender that has gone: the others have not.
  const forget = (key: string) => {
    clearTimeout(senders.get(key)?.timer);
    senders.delete(key);
  };
  const open = (key: string, port: number, address: string) => {
    if (senders.size >= SENDERS_MAX) return undefined;
    const stream = parts.port().open({ expose: "udp", port: spec.internal }, {
      onData: (bytes) => {
        socket.send(bytes, port, address);
        senders.get(key)?.stream.consumed(bytes.length);
      },
      onEnd: () => {
        senders.get(key)?.stream.finish();
        forget(key);
      },
      onGone: () => forget(key),
    });
    if (!stream) return undefined;
    const sender = { stream, timer: setTimeout(() => {}, 0) };
    senders.set(key, sender);
    parts.events.emit({ kind: "expose", verdict: "allowed", port: spec.internal });
    return sender;
  };
  socket.on("message", (bytes, { port, address }) => {
    const key = `${address} ${port}`, sender = senders.get(key) ?? open(key, port, address);
    if (!sender) return;
    clearTimeout(sender.timer);
    sender.timer = setTimeout(() => {
      sender.stream.finish();
      forget(key);
    }, SENDER_IDLE_MS);
    sender.timer.unref?.();
    sender.stream.writeDatagram(bytes);
  });
  return {
    exposed: exposedOf(spec, external),
    async [Symbol.asyncDispose]() {
      for (const [key, { stream }] of [...senders]) {
        stream.finish();
        forget(key);
      }
      await new Promise<void>((resolve) => socket.close(() => resolve()));
    },
  };
}

function exposedOf({ internal, protocol }: PortSpec, external: number): ExposedPort {
  const scheme = protocol === "tcp" ? "http" : "udp";
  return { internal, external, host: LISTEN_ADDRESS, protocol, url: `${scheme}://${LISTEN_ADDRESS}:${external}` };
}

function listenError({ internal, external, protocol }: PortSpec, error: NodeJS.ErrnoException, { holderOf }: ListenerParts): VmConfigError {
  const what = `Cannot expose port ${internal}/${protocol}: port ${external ?? 0} on ${LISTEN_ADDRESS} `;
  if (error.code === "EADDRINUSE") {
    const holder = external === undefined ? undefined : holderOf?.(external, protocol);
    return new VmConfigError(`${what}must be free, and is in use${holder === undefined ? "" : ` by ${holder}`}`, {
      cause: error,
      hint: "Without an external port, a free one is chosen.",
    });
  }
  if (error.code === "EACCES" || error.code === "EPERM") {
    const hint = "Ports below 1024 need privileges: choose one from 1024 on, or none.";
    return new VmConfigError(`${what}must be one that this user may listen on`, { cause: error, hint });
  }
  return new VmConfigError(`${what}cannot be listened on: ${error.code ?? error.message}`, { cause: error });
}
