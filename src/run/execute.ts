/** Execute: one piece of code on one VM, from dispatch to its result. */
import { STDERR_MAX_BYTES, STDOUT_MAX_BYTES } from "../base/limits.ts";
import type { Logger } from "../base/log.ts";
import type { ExecReply, GuestChannel, OutputName } from "../channel/guest.ts";
import { guarded, OutputText } from "./output.ts";
import type { CheckedRequest } from "./request.ts";

/** What an execution left, before times and usage are added. */
export interface Execution {
  readonly stdout: string;
  readonly stderr: string;
  readonly reply: ExecReply;
  /** The cap that was passed, by the guest's word or by our own count. */
  readonly outputLimit: OutputName | undefined;
}

/** Which fields of a request an execution needs. */
export type ExecutionRequest = Pick<CheckedRequest, "code" | "env" | "timeoutSeconds" | "signal" | "onStdout" | "onStderr"> & {
  /** Nothing runs after it in the VM. */
  readonly isFinal?: boolean;
};

/** Runs the code and collects its output. Rejects as `GuestChannel.exec` does. */
export async function execute(guest: GuestChannel, request: ExecutionRequest, log: Logger): Promise<Execution> {
  const texts = {
    stdout: new OutputText(STDOUT_MAX_BYTES, guarded(request.onStdout, "onStdout", log)),
    stderr: new OutputText(STDERR_MAX_BYTES, guarded(request.onStderr, "onStderr", log)),
  };
  let passed: OutputName | undefined;
  const onOutput = (name: OutputName, bytes: Uint8Array) => {
    if (!texts[name].push(bytes)) passed ??= name;
  };
  const reply = await guest.exec(
    { code: request.code, env: request.env, timeoutMs: Math.ceil(request.timeoutSeconds * 1000), isFinal: request.isFinal ?? false },
    { onOutput },
    request.signal,
  );
  return { stdout: texts.stdout.finish(), stderr: texts.stderr.finish(), reply, outputLimit: reply.outputLimit ?? passed };
}
