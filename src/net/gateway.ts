/** Gateway: everything that one VM has of the network: its policy, its names, its flows and its exposed ports. */
import type { Duplex } from "node:stream";
import { VmConfigError } from "../base/errors.ts";
import { EXPOSED_PORTS_MAX } from "../base/limits.ts";
import type { Logger } from "../base/log.ts";
import type { ExposedPort } from "../base/result.ts";
import { WireError } from "../channel/wire.ts";
import { type Address, parseAddress } from "./address.ts";
import { DnsFlow, UdpFlow } from "./datagram_flow.ts";
import type { DialTarget } from "./dial.ts";
import type { NetworkEnvironment } from "./environment.ts";
import { EventGate, type OnNetworkEvent } from "./events.ts";
import { listen, type Listener, type PortSpec } from "./exposed_port.ts";
import { Names } from "./names.ts";
import { decideTcp, decideUdp, type NetworkPolicy, type Target, type Verdict } from "./policy.ts";
import { type FlowOwner, NetPort, type PortStream } from "./port.ts";
import { Resolver } from "./resolver.ts";
import { type FlowTarget, TcpFlow } from "./tcp_flow.ts";

/** Connections of one VM that are being made. */
const DIALS_MAX = 512;
/** Flows of datagrams of one VM: each is a socket of the host. */
const UDP_FLOWS_MAX = 512;
/** With no more flows than that each may have more under way. */
const WIDE_FLOWS_MAX = 64;

/** What a gateway works with. It owns the pipe. */
export interface GatewayParts {
  /** Our end of the guest's net port. */
  readonly pipe: Duplex;
  /** The VM's id. */
  readonly vm: string;
  readonly policy: NetworkPolicy;
  readonly environment: NetworkEnvironment;
  readonly log: Logger;
  /** Hears of everything. Must not throw. */
  readonly onEvent?: OnNetworkEvent | undefined;
}

/** One VM's gateway. Disposing ends every flow and listener. */
export class Gateway implements AsyncDisposable {
  readonly #parts: GatewayParts;
  readonly #names: Names;
  readonly #resolver: Resolver;
  readonly #events: EventGate;
  #port: NetPort;
  readonly #tcpFlows = new Set<TcpFlow>();
  readonly #udpFlows = new Set<UdpFlow>();
  readonly #listeners: Listener[] = [];
  #policy: NetworkPolicy;
  #isClosed = false;

  /** Serves the guest from now on. */
  constructor(parts: GatewayParts) {
    this.#parts = parts;
    this.#policy = parts.policy;
    const { environment } = parts, { now } = environment;
    this.#names = new Names(now);
    this.#events = new EventGate(parts.vm, parts.onEvent ?? (() => {}), now);
    this.#resolver = new Resolver({
      policy: () => this.#policy,
      names: this.#names,
      source: environment.names,
      pins: environment.pins,
      events: this.#events,
      hasIpv6: environment.hasIpv6(),
      ownAddresses: environment.ownAddresses,
      isProxied: (name) => environment.proxy?.isFor({ name, address: undefined, port: 443 }) ?? false,
      now,
    });
    this.#port = this.#connect(parts.pipe);
  }

  /** What the guest may reach now. */
  get policy(): NetworkPolicy {
    return this.#policy;
  }

  /** Ports that are reachable. */
  get exposedPorts(): readonly ExposedPort[] {
    return this.#listeners.map(({ exposed }) => exposed);
  }

  /** Connections and flows of datagrams that are open, either way. */
  get flowCount(): number {
    return this.#port.flowCount;
  }

  /** Changes what the guest may reach. Connections that the new policy would refuse are cut. */
  updatePolicy(policy: NetworkPolicy): void {
    this.#policy = policy;
    for (const flow of [...this.#tcpFlows, ...this.#udpFlows]) flow.review();
  }

  /** Makes a port of the guest reachable, until the gateway is disposed. Throws `VmConfigError`. */
  async expose(spec: PortSpec): Promise<ExposedPort> {
    const { environment } = this.#parts;
    if (this.#listeners.length >= EXPOSED_PORTS_MAX) {
      throw new VmConfigError(`Cannot expose port ${spec.internal}: at most ${EXPOSED_PORTS_MAX} ports may be exposed`);
    }
    const listener = await listen(spec, {
      port: () => this.#port,
      events: this.#events,
      now: environment.now,
      holderOf: environment.holderOf,
    });
    this.#listeners.push(listener);
    if (this.#isClosed) await listener[Symbol.asyncDispose]();
    return listener.exposed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    this.#port.close();
    await Promise.all(this.#listeners.map((listener) => listener[Symbol.asyncDispose]()));
    this.#events.flush();
  }

  /** Serves another machine in place of this one; it owns that pipe. Connections end; names, policy and exposed ports stay. */
  reconnect(pipe: Duplex): void {
    const before = this.#port;
    this.#port = this.#connect(pipe);
    before.close();
    if (this.#isClosed) this.#port.close();
  }

  #connect(pipe: Duplex): NetPort {
    const { vm, log } = this.#parts;
    return new NetPort(pipe, {
      onOpen: (stream, message) => this.#open(stream, message),
      onReady: () => log.debug("the guest's network is there", { vm }),
      onClosed: (violation) => this.#onClosed(violation),
    });
  }

  #onClosed(violation: WireError | undefined): void {
    if (!violation) return;
    this.#parts.log.warning("the guest broke the network's protocol and has no network any more", {
      vm: this.#parts.vm,
      reason: violation.message,
    });
    this.#events.emit({ kind: "gateway", verdict: "refused", reason: "malformed" });
  }

  #open(stream: PortStream, message: Readonly<Record<string, unknown>>): FlowOwner {
    switch (message["flow"]) {
      case "dns":
        return new DnsFlow(stream, this.#resolver, message["transport"] === "tcp" ? "tcp" : "udp");
      case "tcp":
        return this.#openTcp(stream, destinationOf(message));
      case "udp":
        return this.#openUdp(stream, destinationOf(message));
      default:
        throw new WireError("content", "a flow is tcp, udp or dns");
    }
  }

  #openTcp(stream: PortStream, { address, port }: Destination): FlowOwner {
    const { environment: { proxy, now } } = this.#parts, target = this.#targetOf(address, port, "tcp");
    const isLimited = [...this.#tcpFlows].reduce((count, flow) => count + Number(flow.isDialling), 0) >= DIALS_MAX;
    const flow: TcpFlow = new TcpFlow({
      stream,
      target: target.flow,
      decide: () => this.#decide(address, port, "tcp"),
      proxy: target.isPinned ? undefined : proxy,
      events: this.#events,
      isWide: () => this.#port.flowCount <= WIDE_FLOWS_MAX,
      now,
      onOver: () => this.#tcpFlows.delete(flow),
    });
    this.#tcpFlows.add(flow);
    flow.start(isLimited);
    return flow;
  }

  #openUdp(stream: PortStream, { address, port }: Destination): FlowOwner {
    const flow: UdpFlow = new UdpFlow({
      stream,
      target: this.#targetOf(address, port, "udp").flow,
      decide: () => this.#decide(address, port, "udp"),
      events: this.#events,
      now: this.#parts.environment.now,
      onOver: () => this.#udpFlows.delete(flow),
    });
    const isLimited = this.#udpFlows.size >= UDP_FLOWS_MAX;
    this.#udpFlows.add(flow);
    flow.start(isLimited);
    return flow;
  }

  /** Where a flow leads, whether it may or not. */
  #targetOf(address: Address, port: number, protocol: "tcp" | "udp"): { readonly flow: FlowTarget; readonly isPinned: boolean } {
    const { pins } = this.#parts.environment, known = this.#names.find(address);
    const verdict = protocol === "tcp" ? this.#decide(address, port, protocol) : undefined;
    const name = (verdict?.isAllowed ? verdict.names : undefined)?.at(-1) ?? known.names.at(-1);
    if (!known.isStandIn) return { flow: { address, port, name, dial: { address, port, name } }, isPinned: false };
    const pin = name === undefined ? undefined : pins.find(name, port);
    const to: DialTarget = pin ? { address: pin.address, port: pin.port ?? port, name: undefined } : { address: undefined, port, name };
    return { flow: { address, port, name, dial: to }, isPinned: pin !== undefined };
  }

  #decide(address: Address, port: number, protocol: "tcp" | "udp"): Verdict {
    const { pins, ownAddresses } = this.#parts.environment, { names, hasExpired, isStandIn } = this.#names.find(address);
    const target: Target = { address, port, names, hasExpired, isPinned: isStandIn };
    if (isStandIn && names.some((name) => pins.has(name) && !pins.find(name, port))) return { isAllowed: false, reason: "port" };
    if (isStandIn && protocol === "udp" && !names.some((name) => pins.has(name))) return { isAllowed: false, reason: "udp" };
    if (!isStandIn && this.#policy.kind !== "off" && ownAddresses().has(address.text)) return { isAllowed: false, reason: "own" };
    // A stand-in that is too old stands for nothing.
    if (isStandIn && names.length === 0 && this.#policy.kind !== "off") return { isAllowed: false, reason: "expired" };
    return protocol === "tcp" ? decideTcp(this.#policy, target) : decideUdp(this.#policy, target);
  }
}

interface Destination {
  readonly address: Address;
  readonly port: number;
}

function destinationOf({ address: text, port }: Readonly<Record<string, unknown>>): Destination {
  const address = typeof text === "string" ? parseAddress(text) : undefined;
  if (!address) throw new WireError("content", "a flow has an address");
  if (typeof port !== "number" || !Number.isInteger(port) || port < 0 || port > 65535) throw new WireError("content", "a flow has a port");
  return { address, port };
}
