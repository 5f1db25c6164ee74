/** Name source: how the host itself finds addresses. */
import dns from "node:dns/promises";
import { type Address, parseAddress } from "./address.ts";

/** What was found. `addresses` may be empty: the name is there, without such addresses. */
export type Found =
  | { readonly kind: "found"; readonly addresses: readonly Address[]; readonly ttlSeconds: number }
  | { readonly kind: "not-found" }
  | { readonly kind: "failed" };

/** Finds the addresses of a name; CNAMEs are followed. Never rejects. */
export interface NameSource {
  find(name: string, family: 4 | 6): Promise<Found>;
}

/** The system's own look-up tells no time. */
const SYSTEM_TTL_SECONDS = 60;
const ABSENT: ReadonlySet<string> = new Set(["ENODATA", "EAI_NODATA", "ENOENT"]);
const UNKNOWN: ReadonlySet<string> = new Set(["ENOTFOUND", "EAI_NONAME"]);

/** DNS as the host has it configured, and where that knows nothing the system's own look-up, with its files and services. */
export function systemNames(): NameSource {
  return {
    async find(name, family) {
      const asked = await (family === 4 ? dns.resolve4(name, { ttl: true }) : dns.resolve6(name, { ttl: true })).then(
        (records): Found => ({
          kind: "found",
          addresses: parsed(records.map(({ address }) => address)),
          ttlSeconds: Math.min(...records.map(({ ttl }) => ttl)),
        }),
        failure,
      );
      if (asked.kind === "found" && asked.addresses.length > 0) return asked;
      const looked = await dns.lookup(`${name}.`, { family, all: true }).then(
        (records): Found => ({ kind: "found", addresses: parsed(records.map(({ address }) => address)), ttlSeconds: SYSTEM_TTL_SECONDS }),
        failure,
      );
      // A name that has only addresses of the other family is there for the first and unknown to the second.
      return looked.kind === "found" || asked.kind === "not-found" ? looked : asked;
    },
  };
}

function parsed(texts: readonly string[]): Address[] {
  return texts.map((text) => parseAddress(text)).filter((address) => address !== undefined);
}

function failure(error: NodeJS.ErrnoException): Found {
  const code = error.code ?? "";
  if (ABSENT.has(code)) return { kind: "found", addresses: [], ttlSeconds: SYSTEM_TTL_SECONDS };
  return UNKNOWN.has(code) ? { kind: "not-found" } : { kind: "failed" };
}
