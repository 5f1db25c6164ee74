/** Sources: the files an image build starts from, in a checkout or packed into a compiled program. */
import { createHash } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { SandboxDependencyError } from "../base/errors.ts";
import { exists, StagedDirectory } from "../host/files.ts";

/** Directories and files of the repository that a build reads. */
export const SOURCE_ROOTS = ["guest", "jail", "images"] as const;
/** File name of the packed sources inside a compiled program. */
export const PACK_NAME = "sources.pack";
/** Never part of a build's sources. */
const EXCLUDED: readonly string[] = ["target", "fuzz", "node_modules", ".git"];

/** Packed sources: path relative to the repository → mode and text. */
export type SourcePack = Readonly<Record<string, { readonly mode: number; readonly text: string }>>;

/** Reads the sources below `root` into a pack. All are text. */
export async function packSources(root: string): Promise<SourcePack> {
  const pack: Record<string, { mode: number; text: string }> = {};
  for (const file of await listSources(root, SOURCE_ROOTS)) {
    const full = path.join(root, file);
    const { mode } = await fs.stat(full);
    pack[file] = { mode: mode & 0o111 ? 0o755 : 0o644, text: await fs.readFile(full, "utf8") };
  }
  return pack;
}

/** Every source file at or below `paths`, relative to `root`, sorted. A path that does not exist contributes nothing. */
export async function listSources(root: string, paths: readonly string[]): Promise<string[]> {
  const found: string[] = [];
  const visit = async (relative: string): Promise<void> => {
    const stat = await fs.stat(path.join(root, relative)).catch(() => undefined); // A crate that this checkout does not have.
    if (stat?.isFile()) found.push(relative);
    if (!stat?.isDirectory()) return;
    for (const name of await fs.readdir(path.join(root, relative))) {
      if (!EXCLUDED.includes(name)) await visit(path.posix.join(relative, name));
    }
  };
  for (const start of paths) await visit(start);
  return found.sort();
}

/** A text that changes whenever a source at or below `paths` changes: names, modes and hashes. */
export async function fingerprint(root: string, paths: readonly string[]): Promise<string> {
  const lines: string[] = [];
  for (const file of await listSources(root, paths)) {
    const bytes = await fs.readFile(path.join(root, file));
    lines.push(`${file} ${createHash("sha256").update(bytes).digest("hex")}`);
  }
  return lines.join("\n");
}

/**
 * The directory that holds the sources: `explicit` when given, the checkout this program runs from, or the sources packed into the
 * compiled program, unpacked below `cacheDir`. Throws `SandboxDependencyError` when there are none.
 */
export async function findSources(cacheDir: string, explicit?: string): Promise<string> {
  const marker = path.join("images", "versions.lock");
  if (explicit !== undefined) {
    if (await exists(path.join(explicit, marker))) return path.resolve(explicit);
    throw new SandboxDependencyError(`Cannot build the images: ${explicit} must be a checkout of sbx, got no ${marker} in it`);
  }
  const here = import.meta.dirname;
  const checkout = here === undefined ? undefined : path.resolve(here, "..", "..");
  if (checkout !== undefined && await exists(path.join(checkout, marker))) return checkout;
  const pack = here === undefined ? undefined : await readPack(here);
  if (pack !== undefined) return await unpackSources(pack, path.join(cacheDir, "build", "sources"));
  throw new SandboxDependencyError("Cannot build the images: this program carries no sources", {
    hint: "Give a checkout of sbx with `sbx images build --source DIR`.",
  });
}

/** The pack lies beside the program's code: at the top of Bun's virtual file system, in `dist/` of Deno's. */
async function readPack(here: string): Promise<SourcePack | undefined> {
  const places = [path.join(here, PACK_NAME), path.join(here, "dist", PACK_NAME), path.join(here, "..", "..", "dist", PACK_NAME)];
  for (const place of places) {
    const text = await fs.readFile(place, "utf8").catch(() => undefined); // Not packed there: the next place.
    if (text !== undefined) return JSON.parse(text) as SourcePack;
  }
  return undefined;
}

/** Writes `pack` below `parent` in a directory named by its content; a directory that is already there is used. */
export async function unpackSources(pack: SourcePack, parent: string): Promise<string> {
  const name = createHash("sha256").update(JSON.stringify(pack)).digest("hex").slice(0, 16);
  const target = path.join(parent, name);
  if (await exists(target)) return target;
  await using staged = await StagedDirectory.create(parent);
  for (const [file, { mode, text }] of Object.entries(pack)) {
    const full = path.join(staged.path, file);
    await fs.mkdir(path.dirname(full), { recursive: true });
    await fs.writeFile(full, text, { mode });
  }
  await staged.publish(target);
  return target;
}
