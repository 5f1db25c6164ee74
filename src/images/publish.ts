/** Publishing: a new set of images takes the place of the old one in a single rename. */
import { createHash, randomUUID } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { assert, AssetError } from "../base/errors.ts";
import { exists, ownIdentity, sha256File, StagedDirectory, sweepTemporaries, writeFileAtomic } from "../host/files.ts";
import { type Manifest, MANIFEST_NAME, type ManifestEntry, readManifest } from "./assets.ts";

/** Where the sets of an images directory lie: beside it, so that a link can be swung from one to the next. */
export function setsDirectory(directory: string): string {
  const absolute = path.resolve(directory);
  return path.join(path.dirname(absolute), `.${path.basename(absolute)}.sets`);
}

/** Options of `publishSet`. */
export interface PublishOptions {
  /** A set that must stay beside the new one, because a running process may have opened it. Default: the present one. */
  readonly keptSet?: string | undefined;
}

/**
 * Publishes `manifest` and the files it names, found in `sources` (name → path), as `directory`: a link to a new set. Readers see the
 * old set or the new one, whole; a process that opened the old one keeps it, because one earlier set is left in place.
 * Files are linked where the file system allows it, else copied. Throws `AssetError` when `directory` holds files of somebody else's.
 */
export async function publishSet(
  directory: string,
  manifest: Manifest,
  sources: ReadonlyMap<string, string>,
  options: PublishOptions = {},
): Promise<void> {
  const sets = setsDirectory(directory);
  const text = JSON.stringify(manifest, null, 1) + "\n";
  const name = createHash("sha256").update(text).digest("hex").slice(0, 16);
  const target = path.join(sets, name);
  const before = await currentSet(directory);
  if (await exists(path.join(target, MANIFEST_NAME))) await mendSet(target, manifest, text, sources);
  else await createSet(target, manifest, text, sources);
  if (before !== name) await swingLink(directory, path.join(path.basename(sets), name));
  await removeOtherSets(sets, new Set([name, options.keptSet ?? before ?? name]));
}

async function createSet(target: string, manifest: Manifest, text: string, sources: ReadonlyMap<string, string>): Promise<void> {
  await using staged = await StagedDirectory.create(path.dirname(target));
  for (const [file, entry] of Object.entries(manifest.files)) {
    await linkOrCopy(sourceOf(sources, file), path.join(staged.path, file), modeOf(entry));
  }
  await fs.writeFile(path.join(staged.path, MANIFEST_NAME), text, { mode: 0o444, flush: true });
  // QEMU may run as a user of its own and must be able to pass through.
  await fs.chmod(staged.path, 0o755);
  await fs.rm(target, { recursive: true, force: true }); // Left without a manifest by a removal that was cut short.
  await staged.publish(target);
}

/** Replaces, one rename each, the files of a set that no longer are what its manifest says. */
async function mendSet(target: string, manifest: Manifest, text: string, sources: ReadonlyMap<string, string>): Promise<void> {
  for (const [file, entry] of Object.entries(manifest.files)) {
    const source = sourceOf(sources, file), place = path.join(target, file);
    const own = await fs.stat(source);
    const present = await fs.lstat(place).catch(() => undefined); // Gone: it is put back.
    if (present?.isFile() && present.dev === own.dev && present.ino === own.ino) continue; // A link to the very file that was just checked.
    if (present?.isFile() && present.size === entry.size && await sha256File(place) === entry.sha256) continue;
    const temporary = path.join(target, temporaryName());
    await linkOrCopy(source, temporary, modeOf(entry));
    await fs.rename(temporary, place);
  }
  if (await fs.readFile(path.join(target, MANIFEST_NAME), "utf8") !== text) {
    await writeFileAtomic(path.join(target, MANIFEST_NAME), text, 0o444);
  }
}

function sourceOf(sources: ReadonlyMap<string, string>, file: string): string {
  const source = sources.get(file);
  assert(source !== undefined, `no source for ${file}`);
  return source;
}

function modeOf(entry: ManifestEntry): number {
  return entry.kind === "qemu" || entry.kind === "jail" ? 0o555 : 0o444;
}

/** Removes what dead processes left beside `directory`. */
export async function sweepSets(directory: string): Promise<void> {
  await sweepTemporaries(setsDirectory(directory));
  await sweepTemporaries(path.dirname(path.resolve(directory)));
}

/** Name of the set that `directory` points to, if it does. */
export async function currentSet(directory: string): Promise<string | undefined> {
  const target = await fs.readlink(directory).catch(() => undefined); // Absent, or a plain directory.
  return target === undefined ? undefined : path.basename(target);
}

async function swingLink(directory: string, target: string): Promise<void> {
  const temporary = path.join(path.dirname(path.resolve(directory)), temporaryName());
  const found = await fs.lstat(directory).catch(() => undefined); // Absent: the first set.
  if (found && !found.isSymbolicLink()) {
    await refuseForeignFiles(directory);
    // A plain directory of images makes room, and goes when the link stands.
    await fs.rename(directory, temporary);
    await fs.symlink(target, directory);
    await fs.rm(temporary, { recursive: true, force: true });
    return;
  }
  await fs.symlink(target, temporary);
  await fs.rename(temporary, directory);
}

/** Throws when a plain directory holds anything but images: it would be removed. */
async function refuseForeignFiles(directory: string): Promise<void> {
  const names = (await fs.readdir(directory)).filter((name) => name !== MANIFEST_NAME);
  if (names.length === 0) return;
  const known = await readManifest(directory).then(({ manifest }) => manifest.files, () => ({})); // Unreadable: nothing in it is known.
  const foreign = names.find((name) => !(name in known));
  if (foreign === undefined) return;
  throw new AssetError(`Cannot publish images as ${directory}: it must be empty or hold images alone, got "${foreign}"`, {
    hint: "Choose another directory with EXEC_SANDBOX_IMAGES_DIR.",
  });
}

async function linkOrCopy(source: string, target: string, mode: number): Promise<void> {
  await fs.chmod(source, mode);
  try {
    await fs.link(source, target);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== "EXDEV" && code !== "EPERM" && code !== "EMLINK" && code !== "ENOTSUP") throw error;
    await fs.copyFile(source, target);
    await fs.chmod(target, mode);
  }
}

async function removeOtherSets(sets: string, kept: ReadonlySet<string>): Promise<void> {
  for (const name of await fs.readdir(sets)) {
    if (!name.startsWith(".") && !kept.has(name)) await fs.rm(path.join(sets, name), { recursive: true, force: true });
  }
}

/** A name that `sweepTemporaries` removes once this process is gone. */
function temporaryName(): string {
  const { pid, startTicks } = ownIdentity();
  return `.tmp-${pid}-${startTicks}-${randomUUID()}`;
}
