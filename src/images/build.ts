/** Build: all images from source, side by side, each published as soon as it is ready. */
import path from "node:path";
import { AssetError, messageOf, SandboxDependencyError } from "../base/errors.ts";
import { FileLock, sweepTemporaries } from "../host/files.ts";
import { type Arch, readPlatform } from "../host/platform.ts";
import { Apt, hostMirrors } from "./apt.ts";
import {
  type AssetFile,
  type AssetKind,
  defaultImagesDirectory,
  IMAGE_LANGUAGES,
  type ImageLanguage,
  type Manifest,
  openAssets,
  ROOT_IMAGE_NAMES,
} from "./assets.ts";
import { readLock } from "./lock.ts";
import type { OnBuildProgress } from "./progress.ts";
import { currentSet, publishSet, sweepSets } from "./publish.ts";
import { findSources } from "./sources.ts";
import { findEnclosure, runStage, type Stage, type StageResult, type StageRun } from "./stage.ts";
import { CATALOG_NAMES, catalogsStage } from "./stage_catalogs.ts";
import { rootfsStage } from "./stage_rootfs.ts";
import { verifyFile } from "./verify.ts";
import { firmwareStage, initrdStage, jailStage, kernelStage, qemuStage, type Workshop } from "./stages_machine.ts";

/** What is to be built, and where. */
export interface BuildOptions {
  /** Version the manifest states. */
  readonly version: string;
  readonly cacheDir: string;
  /** Where the images are published; default: the cache directory's own place. */
  readonly imagesDir?: string | undefined;
  readonly arch?: Arch | undefined;
  /** A checkout to build from; default: the one this program runs from, or what it carries. */
  readonly sourceDir?: string | undefined;
  /** File or URL with names of Python packages, most used first; default: the list beside the checkout, else what Debian packages. */
  readonly pythonCatalog?: string | undefined;
  /** Root images to build; default: all. */
  readonly languages?: readonly ImageLanguage[] | undefined;
  /** Make everything anew, with the packages that the mirror has today. */
  readonly isForced?: boolean | undefined;
  readonly onProgress?: OnBuildProgress | undefined;
  /** Something the user should know that does not stop the build. */
  readonly onWarning?: ((message: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** How one stage went. */
export interface StageTime {
  readonly name: string;
  readonly seconds: number;
  readonly isCached: boolean;
}

/** What a build left. */
export interface BuildResult {
  readonly imagesDir: string;
  readonly stages: readonly StageTime[];
  readonly seconds: number;
}

const KINDS: Readonly<Record<string, { kind: AssetKind; language?: ImageLanguage }>> = {
  "vmlinux-sbx": { kind: "kernel" },
  "initrd-sbx.cpio": { kind: "initrd" },
  "qemu-sbx": { kind: "qemu" },
  "qboot.rom": { kind: "firmware" },
  "sbx-jail": { kind: "jail" },
  ...Object.fromEntries(Object.entries(CATALOG_NAMES).map(([language, name]) => [name, { kind: "catalog", language }])),
  ...Object.fromEntries(IMAGE_LANGUAGES.map((language) => [ROOT_IMAGE_NAMES[language], { kind: "rootfs", language }])),
};
/** Order of the files in the manifest. */
const NAMES = Object.keys(KINDS);

/**
 * Builds the images and publishes them. Unchanged stages are taken from the cache; a language can be used as soon as the machine and its
 * image are there. Another build of the same cache is waited for. Throws `AssetError` or `SandboxDependencyError`; what was published
 * before stays usable.
 */
export async function buildImages(options: BuildOptions): Promise<BuildResult> {
  const startedMs = performance.now();
  const onProgress = options.onProgress ?? (() => {});
  const arch = checkArch(options.arch);
  const buildDir = path.join(options.cacheDir, "build");
  const imagesDir = path.resolve(options.imagesDir ?? defaultImagesDirectory(options.cacheDir, arch));
  const stop = new AbortController();
  const signal = AbortSignal.any([stop.signal, ...(options.signal ? [options.signal] : [])]);
  await using _lock = await FileLock.acquire(path.join(buildDir, "lock"), {
    signal,
    onWait: (pid) => onProgress({ task: "images", message: `waiting for the build of process ${pid}` }),
  });
  await sweepLeftovers(buildDir, imagesDir);
  const shop = await openWorkshop(options, { arch, buildDir, signal });
  const enclosure = await findEnclosure(readPlatform().isRoot);
  const run: StageRun = { buildDir, signal, onProgress, isForced: options.isForced ?? false, enclosure };
  const publisher = await Publisher.create(imagesDir, { version: options.version, arch });
  const times: StageTime[] = [];
  const lane = async (stages: ReadonlyArray<Promise<Stage>>): Promise<void> => {
    for (const stage of stages) {
      const { name } = await stage;
      const result = await runStage(await stage, run);
      times.push({ name, seconds: result.seconds, isCached: result.isCached });
      await publisher.add(result);
    }
  };
  const languages = IMAGE_LANGUAGES.filter((language) => options.languages?.includes(language) ?? true);
  const lanes = [
    // Compilers fill all cores; the other lane mostly waits for the network and one core.
    lane([initrdStage(shop), jailStage(shop), kernelStage(shop), qemuStage(shop)]),
    lane([
      Promise.resolve(firmwareStage(shop)),
      catalogsStage(shop, options.pythonCatalog),
      ...languages.map((language) => rootfsStage(shop, language)),
    ]),
  ];
  await settleAll(lanes, stop);
  await publisher.finish();
  return { imagesDir, stages: times, seconds: Math.round((performance.now() - startedMs) / 100) / 10 };
}

function checkArch(wanted: Arch | undefined): Arch {
  const { os, arch } = readPlatform();
  if (os !== "linux") {
    throw new SandboxDependencyError("Cannot build the images: the host must be Debian Linux, got macOS", { hint: "Use `sbx prefetch`." });
  }
  if (wanted !== undefined && wanted !== arch) {
    throw new SandboxDependencyError(
      `Cannot build the images: they are built on their own architecture, ${wanted} on ${wanted}, got ${arch}`,
    );
  }
  return arch;
}

/** Removes what builds that were killed left: only this process may build now, as it holds the lock. */
async function sweepLeftovers(buildDir: string, imagesDir: string): Promise<void> {
  for (const part of ["", "work", "stages", "sources"]) await sweepTemporaries(path.join(buildDir, part));
  await sweepSets(imagesDir);
}

async function openWorkshop(
  options: BuildOptions,
  { arch, buildDir, signal }: { readonly arch: Arch; readonly buildDir: string; readonly signal: AbortSignal },
): Promise<Workshop> {
  const root = await findSources(options.cacheDir, options.sourceDir);
  const lock = await readLock(root);
  let opened: Promise<Apt> | undefined;
  const open = async () => {
    options.onProgress?.({ task: "package lists", message: "reading" });
    const apt = await Apt.open(path.join(buildDir, "apt"), {
      mirrors: await hostMirrors(),
      suites: [...new Set([lock.kernel.suite, lock.firmware.suite, lock.rootfs.suite])],
      sourceSuites: lock.qemu.suites,
      signal,
      onWarning: options.onWarning ?? (() => {}),
    });
    options.onProgress?.({ task: "package lists", message: "read", isDone: true });
    return apt;
  };
  return { root, buildDir, arch, lock, apt: () => opened ??= open() };
}

/** Waits for all; the first failure stops the others and is thrown when they have ended. */
async function settleAll(lanes: ReadonlyArray<Promise<void>>, stop: AbortController): Promise<void> {
  let first: unknown;
  await Promise.all(lanes.map((work) =>
    work.catch((error) => {
      first ??= error;
      stop.abort(error);
    })
  ));
  if (first !== undefined) throw first instanceof Error ? first : new AssetError(`Cannot build the images: ${messageOf(first)}`);
}

/** Publishes growing sets while a build goes on. */
class Publisher {
  readonly #directory: string;
  readonly #manifest: { schema: 1; version: string; arch: Arch; files: Manifest["files"] };
  readonly #sources = new Map<string, string>();
  /** The set that programs may have opened before this build. */
  readonly #keptSet: string | undefined;
  /** What the published directory already offers; a set with less never replaces it while the build goes on. */
  readonly #offered: ReadonlyMap<string, AssetFile>;
  #queue: Promise<void> = Promise.resolve();

  private constructor(
    directory: string,
    about: { version: string; arch: Arch },
    before: { readonly set: string | undefined; readonly files: readonly AssetFile[] },
  ) {
    this.#directory = directory;
    this.#manifest = { schema: 1, ...about, files: {} };
    this.#keptSet = before.set;
    this.#offered = new Map(before.files.map((file) => [file.name, file]));
  }

  static async create(directory: string, about: { version: string; arch: Arch }): Promise<Publisher> {
    const files = await openAssets(directory).then((assets) => assets.files, () => []); // None yet, or damaged ones: they are replaced.
    return new Publisher(directory, about, { set: await currentSet(directory), files });
  }

  /** Takes a stage's files, and publishes what there is once that is not less than before. */
  add(result: StageResult): Promise<void> {
    for (const [name, { size, sha256 }] of Object.entries(result.files)) {
      const { kind, language } = KINDS[name] ?? unknownFile(name);
      const { versions, packages, contents, registry } = result;
      const more = { ...(packages ? { packages } : {}), ...(contents ? { contents } : {}), ...(registry ? { registry } : {}) };
      const entry = { size, sha256, kind, ...(language ? { language } : {}), versions, ...more };
      this.#manifest.files[name] = entry;
      this.#sources.set(name, path.join(result.directory, name));
    }
    const machine = NAMES.filter((name) => KINDS[name]?.kind !== "rootfs");
    const isUsable = machine.every((name) => this.#sources.has(name)) && this.#sources.size > machine.length;
    const isMore = [...this.#offered.keys()].every((name) => this.#sources.has(name));
    return isUsable && isMore ? this.#publish() : Promise.resolve();
  }

  /** Publishes what was built, with the root images of before that this build was not asked for. */
  async finish(): Promise<void> {
    for (const { path: source, name, ...entry } of this.#offered.values()) {
      if (entry.kind !== "rootfs" || this.#sources.has(name)) continue;
      await verifyFile({ path: source, sha256: entry.sha256 });
      this.#manifest.files[name] = entry;
      this.#sources.set(name, source);
    }
    await this.#publish();
  }

  #publish(): Promise<void> {
    const files = Object.fromEntries(NAMES.flatMap((name) => {
      const entry = this.#manifest.files[name];
      return entry ? [[name, entry]] : [];
    }));
    this.#queue = this.#queue.then(() =>
      publishSet(this.#directory, { ...this.#manifest, files }, this.#sources, { keptSet: this.#keptSet })
    );
    return this.#queue;
  }
}

function unknownFile(name: string): never {
  throw new Error(`Internal error: a stage left an unknown file ${name}`);
}
