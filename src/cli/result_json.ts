/** Results and failures as `--json` prints them. */
import { SandboxError } from "../base/errors.ts";
import type { ExecutionResult } from "../base/result.ts";
import type { Output } from "./output.ts";
import { errorJson } from "./failure.ts";
import { exposedJson } from "./network_options.ts";
import type { Transferred } from "./transfer.ts";

/** How the run of one source ended, and what became of its downloads, where there were any. */
export type Outcome = ({ readonly result: ExecutionResult } | { readonly error: unknown }) & {
  readonly downloads?: readonly DownloadOutcome[];
};

/** One download: what came, or why nothing did. */
export type DownloadOutcome = { readonly done: Transferred } | { readonly guest: string; readonly error: unknown };

/** `result` with the field names of the command line. */
export function resultJson(result: ExecutionResult): Record<string, unknown> {
  return {
    stdout: result.stdout,
    stderr: result.stderr,
    exit_code: result.exitCode,
    timed_out: result.timedOut,
    execution_time_ms: result.executionTimeMs,
    external_cpu_time_ms: result.externalCpuTimeMs,
    external_memory_peak_mb: result.externalMemoryPeakMb,
    timing: {
      setup_ms: result.timing.setupMs,
      boot_ms: result.timing.bootMs,
      execute_ms: result.timing.executeMs,
      total_ms: result.timing.totalMs,
    },
    warm_pool_hit: result.warmPoolHit,
    start: result.start,
    exposed_ports: exposedJson(result.exposedPorts),
  };
}

/** An outcome: the result, or `error` beside what there is of a result. */
export function outcomeJson(outcome: Outcome): Record<string, unknown> {
  const result = "result" in outcome ? outcome.result : partialResult(outcome.error);
  const error = "result" in outcome ? failedDownload(outcome) : outcome.error;
  return {
    ...(result === undefined ? {} : resultJson(result)),
    ...(outcome.downloads === undefined ? {} : { downloads: outcome.downloads.map(downloadJson) }),
    ...(error === undefined ? {} : { error: errorJson(error) }),
  };
}

/** The failure of a download that decides how the run ended: only where the program itself did not fail. */
export function failedDownload(outcome: Outcome): unknown {
  if (!("result" in outcome) || outcome.result.exitCode !== 0) return undefined;
  return outcome.downloads?.flatMap((download) => "error" in download ? [download.error] : [])[0];
}

function downloadJson(download: DownloadOutcome): Record<string, unknown> {
  return "error" in download ? { guest: download.guest, error: errorJson(download.error) } : { ...download.done };
}

/** The result that an error carries: of an execution that went past an output cap. */
export function partialResult(error: unknown): ExecutionResult | undefined {
  if (!SandboxError.is(error) || !("result" in error)) return undefined;
  const { result } = error;
  return typeof result === "object" && result !== null && "timing" in result ? result as ExecutionResult : undefined;
}

/** Writes `value` on one line, or indented for a person at a terminal. */
export function writeJson(stdout: Output, value: unknown): void {
  stdout.write(`${JSON.stringify(value, null, stdout.isTty ? 2 : 0)}\n`);
}
