/** Local files: those of the user that go to a guest or come from one; read in pieces, written whole or not at all. */
import fs from "node:fs/promises";
import path from "node:path";
import { type FileReason, SandboxError, SandboxFileError, shown } from "../base/errors.ts";
import { FILE_MAX_BYTES } from "../base/limits.ts";
import { temporaryName } from "./files.ts";

const PIECE_BYTES = 262_144;
const NEW_FILE_MODE = 0o666;
const PERMISSION_BITS = 0o777;
const REASONS: Readonly<Record<string, readonly [FileReason, string]>> = {
  ENOENT: ["not-found", "it, or a directory on its path, does not exist"],
  EISDIR: ["is-directory", "it is a directory"],
  ENOTDIR: ["not-directory", "part of its path is no directory"],
  EEXIST: ["exists", "something is there already"],
  ENOSPC: ["no-space", "no space is left on the device"],
  EDQUOT: ["no-space", "the quota is used up"],
  EFBIG: ["too-large", "the file system takes no file of that size"],
  EACCES: ["permission", "permission denied"],
  EPERM: ["permission", "operation not permitted"],
  EROFS: ["permission", "the file system is read-only"],
};

/** A file that is read from its beginning to the size that it had when it was opened. */
export class LocalFile implements AsyncDisposable, AsyncIterable<Uint8Array> {
  /** Bytes, when it was opened. */
  readonly size: number;
  readonly #file: string;
  readonly #handle: fs.FileHandle;
  readonly #modifiedMs: number;

  private constructor(file: string, handle: fs.FileHandle, found: { readonly size: number; readonly mtimeMs: number }) {
    this.#file = file;
    this.#handle = handle;
    this.size = found.size;
    this.#modifiedMs = found.mtimeMs;
  }

  /** Opens a regular file of at most `FILE_MAX_BYTES`. Throws `SandboxFileError`. */
  static async open(file: string): Promise<LocalFile> {
    try {
      // A FIFO would block the open itself, so what stands there is asked first, and again once it is open.
      checkRegular(file, await fs.stat(file));
      const handle = await fs.open(file, "r");
      try {
        const found = await handle.stat();
        checkRegular(file, found);
        if (found.size > FILE_MAX_BYTES) throw localError("read", file, ["too-large", tooLarge(found.size)]);
        return new LocalFile(file, handle, found);
      } catch (error) {
        await handle.close();
        throw error;
      }
    } catch (cause) {
      throw asFileError("read", file, cause);
    }
  }

  /** Its pieces; each is valid until the next is asked for. Throws `SandboxFileError` with the reason `changed` for a file that is written to. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, void> {
    const buffer = new Uint8Array(Math.min(PIECE_BYTES, this.size));
    try {
      for (let at = 0; at < this.size;) {
        const { bytesRead } = await this.#handle.read(buffer, 0, Math.min(buffer.length, this.size - at), at);
        if (bytesRead === 0) throw localError("read", this.#file, ["changed", "it became shorter while it was read"]);
        at += bytesRead;
        yield buffer.subarray(0, bytesRead);
      }
      const { size, mtimeMs } = await this.#handle.stat();
      if (size !== this.size || mtimeMs !== this.#modifiedMs) {
        throw localError("read", this.#file, ["changed", "it was changed while it was read"]);
      }
    } catch (cause) {
      throw asFileError("read", this.#file, cause);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }
}

/** A file in the making, beside its target, which it replaces when it is published. Disposing it unpublished removes it. */
export class StagedFile implements AsyncDisposable {
  readonly #target: string;
  readonly #temporary: string;
  readonly #handle: fs.FileHandle;
  #writing: Promise<unknown> = Promise.resolve();
  #isClosed = false;
  #isPublished = false;

  private constructor(target: string, temporary: string, handle: fs.FileHandle) {
    this.#target = target;
    this.#temporary = temporary;
    this.#handle = handle;
  }

  /** Begins a file that is to replace `file`, or what a symbolic link there leads to. Throws `SandboxFileError`. */
  static async create(file: string): Promise<StagedFile> {
    try {
      const target = await fs.realpath(file).catch(() => file); // Nothing is there yet.
      const found = await fs.stat(target).catch(() => undefined); // As above; a link to nothing is replaced itself.
      if (found) checkRegular(file, found, "write");
      const temporary = path.join(path.dirname(target), temporaryName());
      const handle = await fs.open(temporary, "wx", NEW_FILE_MODE);
      const staged = new StagedFile(target, temporary, handle);
      if (found) await handle.chmod(found.mode & PERMISSION_BITS).catch((error) => staged.#fail(error));
      return staged;
    } catch (cause) {
      throw asFileError("write", file, cause);
    }
  }

  /** Adds bytes at its end; the next call waits for this one. */
  write(bytes: Uint8Array): Promise<void> {
    const writing = this.#write(bytes);
    this.#writing = writing;
    return writing;
  }

  async #write(bytes: Uint8Array): Promise<void> {
    try {
      for (let rest = bytes; rest.length > 0;) {
        const { bytesWritten } = await this.#handle.write(rest, 0, rest.length);
        rest = rest.subarray(bytesWritten);
      }
    } catch (cause) {
      throw asFileError("write", this.#target, cause);
    }
  }

  /** Gives it its name. */
  async publish(): Promise<void> {
    try {
      await this.#close();
      await fs.rename(this.#temporary, this.#target);
      this.#isPublished = true;
    } catch (cause) {
      throw asFileError("write", this.#target, cause);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close();
    if (!this.#isPublished) await fs.rm(this.#temporary, { force: true });
  }

  async #fail(error: unknown): Promise<never> {
    await this[Symbol.asyncDispose]();
    throw error;
  }

  async #close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await Promise.allSettled([this.#writing]); // The descriptor's number may be another file's once it is closed.
    await this.#handle.close();
  }
}

function checkRegular(file: string, found: { isDirectory(): boolean; isFile(): boolean }, action = "read"): void {
  if (found.isDirectory()) throw localError(action, file, ["is-directory", "it is a directory"]);
  if (!found.isFile()) throw localError(action, file, ["not-a-file", "it is no regular file"]);
}

function tooLarge(byteCount: number): string {
  return `a file must be at most ${FILE_MAX_BYTES} bytes, got ${byteCount}`;
}

/** What the system says, as a `SandboxFileError`; one that is typed already stays as it is, and so does what has no code of the system. */
export function asFileError(action: string, file: string, cause: unknown): unknown {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  if (SandboxError.is(cause) || typeof code !== "string") return cause;
  // What else there is (a device error, too many links) has no word of its own: the file is not one that can be used.
  return localError(action, file, REASONS[code] ?? ["not-a-file", code], cause);
}

/** A `SandboxFileError` about a file of this host: what cannot be done with it, and why. */
export function localError(
  action: string,
  file: string,
  [reason, words]: readonly [FileReason, string],
  cause?: unknown,
): SandboxFileError {
  const options = cause === undefined ? {} : { cause };
  return new SandboxFileError(`Cannot ${action} ${shown(file)} on the host: ${words}`, { side: "host", path: file, reason }, options);
}
