/** Download: the images of a release, verified against its manifest before they are published. */
import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createZstdDecompress } from "node:zlib";
import { AssetError, messageOf, SandboxError } from "../base/errors.ts";
import { Deadline } from "../base/async.ts";
import { exists, FileLock, makePrivateDirectory, sha256File, sweepTemporaries } from "../host/files.ts";
import type { Arch } from "../host/platform.ts";
import { type Manifest, MANIFEST_NAME, type ManifestEntry, openAssets, parseManifest } from "./assets.ts";
import type { OnBuildProgress } from "./progress.ts";
import { publishSet, sweepSets } from "./publish.ts";

/** A server that is silent for longer is given up. */
const STALL_TIMEOUT_MS = 60_000;
const MANIFEST_MAX_BYTES = 4 * 1_048_576;
/** Compression must not make a file much larger; whoever sends more is not our release. */
const COMPRESSED_SLACK_BYTES = 1_048_576;

/** Which release to download, and where to. */
export interface DownloadOptions {
  /** Release to take; `EXEC_SANDBOX_ASSET_VERSION` goes first. */
  readonly version: string;
  readonly arch: Arch;
  readonly imagesDir: string;
  readonly cacheDir: string;
  /** Where releases lie: `BASE/v<version>/<arch>/<file>.zst`. Default: `EXEC_SANDBOX_ASSET_URL`. */
  readonly baseUrl?: string | undefined;
  /** Fail instead of using the network. Default: `EXEC_SANDBOX_OFFLINE`. */
  readonly isOffline?: boolean | undefined;
  readonly onProgress?: OnBuildProgress | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Default: the environment of this process. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined;
}

/**
 * Downloads what `imagesDir` lacks of a release, checks size and SHA-256 of every file and publishes the whole at once; files that are
 * already right are not fetched again. Throws `AssetError`; what was published before stays usable.
 */
export async function downloadAssets(options: DownloadOptions): Promise<void> {
  const env = options.env ?? process.env;
  const base = releaseUrl(options, env);
  const downloads = path.join(options.cacheDir, "downloads");
  await makePrivateDirectory(downloads);
  await using _lock = await FileLock.acquire(path.join(downloads, "lock"), {
    ...(options.signal ? { signal: options.signal } : {}),
    onWait: (pid) => options.onProgress?.({ task: "download", message: `waiting for the download of process ${pid}` }),
  });
  await sweepTemporaries(downloads);
  await sweepSets(options.imagesDir);
  const manifest = await fetchManifest(base, options);
  const sources = new Map<string, string>();
  const present = new Map((await openAssets(options.imagesDir).then(({ files }) => files, () => [])).map((file) => [file.sha256, file]));
  const total = Object.values(manifest.files).reduce((sum, { size }) => sum + size, 0);
  let done = 0;
  for (const [name, entry] of Object.entries(manifest.files)) {
    const target = path.join(downloads, entry.sha256);
    const own = present.get(entry.sha256);
    if (own && await sha256File(own.path, options.signal) === entry.sha256) sources.set(name, own.path);
    else {
      const before = done;
      const onBytes = (bytes: number) =>
        options.onProgress?.({ task: "download", message: name, percent: Math.min(100, (before + bytes) / Math.max(total, 1) * 100) });
      if (!await exists(target) || await sha256File(target) !== entry.sha256) {
        await fetchFile(`${base}/${name}.zst`, target, { name, entry, onBytes, signal: options.signal });
      }
      sources.set(name, target);
    }
    done += entry.size;
  }
  await publishSet(options.imagesDir, manifest, sources);
  await fs.rm(downloads, { recursive: true, force: true });
  options.onProgress?.({ task: "download", message: `${sources.size} files of ${manifest.version}`, isDone: true });
}

/** The URL of the wanted release's directory. Throws `AssetError` when there is none or the network must not be used. */
export function releaseUrl(options: DownloadOptions, env: Readonly<Record<string, string | undefined>>): string {
  const isOffline = options.isOffline ?? /^(1|true|yes|on)$/i.test(env["EXEC_SANDBOX_OFFLINE"] ?? "");
  const hint = "Run `sbx images build` to make the images from source.";
  if (isOffline) throw new AssetError("Cannot download the images: EXEC_SANDBOX_OFFLINE is set", { hint: `Unset it, or: ${hint}` });
  const base = options.baseUrl ?? env["EXEC_SANDBOX_ASSET_URL"];
  if (!base) throw new AssetError("Cannot download the images: EXEC_SANDBOX_ASSET_URL must say where releases lie, got nothing", { hint });
  if (!/^https?:\/\//i.test(base) || !URL.canParse(base)) {
    throw new AssetError(`Cannot download the images: EXEC_SANDBOX_ASSET_URL must be an http or https address, got "${base}"`, { hint });
  }
  const version = env["EXEC_SANDBOX_ASSET_VERSION"] || options.version;
  if (!/^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$/.test(version)) {
    throw new AssetError(`Cannot download the images: EXEC_SANDBOX_ASSET_VERSION must be a version such as 0.1.0, got "${version}"`, {
      hint,
    });
  }
  return `${base.replace(/\/+$/, "")}/v${version}/${options.arch}`;
}

async function fetchManifest(base: string, options: DownloadOptions): Promise<Manifest> {
  const url = `${base}/${MANIFEST_NAME}`;
  const chunks: Uint8Array[] = [];
  let size = 0;
  await receive(url, options.signal, async (body) => {
    for await (const chunk of body) {
      size += chunk.length;
      if (size > MANIFEST_MAX_BYTES) throw new Error(`it must be at most ${MANIFEST_MAX_BYTES} bytes`);
      chunks.push(chunk);
    }
  });
  const manifest = parseManifest(new TextDecoder().decode(concat(chunks, size)), url);
  if (manifest.arch !== options.arch) throw new AssetError(`Cannot use ${url}: it must be for ${options.arch}, got ${manifest.arch}`);
  return manifest;
}

interface FetchFileOptions {
  readonly name: string;
  readonly entry: ManifestEntry;
  readonly onBytes: (bytes: number) => void;
  readonly signal: AbortSignal | undefined;
}

/** Fetches one compressed file into `target`, which appears only when its content is right. */
async function fetchFile(url: string, target: string, { name, entry, onBytes, signal }: FetchFileOptions): Promise<void> {
  const partial = `${target}.part`;
  const hash = createHash("sha256");
  let received = 0, unpacked = 0;
  const inbound = new Transform({
    transform(chunk: Uint8Array, _encoding, done) {
      received += chunk.length;
      done(received > entry.size + COMPRESSED_SLACK_BYTES ? new Error(`more than ${entry.size} bytes arrived`) : null, chunk);
    },
  });
  const outbound = new Transform({
    transform(chunk: Uint8Array, _encoding, done) {
      unpacked += chunk.length;
      // Stop before the disk is full of what cannot be right.
      if (unpacked > entry.size) return done(new Error(`it must unpack to ${entry.size} bytes, got more`));
      hash.update(chunk);
      onBytes(unpacked);
      done(null, chunk);
    },
  });
  try {
    await receive(
      url,
      signal,
      (body) => pipeline(body, inbound, createZstdDecompress(), outbound, createWriteStream(partial, { mode: 0o600 })),
    );
    if (unpacked !== entry.size) throw new AssetError(`Cannot use ${url}: ${name} must have ${entry.size} bytes, got ${unpacked}`);
    const found = hash.digest("hex");
    if (found !== entry.sha256) throw new AssetError(`Cannot use ${url}: the SHA-256 of ${name} must be ${entry.sha256}, got ${found}`);
    await fs.rename(partial, target);
  } finally {
    await fs.rm(partial, { force: true });
  }
}

/** Opens `url` and hands its body to `consume`; a silent server, a wrong status and a broken body are `AssetError`s that name the URL. */
async function receive(
  url: string,
  signal: AbortSignal | undefined,
  consume: (body: AsyncIterable<Uint8Array>) => Promise<void>,
): Promise<void> {
  signal?.throwIfAborted();
  const silence = () =>
    new AssetError(`Cannot download ${url}: the server must send something within ${STALL_TIMEOUT_MS / 1000} s, got silence`);
  const stalled = new AbortController();
  const all = AbortSignal.any([stalled.signal, ...(signal ? [signal] : [])]);
  let timer = new Deadline(STALL_TIMEOUT_MS, silence);
  const onSilence = () => stalled.abort(timer.signal.reason);
  const rearm = () => {
    timer[Symbol.dispose]();
    timer = new Deadline(STALL_TIMEOUT_MS, silence);
    timer.signal.addEventListener("abort", onSilence, { once: true });
  };
  rearm();
  try {
    const response = await fetch(url, { signal: all, redirect: "follow" });
    if (!response.ok || response.body === null) {
      await response.body?.cancel();
      throw new AssetError(`Cannot download ${url}: the answer must be 200, got ${response.status} ${response.statusText}`.trimEnd());
    }
    await consume(watched(response.body, rearm));
  } catch (error) {
    signal?.throwIfAborted();
    stalled.signal.throwIfAborted();
    if (SandboxError.is(error)) throw error;
    throw new AssetError(`Cannot download ${url}: ${messageOf(error)}`, {
      cause: error,
      retry: "safe",
      hint: "Try again, or run `sbx images build`.",
    });
  } finally {
    timer[Symbol.dispose]();
  }
}

async function* watched(body: AsyncIterable<Uint8Array>, onChunk: () => void): AsyncGenerator<Uint8Array> {
  for await (const chunk of body) {
    onChunk();
    yield chunk;
  }
}

function concat(chunks: readonly Uint8Array[], size: number): Uint8Array {
  const whole = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.length;
  }
  return whole;
}
