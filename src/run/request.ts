/** Requests: what a caller asks for, and the check of every field before anything starts. */

import { Buffer } from "node:buffer";
import { InputValidationError, shown } from "../base/errors.ts";
import { CODE_MAX_BYTES } from "../base/limits.ts";
import { checkCallback, checkFields, checkFlag, checkMemory, checkSignal, checkTimeout, type OutputCallback } from "./check.ts";
import { checkEnv } from "./env.ts";
import { checkFiles, type FileSources } from "./file_source.ts";
import { type CheckedNetwork, checkNetwork, NETWORK_FIELDS, type NetworkFields } from "./network_request.ts";
import { checkPackages, PACKAGE_FIELDS, type PackageFields, type PackageSet } from "./package_request.ts";
import type { FileAccess } from "./vm_files.ts";

/** The three languages. */
export type Language = "python" | "javascript" | "raw";

/** Works with the files of a VM, before or after its code runs. */
export type FileHook = (files: FileAccess, signal: AbortSignal) => Promise<void>;

/** One execution in a VM of its own. */
export interface RunRequest extends NetworkFields, PackageFields {
  /** 1 to 1,048,576 bytes of UTF-8, not only white space, no NUL. */
  readonly code: string;
  /** What runs it. */
  readonly language: Language;
  /** Seconds the code may run, 1-300; default: the scheduler's. Starting the VM has its own deadline. */
  readonly timeoutSeconds?: number;
  /** MB (2^20 bytes), at least 128; default: the scheduler's. */
  readonly memoryMb?: number;
  /** Environment of this execution only; at most 100 variables. */
  readonly env?: Readonly<Record<string, string>>;
  /** Files written before the code runs: path below the home directory → content. */
  readonly files?: FileSources;
  /**
   * Called when the VM runs and `files` are written; the code starts when it has settled. What it throws ends the run, and is what the call
   * rejects with. `signal` aborts when the run is aborted.
   */
  readonly prepare?: FileHook;
  /**
   * Called when the code has ended, however it did; the VM is destroyed when it has settled. What it throws is what the call rejects with.
   * Its time counts in `timing.totalMs` only.
   */
  readonly collect?: FileHook;
  /** Ends the execution; the call rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /** Throw `ExecutionFailedError` or `VmTimeoutError` for an unsuccessful result. Default false. */
  readonly check?: boolean;
  /** Standard output as it comes. */
  readonly onStdout?: OutputCallback;
  /** Standard error as it comes. */
  readonly onStderr?: OutputCallback;
  /** Kernel and agent log; for a clone first that of its template's boot. */
  readonly onBootLog?: OutputCallback;
}

type Optional = keyof NetworkFields | keyof PackageFields | "signal" | "prepare" | "collect" | "onStdout" | "onStderr" | "onBootLog";

/** A request in which every field is checked and has its value. */
export interface CheckedRequest extends Readonly<Required<Omit<RunRequest, Optional>>> {
  readonly network: CheckedNetwork;
  readonly packages: PackageSet | undefined;
  readonly signal: AbortSignal | undefined;
  readonly prepare: FileHook | undefined;
  readonly collect: FileHook | undefined;
  readonly onStdout: OutputCallback | undefined;
  readonly onStderr: OutputCallback | undefined;
  readonly onBootLog: OutputCallback | undefined;
}

/** What the scheduler puts where a request says nothing. */
export interface RequestDefaults {
  readonly timeoutSeconds: number;
  readonly memoryMb: number;
}

const LANGUAGES: readonly Language[] = ["python", "javascript", "raw"];
const FIELDS: ReadonlySet<string> = new Set<keyof RunRequest>([
  "code",
  "language",
  "timeoutSeconds",
  "memoryMb",
  "env",
  "files",
  "prepare",
  "collect",
  "signal",
  "check",
  "onStdout",
  "onStderr",
  "onBootLog",
  ...NETWORK_FIELDS,
  ...PACKAGE_FIELDS,
]);
const BYTE_ORDER_MARK = "\uFEFF";

/** Checks `request`. Throws `InputValidationError`, `EnvVarValidationError`, `PackageNotAllowedError` or `VmConfigError`; nothing has started then. */
export function checkRequest(request: RunRequest, defaults: RequestDefaults): CheckedRequest {
  const { signal, prepare, collect, onStdout, onStderr, onBootLog } = checkFields("run", request, FIELDS, "the request");
  const code = checkCode(request.code), language = checkLanguage(request.language), env = checkEnv(request.env ?? {});
  return {
    code,
    language,
    timeoutSeconds: checkTimeout(request.timeoutSeconds ?? defaults.timeoutSeconds),
    memoryMb: checkMemory(request.memoryMb ?? defaults.memoryMb),
    env,
    files: checkFiles("run", request.files ?? {}),
    prepare: checkCallback("run", "prepare", prepare),
    collect: checkCallback("run", "collect", collect),
    network: checkNetwork("run", request),
    packages: checkPackages("run", request, { language, hasEnv: Object.keys(env).length > 0 }),
    check: checkFlag("run", "check", request.check),
    signal: checkSignal("run", signal),
    onStdout: checkCallback("run", "onStdout", onStdout),
    onStderr: checkCallback("run", "onStderr", onStderr),
    onBootLog: checkCallback("run", "onBootLog", onBootLog),
  };
}

/** The code without its byte-order mark, which is more than white space. */
export function checkCode(code: unknown): string {
  const text = checkCodeText(code);
  // Unicode's own list: String.trim() keeps U+0085, which the guest counts as white space.
  if (!/[^\p{White_Space}\uFEFF]/u.test(text)) throw new InputValidationError("Cannot run: code must be more than white space");
  return text;
}

/** The same for code that is not run, and may be nothing. */
export function checkCodeText(code: unknown): string {
  if (typeof code !== "string") throw new InputValidationError(`Cannot run: code must be a string, got ${shown(code)}`);
  if (!code.isWellFormed()) throw new InputValidationError("Cannot run: code must be valid Unicode, got a lone surrogate");
  const byteCount = Buffer.byteLength(code);
  if (byteCount > CODE_MAX_BYTES) {
    throw new InputValidationError(`Cannot run: code must be at most ${CODE_MAX_BYTES} bytes of UTF-8, got ${byteCount}`);
  }
  const text = code.startsWith(BYTE_ORDER_MARK) ? code.slice(1) : code;
  const nul = text.indexOf("\0");
  if (nul >= 0) throw new InputValidationError(`Cannot run: code must not contain a NUL character, got one at position ${nul}`);
  return text;
}

/** One of the three languages. */
export function checkLanguage(language: unknown, action = "run"): Language {
  const known = LANGUAGES.find((candidate) => candidate === language);
  if (known) return known;
  throw new InputValidationError(`Cannot ${action}: language must be one of ${LANGUAGES.join(", ")}, got ${shown(language)}`);
}
