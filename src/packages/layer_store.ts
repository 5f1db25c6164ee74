/** Layer store: installed packages as read-only file systems on disk, one directory per key, made once for all processes of the user. */
import fs from "node:fs/promises";
import path from "node:path";
import { messageOf, SandboxError, SnapshotError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import { exists, FileLock, LOCK_PREFIX, removeDirectoryAtOnce, StagedDirectory, sweepLocks, sweepTemporaries } from "../host/files.ts";
import {
  completeLayer,
  DamagedLayerError,
  type ExaminedLayer,
  examineLayer,
  freezeLayer,
  LAYER_FILE,
  type LayerCheck,
  MANIFEST_FILE,
  PACKAGES_FILE,
  type ResolvedSet,
} from "./layer_files.ts";
import { type LayerInputs, layerKey } from "./layer_key.ts";

/** Disk that the layers of one directory may take unless the configuration says otherwise. */
const LAYERS_MAX_BYTES = 10 * 2 ** 30;
/** Of a layer's directory. */
const LAYER_NAME = /^[0-9a-f]{64}$/;

/** A layer on disk, whole, ready to be attached read-only. */
export interface Layer extends ResolvedSet {
  /** `layerKey` of its inputs. */
  readonly key: string;
  readonly inputs: LayerInputs;
  /** SHA-256 of `layerFile`. Two installations of one key may differ in it; what is built on a layer depends on this and not on the key. */
  readonly sha256: string;
  readonly directory: string;
  /** The file system; read-only. It keeps its bytes for who has it open, also when the layer is removed. */
  readonly layerFile: string;
  readonly sizeBytes: number;
  readonly createdAtMs: number;
}

/** Where a layer that was asked for came from. */
export interface ObtainedLayer {
  readonly layer: Layer;
  /** `disk`: it was there, or another process made it meanwhile. */
  readonly origin: "disk" | "remote" | "made";
}

/** Where `make` works: a directory of its own beside the layer's place, on one file system with it. Only `layerFile` is kept of what is in it. */
export interface LayerPlace {
  readonly directory: string;
  /** What must be there, and be an EROFS, when `make` has resolved. */
  readonly layerFile: string;
}

/** Another place that layers may be had from, such as S3. No call throws, but for an abort; disposing it ends or abandons what it does in the background. */
export interface RemoteLayers extends AsyncDisposable {
  /** Puts `layer.erofs`, `packages.json` and `manifest.json` of `key` into `directory`; false when there is no such layer or it cannot be had. */
  fetch(key: string, directory: string, signal?: AbortSignal): Promise<boolean>;
  /** Hears that what `fetch` brought was not what it should be. */
  reject(key: string, reason: string): void;
  /** Takes a layer of this host, in case the remote store has it not; returns at once and works in the background. */
  offer(layer: Layer): void;
}

/** How a layer is made and who hears of it. */
export interface ObtainOptions {
  /** Installs the packages. Called at most once, by one process for each key at a time; what it throws is thrown as it is. */
  make(place: LayerPlace): Promise<ResolvedSet>;
  readonly signal?: AbortSignal | undefined;
  /** Another process makes the same layer; called once. */
  readonly onWait?: ((holderPid: number) => void) | undefined;
  /** The remote store is asked for it. */
  readonly onFetch?: (() => void) | undefined;
}

/** Layers of one directory, shared by all processes of the user. */
export class LayerStore implements AsyncDisposable {
  readonly #root: string;
  readonly #log: Logger;
  readonly #maxBytes: number;
  readonly #remote: RemoteLayers | undefined;

  /** `root` is created when the first layer is made. */
  constructor(root: string, options: { readonly log: Logger; readonly maxBytes?: number; readonly remote?: RemoteLayers | undefined }) {
    this.#root = root;
    this.#log = options.log;
    this.#maxBytes = options.maxBytes ?? LAYERS_MAX_BYTES;
    this.#remote = options.remote;
  }

  /** The layer of these inputs, or undefined when there is none, or one that is not whole: `obtain` replaces such a one. Counts as a use. */
  async find(inputs: LayerInputs, check: LayerCheck = "stamp"): Promise<Layer | undefined> {
    const key = layerKey(inputs);
    const found = await this.#examine(key, check, () => {});
    return found && this.#onDisk(found).layer;
  }

  /**
   * The layer of these inputs: from disk, from the remote store, or made now, in this order. Of several processes that want one key, one
   * makes it and the others wait. Throws what `make` throws, the signal's reason, or `SnapshotError` when the layer cannot be kept.
   */
  async obtain(inputs: LayerInputs, options: ObtainOptions): Promise<ObtainedLayer> {
    const key = layerKey(inputs), { signal, onWait } = options;
    try {
      const found = await this.#examine(key, "stamp", () => {});
      if (found) return this.#onDisk(found);
      await using _lock = await FileLock.acquire(path.join(this.#root, `${LOCK_PREFIX}${key.slice(0, 32)}`), {
        ...(signal ? { signal } : {}),
        ...(onWait ? { onWait } : {}),
      });
      const meanwhile = await this.#examine(key, "stamp", (reason) => this.#discard(key, reason));
      if (meanwhile) return this.#onDisk(meanwhile);
      await sweepTemporaries(this.#root);
      const fetched = await this.#fetch(key, options);
      const layer = fetched ?? await this.#make(key, inputs, options);
      await this.#prune(key);
      if (!fetched) this.#remote?.offer(layer);
      return { layer, origin: fetched ? "remote" : "made" };
    } catch (error) {
      throw keepError(error, this.#root, signal);
    }
  }

  /** Removes a layer that does not do, such as one that cannot be mounted, unless somebody replaced it. `reason` is logged. */
  async drop(layer: Layer, reason: string): Promise<void> {
    await using _lock = await FileLock.acquire(path.join(this.#root, `${LOCK_PREFIX}${layer.key.slice(0, 32)}`));
    const current = await examineLayer(layer.directory, layer.key, "stamp").catch(() => undefined); // Whatever is there does not do either.
    if (current && current.manifest.createdAtMs !== layer.createdAtMs) return;
    if (await exists(layer.directory)) await this.#discard(layer.key, reason);
  }

  /** Ends what the remote store does in the background. The layers stay, and what is under way goes on. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#remote?.[Symbol.asyncDispose]();
  }

  /** Removes what processes left that died while they made a layer. */
  async sweep(): Promise<void> {
    await sweepTemporaries(this.#root);
    await sweepLocks(this.#root);
  }

  /** What an earlier process could not upload is offered again. */
  #onDisk(layer: Layer): ObtainedLayer {
    this.#remote?.offer(layer);
    return { layer, origin: "disk" };
  }

  #at(key: string): string {
    return path.join(this.#root, key);
  }

  async #examine(key: string, check: LayerCheck, onDamaged: (reason: string) => void | Promise<void>): Promise<Layer | undefined> {
    const directory = this.#at(key);
    if (!await exists(directory)) return undefined;
    try {
      const layer = layerOf(directory, await examineLayer(directory, key, check));
      const now = new Date();
      void fs.utimes(path.join(directory, MANIFEST_FILE), now, now).catch(() => {}); // A store that cannot be written is never pruned either.
      return layer;
    } catch (error) {
      if (!(error instanceof DamagedLayerError)) throw error;
      await onDamaged(error.message);
      return undefined;
    }
  }

  async #fetch(key: string, { signal, onFetch }: ObtainOptions): Promise<Layer | undefined> {
    if (!this.#remote) return undefined;
    onFetch?.();
    await using staged = await StagedDirectory.create(this.#root);
    if (!await this.#remote.fetch(key, staged.path, signal)) return undefined;
    try {
      await freezeLayer(staged.path);
      return await this.#publish(staged, key, await examineLayer(staged.path, key, "hash"));
    } catch (error) {
      if (!(error instanceof DamagedLayerError)) throw error;
      this.#remote.reject(key, error.message);
      return undefined;
    }
  }

  async #make(key: string, inputs: LayerInputs, { make, signal }: ObtainOptions): Promise<Layer> {
    await using staged = await StagedDirectory.create(this.#root);
    let set: ResolvedSet;
    try {
      set = await make({ directory: staged.path, layerFile: path.join(staged.path, LAYER_FILE) });
    } catch (error) {
      throw new MakeError(error);
    }
    signal?.throwIfAborted();
    return await this.#publish(staged, key, await completeLayer(staged.path, inputs, set));
  }

  async #publish(staged: StagedDirectory, key: string, examined: ExaminedLayer): Promise<Layer> {
    const directory = this.#at(key);
    await staged.publish(directory);
    await flushDirectory(this.#root);
    return layerOf(directory, examined);
  }

  async #discard(key: string, reason: string): Promise<void> {
    this.#log.warning("a package layer was not what it should be and is removed", { layer: key.slice(0, 12), reason });
    await removeDirectoryAtOnce(this.#at(key));
  }

  /** Removes the layers that were not used for longest until the rest is within the bound. Machines that run keep their files. */
  async #prune(keptKey: string): Promise<void> {
    const names = (await fs.readdir(this.#root)).filter((name) => LAYER_NAME.test(name));
    const found = await Promise.all(names.map(async (name) => await measure(path.join(this.#root, name), name === keptKey)));
    let keptBytes = 0;
    for (const { directory, byteCount, usedAtMs } of found.sort((a, b) => b.usedAtMs - a.usedAtMs)) {
      keptBytes += byteCount;
      // The one that was just made stays, whatever its size.
      if (usedAtMs < Infinity && keptBytes > this.#maxBytes) await removeDirectoryAtOnce(directory);
    }
  }
}

/** Marks what `make` threw, which is not ours to explain. */
class MakeError extends Error {
  /** The class, also in minified programs. */
  override readonly name = "MakeError";

  constructor(override readonly cause: unknown) {
    super(messageOf(cause));
  }
}

function keepError(error: unknown, root: string, signal: AbortSignal | undefined): unknown {
  if (error instanceof MakeError) return error.cause;
  if (signal?.aborted || SandboxError.is(error)) return error;
  const { code } = error as NodeJS.ErrnoException;
  const why = code === "ENOSPC" || code === "EDQUOT" ? `no space is left in ${root}` : messageOf(error);
  return new SnapshotError(`Cannot keep the installed packages: ${why}`, {
    cause: error,
    hint: "`sbx cache prune` makes room; EXEC_SANDBOX_CACHE_DIR names another place.",
  });
}

function layerOf(directory: string, { manifest, packages, details }: ExaminedLayer): Layer {
  const { key, inputs, createdAtMs, files: { [LAYER_FILE]: { size, sha256 } } } = manifest;
  return { key, inputs, sha256, directory, layerFile: path.join(directory, LAYER_FILE), sizeBytes: size, createdAtMs, packages, details };
}

async function measure(directory: string, isNewest: boolean): Promise<{ directory: string; byteCount: number; usedAtMs: number }> {
  const stat = (name: string) => fs.stat(path.join(directory, name)).catch(() => undefined); // Being removed by somebody else.
  const [manifest, ...files] = await Promise.all([MANIFEST_FILE, LAYER_FILE, PACKAGES_FILE].map(stat));
  const byteCount = files.reduce((sum, file) => sum + (file?.blocks ?? 0) * 512, 0);
  return { directory, byteCount, usedAtMs: isNewest ? Infinity : manifest?.mtimeMs ?? 0 };
}

/** A rename is on disk when the directory is. */
async function flushDirectory(directory: string): Promise<void> {
  await using handle = await fs.open(directory, "r");
  await handle.sync();
}
