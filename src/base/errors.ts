/** Errors: one base, one class per thing the caller can do about it. */
import type { ExecutionResult } from "./result.ts";

/** What the caller may do after this error: run again at once, never, or only if running twice is harmless. */
export type Retry = "safe" | "never" | "unknown";

/** Options of every error: what caused it and what would mend it. */
export interface SandboxErrorOptions {
  /** The lower-level failure. */
  readonly cause?: unknown;
  /** One sentence that says what to do. */
  readonly hint?: string;
  /** Overrides the class's own advice. */
  readonly retry?: Retry;
}

const BRAND = Symbol.for("sbx.error");

/** Base of every error this library throws; branch on `code` or the class, never on `message`. */
export abstract class SandboxError extends Error {
  /** Stable identifier such as `SBX_VM_CONFIG`. */
  abstract readonly code: `SBX_${string}`;
  /** May the same call be made again? */
  readonly retry: Retry;
  /** One sentence that says what to do, when there is one. */
  readonly hint: string | undefined;
  /** Marks errors of this library across copies of it. */
  readonly [BRAND] = true;

  /** `fallbackRetry` holds unless `options.retry` says otherwise. */
  constructor(message: string, fallbackRetry: Retry, options: SandboxErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.retry = options.retry ?? fallbackRetry;
    this.hint = options.hint;
    this.name = new.target.name; // Our own classes write theirs out: minifiers rename classes.
  }

  /** True for errors of any copy of this library. */
  static is(value: unknown): value is SandboxError {
    return value instanceof Error && BRAND in value;
  }
}

/** The world was in the way; the same call may succeed later. */
export abstract class TransientError extends SandboxError {
  /** Retrying is safe unless the class or the options say otherwise. */
  constructor(message: string, options?: SandboxErrorOptions) {
    super(message, "safe", options);
  }
}

/** The call itself cannot succeed; change it first. */
export abstract class PermanentError extends SandboxError {
  /** Retrying is pointless unless the options say otherwise. */
  constructor(message: string, options?: SandboxErrorOptions) {
    super(message, "never", options);
  }
}

/** Errors that carry the result of the execution they ended. */
export interface WithResult {
  /** What the execution left. */
  readonly result: ExecutionResult;
}

/** The VM never became ready, so the code never ran; or, with `check`, the code ran out of time: then `result` is set. */
export class VmTimeoutError extends TransientError {
  /** The class, also in minified programs. */
  override readonly name = "VmTimeoutError";
  /** Stable; branch on it. */
  readonly code = "SBX_VM_TIMEOUT";
  /** That of the execution that ran out of time; undefined when the code never ran. */
  readonly result: ExecutionResult | undefined;
  /** `options.result` only when the code ran. */
  constructor(message: string, options: SandboxErrorOptions & Partial<WithResult> = {}) {
    super(message, { retry: options.result === undefined ? "safe" : "unknown", ...options });
    this.result = options.result;
  }
}

/** With `check`: the program ended with a status other than 0. */
export class ExecutionFailedError extends PermanentError implements WithResult {
  /** The class, also in minified programs. */
  override readonly name = "ExecutionFailedError";
  /** Stable; branch on it. */
  readonly code = "SBX_EXECUTION_FAILED";
  /** The unsuccessful `ExecutionResult`. */
  readonly result: ExecutionResult;
  /** `options.result` is the unsuccessful `ExecutionResult`. */
  constructor(message: string, options: SandboxErrorOptions & WithResult) {
    super(message, options);
    this.result = options.result;
  }
}

/** Memory or CPU budget, or a deadline while waiting for it, is exhausted. */
export class VmCapacityError extends TransientError {
  /** The class, also in minified programs. */
  override readonly name = "VmCapacityError";
  /** Stable; branch on it. */
  readonly code = "SBX_VM_CAPACITY";
}

/** A setting of the VM or of the scheduler is not acceptable. */
export class VmConfigError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "VmConfigError";
  /** Stable; branch on it. */
  readonly code = "SBX_VM_CONFIG";
}

/** The session or scheduler is closed. */
export class SessionClosedError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "SessionClosedError";
  /** Stable; branch on it. */
  readonly code = "SBX_SESSION_CLOSED";
}

/** The channel to the guest failed before anything was dispatched. */
export class CommunicationError extends TransientError {
  /** The class, also in minified programs. */
  override readonly name = "CommunicationError";
  /** Stable; branch on it. */
  readonly code = "SBX_COMMUNICATION";
}

/** The channel was lost after dispatch: the code may have run. */
export class OutcomeUnknownError extends TransientError {
  /** The class, also in minified programs. */
  override readonly name = "OutcomeUnknownError";
  /** Stable; branch on it. */
  readonly code = "SBX_OUTCOME_UNKNOWN";
  /** Whether running again is harmless is the caller's decision. */
  constructor(message: string, options: SandboxErrorOptions = {}) {
    super(message, { retry: "unknown", ...options });
  }
}

/** The agent inside the VM reported a failure of its own. */
export class GuestAgentError extends TransientError {
  /** The class, also in minified programs. */
  override readonly name = "GuestAgentError";
  /** Stable; branch on it. */
  readonly code = "SBX_GUEST_AGENT";
}

/** Output went past a cap; the execution was ended, `result` holds what fitted. */
export class OutputLimitError extends PermanentError implements WithResult {
  /** The class, also in minified programs. */
  override readonly name = "OutputLimitError";
  /** Stable; branch on it. */
  readonly code = "SBX_OUTPUT_LIMIT";
  /** The partial `ExecutionResult`. */
  readonly result: ExecutionResult;
  /** `options.result` is the partial `ExecutionResult`. */
  constructor(message: string, options: SandboxErrorOptions & WithResult) {
    super(message, options);
    this.result = options.result;
  }
}

/** A package is not pinned, not in the catalog, or not possible in this language. */
export class PackageNotAllowedError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "PackageNotAllowedError";
  /** Stable; branch on it. */
  readonly code = "SBX_PACKAGE_NOT_ALLOWED";
}

/** A package could not be installed; the message has the installer's own words. `retry` is `safe` where the network was in the way. */
export class PackageInstallError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "PackageInstallError";
  /** Stable; branch on it. */
  readonly code = "SBX_PACKAGE_INSTALL";
}

/** A template or checkpoint could not be made or loaded. */
export class SnapshotError extends TransientError {
  /** The class, also in minified programs. */
  override readonly name = "SnapshotError";
  /** Stable; branch on it. */
  readonly code = "SBX_SNAPSHOT";
}

/** What became of one candidate of a race. */
export type RaceOutcome = { readonly result: unknown } | { readonly error: unknown };

/** No candidate of a race had a result that was accepted. */
export class NoneAcceptedError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "NoneAcceptedError";
  /** Stable; branch on it. */
  readonly code = "SBX_NONE_ACCEPTED";
  /** In the order of the candidates. */
  readonly outcomes: readonly RaceOutcome[];
  /** `options.outcomes` has one entry for each candidate. */
  constructor(message: string, options: SandboxErrorOptions & { readonly outcomes: readonly RaceOutcome[] }) {
    super(message, options);
    this.outcomes = options.outcomes;
  }
}

/** Why a file operation failed. */
export type FileReason =
  | "not-found"
  | "is-directory"
  | "not-directory"
  | "not-a-file"
  | "permission"
  | "exists"
  | "no-space"
  | "too-large"
  | "changed";

/** A file operation failed, on the side and path it names. */
export class SandboxFileError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "SandboxFileError";
  /** Stable; branch on it. */
  readonly code = "SBX_FILE";
  /** Where the file is. */
  readonly side: "guest" | "host";
  /** As the caller gave it. */
  readonly path: string;
  /** What stood in the way. */
  readonly reason: FileReason;
  /** `details` become the fields of the same names. */
  constructor(
    message: string,
    details: { readonly side: "guest" | "host"; readonly path: string; readonly reason: FileReason },
    options?: SandboxErrorOptions,
  ) {
    super(message, options);
    this.side = details.side;
    this.path = details.path;
    this.reason = details.reason;
  }
}

/** An argument other than the VM's configuration is not acceptable. */
export class InputValidationError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name: string = "InputValidationError";
  /** Stable; branch on it. */
  readonly code: `SBX_${string}` = "SBX_INPUT_VALIDATION";
}

/** An environment variable for the guest is not acceptable. */
export class EnvVarValidationError extends InputValidationError {
  /** The class, also in minified programs. */
  override readonly name = "EnvVarValidationError";
  /** Stable; branch on it. */
  override readonly code = "SBX_ENV_VAR_VALIDATION";
}

/** The peer of a private socket is not who it must be. */
export class SocketAuthError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "SocketAuthError";
  /** Stable; branch on it. */
  readonly code = "SBX_SOCKET_AUTH";
}

/** A program or feature that sbx needs is missing on this host. */
export class SandboxDependencyError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "SandboxDependencyError";
  /** Stable; branch on it. */
  readonly code = "SBX_DEPENDENCY";
}

/** An asset (kernel, image, QEMU …) is missing, damaged or of another version. */
export class AssetError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "AssetError";
  /** Stable; branch on it. */
  readonly code = "SBX_ASSET";
}

/** Something owned could not be released; `leftovers` still exist. */
export class CleanupError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "CleanupError";
  /** Stable; branch on it. */
  readonly code = "SBX_CLEANUP";
  /** What could not be released, outermost last. */
  readonly leftovers: readonly string[];
  /** `details` say which steps failed, and what therefore remains. */
  constructor(
    details: {
      readonly failures: ReadonlyArray<{ readonly step: string; readonly cause: unknown }>;
      readonly leftovers: readonly string[];
    },
  ) {
    super(`Cannot release ${details.leftovers.length} resources: ${details.leftovers.join(", ")}`, {
      cause: details.failures[0]?.cause,
    });
    this.leftovers = details.leftovers;
  }
}

/** A bug of ours, not the world's: states that the code excludes. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`Internal error: ${message}`);
}

/** The text of anything that was thrown. */
export function messageOf(error: unknown): string {
  if (error instanceof Error) return error.message;
  return typeof error === "string" ? error : shown(error);
}

const SHOWN_MAX_CHARS = 100;

/** Any value on one short line, for the "got …" of a message. Never throws: callers and guests choose the value. */
export function shown(value: unknown): string {
  let text: string;
  try {
    if (typeof value === "bigint") text = `${value}n`;
    else if (typeof value === "function") text = "a function";
    else text = (typeof value === "number" ? undefined : JSON.stringify(value)) ?? String(value);
  } catch {
    text = `a value of type ${typeof value}`; // Circular, without a prototype, or a proxy that throws.
  }
  return text.length > SHOWN_MAX_CHARS ? `${text.slice(0, SHOWN_MAX_CHARS)}…` : text;
}
