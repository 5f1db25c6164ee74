/** Session files: what a session offers for files in its guest; arguments are checked before anything is sent. */
import { abortable, concurrently } from "../base/async.ts";
import { InputValidationError, SandboxFileError, shown } from "../base/errors.ts";
import { TRANSFERS_MAX } from "../base/limits.ts";
import type { EntryType, GuestEntry, GuestFiles } from "../channel/guest_files.ts";
import { concat, owned } from "../channel/wire.ts";
import { StagedFile } from "../host/local_file.ts";
import { checkCallback, checkFields, checkFlag, checkGuestPath, checkInteger, checkSignal } from "./check.ts";
import { checkSource, type FileSource, type FileSources, localPath, openSource } from "./file_source.ts";

const MODE_MAX = 0o777;
const EXECUTABLE_MODE = 0o755;
/** Of one transfer; with sixteen at once and the credit of each, 12 MB. */
const WRITE_QUEUE_BYTES = 524_288;

/** One entry of a directory in the guest. */
export interface FileInfo {
  /** Without its directory. */
  readonly name: string;
  /** It is a directory. */
  readonly isDir: boolean;
  /** Bytes; 0 for directories. */
  readonly size: number;
  /** What it is; links are not followed in a listing. */
  readonly type: EntryType;
  /** Permission bits, such as 0o644. */
  readonly mode: number;
  /** When it was last written, in milliseconds since 1970. */
  readonly modifiedMs: number;
}

/** What ends a call. */
export interface CallOptions {
  /** The call rejects with its reason. */
  readonly signal?: AbortSignal;
}

/** How a file is written. */
export interface WriteFileOptions extends CallOptions {
  /** Permission bits, at most 0o777. Default: those of the file replaced, else 0o644. */
  readonly mode?: number;
  /** The same as mode 0o755. */
  readonly executable?: boolean;
  /** Told how many bytes have been sent, as the transfer goes on. */
  readonly onProgress?: (byteCount: number) => void;
}

/** How a file is read. */
export interface ReadFileOptions extends CallOptions {
  /** Give a string instead of bytes. What is no UTF-8 becomes U+FFFD. */
  readonly encoding?: "utf-8";
  /** Write it to a local file (whole or not at all) or to a stream (closed on success, aborted on failure) and give the number of bytes. */
  readonly destination?: string | URL | WritableStream<Uint8Array>;
  /** Told how many bytes have come, as the transfer goes on. */
  readonly onProgress?: (byteCount: number) => void;
}

/** How a directory is made. */
export interface MakeDirOptions extends CallOptions {
  /** Make its parents too, and do not mind one that is there. Default false. */
  readonly recursive?: boolean;
  /** Permission bits, at most 0o777. Default 0o755. */
  readonly mode?: number;
}

/** How something is removed. */
export interface RemoveOptions extends CallOptions {
  /** A directory with all that is in it. Default false. */
  readonly recursive?: boolean;
}

/** How something is looked at. */
export interface StatOptions extends CallOptions {
  /** Look at what a symbolic link leads to. Default true. */
  readonly followLinks?: boolean;
}

const SIGNAL_FIELDS: ReadonlySet<string> = new Set<keyof CallOptions>(["signal"]);
const WRITE_FIELDS: ReadonlySet<string> = new Set<keyof WriteFileOptions>(["mode", "executable", "signal", "onProgress"]);
const READ_FIELDS: ReadonlySet<string> = new Set<keyof ReadFileOptions>(["encoding", "destination", "signal", "onProgress"]);
const MAKE_FIELDS: ReadonlySet<string> = new Set<keyof MakeDirOptions>(["recursive", "mode", "signal"]);
const REMOVE_FIELDS: ReadonlySet<string> = new Set<keyof RemoveOptions>(["recursive", "signal"]);
const STAT_FIELDS: ReadonlySet<string> = new Set<keyof StatOptions>(["followLinks", "signal"]);

/** A call whose arguments have been checked; it starts when it is run. */
export interface FileCall<T> {
  readonly signal: AbortSignal | undefined;
  run(files: GuestFiles): Promise<T>;
  /** In place of `run`, when there is no guest: ends the stream that the caller has given. */
  giveUp?(reason: unknown): unknown;
}

/** Writes one file. */
export function writeFileCall(path: string, content: FileSource, options: WriteFileOptions = {}): FileCall<void> {
  const target = checkGuestPath("write a file", path), source = checkSource("write", target, content);
  const { mode, executable, onProgress } = checkFields("write a file", options, WRITE_FIELDS);
  const isExecutable = checkFlag("write a file", "executable", executable);
  const ownMode = mode === undefined ? (isExecutable ? EXECUTABLE_MODE : undefined) : checkMode("write a file", mode);
  checkCallback("write a file", "onProgress", onProgress);
  const signal = checkSignal("write a file", options.signal);
  return {
    signal,
    async run(files) {
      await using opened = await openSource(target, source);
      const body = onProgress ? counted(opened.body, onProgress) : opened.body;
      await files.write(target, { body, size: opened.size, mode: ownMode, signal });
    },
    giveUp: (reason) => source instanceof ReadableStream && endStream(() => source.cancel(reason)),
  };
}

/** Reads one file. */
export function readFileCall(path: string, options: ReadFileOptions = {}): FileCall<Uint8Array | string | number> {
  const source = checkGuestPath("read a file", path);
  const { encoding, destination, onProgress } = checkFields("read a file", options, READ_FIELDS);
  if (encoding !== undefined && (encoding as string) !== "utf-8" && (encoding as string) !== "utf8") {
    throw new InputValidationError(`Cannot read a file: encoding must be "utf-8", got ${shown(encoding)}`);
  }
  if (encoding !== undefined && destination !== undefined) {
    throw new InputValidationError("Cannot read a file: give an encoding or a destination, got both");
  }
  checkCallback("read a file", "onProgress", onProgress);
  const signal = checkSignal("read a file", options.signal);
  const target = destination === undefined || destination instanceof WritableStream ? destination : localPath("read a file", destination);
  if (target instanceof WritableStream && target.locked) {
    throw new InputValidationError("Cannot read a file: the destination stream has another writer");
  }
  const transfer: Transfer = { source, signal, onProgress };
  return {
    signal,
    async run(files) {
      if (target instanceof WritableStream) return await readToStream(files, transfer, target);
      if (target !== undefined) return await readToFile(files, transfer, target);
      const bytes = await readToMemory(files, transfer);
      return encoding === undefined ? bytes : new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
    },
    giveUp: (reason) => target instanceof WritableStream && endStream(() => target.abort(reason)),
  };
}

/** Lists one directory, sorted by name. */
export function listFilesCall(path: string, options: CallOptions = {}): FileCall<FileInfo[]> {
  const directory = checkGuestPath("list files", path, { isHomeAllowed: true });
  const signal = checkSignal("list files", checkFields("list files", options, SIGNAL_FIELDS).signal);
  return {
    signal,
    async run(files) {
      const entries = (await files.list(directory, signal)).map(fileInfo);
      return entries.sort((a, b) => a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
    },
  };
}

/** Looks at one path. */
export function statCall(path: string, options: StatOptions = {}): FileCall<FileInfo> {
  const target = checkGuestPath("look at a file", path, { isHomeAllowed: true });
  const { followLinks } = checkFields("look at a file", options, STAT_FIELDS);
  const isFollowed = checkFlag("look at a file", "followLinks", followLinks, true);
  const signal = checkSignal("look at a file", options.signal);
  return { signal, run: async (files) => fileInfo(await files.stat(target, { isFollowed, signal })) };
}

/** Whether something is at a path. */
export function existsCall(path: string, options: CallOptions = {}): FileCall<boolean> {
  const { signal, run } = statCall(path, options);
  const isAbsent = (error: unknown) =>
    error instanceof SandboxFileError && (error.reason === "not-found" || error.reason === "not-directory");
  return {
    signal,
    run: (files) =>
      run(files).then(() => true, (error) => {
        if (isAbsent(error)) return false;
        throw error;
      }),
  };
}

/** Makes one directory. */
export function makeDirCall(path: string, options: MakeDirOptions = {}): FileCall<void> {
  const target = checkGuestPath("make a directory", path);
  const { recursive, mode } = checkFields("make a directory", options, MAKE_FIELDS);
  const isRecursive = checkFlag("make a directory", "recursive", recursive);
  const ownMode = mode === undefined ? EXECUTABLE_MODE : checkMode("make a directory", mode);
  const signal = checkSignal("make a directory", options.signal);
  return { signal, run: (files) => files.makeDirectory(target, { isRecursive, mode: ownMode, signal }) };
}

/** Removes what is at one path. */
export function removeCall(path: string, options: RemoveOptions = {}): FileCall<void> {
  const target = checkGuestPath("remove a file", path);
  const isRecursive = checkFlag("remove a file", "recursive", checkFields("remove a file", options, REMOVE_FIELDS).recursive);
  const signal = checkSignal("remove a file", options.signal);
  return { signal, run: (files) => files.remove(target, { isRecursive, signal }) };
}

/** Gives what is at one path another. */
export function renameCall(from: string, to: string, options: CallOptions = {}): FileCall<void> {
  const source = checkGuestPath("rename a file", from), target = checkGuestPath("rename a file", to);
  const signal = checkSignal("rename a file", checkFields("rename a file", options, SIGNAL_FIELDS).signal);
  return { signal, run: (files) => files.rename(source, { to: target, signal }) };
}

/** Writes files that were checked, as many at a time as the channel takes. The first failure ends the others. */
export async function writeFiles(files: GuestFiles, sources: FileSources, signal?: AbortSignal): Promise<void> {
  await concurrently(Object.entries(sources), { limit: TRANSFERS_MAX, signal }, async ([path, source], ending) => {
    await writeFileCall(path, source, { signal: ending }).run(files);
  });
}

interface Transfer {
  readonly source: string;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: ((byteCount: number) => void) | undefined;
}

/** A stream that has failed, or has another owner by now, is left as it is. */
function endStream(end: () => Promise<void>): void {
  void end().catch(() => {}); // There is a reason already; that is the one to report.
}

async function readToMemory(files: GuestFiles, transfer: Transfer): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  const byteCount = await readInOrder(files, transfer, async (bytes) => void parts.push(bytes));
  const whole = new Uint8Array(byteCount);
  let at = 0;
  for (const part of parts.splice(0)) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

async function readToFile(files: GuestFiles, transfer: Transfer, target: string): Promise<number> {
  await using staged = await StagedFile.create(target);
  const byteCount = await readInOrder(files, transfer, (bytes) => staged.write(bytes));
  await staged.publish();
  return byteCount;
}

async function readToStream(files: GuestFiles, transfer: Transfer, target: WritableStream<Uint8Array>): Promise<number> {
  const writer = target.getWriter();
  writer.closed.catch(() => {}); // What broke it is what a write, or the close, says.
  try {
    const byteCount = await readInOrder(files, transfer, (bytes) => writer.write(bytes));
    await abortable(writer.close(), transfer.signal);
    return byteCount;
  } catch (error) {
    // Not awaited: a stream that is stuck must not keep the caller, whose transfer is over.
    void writer.abort(error).catch(() => {}); // It has failed already; that is the error to report.
    throw error;
  } finally {
    writer.releaseLock();
  }
}

/**
 * Reads a file and hands it on in order; what `write` throws ends the transfer. What comes during a write goes with the next one, and up to
 * `WRITE_QUEUE_BYTES` wait before the guest has to, so that neither waits for the other at every piece.
 */
async function readInOrder(files: GuestFiles, transfer: Transfer, write: (bytes: Uint8Array) => Promise<void>): Promise<number> {
  const { source, signal, onProgress } = transfer, failed = new AbortController();
  const queue: Uint8Array[] = [];
  let writing = Promise.resolve(), isWriting = false, receivedBytes = 0, queuedBytes = 0;
  const drain = async () => {
    isWriting = true;
    for (let [first, ...rest] = queue.splice(0); first; [first, ...rest] = queue.splice(0)) {
      const batch = rest.length === 0 ? first : concat(first, ...rest);
      await write(batch);
      queuedBytes -= batch.length;
      onProgress?.(receivedBytes += batch.length);
    }
    isWriting = false;
  };
  const onBytes = (bytes: Uint8Array) => {
    queue.push(owned(bytes));
    queuedBytes += bytes.length;
    if (!isWriting) {
      writing = drain();
      writing.catch((error) => failed.abort(error));
    }
    return queuedBytes > WRITE_QUEUE_BYTES ? writing : undefined;
  };
  const total = await files.read(source, { onBytes, failed: failed.signal, signal });
  await abortable(writing, signal);
  return total;
}

async function* counted(body: AsyncIterable<Uint8Array>, onProgress: (byteCount: number) => void): AsyncGenerator<Uint8Array, void, void> {
  let byteCount = 0;
  for await (const piece of body) {
    yield piece;
    onProgress(byteCount += piece.length);
  }
}

function checkMode(action: string, mode: unknown): number {
  return checkInteger(action, "mode", mode, { min: 0, max: MODE_MAX });
}

function fileInfo({ name, type, size, mode, modifiedMs }: GuestEntry): FileInfo {
  const isDir = type === "directory";
  return { name, isDir, size: isDir ? 0 : size, type, mode, modifiedMs };
}
