/** Layer files: what one layer is on disk, and whether what lies there is what its manifest says. */
import { createHash } from "node:crypto";
import type { BigIntStats } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { messageOf } from "../base/errors.ts";
import { sha256File, writeFileAtomic } from "../host/files.ts";
import { LAYER_FORMAT, type LayerInputs, layerKey } from "./layer_key.ts";

/** The packages, as a read-only file system. */
export const LAYER_FILE = "layer.erofs";
/** The resolved set. */
export const PACKAGES_FILE = "packages.json";
/** Written last of the three: sizes and hashes of the others, and what the layer was made from. */
export const MANIFEST_FILE = "manifest.json";
/** What `layer.erofs` looked like when its bytes were last compared with the manifest. Of this host alone; never leaves it. */
const VERIFIED_FILE = "verified.json";

/** Bound of a layer, whatever its manifest says: a disk image that was to be used would be larger than the disks that builds get. */
export const LAYER_MAX_BYTES = 16 * 2 ** 30;
/** Bounds of what is read as a whole; a resolved set of a thousand packages is some 300 KB. */
export const MANIFEST_MAX_BYTES = 65_536, PACKAGES_MAX_BYTES = 8 * 1_048_576;
/** Where the superblock of an EROFS is, and how it begins. */
const EROFS_MAGIC_AT = 1024, EROFS_MAGIC = 0xe0f5e1e2;
const READ_ONLY = 0o444;
/** Deno tells times of a change in whole seconds; so do we, lest what one runtime notes is nothing to the other. */
const CHANGE_GRAIN_NS = 1_000_000_000n;

/** What is wrong with a layer. Says it in words that follow its name. */
export class DamagedLayerError extends Error {
  /** The class, also in minified programs. */
  override readonly name = "DamagedLayerError";
}

const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const fileEntry = (maxBytes: number) => z.strictObject({ size: z.number().int().positive().max(maxBytes), sha256 });
const words = z.record(z.string(), z.string());

const manifestSchema = z.strictObject({
  format: z.literal(LAYER_FORMAT),
  key: sha256,
  inputs: z.strictObject({
    language: z.enum(["python", "javascript"]),
    arch: z.string(),
    image: z.string(),
    runtime: words,
    packages: z.array(z.string()),
    index: z.string(),
    options: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])),
  }),
  createdAtMs: z.number(),
  files: z.strictObject({ [LAYER_FILE]: fileEntry(LAYER_MAX_BYTES), [PACKAGES_FILE]: fileEntry(PACKAGES_MAX_BYTES) }),
});

const packagesSchema = z.strictObject({
  packages: z.array(z.strictObject({
    name: z.string().min(1),
    version: z.string().min(1),
    hashes: z.array(z.string()),
  })),
  details: z.record(z.string(), z.unknown()),
});

const verifiedSchema = z.strictObject({ sha256, stamp: z.string() });

/** Content of `manifest.json`. */
export type LayerManifest = z.infer<typeof manifestSchema>;

/** One package of a resolved set, asked for or needed by another. */
export interface ResolvedPackage {
  readonly name: string;
  readonly version: string;
  /** Of what the registry sent, as its tools write them: `sha256:…`, `sha512-…`. */
  readonly hashes: readonly string[];
}

/** What an installation left, besides the layer. */
export interface ResolvedSet {
  /** All that is installed, sorted by name. */
  readonly packages: readonly ResolvedPackage[];
  /** What else the installer found out and a start wants to know, as JSON; the store only keeps it. */
  readonly details: Readonly<Record<string, unknown>>;
}

/** How thoroughly `examineLayer` looks: `stamp` hashes a layer only when it is not the very file that was hashed before. */
export type LayerCheck = "stamp" | "hash";

/** What `examineLayer` found. */
export interface ExaminedLayer extends ResolvedSet {
  readonly manifest: LayerManifest;
}

/** Completes `directory`, which has `layer.erofs`: removes whatever else is in it, hashes, writes the other files, flushes all to disk. */
export async function completeLayer(directory: string, inputs: LayerInputs, set: ResolvedSet): Promise<ExaminedLayer> {
  for (const name of await fs.readdir(directory)) {
    if (name !== LAYER_FILE) await fs.rm(path.join(directory, name), { recursive: true, force: true });
  }
  const stats = await freezeLayer(directory);
  const { packages, details } = packagesSchema.parse(JSON.parse(JSON.stringify({ packages: set.packages, details: set.details })));
  const text = JSON.stringify({ packages, details }) + "\n";
  const manifest = manifestSchema.parse({
    format: LAYER_FORMAT,
    key: layerKey(inputs),
    inputs,
    createdAtMs: Date.now(),
    files: {
      [LAYER_FILE]: { size: Number(stats.size), sha256: await sha256File(path.join(directory, LAYER_FILE)) },
      [PACKAGES_FILE]: { size: new TextEncoder().encode(text).length, sha256: sha256Of(text) },
    },
  });
  await writeFileAtomic(path.join(directory, PACKAGES_FILE), text, READ_ONLY);
  await writeFileAtomic(path.join(directory, MANIFEST_FILE), JSON.stringify(manifest) + "\n", READ_ONLY);
  await noteVerified(directory, manifest, stats);
  return { manifest, packages, details };
}

/** Makes `layer.erofs` of a directory what it stays: read-only and on disk. Throws `DamagedLayerError` for what is none. */
export async function freezeLayer(directory: string): Promise<BigIntStats> {
  const file = path.join(directory, LAYER_FILE);
  await checkErofs(file);
  await using handle = await fs.open(file, "r");
  // Confined QEMUs are other users and read it through bind mounts; the directory above is this user's alone.
  await handle.chmod(READ_ONLY);
  await handle.sync();
  return await handle.stat({ bigint: true });
}

/**
 * Compares a layer's directory with its manifest, and the manifest with `key`. Throws `DamagedLayerError` for what is wrong with it and
 * the system's error where that cannot be known.
 *
 * `packages.json` is read and hashed each time. `layer.erofs` is hashed where it comes from somebody else (`hash`). In the user's own cache
 * (`stamp`) it is hashed once: it is read-only and never written again, and whatever writes to it, or puts another file in its place, changes
 * its inode or its change time, which no program can set. Hashing a layer of 200 MB takes longer than all of a start from a template.
 */
export async function examineLayer(directory: string, key: string, check: LayerCheck): Promise<ExaminedLayer> {
  const manifest = parseManifest(await readBounded(path.join(directory, MANIFEST_FILE), MANIFEST_MAX_BYTES));
  if (manifest.key !== key) throw new DamagedLayerError(`${MANIFEST_FILE} is of ${manifest.key}`);
  if (layerKey(manifest.inputs) !== key) throw new DamagedLayerError(`${MANIFEST_FILE} has inputs of another key`);
  const { [LAYER_FILE]: layerEntry, [PACKAGES_FILE]: packagesEntry } = manifest.files;
  const text = await readBounded(path.join(directory, PACKAGES_FILE), PACKAGES_MAX_BYTES);
  if (sha256Of(text) !== packagesEntry.sha256) throw new DamagedLayerError(`${PACKAGES_FILE} is not what ${MANIFEST_FILE} says`);
  const { packages, details } = parse(packagesSchema, text, PACKAGES_FILE);
  const layer = path.join(directory, LAYER_FILE);
  const stats = await checkErofs(layer);
  if (Number(stats.size) !== layerEntry.size) {
    throw new DamagedLayerError(`${LAYER_FILE} must have ${layerEntry.size} bytes, got ${stats.size}`);
  }
  if (check === "hash" || !await isVerified(directory, manifest, stats)) {
    const digest = await sha256File(layer);
    if (digest !== layerEntry.sha256) {
      throw new DamagedLayerError(`${LAYER_FILE} must have SHA-256 ${layerEntry.sha256}, got ${digest}`);
    }
    // What changes after these were read has another stamp.
    await noteVerified(directory, manifest, stats).catch(() => {}); // A cache that cannot be written is hashed each time.
  }
  return { manifest, packages, details };
}

/** The content of a `manifest.json`. Throws `DamagedLayerError`. */
export function parseManifest(text: string): LayerManifest {
  return parse(manifestSchema, text, MANIFEST_FILE);
}

/** What a layer looks like now. Throws `DamagedLayerError` for what is no regular file or no EROFS. */
async function checkErofs(file: string): Promise<BigIntStats> {
  const found = await orDamaged(fs.lstat(file), LAYER_FILE);
  if (!found.isFile()) throw new DamagedLayerError(`${LAYER_FILE} must be a regular file`);
  await using handle = await fs.open(file, "r");
  const stats = await handle.stat({ bigint: true });
  const { buffer, bytesRead } = await handle.read(new Uint8Array(4), 0, 4, EROFS_MAGIC_AT);
  const isErofs = bytesRead === 4 && new DataView(buffer.buffer).getUint32(0, true) === EROFS_MAGIC;
  if (!isErofs) throw new DamagedLayerError(`${LAYER_FILE} is no EROFS`);
  return stats;
}

/** The same as long as nobody has written to the file or put another in its place. */
function stampOf({ dev, ino, size, mtimeMs, ctimeNs }: BigIntStats): string {
  return [dev, ino, size, mtimeMs, ctimeNs / CHANGE_GRAIN_NS].join(" ");
}

/** Notes that the file with these `stats`, read before its bytes, is what the manifest says. */
async function noteVerified(directory: string, manifest: LayerManifest, stats: BigIntStats): Promise<void> {
  // A later change within the second of the last one would leave the same stamp: such a file is hashed once more when it is next wanted.
  if (stats.ctimeNs / CHANGE_GRAIN_NS >= BigInt(Math.floor(Date.now() / 1000))) return;
  const note = { sha256: manifest.files[LAYER_FILE].sha256, stamp: stampOf(stats) };
  await writeFileAtomic(path.join(directory, VERIFIED_FILE), JSON.stringify(note), READ_ONLY);
}

async function isVerified(directory: string, manifest: LayerManifest, stats: BigIntStats): Promise<boolean> {
  try {
    const noted = verifiedSchema.parse(JSON.parse(await readBounded(path.join(directory, VERIFIED_FILE), MANIFEST_MAX_BYTES)));
    return noted.sha256 === manifest.files[LAYER_FILE].sha256 && noted.stamp === stampOf(stats);
  } catch {
    return false; // No note, or half of one: the bytes themselves are looked at.
  }
}

/** The text of a file that must be there and have at most so many bytes. */
async function readBounded(file: string, maxBytes: number): Promise<string> {
  const name = path.basename(file);
  const found = await orDamaged(fs.lstat(file), name);
  if (!found.isFile()) throw new DamagedLayerError(`${name} must be a regular file`);
  if (found.size > maxBytes) throw new DamagedLayerError(`${name} must have at most ${maxBytes} bytes, got ${found.size}`);
  return await orDamaged(fs.readFile(file, "utf8"), name);
}

async function orDamaged<T>(reading: Promise<T>, name: string): Promise<T> {
  try {
    return await reading;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") throw new DamagedLayerError(`${name} is missing`);
    throw error;
  }
}

function parse<T>(schema: z.ZodType<T>, text: string, name: string): T {
  try {
    return schema.parse(JSON.parse(text));
  } catch (error) {
    const issue = error instanceof z.ZodError ? error.issues[0] : undefined;
    throw new DamagedLayerError(`${name} cannot be read: ${issue ? `${issue.path.join(".")} ${issue.message}` : messageOf(error)}`);
  }
}

function sha256Of(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
