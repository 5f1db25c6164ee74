/** VM options: what every command that starts a VM may be told about it and about the code in it. */
import { EnvVarValidationError } from "../base/errors.ts";
import { MEMORY_MIN_MIB, TIMEOUT_MAX_SECONDS, TIMEOUT_MIN_SECONDS } from "../base/limits.ts";
import { checkEnv } from "../run/env.ts";
import type { RunRequest } from "../run/request.ts";
import type { Input, OptionSpec } from "./command.ts";
import { UsageError } from "./failure.ts";

/** The options. */
export const VM_OPTIONS: readonly OptionSpec[] = [
  { long: "timeout", short: "t", value: "SECONDS", help: "seconds the code may run, 1-300; default 30" },
  { long: "memory", short: "m", value: "MB", help: "memory of the VM in MB (2^20 bytes), at least 128; default 256" },
  { long: "env", short: "e", value: "KEY=VALUE", isRepeatable: true, help: "environment variable for the code, repeatable" },
];

/** For commands that a server can lend VMs to. */
export const NO_SERVE_OPTION: OptionSpec = {
  long: "no-serve",
  help: "start the VM in this process, also where a server of sbx serve runs",
};

/** The variable that turns the use of a server off. */
const SERVE_VARIABLE = "EXEC_SANDBOX_SERVE";

/** May a server be used? Not with `--no-serve`, and not with `EXEC_SANDBOX_SERVE=0`. */
export function isServerUsed(input: Input, env: Readonly<Record<string, string | undefined>>): boolean {
  return !input.has(NO_SERVE_OPTION.long) && !["0", "false", "no", "off"].includes((env[SERVE_VARIABLE] ?? "").trim().toLowerCase());
}

/** What they say, as fields of a request; those that were not given are absent. */
export type VmOptions = Pick<RunRequest, "timeoutSeconds" | "memoryMb" | "env">;

/** Reads the options. Throws `UsageError`, or `EnvVarValidationError` for `--env`. */
export function parseVmOptions(input: Input): VmOptions {
  const timeoutSeconds = numberOption(input, "timeout", { min: TIMEOUT_MIN_SECONDS, max: TIMEOUT_MAX_SECONDS, unit: " seconds" });
  const memoryMb = numberOption(input, "memory", { min: MEMORY_MIN_MIB, unit: " MB", isWhole: true });
  const env = parseEnv(input.values("env"));
  return {
    ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }),
    ...(memoryMb === undefined ? {} : { memoryMb }),
    ...(env === undefined ? {} : { env }),
  };
}

/** What a number may be. */
export interface NumberRange {
  readonly min: number;
  readonly max?: number;
  readonly unit: string;
  readonly isWhole?: boolean;
}

/** The number of option `long`. Throws `UsageError`. */
export function numberOption(input: Input, long: string, { min, max, unit, isWhole = false }: NumberRange): number | undefined {
  const text = input.value(long);
  if (text === undefined) return undefined;
  const number = (isWhole ? /^\d+$/ : /^\d+(\.\d+)?$/).test(text) ? Number(text) : NaN;
  if (number >= min && number <= (max ?? Number.MAX_SAFE_INTEGER)) return number;
  const limit = max ?? (number > min ? Number.MAX_SAFE_INTEGER : undefined);
  const range = limit === undefined ? `at least ${min}` : `between ${min} and ${limit}`;
  throw new UsageError(`Cannot set --${long}: must be ${isWhole ? "a whole number of " : ""}${range}${unit}, got ${JSON.stringify(text)}`);
}

/** `KEY=VALUE` pairs; the last of a key wins. */
function parseEnv(pairs: readonly string[]): Readonly<Record<string, string>> | undefined {
  if (pairs.length === 0) return undefined;
  const entries = pairs.map((pair): [string, string] => {
    const at = pair.indexOf("=");
    if (at > 0) return [pair.slice(0, at), pair.slice(at + 1)];
    // What stands behind "=" may be a secret: only the form is told.
    throw new EnvVarValidationError(
      at < 0 ? `Cannot set --env: must be KEY=VALUE, got ${JSON.stringify(pair)}` : "Cannot set --env: must be KEY=VALUE, got no KEY",
    );
  });
  return checkEnv(Object.fromEntries(entries));
}
