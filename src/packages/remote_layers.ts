/** Remote layers: package layers in an S3 bucket, fetched before anything is installed and uploaded in the background. */
import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { Semaphore, settlesWithin } from "../base/async.ts";
import { messageOf } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import type { S3Objects, S3Place } from "../cache/s3.ts";
import { writeFileAtomic } from "../host/files.ts";
import {
  DamagedLayerError,
  LAYER_FILE,
  MANIFEST_FILE,
  MANIFEST_MAX_BYTES,
  PACKAGES_FILE,
  PACKAGES_MAX_BYTES,
  parseManifest,
} from "./layer_files.ts";
import type { Layer, RemoteLayers } from "./layer_store.ts";

/** Of the objects' form; what an older program would misread lies below another name. */
const OBJECTS_VERSION = "v1";
/** The record of a layer: two texts inside a third. */
const RECORD_MAX_BYTES = 4 * (MANIFEST_MAX_BYTES + PACKAGES_MAX_BYTES);
/** A bucket that has failed is left alone for so long: nobody waits twice for one that does not answer. */
const PAUSE_MS = 60_000;
/** Layers that wait to be uploaded; what is beyond is offered again when it is next used. */
const QUEUE_MAX = 64;
/** What close waits for uploads to end. Then they are abandoned, and made up for when the layer is next used. */
const FLUSH_TIMEOUT_MS = 5_000;
/** Uploads that the service refused are tried again after this time. */
const REFUSED_MS = 24 * 3_600_000;
/** In a layer's directory: where it is already. */
const UPLOADED_FILE = "uploaded.json";

const recordSchema = z.strictObject({ manifest: z.string(), packages: z.string(), signature: z.string().optional() });
const uploadedSchema = z.strictObject({ to: z.string(), atMs: z.number(), isRefused: z.boolean() });

/** What `S3Layers` is made of. */
export interface S3LayersOptions extends S3Place {
  /** What every key begins with. */
  readonly prefix: string;
  readonly uploadsMax: number;
  /** Bound of one layer. */
  readonly maxBytes: number;
  /** Shared by the hosts that trust each other's layers; undefined: the bucket's own rules say who may write. */
  readonly signingKey?: string | undefined;
  readonly log: Logger;
}

/**
 * Layers in a bucket. `PREFIX layers/v1/KEY.json` is the record, put last: manifest and resolved set. `PREFIX blobs/v1/SHA256.zst` is the file
 * system, named after its content, so that two hosts that upload at once cannot mix theirs. Never fails a caller: what goes wrong is a warning.
 */
export class S3Layers implements RemoteLayers {
  readonly #options: S3LayersOptions;
  readonly #log: Logger;
  readonly #slots: Semaphore;
  readonly #closing = new AbortController();
  readonly #uploads = new Map<string, Promise<void>>();
  /** Keys of which what is in the bucket did not do: these are replaced. */
  readonly #rejected = new Set<string>();
  #objects: Promise<S3Objects> | undefined;
  /** By `performance.now()`. */
  #pausedUntil = 0;

  /** Nothing is loaded or connected before the first call. */
  constructor(options: S3LayersOptions) {
    this.#options = options;
    this.#log = options.log;
    this.#slots = new Semaphore(options.uploadsMax);
  }

  async fetch(key: string, directory: string, signal?: AbortSignal): Promise<boolean> {
    if (performance.now() < this.#pausedUntil) return false;
    const either = signal ? AbortSignal.any([signal, this.#closing.signal]) : this.#closing.signal;
    try {
      return await this.#fetch(key, directory, either);
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof RecordError || error instanceof DamagedLayerError || reasonOf(error) === "damaged") {
        this.reject(key, messageOf(error));
      } else if (!this.#closing.signal.aborted) this.#pause("a package layer cannot be read from S3 and is installed", error);
      return false;
    }
  }

  reject(key: string, reason: string): void {
    this.#rejected.add(key);
    this.#log.warning("a package layer in S3 is not what it should be; it is installed and replaced there", {
      layer: key.slice(0, 12),
      reason,
    });
  }

  offer(layer: Layer): void {
    const { key } = layer;
    if (this.#closing.signal.aborted || this.#uploads.has(key) || performance.now() < this.#pausedUntil) return;
    if (this.#uploads.size >= QUEUE_MAX) {
      return this.#log.debug("too many package layers wait for their upload", { layer: key.slice(0, 12) });
    }
    const upload = this.#upload(layer).catch((error) => this.#failed(layer, error)).finally(() => this.#uploads.delete(key));
    this.#uploads.set(key, upload);
  }

  /** Waits a little for uploads, and abandons the rest: neither a part nor a record of these is left in the bucket. */
  async [Symbol.asyncDispose](): Promise<void> {
    const flushed = Promise.allSettled(this.#uploads.values());
    if (!await settlesWithin(flushed, FLUSH_TIMEOUT_MS)) {
      this.#log.debug("uploads of package layers are abandoned", { count: this.#uploads.size });
    }
    this.#closing.abort(new Error("the scheduler is closed"));
    await flushed;
    const objects = await this.#objects?.catch(() => undefined); // It was told when it failed.
    objects?.[Symbol.dispose]();
  }

  async #fetch(key: string, directory: string, signal: AbortSignal): Promise<boolean> {
    const s3 = await this.#open();
    const text = await s3.getText(this.#recordKey(key), RECORD_MAX_BYTES, signal);
    if (text === undefined) return false;
    const { manifest, packages } = this.#readRecord(text);
    const { size, sha256 } = parseManifest(manifest).files[LAYER_FILE];
    if (size > this.#options.maxBytes) throw new RecordError(`it must have at most ${this.#options.maxBytes} bytes, got ${size}`);
    await fs.writeFile(path.join(directory, MANIFEST_FILE), manifest, { mode: 0o444 });
    await fs.writeFile(path.join(directory, PACKAGES_FILE), packages, { mode: 0o444 });
    const isThere = await s3.downloadFile(this.#blobKey(sha256), path.join(directory, LAYER_FILE), { size, sha256, signal });
    if (!isThere) throw new RecordError("its file system is missing");
    await this.#note(directory, false);
    return true;
  }

  async #upload(layer: Layer): Promise<void> {
    const isReplacing = this.#rejected.has(layer.key), { signal } = this.#closing;
    if (!isReplacing && await this.#isNoted(layer.directory)) return;
    using _slot = await this.#slots.acquire(signal);
    const s3 = await this.#open(), recordKey = this.#recordKey(layer.key);
    if (isReplacing || !await s3.has(recordKey, signal)) {
      const { sha256, layerFile, directory } = layer;
      await s3.uploadFile(this.#blobKey(sha256), layerFile, { sha256, isReplacing, signal });
      const [manifest = "", packages = ""] = await Promise.all(
        [MANIFEST_FILE, PACKAGES_FILE].map((name) => fs.readFile(path.join(directory, name), "utf8")),
      );
      await s3.putText(recordKey, this.#writeRecord(manifest, packages), { isReplacing, signal });
      this.#rejected.delete(layer.key);
    }
    await this.#note(layer.directory, false);
  }

  async #failed(layer: Layer, error: unknown): Promise<void> {
    if (this.#closing.signal.aborted) return;
    if (reasonOf(error) === "forbidden") await this.#note(layer.directory, true);
    this.#pause("a package layer is not uploaded to S3", error);
  }

  #pause(message: string, error: unknown): void {
    this.#pausedUntil = performance.now() + PAUSE_MS;
    this.#log.warning(message, { reason: messageOf(error), pauseSeconds: PAUSE_MS / 1000 });
  }

  /** The SDK takes a fifth of a second to load: only who uses S3 pays it. */
  #open(): Promise<S3Objects> {
    this.#objects ??= import("../cache/s3.ts").then(({ S3Objects }) => new S3Objects(this.#options));
    return this.#objects;
  }

  #recordKey(key: string): string {
    return `${this.#options.prefix}layers/${OBJECTS_VERSION}/${key}.json`;
  }

  #blobKey(sha256: string): string {
    return `${this.#options.prefix}blobs/${OBJECTS_VERSION}/${sha256}.zst`;
  }

  #writeRecord(manifest: string, packages: string): string {
    return JSON.stringify({ manifest, packages, signature: this.#signatureOf(manifest) });
  }

  #readRecord(text: string): z.infer<typeof recordSchema> {
    let record: z.infer<typeof recordSchema>;
    try {
      record = recordSchema.parse(JSON.parse(text));
    } catch (cause) {
      throw new RecordError("its record cannot be read", { cause });
    }
    const wanted = this.#signatureOf(record.manifest);
    if (wanted !== undefined && !isSame(wanted, record.signature ?? "")) throw new RecordError("its signature is not that of our key");
    return record;
  }

  /** The manifest has the hashes of all else. */
  #signatureOf(manifest: string): string | undefined {
    const { signingKey } = this.#options;
    return signingKey === undefined ? undefined : createHmac("sha256", signingKey).update(manifest).digest("hex");
  }

  get #destination(): string {
    const { endpoint = "", bucket, prefix } = this.#options;
    return createHash("sha256").update(JSON.stringify([endpoint, bucket, prefix])).digest("hex").slice(0, 32);
  }

  /** Notes in a layer's directory that it need not be uploaded, or may not be. */
  async #note(directory: string, isRefused: boolean): Promise<void> {
    const note = JSON.stringify({ to: this.#destination, atMs: Date.now(), isRefused });
    await writeFileAtomic(path.join(directory, UPLOADED_FILE), note, 0o444).catch(() => {}); // It is looked for again then.
  }

  async #isNoted(directory: string): Promise<boolean> {
    try {
      const { to, atMs, isRefused } = uploadedSchema.parse(JSON.parse(await fs.readFile(path.join(directory, UPLOADED_FILE), "utf8")));
      return to === this.#destination && (!isRefused || Math.abs(Date.now() - atMs) < REFUSED_MS);
    } catch {
      return false; // No note, or half of one.
    }
  }
}

/** What is wrong with what the bucket has, in words that follow its name. */
class RecordError extends Error {
  /** The class, also in minified programs. */
  override readonly name = "RecordError";
}

function reasonOf(error: unknown): unknown {
  return (error as { readonly reason?: unknown } | undefined)?.reason;
}

function isSame(wanted: string, got: string): boolean {
  const [a, b] = [wanted, got].map((text) => createHash("sha256").update(text).digest());
  return a !== undefined && b !== undefined && timingSafeEqual(a, b);
}
