/** Main: the real process around the program: signals, streams and the exit. */
import process from "node:process";
import { settlesWithin } from "../base/async.ts";
import { exitCodeOf, InterruptedError, OutputError, outputFailure, writeReport } from "./failure.ts";
import { hostContext } from "./host_context.ts";
import { runProgram } from "./program.ts";

/** Signals that end the program in order, with their numbers. */
const SIGNALS = { SIGINT: 2, SIGTERM: 15, SIGHUP: 1 } as const;
/** What an ordered end may take; then the process ends whatever still hangs. Children die with it. */
const END_GRACE_MS = 10_000;
/** How long an ended program waits for a reader that has paused. */
const FLUSH_GRACE_MS = 1_000;

/** Runs the program on `args` and ends the process with its status. */
export async function main(args: readonly string[]): Promise<void> {
  const ending = new AbortController();
  for (const [name, number] of Object.entries(SIGNALS)) {
    process.on(name, () => {
      if (ending.signal.aborted) process.exit(128 + number); // The user insists.
      ending.abort(new InterruptedError(name, number));
      setTimeout(() => process.exit(128 + number), END_GRACE_MS).unref();
    });
  }
  const context = hostContext({
    signal: ending.signal,
    onBroken: (code) => ending.abort(outputFailure(code)),
  });
  const code = await runProgram(args, context);
  // Of an interrupt that came before the command's end the command has made what its status says.
  const isInterrupted = ending.signal.reason instanceof InterruptedError;
  const flushed = Promise.all([context.stdout.flush(), context.stderr.flush()]);
  const ended = new Promise((resolve) => {
    if (ending.signal.aborted) resolve(undefined);
    else ending.signal.addEventListener("abort", resolve, { once: true });
  });
  await Promise.race([flushed, ended.then(() => settlesWithin(flushed, FLUSH_GRACE_MS))]);
  if (ending.signal.reason instanceof OutputError) {
    const { message, hint } = ending.signal.reason;
    writeReport(context.stderr, { message, hint: hint ?? null });
    await settlesWithin(context.stderr.flush(), FLUSH_GRACE_MS);
  }
  process.exit(ending.signal.aborted && !isInterrupted ? exitCodeOf(ending.signal.reason) : code);
}
