/** Assets: what an images directory must hold, read from its manifest and checked cheaply. */
import fs from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { ONCE } from "../base/schema.ts";
import { AssetError, messageOf } from "../base/errors.ts";
import type { Arch } from "../host/platform.ts";

/** Describes every file of an images directory; written last, so that its presence means the directory is whole. */
export const MANIFEST_NAME = "manifest.json";
/** A manifest is some kilobytes; a larger file is none of ours. */
const MANIFEST_MAX_BYTES = 4 * 1_048_576;

/** Languages in the order their images are built. */
export const IMAGE_LANGUAGES = ["python", "raw", "javascript"] as const;
/** A language that has a root image. */
export type ImageLanguage = typeof IMAGE_LANGUAGES[number];

/** File name of each language's root image. */
export const ROOT_IMAGE_NAMES: Readonly<Record<ImageLanguage, string>> = {
  python: "python-3.14-base.erofs",
  javascript: "node-1.3-base.erofs",
  raw: "raw-base.erofs",
};

/** What a file is for. */
export type AssetKind = "kernel" | "initrd" | "rootfs" | "qemu" | "firmware" | "jail" | "catalog";

const entry = z.object({
  size: z.number().int().nonnegative(),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  kind: z.enum(["kernel", "initrd", "rootfs", "qemu", "firmware", "jail", "catalog"]),
  language: z.enum(IMAGE_LANGUAGES).optional(),
  /** Versions a user may ask for, by name. */
  versions: z.record(z.string(), z.string()),
  /** Bill of materials: every package inside, with its version. */
  packages: z.record(z.string(), z.string()).optional(),
  /** Bytes by what takes them, before compression. */
  contents: z.record(z.string(), z.number()).optional(),
  /** Where the package manager inside goes when nobody tells it otherwise. */
  registry: z.url({ protocol: /^https?$/ }).optional(),
});
const schema = z.object({
  schema: z.literal(1),
  version: z.string(),
  arch: z.enum(["x86_64", "aarch64"]),
  // Names, never paths: an entry cannot point out of its directory.
  files: z.record(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/), entry),
});

/** One entry of the manifest. */
export type ManifestEntry = z.infer<typeof entry>;
/** Content of `manifest.json`. */
export type Manifest = z.infer<typeof schema>;

/** A file of the images directory. */
export interface AssetFile extends ManifestEntry {
  readonly name: string;
  /** Absolute, with symbolic links resolved: it keeps naming the same bytes when a newer set is published. */
  readonly path: string;
}

/** An images directory whose manifest was read and whose files are present in their stated sizes. */
export interface Assets {
  readonly directory: string;
  readonly version: string;
  readonly arch: Arch;
  /** Every file, in the manifest's order. */
  readonly files: readonly AssetFile[];
  readonly kernel: AssetFile;
  readonly initrd: AssetFile;
  readonly firmware: AssetFile;
  /** Our own QEMU; absent where a QEMU of the host is used. */
  readonly qemu: AssetFile | undefined;
  /** The launcher that confines QEMU; Linux only. */
  readonly jail: AssetFile | undefined;
  /** Languages that have a root image here. */
  readonly languages: readonly ImageLanguage[];
  /** The names of the packages that `language` has; absent where the images were built without. */
  catalog(language: string): AssetFile | undefined;
  /** The root image of `language`. Throws `AssetError` when there is none. */
  rootImage(language: string): AssetFile;
}

/** The one place of the images of an architecture below a cache directory. */
export function defaultImagesDirectory(cacheDir: string, arch: Arch): string {
  return path.join(cacheDir, "images", arch);
}

/**
 * Reads the manifest of `directory` and checks that every file is there in its stated size; nothing is hashed.
 * Throws `AssetError` that names the file, what was wanted and the command that mends it.
 */
export async function openAssets(directory: string, options: { readonly arch?: Arch } = {}): Promise<Assets> {
  const { directory: real, manifest } = await readManifest(directory);
  if (options.arch !== undefined && manifest.arch !== options.arch) {
    throw assetError(`Cannot use the images in ${directory}: they must be for ${options.arch}, got ${manifest.arch}`);
  }
  const files = Object.entries(manifest.files).map(([name, value]): AssetFile => ({ ...value, name, path: path.join(real, name) }));
  await Promise.all(files.map(checkSize));
  const only = (kind: AssetKind) => files.find((file) => file.kind === kind);
  const needed = (kind: AssetKind, name: string): AssetFile => {
    const file = only(kind);
    if (!file) throw assetError(`Cannot use the images in ${directory}: the ${kind} (${name}) is missing from ${MANIFEST_NAME}`);
    return file;
  };
  return {
    directory: real,
    version: manifest.version,
    arch: manifest.arch,
    files,
    kernel: needed("kernel", "vmlinux-sbx"),
    initrd: needed("initrd", "initrd-sbx.cpio"),
    firmware: needed("firmware", "qboot.rom"),
    qemu: only("qemu"),
    jail: only("jail"),
    languages: IMAGE_LANGUAGES.filter((language) => files.some((file) => file.kind === "rootfs" && file.language === language)),
    catalog: (language) => files.find((file) => file.kind === "catalog" && file.language === language),
    rootImage(language) {
      const file = files.find((candidate) => candidate.kind === "rootfs" && candidate.language === language);
      if (!file) throw assetError(`Cannot find the root image of language "${language}" in ${directory}`);
      return file;
    },
  };
}

/** The validated manifest of `directory`, and the directory itself with symbolic links resolved. */
export async function readManifest(directory: string): Promise<{ readonly directory: string; readonly manifest: Manifest }> {
  let text: string, real: string;
  try {
    // A newer set replaces a link: resolve it once, so that all files come from one set.
    real = await fs.realpath(directory);
    const file = path.join(real, MANIFEST_NAME);
    const found = await fs.stat(file), { size } = found;
    // A pipe or a device would be read for ever.
    if (!found.isFile()) throw new Error("it must be a file, got something else");
    if (size > MANIFEST_MAX_BYTES) throw new Error(`it must be at most ${MANIFEST_MAX_BYTES} bytes, got ${size}`);
    text = await fs.readFile(file, "utf8");
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOENT" || code === "ENOTDIR") {
      throw assetError(`Cannot find the images: there is no ${path.join(directory, MANIFEST_NAME)}`, error);
    }
    throw assetError(`Cannot read ${path.join(directory, MANIFEST_NAME)}: ${messageOf(error)}`, error);
  }
  return { directory: real, manifest: parseManifest(text, path.join(directory, MANIFEST_NAME)) };
}

/** Parses the text of a manifest. `origin` names it in errors. Throws `AssetError`. */
export function parseManifest(text: string, origin: string): Manifest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw assetError(`Cannot read ${origin}: it must be JSON, got ${text.length} characters that are not (${messageOf(error)})`, error);
  }
  const parsed = schema.safeParse(value, ONCE);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw assetError(`Cannot read ${origin}: ${issue?.path.join(".") || "the whole"} is not as schema 1 wants it (${issue?.message})`);
}

/** An `AssetError` with the command that mends it. */
export function assetError(message: string, cause?: unknown): AssetError {
  return new AssetError(message, { hint: "Run `sbx images build` (or `sbx prefetch`) to make the images anew.", cause });
}

async function checkSize(file: AssetFile): Promise<void> {
  let found: { isFile(): boolean; size: number };
  try {
    found = await fs.stat(file.path);
  } catch (error) {
    throw assetError(`Cannot use ${file.path}: the file must exist with ${file.size} bytes, got ${messageOf(error)}`, error);
  }
  if (!found.isFile()) throw assetError(`Cannot use ${file.path}: it must be a file of ${file.size} bytes, got something else`);
  if (found.size !== file.size) throw assetError(`Cannot use ${file.path}: it must have ${file.size} bytes, got ${found.size}`);
}
