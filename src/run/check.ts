/** Check: what every call of the library asks of its arguments, and the error that says what was wanted. */
import { Buffer } from "node:buffer";
import { InputValidationError, shown, VmConfigError } from "../base/errors.ts";
import {
  MEMORY_MIN_MIB,
  PATH_COMPONENT_MAX_BYTES,
  PATH_MAX_BYTES,
  TERMINAL_MAX_CELLS,
  TIMEOUT_MAX_SECONDS,
  TIMEOUT_MIN_SECONDS,
} from "../base/limits.ts";

/** Called with decoded text of at most 64 KiB as it arrives. One that throws is logged once and called no more. */
export type OutputCallback = (text: string) => void;

/** `value`, an object all of whose fields are known. Throws `VmConfigError` for an unknown one; `action` is what cannot be done then. */
export function checkFields<T extends object>(action: string, value: T, known: ReadonlySet<string>, name = "the options"): T {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new InputValidationError(`Cannot ${action}: ${name} must be an object, got ${shown(value)}`);
  }
  for (const field of Object.keys(value)) {
    if (!known.has(field)) {
      throw new VmConfigError(`Cannot ${action}: unknown field "${field}"`, { hint: `Known fields: ${[...known].join(", ")}.` });
    }
  }
  return value;
}

/** A signal, or none. */
export function checkSignal(action: string, signal: unknown): AbortSignal | undefined {
  if (signal === undefined || signal instanceof AbortSignal) return signal;
  throw new InputValidationError(`Cannot ${action}: signal must be an AbortSignal, got ${shown(signal)}`);
}

/** A function, or none. */
export function checkCallback<T>(action: string, name: string, callback: T): T {
  if (callback === undefined || typeof callback === "function") return callback;
  throw new InputValidationError(`Cannot ${action}: ${name} must be a function, got ${shown(callback)}`);
}

/** True or false; `otherwise` where nothing was said. */
export function checkFlag(action: string, name: string, value: unknown, otherwise = false): boolean {
  if (value === undefined) return otherwise;
  if (typeof value === "boolean") return value;
  throw new InputValidationError(`Cannot ${action}: ${name} must be true or false, got ${shown(value)}`);
}

/** A whole number within a range. */
export function checkInteger(action: string, name: string, value: unknown, range: { readonly min: number; readonly max: number }): number {
  if (typeof value === "number" && Number.isInteger(value) && value >= range.min && value <= range.max) return value;
  throw new InputValidationError(
    `Cannot ${action}: ${name} must be a whole number between ${range.min} and ${range.max}, got ${shown(value)}`,
  );
}

/** Seconds, whole or not, within the limits. */
export function checkTimeout(seconds: unknown, action = "run"): number {
  const isValid = typeof seconds === "number" && seconds >= TIMEOUT_MIN_SECONDS && seconds <= TIMEOUT_MAX_SECONDS;
  if (isValid) return seconds;
  throw new InputValidationError(
    `Cannot ${action}: timeoutSeconds must be between ${TIMEOUT_MIN_SECONDS} and ${TIMEOUT_MAX_SECONDS}, got ${shown(seconds)}`,
  );
}

/** Whole MB of at least the minimum. */
export function checkMemory(memoryMb: unknown): number {
  if (typeof memoryMb === "number" && Number.isSafeInteger(memoryMb) && memoryMb >= MEMORY_MIN_MIB) return memoryMb;
  throw new VmConfigError(`Cannot set memory: memoryMb must be a whole number of at least ${MEMORY_MIN_MIB}, got ${shown(memoryMb)}`);
}

/** Size of a terminal. */
export function checkTerminal(
  action: string,
  size: { readonly columns: unknown; readonly rows: unknown },
): { columns: number; rows: number } {
  const range = { min: 1, max: TERMINAL_MAX_CELLS };
  return { columns: checkInteger(action, "columns", size.columns, range), rows: checkInteger(action, "rows", size.rows, range) };
}

/** Text without what no argument, path or variable of a program can hold. */
export function checkText(action: string, name: string, text: unknown): string {
  if (typeof text !== "string") throw new InputValidationError(`Cannot ${action}: ${name} must be a string, got ${shown(text)}`);
  if (!text.isWellFormed()) throw new InputValidationError(`Cannot ${action}: ${name} must be valid Unicode, got a lone surrogate`);
  const nul = text.indexOf("\0");
  if (nul >= 0) throw new InputValidationError(`Cannot ${action}: ${name} must not contain a NUL character, got one at position ${nul}`);
  return text;
}

/**
 * A path below the home directory of the guest. Only a call that says `isHomeAllowed` may mean the home itself, by `""` or `"."`.
 * Symbolic links are the guest's to check.
 */
export function checkGuestPath(action: string, path: unknown, options: { readonly isHomeAllowed?: boolean } = {}): string {
  const text = checkText(action, "path", path);
  const refuse = (wanted: string) => new InputValidationError(`Cannot ${action}: path must ${wanted}, got ${shown(text)}`);
  if (text.startsWith("/")) throw refuse("be relative to the home directory");
  const components = text.split("/").filter((component) => component !== "" && component !== ".");
  if (components.includes("..")) throw refuse('not contain ".."');
  if (components.length === 0 && !options.isHomeAllowed) throw refuse("name something in the home directory");
  if (Buffer.byteLength(text) > PATH_MAX_BYTES) {
    throw new InputValidationError(`Cannot ${action}: path must be at most ${PATH_MAX_BYTES} bytes, got ${Buffer.byteLength(text)}`);
  }
  for (const component of components) {
    const byteCount = Buffer.byteLength(component);
    if (byteCount <= PATH_COMPONENT_MAX_BYTES) continue;
    throw new InputValidationError(
      `Cannot ${action}: each name in a path must be at most ${PATH_COMPONENT_MAX_BYTES} bytes, got ${byteCount} in ${shown(component)}`,
    );
  }
  return text;
}
