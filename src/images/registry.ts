/** Registry: where a package manager goes when nobody tells it otherwise, as its own program says. */
import type { Buffer } from "node:buffer";
import { AssetError } from "../base/errors.ts";

/** How the address stands in each program: uv's ends with the path of the simple API, Bun's host says what it is. */
const ADDRESSES = {
  uv: /https:\/\/[a-z0-9.-]+\/simple(?![a-z0-9/-])/g,
  bun: /https:\/\/registry\.[a-z0-9.-]+\//g,
} as const;

/** The default registry of `program`, whose executable is `content`: the address that stands in it most often. Throws `AssetError` when there is none. */
export function defaultRegistry(program: keyof typeof ADDRESSES, content: Buffer): string {
  const counts = new Map<string, number>();
  for (const [address] of content.toString("latin1").matchAll(ADDRESSES[program])) counts.set(address, (counts.get(address) ?? 0) + 1);
  const [most] = [...counts].sort(([, a], [, b]) => b - a);
  if (most) return most[0];
  throw new AssetError(`Cannot tell the registry of ${program}: its program must hold an address like ${String(ADDRESSES[program])}`);
}
