/** Verification: every byte of the images against the hashes of their manifest, and their removal. */
import fs from "node:fs/promises";
import path from "node:path";
import { AssetError, messageOf } from "../base/errors.ts";
import { sha256File } from "../host/files.ts";
import { assetError, type AssetFile, MANIFEST_NAME, openAssets, readManifest } from "./assets.ts";
import type { OnBuildProgress } from "./progress.ts";
import { setsDirectory } from "./publish.ts";

/** What a verification found about one file. */
export interface VerifiedFile {
  readonly name: string;
  readonly size: number;
  readonly sha256: string;
}

/** Options of `verifyAssets`. */
export interface VerifyOptions {
  readonly onProgress?: OnBuildProgress;
  readonly signal?: AbortSignal;
}

/** Hashes every file of `directory`. Throws an `AssetError` for the first wrong one; it names the file and both hashes. */
export async function verifyAssets(directory: string, options: VerifyOptions = {}): Promise<readonly VerifiedFile[]> {
  const assets = await openAssets(directory);
  const total = assets.files.reduce((sum, file) => sum + file.size, 0);
  const verified: VerifiedFile[] = [];
  let done = 0;
  for (const file of assets.files) {
    options.onProgress?.({ task: "verify", message: file.name, percent: total === 0 ? 100 : done / total * 100 });
    await verifyFile(file, options.signal);
    done += file.size;
    verified.push({ name: file.name, size: file.size, sha256: file.sha256 });
  }
  options.onProgress?.({ task: "verify", message: `${verified.length} files are as the manifest says`, isDone: true });
  return verified;
}

/** Hashes one file. Throws `AssetError` when the hash is not the manifest's. */
export async function verifyFile(file: Pick<AssetFile, "path" | "sha256">, signal?: AbortSignal): Promise<void> {
  let found: string;
  try {
    found = await sha256File(file.path, signal);
  } catch (error) {
    signal?.throwIfAborted();
    throw assetError(`Cannot verify ${file.path}: ${messageOf(error)}`, error);
  }
  if (found !== file.sha256) throw assetError(`Cannot use ${file.path}: its SHA-256 must be ${file.sha256}, got ${found}`);
}

/** Removes the images of `directory`: exactly what its manifest names, manifest first. Returns the bytes freed; 0 when there were none. */
export async function removeAssets(directory: string): Promise<number> {
  const sets = setsDirectory(directory);
  let freed = 0;
  try {
    const { directory: real, manifest } = await readManifest(directory);
    await fs.rm(path.join(real, MANIFEST_NAME), { force: true });
    for (const [name, entry] of Object.entries(manifest.files)) {
      await fs.rm(path.join(real, name), { force: true });
      freed += entry.size;
    }
  } catch (error) {
    if (!(error instanceof AssetError)) throw error; // No images, or none that can be read: what is ours is removed below.
  }
  await fs.rm(sets, { recursive: true, force: true });
  const found = await fs.lstat(directory).catch(() => undefined); // Nothing there: nothing to remove.
  if (found?.isSymbolicLink()) await fs.rm(directory, { force: true });
  else await fs.rmdir(directory).catch(() => {}); // Not there, or it holds files of somebody else's: they stay.
  return freed;
}
