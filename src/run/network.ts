/** Network: the gateway of one machine, made when it is first needed: most machines have no network. */
import { delay } from "../base/async.ts";
import { SessionClosedError, VmConfigError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import type { ExposedPort } from "../base/result.ts";
import type { NetworkEnvironment } from "../net/environment.ts";
import type { PortSpec } from "../net/exposed_port.ts";
import type { Gateway } from "../net/gateway.ts";
import type { Pins } from "../net/pins.ts";
import type { NetworkPolicy } from "../net/policy.ts";
import type { Machine } from "./machine.ts";
import type { CheckedNetwork } from "./network_request.ts";
import { guarded } from "./output.ts";

/** What a program has closed is on its way for milliseconds, of an emulated machine some more. What it leaves open may stay so for ever. */
const DRAIN_MS = 250;
const DRAIN_POLL_MS = 4;
const NO_NETWORK = { hint: "Ask for the network, or a port, when the VM is started." };

/** What the networks of one scheduler share, found when the first of them is needed. */
export interface NetworkSupport {
  readonly environment: NetworkEnvironment;
  /** Certificates for the guest, in PEM. */
  readonly certificates: Uint8Array;
}

/** What a machine's network is made of. */
export interface MachineNetworkParts {
  readonly machine: Machine;
  readonly request: CheckedNetwork;
  readonly support: () => Promise<NetworkSupport>;
  readonly log: Logger;
}

/** The network of one machine. Disposing ends every connection and listener. */
export class MachineNetwork implements AsyncDisposable {
  readonly #parts: MachineNetworkParts;
  #machine: Machine;
  #gateway: Promise<Gateway> | undefined;
  #open: Gateway | undefined;
  #support: NetworkSupport | undefined;
  #answered: Promise<void> = Promise.resolve();
  #isOutbound: boolean | undefined;
  #isDisposed = false;

  private constructor(parts: MachineNetworkParts) {
    this.#parts = parts;
    this.#machine = parts.machine;
  }

  /**
   * Has everything that was asked for in place, so far as the host can: the ports listen, and what is sent to the guest after this finds its
   * network. Throws `VmConfigError` when a port cannot be had. The caller owns it.
   */
  static async open(parts: MachineNetworkParts): Promise<MachineNetwork> {
    await using stack = new AsyncDisposableStack();
    const network = stack.use(new MachineNetwork(parts)), { policy, ports, onExposedPorts } = parts.request;
    if (needsNet(parts.request)) {
      const gateway = await network.#start();
      for (const port of ports) await gateway.expose(port);
      network.#tellGuest(policy);
      if (ports.length > 0) guarded(onExposedPorts, "onExposedPorts", parts.log)?.(gateway.exposedPorts);
    }
    stack.move();
    return network;
  }

  /** It was asked for something, now or before. */
  get isUsed(): boolean {
    return this.#gateway !== undefined;
  }

  /** What the guest may reach now. */
  get policy(): NetworkPolicy {
    return this.#open?.policy ?? this.#parts.request.policy;
  }

  /** Ports that are reachable. */
  get exposedPorts(): readonly ExposedPort[] {
    return this.#open?.exposedPorts ?? [];
  }

  /** Resolves when the guest has set its network up; rejects when it cannot. */
  async answered(): Promise<void> {
    await this.#answered;
  }

  /** Lets what the code has sent and closed arrive: resolves when no connection is open any more, at the latest after a moment. */
  async drained(): Promise<void> {
    const giveUpAt = performance.now() + DRAIN_MS;
    while (this.#open && this.#open.flowCount > 0 && performance.now() < giveUpAt) await delay(DRAIN_POLL_MS);
  }

  /** Changes what the guest may reach; connections that are not allowed any more are cut. */
  async update(policy: NetworkPolicy): Promise<void> {
    const gateway = await this.#start();
    gateway.updatePolicy(policy);
    this.#tellGuest(policy);
    await this.#answered;
  }

  /** Makes a port of the guest reachable. Throws `VmConfigError`. */
  async expose(port: PortSpec): Promise<ExposedPort> {
    const gateway = await this.#start();
    const exposed = await gateway.expose(port);
    if (this.#isOutbound === undefined) this.#tellGuest(gateway.policy);
    await this.#answered;
    return exposed;
  }

  /** Another machine takes the place of this one: its connections end, ports and policy stay. */
  moveTo(machine: Machine): void {
    this.#machine = machine;
    const gateway = this.#open;
    if (!gateway || !machine.net) return;
    gateway.reconnect(machine.net);
    const wasTold = this.#isOutbound !== undefined;
    this.#isOutbound = undefined;
    if (wasTold) this.#tellGuest(gateway.policy);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isDisposed = true;
    // One that could not be made has told whoever asked for it.
    const gateway = await this.#gateway?.catch(() => undefined);
    await gateway?.[Symbol.asyncDispose]();
  }

  #start(): Promise<Gateway> {
    this.#gateway ??= this.#make();
    return this.#gateway;
  }

  async #make(): Promise<Gateway> {
    const { request, support, log } = this.#parts, { id, net } = this.#machine;
    if (!net) throw noNetwork();
    const [{ Gateway }, found] = await Promise.all([import("../net/gateway.ts"), support()]), { environment } = found;
    this.#support = found;
    if (this.#isDisposed) throw new SessionClosedError("Cannot use the network: its machine is closed");
    const onEvent = guarded(request.onNetworkEvent, "onNetworkEvent", log);
    this.#open = new Gateway({ pipe: net, vm: id, policy: request.policy, environment, log, onEvent });
    return this.#open;
  }

  /** Sends at once; `answered` tells how that went. */
  #tellGuest({ kind }: NetworkPolicy): void {
    const outbound = kind !== "off";
    if (this.#isOutbound === outbound) return;
    const isFirst = this.#isOutbound !== true;
    this.#isOutbound = outbound;
    const ca = outbound && isFirst ? this.#support?.certificates : undefined;
    this.#answered = this.#machine.guest.network({ outbound, ipv6: this.#support?.environment.hasIpv6() ?? false, ...(ca ? { ca } : {}) });
    this.#answered.catch(() => {}); // Whoever waits sees it.
  }
}

/** A request for a machine needs the net port. */
export function needsNet({ policy, ports }: CheckedNetwork): boolean {
  return policy.kind !== "off" || ports.length > 0;
}

/** The network of a session. Throws `VmConfigError` where there is none to be had. */
export function networkOf({ network }: { readonly network: MachineNetwork | undefined }, action: string): MachineNetwork {
  if (network) return network;
  throw new VmConfigError(`Cannot ${action}: the VM of this session has no network`, NO_NETWORK);
}

/** Finds what networks share when the first needs it. */
export function networkFinder(
  options: { readonly pins: Pins; readonly env: Readonly<Record<string, string | undefined>>; readonly log: Logger },
): () => Promise<NetworkSupport> {
  const { pins, env, log } = options;
  let found: Promise<NetworkSupport> | undefined;
  return () =>
    found ??= (async () => {
      const [{ hostNetwork }, { extraCertificates }, { portHolder }] = await Promise.all([
        import("../net/environment.ts"),
        import("../net/extra_ca.ts"),
        import("../host/port_holder.ts"),
      ]);
      return { environment: hostNetwork({ env, pins, holderOf: portHolder, log }), certificates: await extraCertificates(env, log) };
    })();
}

function noNetwork(): VmConfigError {
  return new VmConfigError("Cannot use the network: the VM has no port for it", NO_NETWORK);
}
