/** Open session: a VM with its room and its first files, handed over as a session. */
import { abortable } from "../base/async.ts";
import type { Machine } from "./machine.ts";
import { type MachineNetwork, needsNet } from "./network.ts";
import type { Session } from "./session.ts";
import { writeFiles } from "./session_files.ts";
import type { CheckedSessionRequest } from "./session_request.ts";
import { onMachine, openNetwork, type RunContext } from "./start_vm.ts";

/** Opens a session on a machine that `hand` makes one of. The caller owns it. */
export async function openSession(
  request: CheckedSessionRequest,
  context: RunContext,
  hand: (machine: Machine, request: CheckedSessionRequest, network: MachineNetwork) => Session,
): Promise<Session> {
  return await onMachine(
    { ...request, isSavable: true, net: needsNet(request.network) ? "needed" : "welcome" },
    context,
    async (machine) => {
      using _slot = await machine.occupy(request.signal);
      await abortable(machine.ready, request.signal);
      await using stack = new AsyncDisposableStack();
      const network = stack.use(await openNetwork(machine, request, context));
      await abortable(network.answered(), request.signal);
      await abortable(writeFiles(machine.guest.files, request.files, request.signal), request.signal);
      stack.move();
      return hand(machine, request, network);
    },
  );
}
