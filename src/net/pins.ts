/** Pins: names that the host's owner gives an address, whatever DNS says and wherever it leads: `{"db.example.com:5432": "127.0.0.1:15432"}`. */
import { InputValidationError, shown } from "../base/errors.ts";
import { type Address, parseAddress } from "./address.ts";
import { normalName } from "./domain.ts";

/** Where connections to a name go. */
export interface Pin {
  readonly address: Address;
  /** Undefined: the port that was asked for. */
  readonly port: number | undefined;
}

/** Names, or names with a port, to addresses, or addresses with a port (IPv6 then in brackets). */
export type NetworkHosts = Readonly<Record<string, string>>;

/** The pins of one scheduler. */
export class Pins {
  readonly #byName = new Map<string, Map<number | undefined, Pin>>();

  /** Throws `InputValidationError` for what is no name or no address. */
  constructor(hosts: NetworkHosts = {}) {
    for (const [from, to] of Object.entries(hosts)) {
      const [, nameText = "", portText] = /^([^:]*)(?::([1-9]\d{0,4}))?$/.exec(from) ?? [], name = normalName(nameText);
      if (name === undefined) {
        throw new InputValidationError(`Cannot set networkHosts: a key must be NAME or NAME:PORT, got ${shown(from)}`);
      }
      const pin = parsePin(to);
      if (!pin) throw new InputValidationError(`Cannot set networkHosts: a value must be ADDRESS or ADDRESS:PORT, got ${shown(to)}`);
      const ports = this.#byName.get(name) ?? new Map<number | undefined, Pin>();
      ports.set(portText === undefined ? undefined : Number(portText), pin);
      this.#byName.set(name, ports);
    }
  }

  /** These, and `hosts` besides; a name that is pinned already stays as it is. */
  with(hosts: NetworkHosts): Pins {
    const more = new Pins(hosts);
    for (const [name, ports] of this.#byName) more.#byName.set(name, ports);
    return more;
  }

  /** True when the name is pinned, on some port at least. */
  has(name: string): boolean {
    return this.#byName.has(name);
  }

  /** Where a connection to `name` and `port` goes; undefined when it is not pinned on that port. */
  find(name: string, port: number): Pin | undefined {
    const ports = this.#byName.get(name);
    return ports?.get(port) ?? ports?.get(undefined);
  }
}

function parsePin(text: unknown): Pin | undefined {
  if (typeof text !== "string") return undefined;
  const [, inner, plain, portText] = /^(?:\[([^\]]*)\]|([^:]*))(?::([1-9]\d{0,4}))?$/.exec(text) ?? [];
  const address = parseAddress(inner ?? plain ?? text) ?? parseAddress(text);
  if (!address) return undefined;
  return { address, port: portText === undefined || parseAddress(text) ? undefined : Number(portText) };
}
