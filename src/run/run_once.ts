/** Run once: a fresh VM for one piece of code, and the result with its times. */
import type { Gate } from "../admission/gate.ts";
import { abortable } from "../base/async.ts";
import {
  CommunicationError,
  ExecutionFailedError,
  OutcomeUnknownError,
  OutputLimitError,
  SnapshotError,
  VmTimeoutError,
} from "../base/errors.ts";
import { STDERR_MAX_BYTES, STDOUT_MAX_BYTES } from "../base/limits.ts";
import type { Logger } from "../base/log.ts";
import type { Template } from "../vm/template.ts";
import { describeLoss, type Vm } from "../vm/vm.ts";
import { execute, type Execution } from "./execute.ts";
import { guarded } from "./output.ts";
import type { CheckedRequest } from "./request.ts";
import type { ExecutionResult } from "./result.ts";
import type { Supply } from "./supply.ts";

/** What a run uses of its scheduler. */
export interface RunContext {
  readonly supply: Supply;
  readonly gate: Gate;
  readonly log: Logger;
  /** `performance.now()` when the caller called. */
  readonly calledAt: number;
}

/** Runs `request`; its VM is dead or dying when this returns. */
export async function runOnce(request: CheckedRequest, context: RunContext): Promise<ExecutionResult> {
  const { supply, gate } = context;
  // Room first: a machine that bakes takes as much as the one that runs, and one that can never fit is not baked for.
  using _room = await gate.acquire({ memoryMiB: request.memoryMb, cpus: 1 }, { signal: request.signal });
  const template = await supply.template(request.language, request.memoryMb, request.signal);
  try {
    return conclude(await runFrom(template, request, context), request);
  } catch (error) {
    // The guest never ran, so nothing is lost by a second attempt; more than one would hide a broken host.
    if (!(error instanceof SnapshotError) || !template) throw error;
    context.log.warning("a template did not start and is made anew", { language: request.language, reason: error.message });
    const fresh = await supply.replaceTemplate(template, request.signal);
    return conclude(await runFrom(fresh, request, context), request);
  }
}

async function runFrom(
  template: Template | undefined,
  request: CheckedRequest,
  context: RunContext,
): Promise<ExecutionResult & { readonly execution: Execution }> {
  const onConsole = await bootLogSink(template, request, context);
  const launchedAt = performance.now();
  const vm = await context.supply.start(request, { template, onConsole });
  try {
    const { execution, bootMs: answeredMs } = await executeOn(vm, request, context);
    const finishedAt = performance.now();
    // The guest answers HELLO when it gets round to it, the code running already: what the guest measured belongs to the execution.
    const bootMs = Math.min(answeredMs, finishedAt - launchedAt - execution.reply.executionUs / 1000);
    const usage = vm.usage();
    return {
      execution,
      stdout: execution.stdout,
      stderr: execution.stderr,
      ...(execution.reply.value === undefined ? {} : { value: execution.reply.value }),
      results: [],
      exitCode: execution.reply.exitCode,
      timedOut: execution.reply.timedOut,
      executionTimeMs: wholeMs(execution.reply.executionUs / 1000),
      externalCpuTimeMs: usage.cpuTimeMs === null ? null : wholeMs(usage.cpuTimeMs),
      externalMemoryPeakMb: usage.memoryPeakMiB === null ? null : Math.ceil(usage.memoryPeakMiB),
      timing: {
        setupMs: wholeMs(launchedAt - context.calledAt),
        bootMs: wholeMs(bootMs),
        executeMs: wholeMs(finishedAt - launchedAt - bootMs),
        totalMs: wholeMs(finishedAt - context.calledAt),
      },
      warmPoolHit: false,
      start: template ? "template" : "cold",
      exposedPorts: [],
    };
  } finally {
    context.supply.release(vm);
  }
}

/** Sends the code to a clone at once, where it waits in the channel until the guest is there; a machine that boots must have spoken first. */
async function executeOn(vm: Vm, request: CheckedRequest, context: RunContext): Promise<{ execution: Execution; bootMs: number }> {
  if (vm.isCold) await abortable(vm.ready, request.signal);
  // An abort kills this VM, there is nothing in it to keep: the guest is not asked to stop first.
  const running = execute(vm.guest, { ...request, signal: undefined, isFinal: true }, context.log);
  running.catch(() => {}); // When the VM never became ready, that is the error to report.
  const bootMs = await abortable(vm.ready, request.signal);
  try {
    return { execution: await abortable(running, request.signal), bootMs };
  } catch (error) {
    if (!(error instanceof OutcomeUnknownError || error instanceof CommunicationError)) throw error;
    throw new OutcomeUnknownError(describeLoss(vm, error), { cause: error });
  }
}

/** Gets log lines to the caller: a clone's boot was its template's. */
async function bootLogSink(
  template: Template | undefined,
  request: CheckedRequest,
  context: RunContext,
): Promise<((bytes: Uint8Array) => void) | undefined> {
  const deliver = guarded(request.onBootLog, "onBootLog", context.log);
  if (!deliver) return undefined;
  if (template) deliver(await context.supply.bootLog(template));
  const decoder = new TextDecoder();
  return (bytes) => deliver(decoder.decode(bytes, { stream: true }));
}

/** A result as it is, or the exception that `check` and the output caps make of it. */
function conclude({ execution, ...result }: ExecutionResult & { readonly execution: Execution }, request: CheckedRequest): ExecutionResult {
  if (execution.outputLimit !== undefined) {
    const limit = execution.outputLimit === "stdout" ? STDOUT_MAX_BYTES : STDERR_MAX_BYTES;
    throw new OutputLimitError(`Cannot keep the output: ${execution.outputLimit} must be at most ${limit} bytes, got more`, {
      result,
      hint: "Write to a file, or print less.",
    });
  }
  if (request.check && result.timedOut) {
    throw new VmTimeoutError(`Cannot finish: the code must end within ${request.timeoutSeconds} s, and it did not`, { result });
  }
  if (request.check && result.exitCode !== 0) {
    throw new ExecutionFailedError(`Cannot finish: the program's exit code must be 0, got ${result.exitCode}`, { result });
  }
  return result;
}

/** Rounded up: a phase that happened is never 0. */
function wholeMs(ms: number): number {
  return Math.max(1, Math.ceil(ms));
}
