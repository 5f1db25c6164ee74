/** File source: what a file's content may be given as, and its bytes in pieces. */
import { Buffer } from "node:buffer";
import { fileURLToPath } from "node:url";
import { InputValidationError, SandboxFileError, shown } from "../base/errors.ts";
import { FILE_MAX_BYTES } from "../base/limits.ts";
import { LocalFile } from "../host/local_file.ts";
import { checkGuestPath, checkText } from "./check.ts";

/** A file of the host. */
export interface LocalSource {
  /** Its path, or a `file:` URL. It is read in pieces. */
  readonly local: string | URL;
}

/** Content of a file in the guest, at most 500 MB (2^20 bytes each). A stream is read to its end, and cancelled when the transfer fails. */
export type FileSource = Uint8Array | ArrayBuffer | string | Blob | ReadableStream<Uint8Array> | LocalSource;

/** Path below the home directory → content. */
export type FileSources = Readonly<Record<string, FileSource>>;

/** A source that is open. */
export interface OpenSource extends AsyncDisposable {
  readonly body: AsyncIterable<Uint8Array>;
  /** Bytes, where they are known before they are read. */
  readonly size: number | undefined;
}

/** Checks paths and sources. Throws `InputValidationError`. */
export function checkFiles(action: string, files: unknown): FileSources {
  if (typeof files !== "object" || files === null || Array.isArray(files)) {
    throw new InputValidationError(`Cannot ${action}: files must be an object of paths and contents, got ${shown(files)}`);
  }
  for (const [path, source] of Object.entries(files)) checkSource(action, checkGuestPath(action, path), source);
  return files as FileSources;
}

/** A source as the types say. Throws `InputValidationError`, and `SandboxFileError` for one whose size is known to be too large. */
export function checkSource(action: string, path: string, source: unknown): FileSource {
  if (typeof source === "string") {
    if (!source.isWellFormed()) {
      throw new InputValidationError(`Cannot ${action}: the text for ${shown(path)} must be valid Unicode, got a lone surrogate`);
    }
    checkSize(action, path, Buffer.byteLength(source));
  } else if (source instanceof Uint8Array || source instanceof ArrayBuffer) {
    checkSize(action, path, source.byteLength);
  } else if (source instanceof Blob) {
    checkSize(action, path, source.size);
  } else if (source instanceof ReadableStream) {
    if (source.locked) throw new InputValidationError(`Cannot ${action}: the stream for ${shown(path)} has another reader`);
  } else {
    checkLocal(action, path, source);
  }
  return source as FileSource;
}

/** A path on this host, from a path or a `file:` URL. */
export function localPath(action: string, local: unknown): string {
  if (local instanceof URL) {
    if (local.protocol === "file:") return fileURLToPath(local);
    throw new InputValidationError(`Cannot ${action}: a local file's URL must begin with "file:", got ${shown(local.href)}`);
  }
  const text = checkText(action, "the local path", local);
  if (text !== "") return text;
  throw new InputValidationError(`Cannot ${action}: the local path must not be empty`);
}

/** Opens a source that was checked. Throws `SandboxFileError` for a local file. The caller disposes it. */
export async function openSource(path: string, source: FileSource): Promise<OpenSource> {
  if (typeof source === "string") return opened(once(new TextEncoder().encode(source)));
  if (source instanceof Uint8Array) return opened(once(source));
  if (source instanceof ArrayBuffer) return opened(once(new Uint8Array(source)));
  if (source instanceof Blob) return opened({ body: streamPieces(source.stream(), "the content"), size: source.size });
  if (source instanceof ReadableStream) {
    const pieces = streamPieces(source, `the stream for ${shown(path)}`);
    return { body: limited(path, pieces), size: undefined, [Symbol.asyncDispose]: async () => pieces[Symbol.dispose]() };
  }
  const file = await LocalFile.open(localPath("read", source.local));
  return { body: file, size: file.size, [Symbol.asyncDispose]: () => file[Symbol.asyncDispose]() };
}

/** The pieces of a stream. Ending early cancels it; what it throws is passed on. */
export function streamPieces(stream: ReadableStream<unknown>, name: string): AsyncIterable<Uint8Array> & Disposable {
  const reader = stream.getReader();
  // A stream that has failed says so to whoever reads; one that was read to its end does not mind.
  const cancel = () => void reader.cancel().catch(() => {});
  return {
    [Symbol.asyncIterator]: () => ({
      async next() {
        const { done, value } = await reader.read();
        if (done) return { done, value: undefined };
        if (value instanceof Uint8Array) return { done: false, value };
        throw new InputValidationError(`Cannot read ${name}: its pieces must be Uint8Array, got ${shown(value)}`);
      },
      // Also while a read is pending, which an ordinary iterator of a stream would wait for.
      async return() {
        cancel();
        return { done: true, value: undefined };
      },
    }),
    [Symbol.dispose]: cancel,
  };
}

function checkLocal(action: string, path: string, source: unknown): void {
  if (typeof source !== "object" || source === null || !("local" in source)) {
    const wanted = "bytes, text, a Blob, a ReadableStream or {local: path}";
    throw new InputValidationError(`Cannot ${action}: the content of ${shown(path)} must be ${wanted}, got ${shown(source)}`);
  }
  localPath(action, source.local);
}

function checkSize(action: string, path: string, byteCount: number): void {
  if (byteCount > FILE_MAX_BYTES) throw tooLargeError(action, path, `got ${byteCount}`);
}

function tooLargeError(action: string, path: string, got: string): SandboxFileError {
  const message = `Cannot ${action} ${shown(path)} in the guest: a file must be at most ${FILE_MAX_BYTES} bytes, ${got}`;
  return new SandboxFileError(message, { side: "guest", path, reason: "too-large" });
}

function once(bytes: Uint8Array): Pick<OpenSource, "body" | "size"> {
  return {
    body: (async function* () {
      yield bytes;
    })(),
    size: bytes.length,
  };
}

function opened(source: Pick<OpenSource, "body" | "size">): OpenSource {
  return { ...source, [Symbol.asyncDispose]: async () => {} };
}

/** The same pieces, up to the limit for a file. */
function limited(path: string, body: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
  return {
    [Symbol.asyncIterator]() {
      const iterator = body[Symbol.asyncIterator]();
      let totalBytes = 0;
      return {
        async next() {
          const result = await iterator.next();
          if (!result.done) totalBytes += result.value.length;
          if (totalBytes > FILE_MAX_BYTES) throw tooLargeError("write", path, "got more");
          return result;
        },
        async return() {
          await iterator.return?.();
          return { done: true, value: undefined };
        },
      };
    },
  };
}
