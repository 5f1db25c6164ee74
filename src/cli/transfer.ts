/** Transfer: files and whole directories into a guest and out of it, several files at a time, with their progress. */
import fs from "node:fs/promises";
import path from "node:path";
import { concurrently } from "../base/async.ts";
import { SandboxFileError } from "../base/errors.ts";
import { TRANSFERS_MAX, TREE_MAX_BYTES } from "../base/limits.ts";
import { type LocalTree, readLocalTree } from "../host/local_tree.ts";
import { StagedTree } from "../host/staged_tree.ts";
import type { FileInfo } from "../run/session_files.ts";
import type { FileAccess } from "../run/vm_files.ts";
import { checkedFile, type GuestTree, readGuestTree, treeError } from "./guest_tree.ts";
import {
  below,
  type DownloadSpec,
  isDirectoryPath,
  localName,
  numbered,
  plainGuestPath,
  STANDARD_OUTPUT,
  type UploadSpec,
} from "./transfer_spec.ts";

const EXECUTABLE_MODE = 0o755;
const FILE_MODE = 0o644;

/** How far a transfer is. */
export interface TransferProgress {
  /** Files that are done. */
  readonly files: number;
  readonly totalFiles: number;
  readonly bytes: number;
  readonly totalBytes: number;
}

/** What a transfer may be given. */
export interface TransferOptions {
  /** Ends it; what is unfinished is removed on both sides. */
  readonly signal?: AbortSignal | undefined;
  /** Called as it goes on, at every piece. */
  readonly onProgress?: ((progress: TransferProgress) => void) | undefined;
}

/** What was transferred. */
export interface Transferred {
  /** Path in the guest, relative to the home directory; `.` is the home. */
  readonly guest: string;
  /** Path on the host as given or made up from what was given; `-` is standard output. */
  readonly local: string;
  readonly files: number;
  readonly bytes: number;
}

/** An upload whose local side has been looked at: it can be sent to several guests. */
export interface PlannedUpload {
  readonly spec: UploadSpec;
  readonly tree: LocalTree;
}

/** Looks at what is to be uploaded. Throws `SandboxFileError`. */
export async function planUpload(spec: UploadSpec, signal?: AbortSignal): Promise<PlannedUpload> {
  return { spec, tree: await readLocalTree(spec.local, signal) };
}

/** Uploads a file or a directory: file by file, each whole or not at all. Existing files are replaced. Rejects with `SandboxFileError`. */
export async function uploadTree(
  files: FileAccess,
  upload: UploadSpec | PlannedUpload,
  { signal, onProgress }: TransferOptions = {},
): Promise<Transferred> {
  const { spec, tree } = "tree" in upload ? upload : await planUpload(upload, signal);
  const target = await guestTarget(files, spec, tree.isDirectory, signal);
  const meter = new Meter({ totalFiles: tree.files.length, totalBytes: tree.totalBytes }, onProgress);
  try {
    await concurrently(tree.emptyDirectories, { limit: TRANSFERS_MAX, signal }, async (relative, ending) => {
      const directory = below(target, relative);
      if (directory !== "") await files.makeDir(directory, { recursive: true, signal: ending });
    });
    await concurrently(tree.files, { limit: TRANSFERS_MAX, signal }, async ({ relative, local, isExecutable }, ending) => {
      const mode = isExecutable ? EXECUTABLE_MODE : FILE_MODE;
      await files.writeFile(below(target, relative), { local }, { mode, signal: ending, onProgress: meter.file(local) });
      meter.fileDone();
    });
  } catch (error) {
    throw withAdvice(error);
  }
  return { guest: target || ".", local: spec.local, files: tree.files.length, bytes: meter.bytes };
}

/** What a download may be given besides. */
export interface DownloadOptions extends TransferOptions {
  /** Takes the bytes of a file that goes to standard output. */
  readonly writeOutput?: ((bytes: Uint8Array) => Promise<void>) | undefined;
  /** Which of several sources it belongs to, from 1: a part of the local name then. */
  readonly number?: number | undefined;
}

/**
 * Downloads a file or a directory. It appears under its name whole or not at all; a directory that is there already gets the new files, again
 * all or none. Rejects with `SandboxFileError`.
 */
export async function downloadTree(files: FileAccess, spec: DownloadSpec, options: DownloadOptions = {}): Promise<Transferred> {
  const { signal } = options, guest = plainGuestPath(spec.guest);
  const info = await look(files, guest, signal);
  if (spec.local === STANDARD_OUTPUT) return await downloadToOutput(files, { guest, info }, options);
  const local = await localTarget(spec, info.isDir, options.number);
  const tree: GuestTree = info.isDir
    ? await readGuestTree(files, guest, signal)
    : { files: [checkedFile("", guest, info)], directories: [], totalBytes: info.size };
  const meter = new Meter({ totalFiles: tree.files.length, totalBytes: tree.totalBytes }, options.onProgress);
  await using staged = await StagedTree.create(path.resolve(local), info.isDir ? "directory" : "file");
  for (const directory of tree.directories) await staged.makeDirectory(directory);
  await concurrently(tree.files, { limit: TRANSFERS_MAX, signal }, async (file, ending) => {
    const destination = staged.writeFile(file.relative, file);
    await files.readFile(file.guest, { destination, signal: ending, onProgress: meter.file(file.guest) });
    meter.fileDone();
  });
  signal?.throwIfAborted();
  await staged.publish();
  return { guest: guest || ".", local, files: tree.files.length, bytes: meter.bytes };
}

async function look(files: FileAccess, guest: string, signal: AbortSignal | undefined): Promise<FileInfo> {
  try {
    return await files.stat(guest || ".", signalOf(signal));
  } catch (error) {
    const isAbsent = error instanceof SandboxFileError && error.reason === "not-found";
    throw isAbsent ? treeError(guest, "not-found", "it does not exist") : error;
  }
}

async function downloadToOutput(
  files: FileAccess,
  { guest, info }: { readonly guest: string; readonly info: FileInfo },
  { signal, onProgress, writeOutput }: DownloadOptions,
): Promise<Transferred> {
  const file = checkedFile("", guest, info);
  const meter = new Meter({ totalFiles: 1, totalBytes: file.size }, onProgress);
  const destination = new WritableStream<Uint8Array>({ write: (bytes) => writeOutput?.(bytes) });
  await files.readFile(guest, { destination, onProgress: meter.file(guest), ...signalOf(signal) });
  meter.fileDone();
  return { guest, local: STANDARD_OUTPUT, files: 1, bytes: meter.bytes };
}

/** Where an upload goes, relative to the home directory; "" is the home. */
async function guestTarget(files: FileAccess, spec: UploadSpec, isDirectory: boolean, signal: AbortSignal | undefined): Promise<string> {
  const given = plainGuestPath(spec.guest), name = localName(path.resolve(spec.local));
  if (isDirectory) {
    const isInto = spec.guest.endsWith("/") || (spec.guest === "" && localName(spec.local) !== "");
    return isInto ? below(given, localName(spec.local)) : given;
  }
  if (isDirectoryPath(spec.guest) || await isGuestDirectory(files, given, signal)) return below(given, name);
  return given;
}

async function isGuestDirectory(files: FileAccess, guest: string, signal: AbortSignal | undefined): Promise<boolean> {
  try {
    return (await files.stat(guest, signalOf(signal))).isDir;
  } catch (error) {
    if (error instanceof SandboxFileError) return false; // Nothing is there yet; what else it is, the write will tell.
    throw error;
  }
}

/** Where a download goes on the host. */
export async function localTarget(spec: DownloadSpec, isDirectory: boolean, number?: number): Promise<string> {
  const guest = plainGuestPath(spec.guest), name = guest.slice(guest.lastIndexOf("/") + 1);
  if (spec.local === undefined) return numbered(name || ".", number);
  // The very directory that is named, and a slash says that a link to it is meant.
  if (name === "" && spec.local.endsWith("/")) return numbered(await fs.realpath(spec.local).catch(() => spec.local ?? "."), number);
  const isInto = name !== "" && (spec.local.endsWith("/") || (!isDirectory && await isLocalDirectory(spec.local)));
  return numbered(isInto ? path.join(spec.local, name) : spec.local, number);
}

/** Links not followed: what a link leads to is not written into unless a slash says so. */
async function isLocalDirectory(local: string): Promise<boolean> {
  return await fs.lstat(local).then((found) => found.isDirectory(), () => false);
}

/** Adds up what all files of a transfer have done. */
class Meter {
  #progress: TransferProgress;
  readonly #onProgress: ((progress: TransferProgress) => void) | undefined;

  constructor(totals: Pick<TransferProgress, "totalFiles" | "totalBytes">, onProgress: ((progress: TransferProgress) => void) | undefined) {
    this.#progress = { files: 0, bytes: 0, ...totals };
    this.#onProgress = onProgress;
  }

  get bytes(): number {
    return this.#progress.bytes;
  }

  /** Counts the bytes of one file. Throws when all have more than a tree may have: a guest may have told less. */
  file(path: string): (byteCount: number) => void {
    let before = 0;
    return (byteCount) => {
      const bytes = this.#progress.bytes + byteCount - before;
      before = byteCount;
      if (bytes > TREE_MAX_BYTES) {
        throw treeError(path, "too-large", `all files together may have at most ${TREE_MAX_BYTES} bytes, got more`);
      }
      this.#update({ bytes });
    };
  }

  fileDone(): void {
    this.#update({ files: this.#progress.files + 1 });
  }

  #update(change: Partial<TransferProgress>): void {
    this.#progress = { ...this.#progress, ...change };
    this.#onProgress?.(this.#progress);
  }
}

/** A full guest is the user's to enlarge, where sbx starts it. */
function withAdvice(error: unknown): unknown {
  if (!(error instanceof SandboxFileError) || error.side !== "guest" || error.reason !== "no-space") return error;
  const { message, side, path, reason, cause } = error;
  const hint = "The home directory takes half of the VM's memory: give it more with --memory MB.";
  return new SandboxFileError(message, { side, path, reason }, { hint, ...(cause === undefined ? {} : { cause }) });
}

function signalOf(signal: AbortSignal | undefined): { readonly signal?: AbortSignal } {
  return signal ? { signal } : {};
}
