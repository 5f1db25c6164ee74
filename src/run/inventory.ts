/** Inventory: what is kept on disk, how much room it takes, and when it was last used. Reads names, sizes and small files alone. */
import fs from "node:fs";
import path from "node:path";
import { cacheDirectory } from "../host/platform.ts";
import { isLeftBehind } from "../host/files.ts";

/** Kinds of what is kept, in the order in which they are listed; `leftover` is what a process was making when it died. */
export const CACHE_KINDS = ["template", "layer", "checkpoint", "image", "leftover"] as const;
/** One kind of what is kept. */
export type CacheKind = typeof CACHE_KINDS[number];

/** One thing that is kept. */
export interface CacheEntry {
  readonly kind: CacheKind;
  /** Of its directory. */
  readonly name: string;
  readonly directory: string;
  /** Disk that it takes; what was never written of a file does not count. */
  readonly sizeBytes: number;
  /** Of the last start from it. Undefined where nobody notes that. */
  readonly usedAtMs: number | undefined;
  /** Its description is missing or cannot be read: nobody will use it. */
  readonly isDamaged: boolean;
  readonly language?: string;
  readonly memoryMb?: number;
  /** What a layer was asked for, as the installer took it. */
  readonly packages?: readonly string[];
  /** All that is installed in a layer; only where it was asked for. */
  readonly installed?: readonly InstalledPackage[];
  /** Of images. */
  readonly version?: string;
}

/** A package in a layer. */
export interface InstalledPackage {
  readonly name: string;
  readonly version: string;
  readonly hashes: readonly string[];
}

/** Directories of one user's cache. */
export interface CachePlaces {
  readonly root: string;
  readonly snapshots: string;
  readonly layers: string;
  readonly checkpoints: string;
  readonly images: string;
}

/** Where the environment says that things are kept. A configuration's own `snapshotCacheDir` and `imagesDir` are not known here. */
export function cachePlaces(env: Readonly<Record<string, string | undefined>>): CachePlaces {
  const root = cacheDirectory(env), own = env["EXEC_SANDBOX_IMAGES_DIR"];
  return {
    root,
    snapshots: path.resolve(env["EXEC_SANDBOX_SNAPSHOT_CACHE_DIR"] || path.join(root, "snapshots")),
    layers: path.join(root, "layers"),
    checkpoints: path.join(root, "checkpoints"),
    images: own ? path.resolve(own) : path.join(root, "images"),
  };
}

/** All that is kept, by kind, the last used first. */
export function listCache(places: CachePlaces, options: { readonly withInstalled?: boolean } = {}): CacheEntry[] {
  const byUse = (entries: CacheEntry[]) => entries.sort((a, b) => (b.usedAtMs ?? 0) - (a.usedAtMs ?? 0) || (a.name < b.name ? -1 : 1));
  const found = [
    ...byUse(listTemplates(places.snapshots)),
    ...byUse(listLayers(places.layers, options.withInstalled ?? false)),
    ...byUse(listCheckpoints(places.checkpoints)),
    ...listImages(places.images),
  ];
  const leftovers = [places.snapshots, places.layers, places.checkpoints].flatMap(listLeftovers);
  return [...found, ...leftovers];
}

function listTemplates(root: string): CacheEntry[] {
  return namesIn(root).flatMap((name) => {
    const [, language, memory] = /^(python|javascript|raw)-(\d+)-[0-9a-f]+/.exec(name) ?? [];
    if (language === undefined) return [];
    return [{
      kind: "template",
      name,
      ...measured(path.join(root, name), "meta.json", ["ram", "state", "translations"]),
      language,
      memoryMb: Number(memory),
    }];
  });
}

function listLayers(root: string, withInstalled: boolean): CacheEntry[] {
  return namesIn(root).filter((name) => /^[0-9a-f]{64}$/.test(name)).map((name) => {
    const directory = path.join(root, name),
      entry = { kind: "layer" as const, name, ...measured(directory, "manifest.json", ["layer.erofs", "packages.json"]) };
    const inputs = fieldOf(readJson(path.join(directory, "manifest.json")), "inputs");
    const language = fieldOf(inputs, "language"), packages = fieldOf(inputs, "packages");
    if (typeof language !== "string" || !Array.isArray(packages)) return { ...entry, isDamaged: true };
    const shown = { ...entry, language, packages: packages.map(String) };
    if (!withInstalled) return shown;
    const installed = fieldOf(readJson(path.join(directory, "packages.json")), "packages");
    return Array.isArray(installed) ? { ...shown, installed: installed.map(installedOf) } : { ...shown, isDamaged: true };
  });
}

function listCheckpoints(root: string): CacheEntry[] {
  return namesIn(root).filter((name) => !name.startsWith(".")).flatMap((name) => {
    const directory = path.join(root, name), meta = readJson(path.join(directory, "meta.json"));
    const language = fieldOf(meta, "language"), memoryMb = Number(fieldOf(meta, "memoryMiB"));
    const entry = { kind: "checkpoint" as const, name, ...measured(directory, "meta.json", ["ram", "state"]) };
    return [typeof language === "string" ? { ...entry, language, memoryMb } : { ...entry, isDamaged: true }];
  });
}

/** A set of images: `root` itself, or one for each architecture in it. */
function listImages(root: string): CacheEntry[] {
  const directories = fs.existsSync(path.join(root, "manifest.json"))
    ? [root]
    : namesIn(root).filter((name) => !name.startsWith(".")).map((name) => path.join(root, name));
  return directories.map((directory) => {
    const entry = { kind: "image" as const, name: path.basename(directory), ...measured(directory, "manifest.json"), usedAtMs: undefined };
    const version = fieldOf(readJson(path.join(directory, "manifest.json")), "version");
    return typeof version === "string" ? { ...entry, version } : { ...entry, isDamaged: true };
  });
}

function listLeftovers(root: string): CacheEntry[] {
  return namesIn(root).filter(isLeftBehind).map((name) => ({ kind: "leftover", name, ...measured(path.join(root, name)) }));
}

function namesIn(directory: string): string[] {
  try {
    return fs.readdirSync(directory);
  } catch {
    return []; // Nothing was kept there yet, or it is another's.
  }
}

/**
 * Size of what lies in a directory. `marker` is there when all else is, and its time is that of the last use. Reading a directory costs as much
 * as looking at four files: where the names of those that have a size are known, `names` has them.
 */
function measured(
  directory: string,
  marker?: string,
  names: readonly string[] = namesIn(directory).filter((name) => name !== marker),
): Pick<CacheEntry, "directory" | "sizeBytes" | "usedAtMs" | "isDamaged"> {
  const look = (name: string) => fs.lstatSync(`${directory}/${name}`, { throwIfNoEntry: false });
  let sizeBytes = 0;
  for (const name of names) sizeBytes += (look(name)?.blocks ?? 0) * 512;
  const marked = marker === undefined ? undefined : look(marker);
  sizeBytes += (marked?.blocks ?? 0) * 512;
  return { directory, sizeBytes, usedAtMs: marked?.mtimeMs, isDamaged: marker !== undefined && marked === undefined };
}

function readJson(file: string): unknown {
  try {
    return JSON.parse(fs.readFileSync(file, "utf8"));
  } catch {
    return undefined; // The entry is shown as damaged.
  }
}

function fieldOf(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>)[name] : undefined;
}

function installedOf(value: unknown): InstalledPackage {
  const hashes = fieldOf(value, "hashes");
  return {
    name: String(fieldOf(value, "name")),
    version: String(fieldOf(value, "version")),
    hashes: Array.isArray(hashes) ? hashes.map(String) : [],
  };
}
