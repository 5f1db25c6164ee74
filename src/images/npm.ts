/** npm packages that a build takes: one version each, known by its hash. */
import { createHash } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { AssetError } from "../base/errors.ts";
import type { StageContext } from "./stage.ts";

/** One version of a package, and the hash that the registry states for it. */
export interface PinnedNpmPackage {
  readonly package: string;
  readonly version: string;
  /** `sha512-` and the hash in base64. */
  readonly integrity: string;
}

/** Fetches a package and unpacks it in the stage's working directory; the path of its content. Throws `AssetError` when it is another than was pinned. */
export async function fetchNpmPackage(context: StageContext, { package: name, version, integrity }: PinnedNpmPackage): Promise<string> {
  await context.exec(["npm", "pack", "--silent", `${name}@${version}`]);
  const archive = (await fs.readdir(context.work)).find((entry) => entry.endsWith(".tgz"));
  if (archive === undefined) throw new AssetError(`Cannot fetch ${name}: npm left no archive`);
  const file = path.join(context.work, archive);
  const found = `sha512-${createHash("sha512").update(await fs.readFile(file)).digest("base64")}`;
  if (found !== integrity) throw new AssetError(`Cannot use ${name} ${version}: its hash must be ${integrity}, got ${found}`);
  await context.exec(["tar", "-xzf", file]);
  await fs.rm(file);
  return path.join(context.work, "package");
}
