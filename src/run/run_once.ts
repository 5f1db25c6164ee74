/** Run once: a fresh VM for one piece of code, and the result with its times. */
import { abortable } from "../base/async.ts";
import { CommunicationError, OutcomeUnknownError, SessionClosedError } from "../base/errors.ts";
import type { Template } from "../vm/template.ts";
import { describeLoss, type Vm } from "../vm/vm.ts";
import { conclude, measured, wholeMs } from "./conclude.ts";
import { execute, type Execution } from "./execute.ts";
import type { CheckedRequest, FileHook } from "./request.ts";
import type { ExecutionResult } from "../base/result.ts";
import { writeFiles } from "./session_files.ts";
import { bootLogSink, onFreshVm, type RunContext } from "./start_vm.ts";
import { VmFiles } from "./vm_files.ts";

/** Runs `request`; its VM is dead or dying when this returns. */
export async function runOnce(request: CheckedRequest, context: RunContext): Promise<ExecutionResult> {
  // Room first: a machine that bakes takes as much as the one that runs, and one that can never fit is not baked for.
  using _room = await context.gate.acquire({ memoryMiB: request.memoryMb, cpus: 1 }, { signal: request.signal });
  const { execution, result } = await onFreshVm(request, context, (template) => runFrom(template, request, context));
  return conclude(result, { outputLimit: execution.outputLimit, check: request.check, timeoutSeconds: request.timeoutSeconds });
}

async function runFrom(
  template: Template | undefined,
  request: CheckedRequest,
  context: RunContext,
): Promise<{ result: ExecutionResult; execution: Execution }> {
  const onConsole = await bootLogSink(template, request, context);
  const launchedAt = performance.now();
  const vm = await context.supply.start(request, { template, onConsole });
  try {
    const { execution, bootMs: answeredMs } = await executeOn(vm, request, context);
    const finishedAt = performance.now(), usage = vm.usage();
    await withFiles(vm, request.collect, request.signal);
    // The guest answers HELLO when it gets round to it, the code running already: what the guest measured belongs to the execution.
    const bootMs = Math.min(answeredMs, finishedAt - launchedAt - execution.reply.executionUs / 1000);
    const timing = {
      setupMs: wholeMs(launchedAt - context.calledAt),
      bootMs: wholeMs(bootMs),
      executeMs: wholeMs(finishedAt - launchedAt - bootMs),
      totalMs: wholeMs(performance.now() - context.calledAt),
    };
    return { execution, result: measured(execution, { usage, timing, start: template ? "template" : "cold" }) };
  } finally {
    context.supply.release(vm);
  }
}

/** Sends the code to a clone at once, where it waits in the channel until the guest is there; a machine that boots must have spoken first. */
async function executeOn(vm: Vm, request: CheckedRequest, context: RunContext): Promise<{ execution: Execution; bootMs: number }> {
  const hasFiles = Object.keys(request.files).length > 0;
  if (vm.isCold || hasFiles || request.prepare) await abortable(vm.ready, request.signal);
  if (hasFiles) await abortable(writeFiles(vm.guest.files, request.files, request.signal), request.signal);
  await withFiles(vm, request.prepare, request.signal);
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

/** Lets the caller at the VM's files. */
async function withFiles(vm: Vm, hook: FileHook | undefined, signal: AbortSignal | undefined): Promise<void> {
  if (!hook) return;
  const over = new AbortController();
  const ending = signal ? AbortSignal.any([signal, over.signal]) : over.signal;
  try {
    await abortable(Promise.try(hook, new VmFiles(vm.guest.files, ending), ending), signal);
  } finally {
    over.abort(new SessionClosedError("Cannot use the files of a run: they may be used in `prepare` and `collect` only"));
  }
}
