/** Network requests: what a caller may say about a VM's network and its ports, and the checks. */
import { InputValidationError, shown, VmConfigError } from "../base/errors.ts";
import { EXPOSED_PORTS_MAX } from "../base/limits.ts";
import type { ExposedPort } from "../base/result.ts";
import type { NetworkEvent } from "../net/events.ts";
import type { PortSpec } from "../net/exposed_port.ts";
import { type NetworkPolicy, policyOf } from "../net/policy.ts";
import { checkCallback, checkFields } from "./check.ts";

/** A port of the guest that is to be reachable on the host's loopback. */
export interface PortRequest {
  /** In the guest, 1-65535. */
  readonly internal: number;
  /** On the host, 1-65535; default: any that is free. */
  readonly external?: number;
  /** Default `tcp`. */
  readonly protocol?: "tcp" | "udp";
}

/** What code may reach. */
export interface NetworkAccess {
  /** True without `allowedDomains`: everything but private, loopback, link-local and other special addresses. Default false. */
  readonly allowNetwork?: boolean;
  /**
   * Names that may be reached, and nothing else: `api.example.com` and all below it, `*.example.com` for what is below alone,
   * `db.example.com:5432` for another TCP port. An empty list is nothing at all. Implies `allowNetwork`.
   */
  readonly allowedDomains?: readonly string[];
}

/** A VM's network, as part of a request. */
export interface NetworkFields extends NetworkAccess {
  /** Ports of the guest reachable on 127.0.0.1, at most 10; listening before the code starts, until the VM ends. They need no network. */
  readonly exposePorts?: ReadonlyArray<number | PortRequest>;
  /** Told of each name asked for and each connection made or refused. One that throws is logged once and called no more. */
  readonly onNetworkEvent?: (event: NetworkEvent) => void;
  /** Told once, before the code starts, where the exposed ports are. */
  readonly onExposedPorts?: (ports: readonly ExposedPort[]) => void;
}

/** The names of the fields. */
export const NETWORK_FIELDS: ReadonlyArray<keyof NetworkFields> = [
  "allowNetwork",
  "allowedDomains",
  "exposePorts",
  "onNetworkEvent",
  "onExposedPorts",
];

/** The same, checked. */
export interface CheckedNetwork {
  readonly policy: NetworkPolicy;
  readonly ports: readonly PortSpec[];
  readonly onNetworkEvent: NetworkFields["onNetworkEvent"];
  readonly onExposedPorts: NetworkFields["onExposedPorts"];
}

/** Checks the fields. Throws `InputValidationError` for domains, `VmConfigError` for ports. */
export function checkNetwork(action: string, request: NetworkFields): CheckedNetwork {
  return {
    policy: policyOf(request, action),
    ports: checkPorts(action, request.exposePorts),
    onNetworkEvent: checkCallback(action, "onNetworkEvent", request.onNetworkEvent),
    onExposedPorts: checkCallback(action, "onExposedPorts", request.onExposedPorts),
  };
}

/** At most ten ports, none twice. */
export function checkPorts(action: string, ports: unknown): PortSpec[] {
  if (ports === undefined) return [];
  if (!Array.isArray(ports)) throw new InputValidationError(`Cannot ${action}: exposePorts must be an array, got ${shown(ports)}`);
  if (ports.length > EXPOSED_PORTS_MAX) {
    throw new VmConfigError(`Cannot ${action}: exposePorts must have at most ${EXPOSED_PORTS_MAX} ports, got ${ports.length}`);
  }
  const specs = Array.from(ports, (port: unknown) => checkPort(action, port));
  for (const [at, { internal, external, protocol }] of specs.entries()) {
    const earlier = specs.slice(0, at).filter((other) => other.protocol === protocol);
    const twice = (side: string, port: number) =>
      new VmConfigError(`Cannot ${action}: each ${side} port must be exposed once, got ${port}/${protocol} twice`);
    if (earlier.some((other) => other.internal === internal)) throw twice("internal", internal);
    if (external !== undefined && earlier.some((other) => other.external === external)) throw twice("external", external);
  }
  return specs;
}

const PORT_FIELDS: ReadonlySet<string> = new Set<keyof PortRequest>(["internal", "external", "protocol"]);

/** One port: a number, or an object. */
export function checkPort(action: string, port: unknown): PortSpec {
  if (typeof port !== "object" || port === null) {
    return { internal: portNumber(action, "internal", port), external: undefined, protocol: "tcp" };
  }
  const { internal, external, protocol = "tcp" } = checkFields(action, port as Record<string, unknown>, PORT_FIELDS, "a port");
  if (protocol !== "tcp" && protocol !== "udp") {
    throw new VmConfigError(`Cannot ${action}: protocol must be "tcp" or "udp", got ${shown(protocol)}`);
  }
  return {
    internal: portNumber(action, "internal", internal),
    external: external === undefined ? undefined : portNumber(action, "external", external),
    protocol,
  };
}

function portNumber(action: string, name: string, port: unknown): number {
  if (typeof port === "number" && Number.isInteger(port) && port >= 1 && port <= 65535) return port;
  throw new VmConfigError(`Cannot ${action}: the ${name} port must be a whole number between 1 and 65535, got ${shown(port)}`);
}

const ACCESS_FIELDS: ReadonlySet<string> = new Set<keyof NetworkAccess>(["allowNetwork", "allowedDomains"]);

/** What code may reach from now on. */
export function checkAccess(action: string, access: NetworkAccess): NetworkPolicy {
  return policyOf(checkFields(action, access, ACCESS_FIELDS, "the access"), action);
}

/** The access that a policy gives, in the words of a request. */
export function accessOf(policy: NetworkPolicy): NetworkAccess {
  return policy.kind === "allowlist" ? { allowedDomains: policy.rules.map(({ text }) => text) } : { allowNetwork: policy.kind === "full" };
}

/** The network of a copy: what `given` says, and where it says nothing as in the session it is a copy of. Fixed host ports are that session's own. */
export function inherited(given: NetworkFields, checked: CheckedNetwork, base: CheckedNetwork): CheckedNetwork {
  const hasAccess = given.allowNetwork !== undefined || given.allowedDomains !== undefined;
  return {
    policy: hasAccess ? checked.policy : base.policy,
    ports: given.exposePorts === undefined ? base.ports.map((port) => ({ ...port, external: undefined })) : checked.ports,
    onNetworkEvent: checked.onNetworkEvent ?? base.onNetworkEvent,
    onExposedPorts: checked.onExposedPorts ?? base.onExposedPorts,
  };
}
