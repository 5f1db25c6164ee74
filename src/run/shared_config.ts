/** Shared configuration: what a server's VMs are made with, and which of it a client would have had otherwise. */
import { createHash } from "node:crypto";
import fs from "node:fs/promises";
import type { ResolvedConfig } from "../config/config.ts";
import { readPlatform } from "../host/platform.ts";
import { defaultImagesDirectory } from "../images/assets.ts";
import type { SharedConfig } from "../link/messages.ts";

/** What each client decides for itself, and what a server keeps ready, which is its reason to be. */
const OWN_FIELDS: ReadonlySet<string> = new Set<keyof ResolvedConfig>([
  "defaultMemoryMb",
  "defaultTimeoutSeconds",
  "sessionIdleTimeoutSeconds",
  "warmPoolSize",
  "spareVms",
  "logLevel",
]);

/** All that decides what VMs are made from, and who is admitted. */
export async function sharedConfig(config: ResolvedConfig): Promise<SharedConfig> {
  const images = config.imagesDir ?? defaultImagesDirectory(config.cacheDir, readPlatform().arch);
  const shared = Object.entries(config).filter(([name]) => !OWN_FIELDS.has(name));
  return {
    ...Object.fromEntries(shared.map(([name, value]) => [name, value ?? null])),
    // Compared and told, never shown.
    s3SigningKey: config.s3SigningKey === undefined ? null : createHash("sha256").update(config.s3SigningKey).digest("hex").slice(0, 12),
    // A newer set of images takes the place of a link: then VMs of the older set are not what is asked for.
    imagesDir: await fs.realpath(images).catch(() => images), // None there: then the names are compared.
  };
}

/** Says the first difference, as `its imagesDir is …, ours …`; undefined when there is none. */
export function configDifference(theirs: SharedConfig, ours: SharedConfig): string | undefined {
  const name = Object.keys({ ...ours, ...theirs }).find((name) => theirs[name] !== ours[name]);
  return name === undefined ? undefined : `its ${name} is ${String(theirs[name])}, ours ${String(ours[name])}`;
}
