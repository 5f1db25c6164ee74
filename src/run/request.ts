/** Requests: what a caller asks for, and the check of every field before anything starts. */

import { Buffer } from "node:buffer";
import { InputValidationError, shown, VmConfigError } from "../base/errors.ts";
import { CODE_MAX_BYTES, MEMORY_MIN_MIB, TIMEOUT_MAX_SECONDS, TIMEOUT_MIN_SECONDS } from "../base/limits.ts";
import { checkEnv } from "./env.ts";

/** The three languages. */
export type Language = "python" | "javascript" | "raw";

/** Called with decoded text of at most 64 KiB as it arrives. One that throws is logged once and called no more. */
export type OutputCallback = (text: string) => void;

/** One execution in a VM of its own. */
export interface RunRequest {
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

/** A request in which every field is checked and has its value. */
export interface CheckedRequest extends Readonly<Required<Omit<RunRequest, "signal" | "onStdout" | "onStderr" | "onBootLog">>> {
  readonly signal: AbortSignal | undefined;
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
  "signal",
  "check",
  "onStdout",
  "onStderr",
  "onBootLog",
]);
const BYTE_ORDER_MARK = "\uFEFF";

/** Checks `request`. Throws `InputValidationError`, `EnvVarValidationError` or `VmConfigError`; nothing has started then. */
export function checkRequest(request: RunRequest, defaults: RequestDefaults): CheckedRequest {
  if (typeof request !== "object" || request === null) {
    throw new InputValidationError(`Cannot run: the request must be an object, got ${shown(request)}`);
  }
  for (const field of Object.keys(request)) {
    if (!FIELDS.has(field)) {
      throw new VmConfigError(`Cannot run: unknown field "${field}"`, { hint: `Known fields: ${[...FIELDS].join(", ")}.` });
    }
  }
  const { signal, onStdout, onStderr, onBootLog } = request;
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new InputValidationError(`Cannot run: signal must be an AbortSignal, got ${shown(signal)}`);
  }
  for (const [name, callback] of Object.entries({ onStdout, onStderr, onBootLog })) {
    if (callback !== undefined && typeof callback !== "function") {
      throw new InputValidationError(`Cannot run: ${name} must be a function, got ${shown(callback)}`);
    }
  }
  const check: unknown = request.check ?? false;
  if (typeof check !== "boolean") throw new InputValidationError(`Cannot run: check must be true or false, got ${shown(check)}`);
  return {
    code: checkCode(request.code),
    language: checkLanguage(request.language),
    timeoutSeconds: checkTimeout(request.timeoutSeconds ?? defaults.timeoutSeconds),
    memoryMb: checkMemory(request.memoryMb ?? defaults.memoryMb),
    env: checkEnv(request.env ?? {}),
    check,
    signal,
    onStdout,
    onStderr,
    onBootLog,
  };
}

/** The code without its byte-order mark. */
export function checkCode(code: unknown): string {
  if (typeof code !== "string") throw new InputValidationError(`Cannot run: code must be a string, got ${shown(code)}`);
  if (!code.isWellFormed()) throw new InputValidationError("Cannot run: code must be valid Unicode, got a lone surrogate");
  const byteCount = Buffer.byteLength(code);
  if (byteCount > CODE_MAX_BYTES) {
    throw new InputValidationError(`Cannot run: code must be at most ${CODE_MAX_BYTES} bytes of UTF-8, got ${byteCount}`);
  }
  const text = code.startsWith(BYTE_ORDER_MARK) ? code.slice(1) : code;
  // Unicode's own list: String.trim() keeps U+0085, which the guest counts as white space.
  if (!/[^\p{White_Space}\uFEFF]/u.test(text)) throw new InputValidationError("Cannot run: code must be more than white space");
  const nul = text.indexOf("\0");
  if (nul >= 0) throw new InputValidationError(`Cannot run: code must not contain a NUL character, got one at position ${nul}`);
  return text;
}

/** One of the three languages. */
export function checkLanguage(language: unknown): Language {
  const known = LANGUAGES.find((candidate) => candidate === language);
  if (known) return known;
  throw new InputValidationError(`Cannot run: language must be one of ${LANGUAGES.join(", ")}, got ${shown(language)}`);
}

/** Seconds, whole or not, within the limits. */
export function checkTimeout(seconds: unknown): number {
  const isValid = typeof seconds === "number" && seconds >= TIMEOUT_MIN_SECONDS && seconds <= TIMEOUT_MAX_SECONDS;
  if (isValid) return seconds;
  throw new InputValidationError(
    `Cannot run: timeoutSeconds must be between ${TIMEOUT_MIN_SECONDS} and ${TIMEOUT_MAX_SECONDS}, got ${shown(seconds)}`,
  );
}

/** Whole MB of at least the minimum. */
export function checkMemory(memoryMb: unknown): number {
  if (typeof memoryMb === "number" && Number.isSafeInteger(memoryMb) && memoryMb >= MEMORY_MIN_MIB) return memoryMb;
  throw new VmConfigError(`Cannot set memory: memoryMb must be a whole number of at least ${MEMORY_MIN_MIB}, got ${shown(memoryMb)}`);
}
