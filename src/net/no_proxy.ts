/** No proxy: the list of hosts that connections are made to without the proxy, as `NO_PROXY` has it. */
import { type Address, parseAddress } from "./address.ts";
import { normalName } from "./domain.ts";

/** Where a connection goes, as far as it is known. */
export interface ProxiedTarget {
  readonly name: string | undefined;
  readonly address: Address | undefined;
  readonly port: number;
}

interface Block {
  readonly address: Address;
  readonly bits: number;
}

interface Entry {
  /** Undefined: every host. */
  readonly host: { readonly name: string } | { readonly block: Block } | undefined;
  /** Undefined: every port. */
  readonly port: number | undefined;
}

/** The hosts that are excepted. */
export class NoProxy {
  readonly #entries: readonly Entry[];
  /** Entries that are neither a name nor an address nor a block of them: they except nothing. */
  readonly unread: readonly string[];

  /** Reads names (with all below them, a dot or `*.` in front or not), addresses, blocks as `10.0.0.0/8`, each with a port or not, and `*`; between commas or blanks. */
  constructor(text: string) {
    const words = text.split(/[\s,]+/).filter((word) => word !== "");
    const read = words.map((word) => ({ word, entry: entryOf(word) }));
    this.#entries = read.flatMap(({ entry }) => entry ?? []);
    this.unread = read.filter(({ entry }) => !entry).map(({ word }) => word);
  }

  /** True when one of the entries is about `target`. */
  has({ name, address, port }: ProxiedTarget): boolean {
    return this.#entries.some((entry) => {
      if (entry.port !== undefined && entry.port !== port) return false;
      if (!entry.host) return true;
      if ("block" in entry.host) return address !== undefined && isWithin(entry.host.block, address);
      return name !== undefined && (name === entry.host.name || name.endsWith(`.${entry.host.name}`));
    });
  }
}

function entryOf(word: string): Entry | undefined {
  if (word === "*") return { host: undefined, port: undefined };
  // Before the port: the last colon of an IPv6 address leads to none.
  const block = blockOf(word);
  if (block) return { host: { block }, port: undefined };
  const [, host = word, portText] = /^(.+):(\d{1,5})$/.exec(word) ?? [], port = portText === undefined ? undefined : Number(portText);
  if (port !== undefined && port > 65_535) return undefined;
  const hostBlock = blockOf(host), name = normalName(host.replace(/^\*?\./, ""));
  if (hostBlock) return { host: { block: hostBlock }, port };
  return name === undefined ? undefined : { host: { name }, port };
}

/** An address is a block of one. */
function blockOf(text: string): Block | undefined {
  const [, host = "", bitsText] = /^([^/]*)(?:\/(.*))?$/s.exec(text) ?? [];
  const address = parseAddress(host.replace(/^\[(.*)\]$/, "$1"));
  if (!address) return undefined;
  const bitsMax = address.bytes.length * 8;
  if (bitsText === undefined) return { address, bits: bitsMax };
  return /^\d{1,3}$/.test(bitsText) && Number(bitsText) <= bitsMax ? { address, bits: Number(bitsText) } : undefined;
}

function isWithin({ address: { family, bytes }, bits }: Block, address: Address): boolean {
  return family === address.family && bytes.every((byte, at) => {
    const mask = (0xff00 >> Math.max(0, Math.min(8, bits - at * 8))) & 0xff;
    return (byte & mask) === ((address.bytes[at] ?? 0) & mask);
  });
}
