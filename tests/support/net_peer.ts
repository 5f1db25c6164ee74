/** Net peer: the guest's side of the net port, played by the test, and services on loopback for it to reach. */
import assert from "node:assert/strict";
import net, { type Socket } from "node:net";
import type { TestContext } from "node:test";
import { silentLogger } from "../../src/base/log.ts";
import { concat, encodeCredit, encodeFrame, type Frame, FrameDecoder, KIND, type Kind } from "../../src/channel/wire.ts";
import { parseAddress } from "../../src/net/address.ts";
import { type NetworkEnvironment } from "../../src/net/environment.ts";
import type { NetworkEvent } from "../../src/net/events.ts";
import { Gateway } from "../../src/net/gateway.ts";
import type { Found, NameSource } from "../../src/net/name_source.ts";
import { type NetworkHosts, Pins } from "../../src/net/pins.ts";
import { type NetworkPolicy, policyOf } from "../../src/net/policy.ts";
import { Proxy } from "../../src/net/dial.ts";
import { eventually, settled } from "./waiting.ts";

/** A flow as the guest sees it. */
export class PeerFlow {
  readonly id: number;
  readonly message: Readonly<Record<string, unknown>>;
  readonly chunks: Uint8Array[] = [];
  isAccepted = false;
  hasEnded = false;
  /** The code of an ERROR. */
  code: string | undefined;
  /** Credit that the host has granted beyond the first. */
  grantedBytes = 0;
  /** Gives credit back for what comes. */
  isReading = true;
  readonly #peer: NetPeer;

  /** Made by the peer. */
  constructor(peer: NetPeer, id: number, message: Readonly<Record<string, unknown>>) {
    this.#peer = peer;
    this.id = id;
    this.message = message;
  }

  /** Everything that came so far. */
  get bytes(): Uint8Array {
    return concat(...this.chunks);
  }

  /** The same as text. */
  get text(): string {
    return new TextDecoder().decode(this.bytes);
  }

  /** Resolves once the host has accepted; fails when it refuses. */
  async accepted(): Promise<this> {
    await eventually(`flow ${this.id} is accepted`, () => this.isAccepted || this.code !== undefined);
    assert.equal(this.code, undefined, "the flow was accepted");
    return this;
  }

  /** Resolves with the code of the host's ERROR. */
  async refused(): Promise<string> {
    await eventually(`flow ${this.id} is refused`, () => this.code !== undefined);
    return this.code ?? "";
  }

  /** Sends DATA, in frames as large as they may be. */
  send(data: Uint8Array | string): void {
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    for (let at = 0; at === 0 || at < bytes.length; at += 32_756) this.#peer.send(this.id, KIND.data, bytes.subarray(at, at + 32_756));
  }

  end(): void {
    this.#peer.send(this.id, KIND.end);
  }

  reset(code = "reset"): void {
    this.#peer.send(this.id, KIND.error, json({ code }));
  }

  /** For the peer. */
  receive({ kind, payload }: Frame): void {
    if (kind === KIND.accept) this.isAccepted = true;
    else if (kind === KIND.data) {
      this.chunks.push(new Uint8Array(payload));
      if (this.isReading) this.#peer.send(this.id, KIND.credit, encodeCredit(payload.length));
    } else if (kind === KIND.end) this.hasEnded = true;
    else if (kind === KIND.credit) this.grantedBytes += new DataView(payload.buffer, payload.byteOffset).getUint32(0, true);
    else if (kind === KIND.error) this.code = String(JSON.parse(new TextDecoder().decode(payload)).code);
  }
}

/** JSON as bytes. */
export const json = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));

/** The guest's end of the port. */
export class NetPeer {
  readonly socket: Socket;
  readonly received: Frame[] = [];
  readonly flows = new Map<number, PeerFlow>();
  /** What to do with a flow that the host opens; default: accept it. */
  onExpose: (flow: PeerFlow) => void = (flow) => this.send(flow.id, KIND.accept);
  #nextId = 2;

  /** Over `socket`. */
  constructor(socket: Socket) {
    this.socket = socket;
    const decoder = new FrameDecoder();
    socket.on("error", () => {}); // The gateway closes it in some tests.
    socket.on("data", (chunk: Uint8Array) => decoder.push(chunk).forEach((frame) => this.#receive(frame)));
  }

  /** True when the host has closed the port. */
  get isClosed(): boolean {
    return this.socket.readableEnded || this.socket.destroyed;
  }

  send(stream: number, kind: Kind, payload: Uint8Array = new Uint8Array(0), flags = 0): void {
    this.raw(encodeFrame({ stream, kind, payload, flags }));
  }

  raw(bytes: Uint8Array): void {
    if (!this.socket.destroyed) this.socket.write(bytes);
  }

  /** Says HELLO and waits for the host's. */
  async hello(nonce = "00112233445566778899aabbccddeeff"): Promise<void> {
    const payload = json({ protocol: 1, nonce });
    const before = this.received.filter(({ kind }) => kind === KIND.hello).length;
    this.send(0, KIND.hello, payload);
    await eventually("the host's HELLO", () => this.received.filter(({ kind }) => kind === KIND.hello).length > before);
    assert.deepEqual(this.received.filter(({ kind }) => kind === KIND.hello).at(-1)?.payload, payload);
    this.#nextId = 2;
    this.flows.clear();
  }

  /** Opens a flow. */
  open(message: Readonly<Record<string, unknown>>): PeerFlow {
    const flow = new PeerFlow(this, this.#nextId, message);
    this.#nextId += 2;
    this.flows.set(flow.id, flow);
    this.send(flow.id, KIND.open, json(message));
    return flow;
  }

  tcp(address: string, port: number): PeerFlow {
    return this.open({ flow: "tcp", address, port, source: 50_123 });
  }

  /** Asks for an address: a message of one question. */
  async ask(name: string, type = 1): Promise<{ rcode: number; addresses: string[]; ttl: number }> {
    const flow = this.open({ flow: "dns", transport: "udp", source: 50_000 });
    flow.send(question(name, type));
    await eventually(`an answer about ${name}`, () => flow.chunks.length > 0 || flow.code !== undefined);
    assert.equal(flow.code, undefined);
    flow.end();
    return readAddresses(flow.bytes);
  }

  #receive(frame: Frame): void {
    this.received.push({ ...frame, payload: new Uint8Array(frame.payload) });
    if (frame.kind === KIND.open) {
      const flow = new PeerFlow(this, frame.stream, JSON.parse(new TextDecoder().decode(frame.payload)));
      this.flows.set(flow.id, flow);
      this.onExpose(flow);
    } else this.flows.get(frame.stream)?.receive(frame);
  }
}

/** A question as resolvers send it. */
export function question(name: string, type = 1): Uint8Array {
  const labels = name.split(".").flatMap((label) => [label.length, ...new TextEncoder().encode(label)]);
  return Uint8Array.from([0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, ...labels, 0, type >> 8, type & 255, 0, 1]);
}

function readAddresses(message: Uint8Array) {
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength), addresses: string[] = [];
  let at = 12, ttl = 0;
  while (message[at]) at += 1 + (message[at] ?? 0);
  at += 5;
  for (let record = 0; record < view.getUint16(6); record++) {
    const length = view.getUint16(at + 10), bytes = message.subarray(at + 12, at + 12 + length);
    ttl = view.getUint32(at + 6);
    addresses.push(
      length === 4 ? bytes.join(".") : Array.from({ length: 8 }, (_, group) => view.getUint16(at + 12 + group * 2).toString(16)).join(":"),
    );
    at += 12 + length;
  }
  return { rcode: view.getUint16(2) & 15, addresses, ttl };
}

/** What the tests' names lead to; names that are not there are not found. */
export function namesOf(table: Readonly<Record<string, readonly string[]>>, onAsk: (name: string) => void = () => {}): NameSource {
  return {
    async find(name, family): Promise<Found> {
      onAsk(name);
      const texts = table[name];
      if (!texts) return { kind: "not-found" };
      const addresses = texts.map((text) => parseAddress(text)).filter((address) => address?.family === family).filter((address) =>
        address !== undefined
      );
      return { kind: "found", addresses, ttlSeconds: 60 };
    },
  };
}

/** What a test may choose. */
export interface GatewayOptions {
  readonly policy?: NetworkPolicy;
  readonly domains?: string[];
  readonly hosts?: NetworkHosts;
  readonly names?: NameSource;
  readonly proxy?: Readonly<Record<string, string>>;
  readonly environment?: Partial<NetworkEnvironment>;
}

/** A gateway, the guest's side of it, and what it told. Disposed with the test. */
export interface GatewayPeer {
  readonly gateway: Gateway;
  readonly peer: NetPeer;
  readonly events: NetworkEvent[];
  /** Lets time pass for the gateway. */
  advance(ms: number): void;
  /** The events as `kind verdict reason name address:port`. */
  told(): string[];
}

/** Connects a gateway and a peer that has not said HELLO. */
export async function gatewayPeer(t: TestContext, options: GatewayOptions = {}): Promise<GatewayPeer> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const arriving = new Promise<Socket>((resolve) => server.once("connection", resolve));
  const pipe = net.connect({ port: (server.address() as net.AddressInfo).port, host: "127.0.0.1" });
  const peer = new NetPeer(await settled(arriving, "the pipe"));
  server.close();
  // A pair of sockets has no such delay.
  for (const socket of [pipe, peer.socket]) socket.setNoDelay(true);
  const events: NetworkEvent[] = [];
  let passedMs = 0;
  const gateway = new Gateway({
    pipe,
    vm: "vm-test",
    policy: options.policy ?? policyOf({ allowedDomains: options.domains ?? [] }, "run"),
    environment: {
      names: options.names ?? namesOf({}),
      pins: new Pins(options.hosts),
      proxy: options.proxy ? Proxy.of(options.proxy) : undefined,
      hasIpv6: () => true,
      ownAddresses: () => new Set(["192.0.2.77"]),
      now: () => performance.now() + passedMs,
      ...options.environment,
    },
    log: silentLogger(),
    onEvent: (event) => void events.push(event),
  });
  t.after(async () => {
    await gateway[Symbol.asyncDispose]();
    peer.socket.destroy();
  });
  const told = () =>
    events.map(({ kind, verdict, reason, name, address, port }) =>
      [kind, verdict, reason ?? "-", name ?? "-", `${address ?? "-"}:${port ?? "-"}`].join(" ")
    );
  return { gateway, peer, events, advance: (ms) => void (passedMs += ms), told };
}

/** A TCP service on loopback, closed with the test. */
export async function service(t: TestContext, onConnection: (socket: Socket) => void): Promise<number> {
  const sockets = new Set<Socket>();
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.on("error", () => {}); // Some tests reset it.
    onConnection(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    return new Promise<void>((resolve) => server.close(() => resolve()));
  });
  return (server.address() as net.AddressInfo).port;
}

/** A service that sends back what it gets, and ends when its client does. */
export const echo = (socket: Socket): void => void socket.pipe(socket);
