/** Conclude: an execution as a result, or as the exception that the caller asked for. */
import { ExecutionFailedError, OutputLimitError, VmTimeoutError } from "../base/errors.ts";
import { STDERR_MAX_BYTES, STDOUT_MAX_BYTES } from "../base/limits.ts";
import type { OutputName } from "../channel/guest.ts";
import type { QemuUsage } from "../qemu/usage.ts";
import type { Execution } from "./execute.ts";
import type { ExecutionResult, ExposedPort, StartKind, Timing } from "../base/result.ts";

/** What was measured around an execution. */
export interface Measures {
  readonly usage: QemuUsage;
  readonly timing: Timing;
  readonly start: StartKind;
  readonly exposedPorts: readonly ExposedPort[];
}

/** The result of an execution. */
export function measured({ stdout, stderr, results, reply }: Execution, { usage, timing, start, exposedPorts }: Measures): ExecutionResult {
  return {
    stdout,
    stderr,
    ...(reply.value === undefined ? {} : { value: reply.value }),
    results,
    exitCode: reply.exitCode,
    timedOut: reply.timedOut,
    executionTimeMs: wholeMs(reply.executionUs / 1000),
    externalCpuTimeMs: usage.cpuTimeMs === null ? null : wholeMs(usage.cpuTimeMs),
    externalMemoryPeakMb: usage.memoryPeakMiB === null ? null : Math.ceil(usage.memoryPeakMiB),
    timing,
    warmPoolHit: start === "warm",
    start,
    exposedPorts,
  };
}

/** What decides whether a result is an exception. */
export interface Verdict {
  readonly outputLimit: OutputName | undefined;
  readonly check: boolean;
  readonly timeoutSeconds: number;
}

/** The result as it is, or the exception that `check` and the output caps make of it. */
export function conclude(result: ExecutionResult, { outputLimit, check, timeoutSeconds }: Verdict): ExecutionResult {
  if (outputLimit !== undefined) {
    const limit = outputLimit === "stdout" ? STDOUT_MAX_BYTES : STDERR_MAX_BYTES;
    throw new OutputLimitError(`Cannot keep the output: ${outputLimit} must be at most ${limit} bytes, got more`, {
      result,
      hint: "Write to a file, or print less.",
    });
  }
  if (check && result.timedOut) {
    throw new VmTimeoutError(`Cannot finish: the code must end within ${timeoutSeconds} s, and it did not`, { result });
  }
  if (check && result.exitCode !== 0) {
    throw new ExecutionFailedError(`Cannot finish: the program's exit code must be 0, got ${result.exitCode}`, { result });
  }
  return result;
}

/** Rounded up: a phase that happened is never 0. */
export function wholeMs(ms: number): number {
  return Math.max(1, Math.ceil(ms));
}
