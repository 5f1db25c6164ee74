/** Observe: the smallest allowlist that what a VM did would have needed. Pure. */
import { HTTP_PORT, HTTPS_PORT } from "./policy.ts";
import type { NetworkEvent } from "./events.ts";

/** What was needed. */
export interface Observed {
  /** Entries for an allowlist, sorted: `NAME`, or `NAME:PORT` for other ports than those of HTTP. */
  readonly domains: readonly string[];
  /** What no allowlist gives: addresses without a name, and datagrams; `tcp 203.0.113.5:443`. */
  readonly others: readonly string[];
}

/** What `events` of a full network needed. Names that were asked for and never connected to are not. */
export function observed(events: readonly NetworkEvent[]): Observed {
  const domains = new Set<string>(), others = new Set<string>();
  for (const { kind, verdict, name, address, port } of events) {
    if ((kind !== "tcp" && kind !== "udp") || verdict === "refused" || port === null) continue;
    if (kind === "udp" || name === null) others.add(`${kind} ${address?.includes(":") ? `[${address}]` : address}:${port}`);
    else domains.add(port === HTTP_PORT || port === HTTPS_PORT ? name : `${name}:${port}`);
  }
  // A name covers what is below it.
  const isCovered = (entry: string) => {
    const [name = "", port] = entry.split(":"), labels = name.split(".");
    return labels.slice(1).some((_, at) =>
      domains.has([labels.slice(at + 1).join("."), port].filter((part) => part !== undefined).join(":"))
    );
  };
  return { domains: [...domains].filter((entry) => !isCovered(entry)).sort(), others: [...others].sort() };
}
