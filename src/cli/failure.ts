/** Failures: exit statuses, and errors as people and programs read them. */
import { PermanentError, SandboxError, TransientError } from "../base/errors.ts";
import type { Output } from "./output.ts";

/** Exit statuses of sbx itself; everything else is the program's own. */
export const EXIT = { ok: 0, failed: 1, usage: 2, brokenPipe: 141, timedOut: 124, sandbox: 125, refused: 126 } as const;

/** The command line is not acceptable. */
export class UsageError extends PermanentError {
  override readonly name = "UsageError";
  readonly code = "SBX_USAGE";
}

/** The user or the system ended the program. */
export class InterruptedError extends TransientError {
  override readonly name = "InterruptedError";
  readonly code = "SBX_INTERRUPTED";
  /** 128 + the signal's number. */
  readonly exitCode: number;
  /** `signal` is `SIGINT`, `SIGTERM` …, `number` its number. */
  constructor(signal: string, number: number) {
    super(`Interrupted by ${signal}`, { retry: "unknown" });
    this.exitCode = 128 + number;
  }
}

/** Whoever read our output has gone. */
export class BrokenPipeError extends TransientError {
  override readonly name = "BrokenPipeError";
  readonly code = "SBX_BROKEN_PIPE";
}

/** Our output cannot be kept: the disk is full or broken. */
export class OutputError extends PermanentError {
  override readonly name = "OutputError";
  readonly code = "SBX_OUTPUT";
}

/** What the system says where a file, and no pipe, takes no more. */
const FILE_CODES: ReadonlySet<string> = new Set(["ENOSPC", "EDQUOT", "EFBIG", "EIO"]);

/** Why the program ends when standard output fails with the system's `code`. */
export function outputFailure(code: string): BrokenPipeError | OutputError {
  return FILE_CODES.has(code)
    ? new OutputError(`Cannot write to standard output: ${code === "ENOSPC" ? "no space left on device" : code}`)
    : new BrokenPipeError("The reader of the output has gone");
}

// By code and not by class: whoever branches on `code` gets the same answer as the exit status gives.
const USAGE_CODES: ReadonlySet<string> = new Set(["SBX_USAGE", "SBX_INPUT_VALIDATION", "SBX_ENV_VAR_VALIDATION", "SBX_VM_CONFIG"]);
const REFUSED_CODES: ReadonlySet<string> = new Set(["SBX_PACKAGE_NOT_ALLOWED"]);

/** The exit status that stands for `error`. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof InterruptedError) return error.exitCode;
  if (error instanceof BrokenPipeError) return EXIT.brokenPipe;
  if (!SandboxError.is(error)) return EXIT.sandbox;
  if (USAGE_CODES.has(error.code)) return EXIT.usage;
  return REFUSED_CODES.has(error.code) ? EXIT.refused : EXIT.sandbox;
}

/** An error as `--json` prints it under `error`. */
export interface ErrorJson {
  readonly code: string;
  readonly type: string;
  readonly message: string;
  readonly hint: string | null;
  readonly retry: string;
}

/** `error` for programs. */
export function errorJson(error: unknown): ErrorJson {
  if (SandboxError.is(error)) {
    return { code: error.code, type: error.name, message: error.message, hint: error.hint ?? null, retry: error.retry };
  }
  const { name, message } = asError(error);
  return { code: "SBX_INTERNAL", type: name, message, hint: "This is a bug in sbx; --debug shows where.", retry: "unknown" };
}

/** Writes `error` for people: `sbx: MESSAGE`, the hint, and with `isDebug` the stack and its causes. */
export function reportError(stderr: Output, error: unknown, options: { readonly isDebug?: boolean; readonly label?: string } = {}): void {
  // Nobody reads any more; or it is told once, at the end, whatever the parts of the program made of it.
  if (error instanceof BrokenPipeError || error instanceof OutputError) return;
  const { message, hint } = errorJson(error);
  const label = options.label === undefined ? {} : { label: options.label };
  writeReport(stderr, { message: SandboxError.is(error) ? message : `internal error: ${message}`, hint, ...label });
  if (!options.isDebug) return;
  for (let cause: unknown = error; cause !== undefined; cause = asError(cause).cause) {
    const shown = asError(cause);
    stderr.write(`${cause === error ? "" : "caused by: "}${printable(shown.stack ?? shown.message)}\n`);
  }
}

/** One message to people, with the source it is about and what to do, where there is such. */
export interface Report {
  readonly message: string;
  readonly hint?: string | null;
  readonly label?: string;
}

/** Writes `sbx: LABEL: MESSAGE` and the hint, a line each. */
export function writeReport(stderr: Output, { message, hint, label }: Report): void {
  stderr.startLine(); // A program's last line need not be whole.
  const prefix = stderr.hasColor ? "\x1b[1;31msbx:\x1b[0m" : "sbx:";
  stderr.write(`${prefix} ${label === undefined ? "" : `${oneLine(label)}: `}${oneLine(message)}\n`);
  if (hint) stderr.write(`${oneLine(hint)}\n`);
}

/** `text` on one line, without what a terminal would act on: part of it may come from a guest. */
export function oneLine(text: string): string {
  return printable(text.trim().replace(/\s*[\r\n]+\s*/g, " "));
}

/** `text` without control characters but tab and line break. */
export function printable(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/\r\n/g, "\n").replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, "\uFFFD");
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
