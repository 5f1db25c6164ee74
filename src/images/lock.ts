/** versions.lock: what the build takes from elsewhere, with the hashes of what can be pinned. */
import fs from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import type { Arch } from "../host/platform.ts";
import { assetError } from "./assets.ts";

const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const integrity = z.string().startsWith("sha512-");
const names = z.array(z.string().regex(/^[a-z0-9][a-z0-9+.-]*$/));
const schema = z.strictObject({
  kernel: z.strictObject({ package: z.string(), suite: z.string() }),
  qemu: z.strictObject({
    package: z.string(),
    suites: z.array(z.string()).min(1),
    python: z.array(z.strictObject({ name: z.string(), version: z.string(), sha256 })),
  }),
  firmware: z.strictObject({ package: z.string(), suite: z.string(), file: z.string() }),
  rootfs: z.strictObject({ suite: z.string(), common: names, python: names, javascript: names, raw: names }),
  catalogs: z.strictObject({
    python: z.strictObject({ package: z.string(), suite: z.string() }),
    javascript: z.strictObject({ package: z.string(), version: z.string(), integrity }),
  }),
  uv: z.strictObject({
    version: z.string(),
    x86_64: z.strictObject({ platform: z.string(), sha256 }),
    aarch64: z.strictObject({ platform: z.string(), sha256 }),
  }),
  bun: z.strictObject({
    version: z.string(),
    x86_64: z.strictObject({ package: z.string(), integrity }),
    aarch64: z.strictObject({ package: z.string(), integrity }),
  }),
});

/** Content of `images/versions.lock`. */
export type VersionsLock = z.infer<typeof schema>;

/** Reads the lock of the sources in `root`. Throws `AssetError` when it is not as it must be. */
export async function readLock(root: string): Promise<VersionsLock> {
  const file = path.join(root, "images", "versions.lock");
  const parsed = schema.safeParse(JSON.parse(await fs.readFile(file, "utf8")));
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw assetError(`Cannot read ${file}: ${issue?.path.join(".")} ${issue?.message}`);
}

/** A Python package to install with pip. */
export interface PinnedWheel {
  readonly name: string;
  readonly version: string;
  readonly sha256: string;
}

/** Lines of a requirements file that pip accepts only with these hashes. */
export function requirements(wheels: readonly PinnedWheel[]): string {
  return wheels.map((wheel) => `${wheel.name}==${wheel.version} --hash=sha256:${wheel.sha256}\n`).join("");
}

/** uv's wheel for `arch`. */
export function uvWheel(lock: VersionsLock, arch: Arch): PinnedWheel & { readonly platform: string } {
  return { name: "uv", version: lock.uv.version, ...lock.uv[arch] };
}
