/** Checkpoint: a session as it was at one moment, to go on from as often as wanted. */
import { InputValidationError, shown } from "../base/errors.ts";
import { isCheckpointName, type StoredCheckpoint } from "../vm/checkpoint_store.ts";
import { checkFields, checkSignal } from "./check.ts";
import type { Language } from "./request.ts";
import type { SessionRequest } from "./session_request.ts";

/** How a checkpoint is made. */
export interface CheckpointOptions {
  /** Keeps it until it is removed, also for other processes: 1 to 64 letters, digits, `.`, `_` and `-`. Default: it ends with its scheduler. */
  readonly name?: string;
  /** Ends the call with the signal's reason; the session goes on. */
  readonly signal?: AbortSignal;
}

/** A session that goes on from a checkpoint: what is not given is as it was in the session, or by the scheduler's defaults. */
export type RestoreOptions = Omit<SessionRequest, "language" | "memoryMb" | "files">;

/** What a checkpoint is made of. */
export interface CheckpointParts<S> {
  readonly stored: StoredCheckpoint;
  restore(options: RestoreOptions): Promise<S>;
  remove(): Promise<void>;
}

/**
 * A session (`S`) as it was: variables, files, running processes. One without a name is removed when it is disposed, or with its scheduler; one with a
 * name stays until it is removed. Sessions that were restored from it do not need it any more.
 *
 * @example
 * ```ts
 * import { Scheduler } from "@exec-sandbox/sbx";
 * await using scheduler = await Scheduler.open();
 * await using session = await scheduler.session({ language: "python" });
 * await session.exec("x = 1");
 * await using before = await session.checkpoint();
 * await session.exec("x = 2");
 * await using copy = await before.restore();
 * console.log((await copy.exec("x")).value); // 1
 * ```
 */
export class CheckpointOf<S> implements AsyncDisposable {
  /** No two are the same. */
  readonly id: string;
  /** Undefined for one that ends with its scheduler. */
  readonly name: string | undefined;
  /** What runs the session's code. */
  readonly language: Language;
  /** Memory of its VM, in MB (2^20 bytes). */
  readonly memoryMb: number;
  /** When it was made. */
  readonly createdAt: Date;
  /** Disk that it takes, in bytes. */
  readonly sizeBytes: number;
  readonly #parts: CheckpointParts<S>;

  /** Made by `Session.checkpoint` and `Scheduler.checkpoints` only. */
  constructor(parts: CheckpointParts<S>) {
    this.#parts = parts;
    const { id, name, language, memoryMiB, createdAtMs, sizeBytes } = parts.stored;
    this.id = id;
    this.name = name;
    this.language = language;
    this.memoryMb = memoryMiB;
    this.createdAt = new Date(createdAtMs);
    this.sizeBytes = sizeBytes;
  }

  /** A new session that goes on from here. Rejects with `SnapshotError` when the checkpoint is gone or does not fit this host. The caller owns it. */
  async restore(options: RestoreOptions = {}): Promise<S> {
    return await this.#parts.restore(options);
  }

  /** Removes it, whether it has a name or not. May be called twice. */
  async remove(): Promise<void> {
    await this.#parts.remove();
  }

  /** Removes it unless it has a name. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.name === undefined) await this.remove();
  }

  /** For sessions that roll back to one: what it is on disk. */
  static storedOf<S>(checkpoint: CheckpointOf<S>): StoredCheckpoint {
    return checkpoint.#parts.stored;
  }
}

const CHECKPOINT_FIELDS: ReadonlySet<string> = new Set<keyof CheckpointOptions>(["name", "signal"]);

/** Checks the options of `checkpoint`. Throws `InputValidationError` or `VmConfigError`. */
export function checkCheckpoint(
  options: CheckpointOptions,
): { readonly name: string | undefined; readonly signal: AbortSignal | undefined } {
  const { name, signal } = checkFields("make a checkpoint", options, CHECKPOINT_FIELDS);
  return { name: name === undefined ? undefined : checkName(name), signal: checkSignal("make a checkpoint", signal) };
}

/** A name that may be one of a checkpoint. Throws `InputValidationError`. */
export function checkName(name: unknown): string {
  if (typeof name === "string" && isCheckpointName(name)) return name;
  const wanted = "1 to 64 letters, digits, dots, underscores or hyphens, the first a letter or digit";
  throw new InputValidationError(`Cannot name a checkpoint: the name must be ${wanted}, got ${shown(name)}`);
}
