/** Policy: what a guest may reach. Pure: a name, an address and a port in, a verdict out. */
import { InputValidationError, shown } from "../base/errors.ts";
import { type Address, type AddressClass, classOf } from "./address.ts";
import { covers, type DomainRule, freePart, parseRule } from "./domain.ts";

/** Entries of one allowlist. */
export const DOMAIN_RULES_MAX = 1_000;
/** The port whose connections must begin with TLS for an allowed name. */
export const HTTPS_PORT = 443;
/** The port whose connections must be HTTP/1 for an allowed name. */
export const HTTP_PORT = 80;

/** What a guest may reach. */
export type NetworkPolicy =
  | { readonly kind: "off" }
  /** Everything but private, loopback, link-local and other special addresses. */
  | { readonly kind: "full" }
  | { readonly kind: "allowlist"; readonly rules: readonly DomainRule[] };

/** Why something was refused, or failed. */
export type NetworkReason =
  | AddressClass
  /** There is no outbound network, or there is none any more. */
  | "off"
  /** The name is not on the list. */
  | "name"
  /** The address was never handed out to this VM for a name on the list. */
  | "not-resolved"
  /** It was, and the answer is too old by now. */
  | "expired"
  /** The name is allowed, on other ports. */
  | "port"
  /** Datagrams, with an allowlist. */
  | "udp"
  /** The request is none, or asks for what is never given. */
  | "malformed"
  | "not-tls"
  | "no-server-name"
  | "server-name"
  | "encrypted-client-hello"
  | "not-http"
  | "http2"
  | "connect"
  | "no-host"
  | "host"
  | "smuggling"
  | "upgrade"
  | "incomplete"
  /** Too many, too fast, or too large. */
  | "limit"
  /** The far side's doing, or the network's. */
  | "refused"
  | "unreachable"
  | "timeout"
  | "reset"
  | "not-found"
  | "proxy";

/** How the first bytes of a connection are checked. */
export type Inspection = "tls" | "http" | "none";

/** Whether a connection may be made. */
export type Verdict =
  /** `names` is what TLS or HTTP must ask for; undefined: nothing is checked. */
  | { readonly isAllowed: true; readonly inspection: Inspection; readonly names: readonly string[] | undefined }
  | { readonly isAllowed: false; readonly reason: NetworkReason };

/** What is known of where a guest wants to connect to. */
export interface Target {
  readonly address: Address;
  readonly port: number;
  /** Names that the address was handed out for to this VM, and that are still valid. */
  readonly names: readonly string[];
  /** There were names, which are too old now. */
  readonly hasExpired: boolean;
  /** The host's owner gave the name this address: its class does not count. */
  readonly isPinned: boolean;
}

/**
 * The policy that two fields of a request ask for: without either there is no network; `allowNetwork` alone is a full one; a list, also an
 * empty one, allows what is on it. Throws `InputValidationError`; nothing has started then.
 */
export function policyOf(
  request: { readonly allowNetwork?: unknown; readonly allowedDomains?: unknown },
  action: string,
): NetworkPolicy {
  const { allowNetwork, allowedDomains } = request;
  if (allowNetwork !== undefined && typeof allowNetwork !== "boolean") {
    throw new InputValidationError(`Cannot ${action}: allowNetwork must be true or false, got ${shown(allowNetwork)}`);
  }
  if (allowedDomains === undefined) return { kind: allowNetwork === true ? "full" : "off" };
  if (!Array.isArray(allowedDomains)) {
    throw new InputValidationError(`Cannot ${action}: allowedDomains must be an array of strings, got ${shown(allowedDomains)}`);
  }
  if (allowedDomains.length > DOMAIN_RULES_MAX) {
    throw new InputValidationError(
      `Cannot ${action}: allowedDomains must have at most ${DOMAIN_RULES_MAX} entries, got ${allowedDomains.length}`,
    );
  }
  const rules = Array.from(allowedDomains, (text: unknown) => parseRule(text, action));
  if (allowNetwork === false) {
    if (rules.length === 0) return { kind: "off" };
    throw new InputValidationError(
      `Cannot ${action}: allowedDomains must be empty where allowNetwork is false, got ${rules.length} entries`,
    );
  }
  return { kind: "allowlist", rules };
}

/** True when a guest may learn the addresses of `name`. */
export function mayResolve(policy: NetworkPolicy, name: string): boolean {
  if (policy.kind === "allowlist") return policy.rules.some((rule) => covers(rule, name));
  return policy.kind === "full";
}

/** How many characters of `name` the guest could have chosen to send something out, for all that the policy says. */
export function freeChars(policy: NetworkPolicy, name: string): number {
  if (policy.kind !== "allowlist") return 0; // With a full network there are easier ways.
  const parts = policy.rules.filter((rule) => covers(rule, name)).map((rule) => freePart(rule, name).length);
  return parts.length === 0 ? name.length : Math.min(...parts);
}

/** Whether a TCP connection may be made, and what it must show first. */
export function decideTcp(policy: NetworkPolicy, target: Target): Verdict {
  const refused = refusalOf(policy, target);
  if (refused !== undefined) return { isAllowed: false, reason: refused };
  const { port, names, hasExpired } = target, inspection = inspectionOf(port);
  if (policy.kind !== "allowlist") return { isAllowed: true, inspection, names: undefined };
  const allowed = names.filter((name) => policy.rules.some((rule) => covers(rule, name) && opens(rule, port)));
  if (allowed.length > 0) return { isAllowed: true, inspection, names: allowed };
  if (names.some((name) => mayResolve(policy, name))) return { isAllowed: false, reason: "port" };
  return { isAllowed: false, reason: names.length > 0 ? "name" : hasExpired ? "expired" : "not-resolved" };
}

/** Whether datagrams may be sent. */
export function decideUdp(policy: NetworkPolicy, target: Target): Verdict {
  const refused = refusalOf(policy, target) ?? (policy.kind === "allowlist" ? "udp" : undefined);
  if (refused !== undefined) return { isAllowed: false, reason: refused };
  return { isAllowed: true, inspection: "none", names: undefined };
}

/** Whether the name that TLS or HTTP shows is one of a verdict's. */
export function isNameIn(names: readonly string[] | undefined): (name: string) => boolean {
  return (name) => names === undefined || names.includes(name);
}

function refusalOf(policy: NetworkPolicy, { address, isPinned }: Target): NetworkReason | undefined {
  if (policy.kind === "off") return "off";
  return isPinned ? undefined : classOf(address);
}

function inspectionOf(port: number): Inspection {
  return port === HTTPS_PORT ? "tls" : port === HTTP_PORT ? "http" : "none";
}

function opens(rule: DomainRule, port: number): boolean {
  return rule.port === undefined ? port === HTTP_PORT || port === HTTPS_PORT : rule.port === port;
}
