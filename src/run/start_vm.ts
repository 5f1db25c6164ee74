/** Start VM: what a run and a session do alike to get a machine. */
import { abortable } from "../base/async.ts";
import { messageOf, SnapshotError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import { MachineNetwork, type NetworkSupport } from "./network.ts";
import type { CheckedNetwork } from "./network_request.ts";
import type { Machine, MachineRequest, MachineSource } from "./machine.ts";

/** What is used of the scheduler. */
export interface RunContext {
  readonly machines: MachineSource;
  readonly log: Logger;
  /** What networks share, found when one is needed. */
  readonly networkSupport: () => Promise<NetworkSupport>;
  /** `performance.now()` when the caller called. */
  readonly calledAt: number;
}

/**
 * Calls `attempt` with a machine; once more with another when what it started from turns out not to start, or when it was started ahead and is
 * dead. A failed attempt gives its machine back.
 */
export async function onMachine<T>(
  request: MachineRequest,
  { machines, log }: Pick<RunContext, "machines" | "log">,
  attempt: (machine: Machine) => Promise<T>,
): Promise<T> {
  const first = await machines.lease(request);
  let next: MachineRequest;
  try {
    return await attempt(first);
  } catch (error) {
    first.release();
    if (request.signal?.aborted) throw error;
    // The guest never ran, so nothing is lost by a second attempt; more than one would hide a broken host.
    if (error instanceof SnapshotError && first.start === "template") {
      log.warning("a template did not start and is made anew", { language: request.language, reason: error.message });
      next = { ...request, isFresh: true, insteadOf: first };
    } else if (first.isReplaceable) {
      log.debug("a machine that was started ahead is dead; another takes its place", {
        language: request.language,
        reason: messageOf(error),
      });
      next = { ...request, isFresh: true };
    } else throw error;
  }
  const second = await machines.lease(next);
  try {
    return await attempt(second);
  } catch (error) {
    second.release();
    throw error;
  }
}

/** The network of `machine` as `request` wants it, in place for whatever is sent to the guest after this. The caller owns it. */
export async function openNetwork(
  machine: Machine,
  { network, signal }: { readonly network: CheckedNetwork; readonly signal: AbortSignal | undefined },
  { log, networkSupport }: Pick<RunContext, "log" | "networkSupport">,
): Promise<MachineNetwork> {
  if (machine.answersFirst) await abortable(machine.ready, signal);
  signal?.throwIfAborted();
  return await MachineNetwork.open({ machine, request: network, support: networkSupport, log });
}
