/** Environment variables for the guest: names and values that reach a program, and those that would change how it starts. */
import { Buffer } from "node:buffer";
import { EnvVarValidationError, shown } from "../base/errors.ts";
import { ENV_NAME_MAX_BYTES, ENV_VALUE_MAX_BYTES, ENV_VARS_MAX } from "../base/limits.ts";

const NAME = /^[A-Za-z_][A-Za-z0-9_]*$/;
/** Tab, line feed and carriage return are text; every other control character is not. */
// deno-lint-ignore no-control-regex
const CONTROL = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/;

/** Compared in upper case. What these set is how an interpreter or the loader starts, before any user code. */
export const REFUSED_NAMES: readonly string[] = [
  "PATH",
  "IFS",
  "GLIBC_TUNABLES",
  "BASH_ENV",
  "ENV",
  "SHELLOPTS",
  "BASHOPTS",
  "PS4",
  "PROMPT_COMMAND",
  "PYTHONSTARTUP",
  "PYTHONHOME",
  "PYTHONPATH",
  "PYTHONINSPECT",
  "NODE_OPTIONS",
  "NODE_PATH",
  "BUN_OPTIONS",
];
/** Compared in upper case. */
export const REFUSED_PREFIXES: readonly string[] = ["LD_", "MALLOC_", "BASH_FUNC_"];

/** Checks every name and value. Throws `EnvVarValidationError`; values never appear in its message, they may be secrets. */
export function checkEnv(env: unknown): Readonly<Record<string, string>> {
  if (typeof env !== "object" || env === null || Array.isArray(env)) {
    throw new EnvVarValidationError(`Cannot set env: it must be an object of strings, got ${Array.isArray(env) ? "an array" : typeof env}`);
  }
  const entries = Object.entries(env);
  if (entries.length > ENV_VARS_MAX) {
    throw new EnvVarValidationError(`Cannot set env: at most ${ENV_VARS_MAX} variables, got ${entries.length}`);
  }
  for (const [name, value] of entries) {
    checkName(name);
    checkValue(name, value);
  }
  return Object.fromEntries(entries) as Record<string, string>;
}

function checkName(name: string): void {
  if (Buffer.byteLength(name) > ENV_NAME_MAX_BYTES) {
    throw new EnvVarValidationError(
      `Cannot set env: a name must be at most ${ENV_NAME_MAX_BYTES} bytes, got ${Buffer.byteLength(name)} in ${shown(name)}`,
    );
  }
  if (!NAME.test(name)) throw new EnvVarValidationError(`Cannot set env: a name must match [A-Za-z_][A-Za-z0-9_]*, got ${shown(name)}`);
  const upper = name.toUpperCase();
  if (REFUSED_NAMES.includes(upper) || REFUSED_PREFIXES.some((prefix) => upper.startsWith(prefix))) {
    throw new EnvVarValidationError(`Cannot set env: ${name} is refused, it changes how programs start`);
  }
}

function checkValue(name: string, value: unknown): void {
  if (typeof value !== "string") throw new EnvVarValidationError(`Cannot set env: ${name} must be a string, got ${typeof value}`);
  const byteCount = Buffer.byteLength(value);
  if (byteCount > ENV_VALUE_MAX_BYTES) {
    throw new EnvVarValidationError(`Cannot set env: ${name} must be at most ${ENV_VALUE_MAX_BYTES} bytes, got ${byteCount}`);
  }
  if (CONTROL.test(value)) {
    throw new EnvVarValidationError(`Cannot set env: ${name} must contain no control characters but tab and newlines`);
  }
  if (!value.isWellFormed()) throw new EnvVarValidationError(`Cannot set env: ${name} must be valid Unicode, got a lone surrogate`);
}

/** `own` on top of the session's variables, checked together. */
export function mergeEnv(session: Readonly<Record<string, string>>, own: unknown): Readonly<Record<string, string>> {
  const checked = checkEnv(own);
  return Object.keys(session).length === 0 ? checked : checkEnv({ ...session, ...checked });
}
