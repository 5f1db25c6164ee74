/** Addresses: IPv4 and IPv6 text to bytes, and which of them no guest may ever be connected to. */
import { isIP } from "node:net";

/** An address in one spelling only. */
export interface Address {
  readonly family: 4 | 6;
  /** 4 or 16. */
  readonly bytes: Uint8Array;
  /** Canonical: two equal addresses have equal texts. */
  readonly text: string;
}

/** Why an address is refused whatever the policy says. */
export type AddressClass =
  | "unspecified"
  | "private"
  | "loopback"
  | "link-local"
  | "metadata"
  | "carrier-nat"
  | "multicast"
  | "reserved"
  | "translated"
  | "own";

/** The address that `text` is, in its strict form: four decimal numbers, or RFC 4291's without a zone. Anything else is undefined. */
export function parseAddress(text: string): Address | undefined {
  const family = isIP(text);
  if (family === 4) {
    const parts = text.split(".");
    // "010" is eight to some programs and ten to others.
    if (parts.some((part) => part.length > 1 && part.startsWith("0"))) return undefined;
    return { family: 4, bytes: Uint8Array.from(parts, Number), text };
  }
  if (family !== 6 || text.includes("%")) return undefined;
  const bytes = bytesOfV6(text);
  return bytes && { family: 6, bytes, text: textOfV6(bytes) };
}

/** The address with these 4 or 16 bytes. */
export function addressOf(bytes: Uint8Array): Address {
  if (bytes.length === 4) return { family: 4, bytes, text: bytes.join(".") };
  return { family: 6, bytes, text: textOfV6(bytes) };
}

/**
 * What stands against connecting to an address; undefined for those of the public internet. The ranges are IANA's special-purpose registries
 * (RFC 6890 and its updates); the documentation ranges are let through: nothing answers there, and a refusal would hide that.
 */
export function classOf(address: Address): AddressClass | undefined {
  return address.family === 4 ? classOfV4(address.bytes) : classOfV6(address.bytes);
}

type Block = readonly [prefix: readonly number[], bits: number, is: AddressClass];

const V4_BLOCKS: readonly Block[] = [
  [[0, 0, 0, 0], 8, "unspecified"],
  [[10, 0, 0, 0], 8, "private"],
  [[100, 100, 100, 200], 32, "metadata"],
  [[100, 64, 0, 0], 10, "carrier-nat"],
  [[127, 0, 0, 0], 8, "loopback"],
  // Azure's, in the middle of public space.
  [[168, 63, 129, 16], 32, "metadata"],
  [[169, 254, 169, 254], 32, "metadata"],
  [[169, 254, 170, 2], 32, "metadata"],
  [[169, 254, 0, 0], 16, "link-local"],
  [[172, 16, 0, 0], 12, "private"],
  [[192, 0, 0, 192], 32, "metadata"],
  [[192, 0, 0, 0], 24, "reserved"],
  [[192, 168, 0, 0], 16, "private"],
  [[198, 18, 0, 0], 15, "reserved"],
  [[224, 0, 0, 0], 4, "multicast"],
  [[240, 0, 0, 0], 4, "reserved"],
];

const V6_BLOCKS: readonly Block[] = [
  [[0xfd, 0x00, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54], 128, "metadata"],
  [[0xfc], 7, "private"],
  [[0xfe, 0x80], 10, "link-local"],
  [[0xfe, 0xc0], 10, "private"],
  [[0xff], 8, "multicast"],
  [[0x20, 0x01, 0x00, 0x00], 32, "translated"], // Teredo.
];

function classOfV4(bytes: Uint8Array): AddressClass | undefined {
  return V4_BLOCKS.find((block) => isWithin(bytes, block))?.[2];
}

function classOfV6(bytes: Uint8Array): AddressClass | undefined {
  const isZero = (from: number, to: number) => bytes.subarray(from, to).every((byte) => byte === 0);
  if (isZero(0, 15)) return bytes[15] === 0 ? "unspecified" : bytes[15] === 1 ? "loopback" : "translated";
  // An address of the other family in disguise is never needed: the guest has that family too. What it hides names the class, where it has one.
  if (isZero(0, 10) && bytes[10] === 0xff && bytes[11] === 0xff) return classOfV4(bytes.subarray(12)) ?? "translated";
  if (isZero(0, 12)) return classOfV4(bytes.subarray(12)) ?? "translated";
  if (isWithin(bytes, [[0x20, 0x02], 16, "translated"])) return classOfV4(bytes.subarray(2, 6)); // 6to4
  if (isWithin(bytes, [[0x00, 0x64, 0xff, 0x9b], 32, "translated"]) && isZero(4, 12)) return classOfV4(bytes.subarray(12)); // NAT64
  const known = V6_BLOCKS.find((block) => isWithin(bytes, block));
  if (known) return known[2];
  // Nothing but 2000::/3 has been given to anybody.
  return isWithin(bytes, [[0x20], 3, "reserved"]) ? undefined : "reserved";
}

function isWithin(bytes: Uint8Array, [prefix, bits]: Block): boolean {
  for (let bit = 0; bit < bits; bit += 8) {
    const mask = bits - bit >= 8 ? 0xff : (0xff00 >> (bits - bit)) & 0xff, at = bit / 8;
    if (((bytes[at] ?? 0) & mask) !== ((prefix[at] ?? 0) & mask)) return false;
  }
  return true;
}

/** `text` is known to be an IPv6 address. */
function bytesOfV6(text: string): Uint8Array | undefined {
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  const hex = (high?: string, low?: string) => (Number(high) * 256 + Number(low)).toString(16);
  const plain = dotted ? `${dotted[1]}${hex(dotted[2], dotted[3])}:${hex(dotted[4], dotted[5])}` : text;
  const [head = "", tail] = plain.split("::");
  const groups = (part: string) => part === "" ? [] : part.split(":");
  const before = groups(head), after = groups(tail ?? "");
  const gap = tail === undefined ? 0 : 8 - before.length - after.length;
  const all = [...before, ...Array.from({ length: gap }, () => "0"), ...after].map((group) => Number.parseInt(group, 16));
  if (all.length !== 8 || all.some((group) => !(group >= 0 && group <= 0xffff))) return undefined;
  return Uint8Array.from(all.flatMap((group) => [group >> 8, group & 0xff]));
}

/** RFC 5952, in hexadecimal throughout. */
function textOfV6(bytes: Uint8Array): string {
  const groups = Array.from({ length: 8 }, (_, at) => (((bytes[at * 2] ?? 0) << 8) | (bytes[at * 2 + 1] ?? 0)).toString(16));
  let best = { at: 0, length: 1 };
  for (let at = 0; at < 8; at++) {
    let length = 0;
    while (groups[at + length] === "0") length += 1;
    if (length > best.length) best = { at, length };
  }
  if (best.length < 2) return groups.join(":");
  return `${groups.slice(0, best.at).join(":")}::${groups.slice(best.at + best.length).join(":")}`;
}
