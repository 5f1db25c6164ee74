/** Start VM: what a run and a session do alike to get a machine. */
import { SnapshotError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import type { Machine, MachineRequest, MachineSource } from "./machine.ts";

/** What is used of the scheduler. */
export interface RunContext {
  readonly machines: MachineSource;
  readonly log: Logger;
  /** `performance.now()` when the caller called. */
  readonly calledAt: number;
}

/** Calls `attempt` with a machine; once more with another when what it started from turns out not to start. A failed attempt gives its machine back. */
export async function onMachine<T>(
  request: MachineRequest,
  { machines, log }: RunContext,
  attempt: (machine: Machine) => Promise<T>,
): Promise<T> {
  const first = await machines.lease(request);
  try {
    return await attempt(first);
  } catch (error) {
    first.release();
    // The guest never ran, so nothing is lost by a second attempt; more than one would hide a broken host.
    if (!(error instanceof SnapshotError) || first.start === "cold") throw error;
    log.warning("a template did not start and is made anew", { language: request.language, reason: error.message });
  }
  const second = await machines.lease({ ...request, insteadOf: first });
  try {
    return await attempt(second);
  } catch (error) {
    second.release();
    throw error;
  }
}
