/** Run once: a fresh VM for one piece of code, and the result with its times. */
import { abortable } from "../base/async.ts";
import { CommunicationError, OutcomeUnknownError, SessionClosedError } from "../base/errors.ts";
import { conclude, measured, wholeMs } from "./conclude.ts";
import { execute, type Execution } from "./execute.ts";
import type { Machine } from "./machine.ts";
import { type MachineNetwork, needsNet } from "./network.ts";
import type { CheckedRequest, FileHook } from "./request.ts";
import type { ExecutionResult } from "../base/result.ts";
import { writeFiles } from "./session_files.ts";
import { onMachine, openNetwork, type RunContext } from "./start_vm.ts";
import { VmFiles } from "./vm_files.ts";

/** Runs `request`; its VM is dead or dying when this returns. */
export async function runOnce(request: CheckedRequest, context: RunContext): Promise<ExecutionResult> {
  const { execution, result } = await onMachine(
    { ...request, ...(needsNet(request.network) ? { net: "needed" as const } : {}) },
    context,
    async (machine) => {
      using _slot = await machine.occupy(request.signal);
      await using network = await openNetwork(machine, request, context);
      const outcome = await runOn(machine, network, request, context);
      machine.release();
      return outcome;
    },
  );
  return conclude(result, { outputLimit: execution.outputLimit, check: request.check, timeoutSeconds: request.timeoutSeconds });
}

async function runOn(
  machine: Machine,
  network: MachineNetwork,
  request: CheckedRequest,
  context: RunContext,
): Promise<{ result: ExecutionResult; execution: Execution }> {
  const { execution, bootMs: answeredMs } = await executeOn(machine, request, context);
  const usage = machine.usage(), { start, startedAt } = machine;
  await network.answered(); // Settled long ago: the guest sets it up before it runs code.
  await network.drained();
  const finishedAt = performance.now();
  await withFiles(machine, request.collect, request.signal);
  // The guest answers HELLO when it gets round to it, the code running already: what the guest measured belongs to the execution.
  const bootMs = start === "warm" ? 0 : Math.min(answeredMs, finishedAt - startedAt - execution.reply.executionUs / 1000);
  const timing = {
    setupMs: wholeMs(startedAt - context.calledAt),
    bootMs: bootMs === 0 ? 0 : wholeMs(bootMs),
    executeMs: wholeMs(finishedAt - startedAt - bootMs),
    totalMs: wholeMs((request.collect ? performance.now() : finishedAt) - context.calledAt),
  };
  return { execution, result: measured(execution, { usage, timing, start, exposedPorts: network.exposedPorts }) };
}

/** Sends the code to a clone at once, where it waits in the channel until the guest is there; any other machine must have answered first. */
async function executeOn(
  machine: Machine,
  request: CheckedRequest,
  context: RunContext,
): Promise<{ execution: Execution; bootMs: number }> {
  const hasFiles = Object.keys(request.files).length > 0;
  if (machine.answersFirst || hasFiles || request.prepare) await abortable(machine.ready, request.signal);
  if (hasFiles) await abortable(writeFiles(machine.guest.files, request.files, request.signal), request.signal);
  await withFiles(machine, request.prepare, request.signal);
  // An abort kills this VM, there is nothing in it to keep: the guest is not asked to stop first.
  const running = execute(machine.guest, { ...request, signal: undefined, isFinal: true }, context.log);
  running.catch(() => {}); // When the VM never became ready, that is the error to report.
  const bootMs = await abortable(machine.ready, request.signal);
  try {
    return { execution: await abortable(running, request.signal), bootMs };
  } catch (error) {
    if (!(error instanceof OutcomeUnknownError || error instanceof CommunicationError)) throw error;
    throw new OutcomeUnknownError(machine.describeLoss(error), { cause: error });
  }
}

/** Lets the caller at the VM's files. */
async function withFiles(machine: Machine, hook: FileHook | undefined, signal: AbortSignal | undefined): Promise<void> {
  if (!hook) return;
  const over = new AbortController();
  const ending = signal ? AbortSignal.any([signal, over.signal]) : over.signal;
  try {
    await abortable(Promise.try(hook, new VmFiles(machine.guest.files, ending), ending), signal);
  } finally {
    over.abort(new SessionClosedError("Cannot use the files of a run: they may be used in `prepare` and `collect` only"));
  }
}
