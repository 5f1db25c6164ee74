/** Start VM: what a run and a session do alike to get a machine. */
import type { Gate } from "../admission/gate.ts";
import { SnapshotError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import type { Template } from "../vm/template.ts";
import type { OutputCallback } from "./check.ts";
import { guarded } from "./output.ts";
import type { Language } from "./request.ts";
import type { Supply } from "./supply.ts";

/** What is used of the scheduler. */
export interface RunContext {
  readonly supply: Supply;
  readonly gate: Gate;
  readonly log: Logger;
  /** `performance.now()` when the caller called. */
  readonly calledAt: number;
}

/** Which machine is wanted. */
export interface MachineRequest {
  readonly language: Language;
  readonly memoryMb: number;
  readonly signal: AbortSignal | undefined;
  readonly onBootLog: OutputCallback | undefined;
}

/** Calls `attempt` with the template to start from; once more with a new one when that does not start. */
export async function onFreshVm<T>(
  request: MachineRequest,
  { supply, log }: RunContext,
  attempt: (template: Template | undefined) => Promise<T>,
): Promise<T> {
  const template = await supply.template(request.language, request.memoryMb, request.signal);
  try {
    return await attempt(template);
  } catch (error) {
    // The guest never ran, so nothing is lost by a second attempt; more than one would hide a broken host.
    if (!(error instanceof SnapshotError) || !template) throw error;
    log.warning("a template did not start and is made anew", { language: request.language, reason: error.message });
    return await attempt(await supply.replaceTemplate(template, request.signal));
  }
}

/** Gets log lines to the caller: a clone's boot was its template's. */
export async function bootLogSink(
  template: Template | undefined,
  request: MachineRequest,
  { supply, log }: RunContext,
): Promise<((bytes: Uint8Array) => void) | undefined> {
  const deliver = guarded(request.onBootLog, "onBootLog", log);
  if (!deliver) return undefined;
  if (template) deliver(await supply.bootLog(template));
  const decoder = new TextDecoder();
  return (bytes) => deliver(decoder.decode(bytes, { stream: true }));
}
