/** Guest files: the agent's file methods as typed calls. Paths have been checked by the caller; the guest checks them again. */
import { abortable, Semaphore } from "../base/async.ts";
import { type FileReason, InputValidationError, SandboxFileError, shown } from "../base/errors.ts";
import { CALLS_MAX, DIRECTORY_ENTRIES_MAX, FILE_MAX_BYTES, PATH_COMPONENT_MAX_BYTES, TRANSFERS_MAX } from "../base/limits.ts";
import { answerObject, isCount, type JsonObject, parseObject, type Refusal, refusalError, refusalOf, unreadable } from "./answer.ts";
import type { Answer, DataHandler, Mux, MuxStream } from "./mux.ts";
import { BodySource, callAnswer, type Graces, type Message, StallWatch, stopStream } from "./stream_io.ts";
import { concat, DATA_FLAG, WireError } from "./wire.ts";

/** What stands at a path. */
export type EntryType = "file" | "directory" | "symlink" | "other";

/** What the guest says of one entry of a directory. */
export interface GuestEntry {
  readonly name: string;
  readonly type: EntryType;
  /** Bytes. */
  readonly size: number;
  /** Permission bits. */
  readonly mode: number;
  /** Milliseconds since 1970. */
  readonly modifiedMs: number;
}

/** How a file is written. */
export interface GuestWrite {
  readonly body: AsyncIterable<Uint8Array>;
  /** Permission bits; default: those of the file replaced, else 0644. */
  readonly mode?: number | undefined;
  /** Bytes that the body has, where they are known. */
  readonly size?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** How a file is read. */
export interface GuestRead {
  /** Gets the bytes as they come; valid during the call only. The guest waits for what it returns. */
  readonly onBytes: (bytes: Uint8Array) => void | Promise<void>;
  /** Aborts when whoever takes the bytes cannot go on. */
  readonly failed?: AbortSignal | undefined;
  readonly signal?: AbortSignal | undefined;
}

const TYPES: readonly EntryType[] = ["file", "directory", "symlink", "other"];
/** A line of a listing: a name of 255 bytes, every one of them escaped, and the numbers. */
const LINE_MAX_BYTES = 6 * PATH_COMPONENT_MAX_BYTES + 256;
const LINE_FEED = 10;
const REASONS: Readonly<Record<string, readonly [FileReason, string]>> = {
  not_found: ["not-found", "it does not exist"],
  is_directory: ["is-directory", "it is a directory"],
  not_directory: ["not-directory", "it is no directory, or part of its path is none"],
  not_a_file: ["not-a-file", "it is no regular file"],
  permission: ["permission", "it may not be accessed, or its path leads out of the home directory"],
  exists: ["exists", "something is there already"],
  not_empty: ["exists", "the directory is not empty"],
  no_space: ["no-space", "no space is left in the guest"],
  too_large: ["too-large", `a file must be at most ${FILE_MAX_BYTES} bytes`],
  changed: ["changed", "it was changed while it was read"],
};

/** The files of one VM. At most `TRANSFERS_MAX` transfers and `CALLS_MAX` other calls are under way at once; the rest wait their turn. */
export class GuestFiles {
  readonly #mux: Mux;
  readonly #graces: Graces;
  readonly #transfers = new Semaphore(TRANSFERS_MAX);
  readonly #calls = new Semaphore(CALLS_MAX);

  /** Made by `GuestChannel` only. */
  constructor(mux: Mux, graces: Graces) {
    this.#mux = mux;
    this.#graces = graces;
  }

  /** Writes a file whole or not at all; returns its size. Rejects with what the body throws, and with the signal's reason. */
  async write(path: string, { body, mode, size, signal }: GuestWrite): Promise<number> {
    signal?.throwIfAborted();
    using _turn = this.#transfers.tryAcquire() ?? await this.#transfers.acquire(signal);
    const stream = this.#mux.open({ method: "file_write", path, mode: mode ?? null, size: size ?? null });
    using source = new BodySource(stream, body);
    const { payload, object } = await this.#finish(stream, {
      action: "write",
      path,
      isGuestsTurn: () => stream.isAwaitingGuest,
      signals: [signal, source.failed],
    });
    if (!isCount(object["bytes"]) || object["bytes"] !== source.sentBytes) throw unreadable(payload);
    return object["bytes"];
  }

  /** Reads a file; returns its size. Rejects with the signal's reason. */
  async read(path: string, { onBytes, failed, signal }: GuestRead): Promise<number> {
    signal?.throwIfAborted();
    using _turn = this.#transfers.tryAcquire() ?? await this.#transfers.acquire(signal);
    let receivedBytes = 0, isTooLarge = false;
    const tooLarge = new AbortController();
    const stream = this.#mux.open({ method: "file_read", path }, (flags, bytes) => {
      checkFlags(flags);
      receivedBytes += bytes.length;
      if (isTooLarge) return;
      if (receivedBytes <= FILE_MAX_BYTES) return onBytes(bytes);
      isTooLarge = true;
      tooLarge.abort(fileError({ code: "too_large", message: "" }, "read", path));
    });
    const isGuestsTurn = () => stream.heldBytes === 0;
    const { payload, object } = await this.#finish(stream, {
      action: "read",
      path,
      isGuestsTurn,
      signals: [signal, failed, tooLarge.signal],
    });
    if (object["bytes"] !== receivedBytes) throw unreadable(payload);
    return receivedBytes;
  }

  /** The entries of a directory, in the guest's order. */
  async list(path: string, signal?: AbortSignal): Promise<GuestEntry[]> {
    signal?.throwIfAborted();
    using _turn = this.#transfers.tryAcquire() ?? await this.#transfers.acquire(signal);
    const reader = new EntryReader();
    const stream = this.#mux.open({ method: "file_list", path }, reader.onData);
    const { payload, object } = await this.#finish(stream, { action: "list", path, isGuestsTurn: () => true, signals: [signal] });
    if (object["entries"] !== reader.entries.length) throw unreadable(payload);
    return reader.entries;
  }

  /** What stands at a path; a symbolic link is followed unless `isFollowed` is false. */
  async stat(path: string, options: { readonly isFollowed: boolean; readonly signal?: AbortSignal | undefined }): Promise<GuestEntry> {
    const answer = await this.#call({ method: "file_stat", path, follow: options.isFollowed }, "look at", path, options.signal);
    const object = answerObject(answer.payload);
    const entry = parseEntry(object["name"] === "" ? { ...object, name: "." } : object); // The home itself has no name.
    if (!entry) throw unreadable(answer.payload);
    return entry;
  }

  /** Makes a directory. */
  async makeDirectory(
    path: string,
    options: { readonly isRecursive: boolean; readonly mode: number; readonly signal?: AbortSignal | undefined },
  ): Promise<void> {
    const message = { method: "file_make_directory", path, recursive: options.isRecursive, mode: options.mode };
    await this.#call(message, "make", path, options.signal);
  }

  /** Removes what stands at a path. */
  async remove(path: string, options: { readonly isRecursive: boolean; readonly signal?: AbortSignal | undefined }): Promise<void> {
    await this.#call({ method: "file_remove", path, recursive: options.isRecursive }, "remove", path, options.signal);
  }

  /** Gives what stands at `from` the name `to`, replacing a file there. */
  async rename(from: string, options: { readonly to: string; readonly signal?: AbortSignal | undefined }): Promise<void> {
    const answer = await this.#ask({ method: "file_rename", from, to: options.to }, options.signal);
    const refusal = refusalOf(answer);
    if (refusal?.code === "bad_request") {
      // Both paths were checked: what is left is where they lead.
      throw new InputValidationError(
        `Cannot rename ${shown(from)} in the guest: a directory cannot go into itself, got ${shown(options.to)}`,
      );
    }
    if (refusal) throw fileError(refusal, "rename", from);
  }

  async #call(message: Message, action: string, path: string, signal?: AbortSignal): Promise<Answer> {
    const answer = await this.#ask(message, signal);
    const refusal = refusalOf(answer);
    if (refusal) throw fileError(refusal, action, path);
    return answer;
  }

  #ask(message: Message, signal?: AbortSignal): Promise<Answer> {
    return callAnswer(this.#mux, message, { turns: this.#calls, signal });
  }

  /** The answer of a transfer. Whichever of `signals` aborts first ends it, and its reason is what the caller sees. */
  async #finish(
    stream: MuxStream,
    { action, path, isGuestsTurn, signals }: {
      readonly action: string;
      readonly path: string;
      readonly isGuestsTurn: () => boolean;
      readonly signals: ReadonlyArray<AbortSignal | undefined>;
    },
  ): Promise<{ payload: Uint8Array; object: JsonObject }> {
    using watch = new StallWatch(stream, isGuestsTurn);
    let answer: Answer;
    try {
      answer = await [watch.stalled, ...signals].reduce((promise, signal) => abortable(promise, signal), stream.answer);
    } catch (error) {
      if (error === watch.stalled.reason) this.#mux.close(watch.stalled.reason);
      else if (!this.#mux.closed.aborted) await stopStream(this.#mux, stream, { cancelMs: 0, resultMs: this.#graces.resultMs });
      throw error;
    }
    const refusal = refusalOf(answer);
    if (refusal) throw fileError(refusal, action, path);
    return { payload: answer.payload, object: answerObject(answer.payload) };
  }
}

/** Lines of a listing as they come. */
class EntryReader {
  readonly entries: GuestEntry[] = [];
  #rest: Uint8Array = new Uint8Array(0);

  readonly onData: DataHandler = (flags, bytes) => {
    checkFlags(flags);
    let rest = this.#rest.length === 0 ? bytes : concat(this.#rest, bytes);
    for (let end = rest.indexOf(LINE_FEED); end >= 0; end = rest.indexOf(LINE_FEED)) {
      this.#take(rest.subarray(0, end));
      rest = rest.subarray(end + 1);
    }
    if (rest.length > LINE_MAX_BYTES) throw new WireError("content", `a line of a listing is at most ${LINE_MAX_BYTES} bytes`);
    this.#rest = rest.slice();
  };

  #take(line: Uint8Array): void {
    const object = parseObject(line);
    const entry = object && parseEntry(object);
    if (!entry) throw new WireError("content", "a line of a listing is the JSON of an entry");
    if (this.entries.length === DIRECTORY_ENTRIES_MAX) {
      throw new WireError("content", `a listing has at most ${DIRECTORY_ENTRIES_MAX} entries`);
    }
    this.entries.push(entry);
  }
}

function parseEntry({ name, type, size, mode, modifiedMs }: JsonObject): GuestEntry | undefined {
  const known = TYPES.find((candidate) => candidate === type);
  const isName = typeof name === "string" && name !== "" && name.length <= PATH_COMPONENT_MAX_BYTES && !/[\0/]/.test(name);
  if (!isName || !known || !isCount(size) || !isCount(mode) || !Number.isFinite(modifiedMs)) return undefined;
  return { name, type: known, size, mode: mode & 0o7777, modifiedMs: modifiedMs as number };
}

function checkFlags(flags: number): void {
  if (flags !== DATA_FLAG.stdout) throw new WireError("flags", `what was asked for has the flags ${DATA_FLAG.stdout}, got ${flags}`);
}

/** A refusal about a file; what is no file's fault stays the agent's. */
function fileError(refusal: Refusal, action: string, path: string): Error {
  const known = Object.hasOwn(REASONS, refusal.code) ? REASONS[refusal.code] : undefined;
  if (!known) return refusalError(refusal, `${action} ${shown(path)}`);
  const [reason, words] = known;
  const hint = refusal.code === "not_empty" ? { hint: "`recursive: true` removes what is in it too." } : {};
  return new SandboxFileError(`Cannot ${action} ${shown(path)} in the guest: ${words}`, { side: "guest", path, reason }, hint);
}
