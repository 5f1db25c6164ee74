/** Network environment: what the gateways of one scheduler share: how the host finds names, connects, and which addresses are its own. */
import os from "node:os";
import type { Logger } from "../base/log.ts";
import { classOf, parseAddress } from "./address.ts";
import { Proxy } from "./dial.ts";
import { type NameSource, systemNames } from "./name_source.ts";
import { Pins } from "./pins.ts";

/** The host's interfaces are asked again after this time: a laptop moves from net to net. */
const OWN_ADDRESSES_MS = 5_000;

/** What every gateway of a scheduler is given. */
export interface NetworkEnvironment {
  readonly names: NameSource;
  readonly pins: Pins;
  /** The proxy of the host's environment. */
  readonly proxy: Proxy | undefined;
  /** The host reaches IPv6 addresses. */
  readonly hasIpv6: () => boolean;
  /** The host's own addresses, in their canonical text: services on them were not meant for guests. */
  readonly ownAddresses: () => ReadonlySet<string>;
  /** Who may hold a port that is taken, in words. */
  readonly holderOf?: ((port: number, protocol: "tcp" | "udp") => string | undefined) | undefined;
  /** Counts milliseconds. */
  readonly now: () => number;
}

/** The environment of this host. Throws `InputValidationError` for pins or a proxy that are none. */
export function hostNetwork(
  options: {
    readonly env: Readonly<Record<string, string | undefined>>;
    readonly pins?: Pins | undefined;
    readonly names?: NameSource | undefined;
    readonly holderOf?: NetworkEnvironment["holderOf"];
    /** Is told what of the environment could not be read. */
    readonly log?: Logger | undefined;
  },
): NetworkEnvironment {
  let own: ReadonlySet<string> = new Set(), readAt = -Infinity;
  const ownAddresses = () => {
    if (performance.now() - readAt > OWN_ADDRESSES_MS) {
      own = readOwnAddresses();
      readAt = performance.now();
    }
    return own;
  };
  const proxy = Proxy.of(options.env);
  for (const entry of proxy?.unreadExceptions ?? []) {
    options.log?.warning("an entry of NO_PROXY is neither a name, an address nor a block of addresses, and excepts nothing", { entry });
  }
  return {
    names: options.names ?? systemNames(),
    pins: options.pins ?? new Pins(),
    proxy,
    hasIpv6: () => [...ownAddresses()].some((text) => text.includes(":") && isPublic(text)),
    ownAddresses,
    holderOf: options.holderOf,
    now: () => performance.now(),
  };
}

function readOwnAddresses(): ReadonlySet<string> {
  const texts = Object.values(os.networkInterfaces()).flatMap((entries) => (entries ?? []).map(({ address }) => address));
  return new Set(texts.map((text) => parseAddress(text.split("%")[0] ?? "")?.text).filter((text) => text !== undefined));
}

function isPublic(text: string): boolean {
  const address = parseAddress(text);
  return address !== undefined && classOf(address) === undefined;
}
