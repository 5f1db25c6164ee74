/** Open session: a VM with its room and its first files, handed over as a session. */
import { abortable } from "../base/async.ts";
import type { Template } from "../vm/template.ts";
import { Session } from "./session.ts";
import { writeFiles } from "./session_files.ts";
import type { CheckedSessionRequest } from "./session_request.ts";
import { bootLogSink, onFreshVm, type RunContext } from "./start_vm.ts";

/** Opens a session; `onEnd` is called when it has ended. The caller owns it. */
export async function openSession(
  request: CheckedSessionRequest,
  context: RunContext,
  onEnd: (session: Session) => void,
): Promise<Session> {
  // Held as long as the session lives: its VM takes as much while it idles.
  const room = await context.gate.acquire({ memoryMiB: request.memoryMb, cpus: 1 }, { signal: request.signal });
  try {
    return await onFreshVm(request, context, (template) =>
      startSession(template, { request, context }, (session) => {
        room[Symbol.dispose]();
        onEnd(session);
      }));
  } catch (error) {
    room[Symbol.dispose]();
    throw error;
  }
}

async function startSession(
  template: Template | undefined,
  { request, context }: { readonly request: CheckedSessionRequest; readonly context: RunContext },
  onEnd: (session: Session) => void,
): Promise<Session> {
  const { supply, log } = context;
  const vm = await supply.start(request, { template, onConsole: await bootLogSink(template, request, context) });
  try {
    await abortable(vm.ready, request.signal);
    await abortable(writeFiles(vm.guest.files, request.files, request.signal), request.signal);
  } catch (error) {
    supply.release(vm);
    throw error;
  }
  const release = (session: Session) => {
    supply.release(vm);
    onEnd(session);
  };
  return new Session({ vm, request, start: template ? "template" : "cold", log, release });
}
