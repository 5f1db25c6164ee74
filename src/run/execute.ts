/** Execute: one piece of code on one VM, from dispatch to its result. */
import { GuestAgentError } from "../base/errors.ts";
import { DISPLAY_OBJECTS_MAX, STDERR_MAX_BYTES, STDOUT_MAX_BYTES } from "../base/limits.ts";
import type { Logger } from "../base/log.ts";
import type { DisplayData } from "../base/result.ts";
import type { ExecReply, GuestChannel, OutputName } from "../channel/guest.ts";
import type { BackgroundOutput } from "./background_output.ts";
import type { OutputCallback } from "./check.ts";
import { guarded, OutputText } from "./output.ts";

/** What an execution left, before times and usage are added. */
export interface Execution {
  readonly stdout: string;
  readonly stderr: string;
  readonly results: readonly DisplayData[];
  readonly reply: ExecReply;
  /** The cap that was passed, by the guest's word or by our own count. */
  readonly outputLimit: OutputName | undefined;
}

/** What an execution shows, as it comes. */
export type OutputEvent =
  | { readonly type: "stdout" | "stderr"; readonly text: string }
  | { readonly type: "display"; readonly data: DisplayData };

/** Takes events at its own pace. */
export interface EventSink {
  /** Takes one. */
  push(event: OutputEvent): void;
  /** Settles when all events so far have been used; undefined when they have. The guest waits for it. */
  drained(): Promise<void> | undefined;
}

/** What an execution needs. */
export interface ExecutionRequest {
  readonly code: string;
  readonly env: Readonly<Record<string, string>>;
  readonly timeoutSeconds: number;
  readonly signal: AbortSignal | undefined;
  readonly onStdout: OutputCallback | undefined;
  readonly onStderr: OutputCallback | undefined;
  /** Nothing runs after it in the VM. */
  readonly isFinal?: boolean;
  readonly stdin?: AsyncIterable<Uint8Array> | undefined;
  readonly events?: EventSink | undefined;
  /** Comes before the code's own output. */
  readonly background?: BackgroundOutput;
}

/** Runs the code and collects its output. Rejects as `GuestChannel.exec` does. */
export async function execute(guest: GuestChannel, request: ExecutionRequest, log: Logger): Promise<Execution> {
  const { code, env, stdin, events } = request;
  const text = (name: OutputName, maxBytes: number, callback: OutputCallback | undefined) => {
    const deliver = guarded(callback, name === "stdout" ? "onStdout" : "onStderr", log);
    return new OutputText(maxBytes, events ? (piece) => (deliver?.(piece), events.push({ type: name, text: piece })) : deliver);
  };
  const texts = { stdout: text("stdout", STDOUT_MAX_BYTES, request.onStdout), stderr: text("stderr", STDERR_MAX_BYTES, request.onStderr) };
  const results: DisplayData[] = [];
  let shownCount = 0;
  let passed: OutputName | undefined;
  request.background?.take((name, bytes) => texts[name].push(bytes));
  const reply = await guest.exec(
    { code, env, timeoutMs: Math.ceil(request.timeoutSeconds * 1000), isFinal: request.isFinal ?? false, stdin },
    {
      onOutput: (name, bytes) => {
        if (!texts[name].push(bytes)) passed ??= name;
        return events?.drained();
      },
      onDisplay: (data) => {
        shownCount += 1;
        if (shownCount <= DISPLAY_OBJECTS_MAX) results.push(data);
        events?.push({ type: "display", data });
        return events?.drained();
      },
    },
    request.signal,
  );
  if (reply.isDisplayMalformed) throw new GuestAgentError("Cannot read the display data: it must be JSON objects", { retry: "unknown" });
  if (shownCount > DISPLAY_OBJECTS_MAX) {
    const got = `got ${shownCount}: the result has the first ${DISPLAY_OBJECTS_MAX}`;
    texts.stderr.pushLine(`Cannot keep all display data: one execution has at most ${DISPLAY_OBJECTS_MAX} objects, ${got}`);
  }
  return { stdout: texts.stdout.finish(), stderr: texts.stderr.finish(), results, reply, outputLimit: reply.outputLimit ?? passed };
}
