/** Ask: a short question to another program, and what it means when a program cannot be started. */
import { Deadline } from "../base/async.ts";
import { messageOf, SandboxDependencyError, SandboxError, VmCapacityError } from "../base/errors.ts";
import { PROGRAM_ANSWER_TIMEOUT_MS } from "../base/limits.ts";
import { run, type RunOutput } from "./process.ts";

/** What a host says that has no descriptor, process or memory left: that may pass. */
const EXHAUSTED_CODES: ReadonlySet<string> = new Set(["EMFILE", "ENFILE", "EAGAIN", "ENOMEM"]);

/**
 * Runs `argv` to its end, which must come within `timeoutMs`. Throws `SandboxDependencyError` when it does not, or when the program cannot
 * be started, and `VmCapacityError` when the host has no room for it. `action` begins the message.
 */
export async function ask(
  action: string,
  argv: readonly [string, ...string[]],
  timeoutMs: number = PROGRAM_ANSWER_TIMEOUT_MS,
): Promise<RunOutput> {
  const [program, ...args] = argv;
  using deadline = new Deadline(
    timeoutMs,
    () => new SandboxDependencyError(`${action}: ${program} must answer ${args.join(" ")} within ${timeoutMs} ms, got nothing`),
  );
  try {
    return await run(argv, { signal: deadline.signal });
  } catch (cause) {
    throw spawnError(action, program, cause);
  }
}

/** Why `program` could not be started, for callers of the library. */
export function spawnError(action: string, program: string, cause: unknown): SandboxError {
  if (SandboxError.is(cause)) return cause;
  const code = String((cause as NodeJS.ErrnoException | undefined)?.code);
  if (EXHAUSTED_CODES.has(code)) {
    return new VmCapacityError(`${action}: the host has no room for another process (${code})`, {
      cause,
      hint: "Run fewer VMs at once, or raise the limits on open files and processes (`ulimit -n`, `ulimit -u`).",
    });
  }
  return new SandboxDependencyError(`${action}: ${program} does not run (${messageOf(cause)})`, { cause });
}
