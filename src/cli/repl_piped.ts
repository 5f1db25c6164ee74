/** REPL piped: a session without a terminal. What standard input holds runs block by block, as if somebody had typed it. */
import { Buffer } from "node:buffer";
import type { CliContext, CliSession } from "./context.ts";
import { EXIT, exitCodeOf, reportError, UsageError } from "./failure.ts";
import type { Output } from "./output.ts";
import { Progress } from "./progress.ts";
import { type Block, blocksOf, leaving } from "./repl_blocks.ts";
import { runCommand } from "./repl_commands.ts";
import type { Display } from "./repl_display.ts";
import { exitCodeOfOutcome, note, reportOutcome, runBlock, typedCode } from "./repl_run.ts";
import type { ReplVm } from "./repl_vm.ts";
import { type Outcome, outcomeJson, partialResult } from "./result_json.ts";

/** All of standard input: more than anybody types, less than fills the memory. */
const INPUT_MAX_BYTES = 67_108_864;

/** What a session without a terminal works with. */
export interface PipedParts {
  readonly vm: ReplVm;
  readonly context: CliContext;
  readonly display: Display;
  readonly timeoutSeconds: number | undefined;
  readonly isJson: boolean;
  readonly isQuiet: boolean;
  readonly isDebug: boolean;
}

/** Runs standard input; returns the status of the last block that failed, 0 when none did. */
export async function runPiped(parts: PipedParts): Promise<number> {
  const { vm, context: { stdin, stderr, signal } } = parts;
  if (stdin.isTty) stderr.write("Reading code from the terminal; end it with Ctrl-D.\n");
  const input = decode(await stdin.read(INPUT_MAX_BYTES, signal));
  const piped = new Piped(parts);
  const blocks = blocksOf(input, () => vm.language, async (text) => {
    const session = await vm.session(signal);
    // What cannot be judged runs as it is; the language will say what is wrong.
    return (await session.isComplete(text, { signal }).catch(() => ({ state: "invalid" }))).state !== "incomplete";
  });
  for await (const block of blocks) {
    const isOver = block.isCommand ? await piped.command(block) : await piped.execute(block);
    signal.throwIfAborted();
    if (isOver) break;
  }
  await vm.session(signal); // Nothing to run is no reason to hide that there is no VM.
  return piped.exitCode;
}

class Piped {
  exitCode: number = EXIT.ok;
  readonly #parts: PipedParts;
  /** Where people read: with JSON nothing else may stand on standard output. */
  readonly #stdout: Output;
  #timeoutSeconds: number | undefined;

  constructor(parts: PipedParts) {
    this.#parts = parts;
    this.#timeoutSeconds = parts.timeoutSeconds;
    this.#stdout = parts.isJson ? parts.context.stderr : parts.context.stdout;
  }

  /** Runs one block; true when it was the last. */
  async execute({ text, line }: Block): Promise<boolean> {
    const { vm, context: { stdout, stderr, signal }, display, isJson, isDebug } = this.#parts;
    const left = leaving(text, vm.language);
    if (left !== undefined) {
      if (vm.leave()) return false;
      this.exitCode = left.exitCode ?? this.exitCode;
      return true;
    }
    const session = await vm.session(signal), timeoutSeconds = this.#timeoutSeconds;
    const outcome = isJson
      ? await collect(session, text, { signal, timeoutSeconds })
      : await runBlock(session, text, { stdout, stderr, display, signal, timeoutSeconds });
    if (isJson) stdout.write(`${JSON.stringify({ line, ...outcomeJson(outcome), ...extras(outcome) })}\n`);
    else reportOutcome(outcome, stderr, { language: vm.language, isDebug, isInteractive: false });
    this.exitCode = exitCodeOfOutcome(outcome) || this.exitCode;
    return session.closed;
  }

  /** Runs one command; true when it was the last. */
  async command({ text }: Block): Promise<boolean> {
    const { vm, context: { stderr, signal }, isDebug, isQuiet } = this.#parts;
    using progress = new Progress(stderr, { isQuiet });
    try {
      const answer = await runCommand(text, {
        vm,
        stdout: this.#stdout,
        stderr,
        progress,
        signal,
        setTimeout: (seconds) => void (this.#timeoutSeconds = seconds),
        changeVm: async (language) => {
          vm.replace(language);
          if (!isQuiet) note(stderr, `new VM: ${language}`);
          await vm.session(signal);
        },
        runShell: () => Promise.reject(new UsageError("Cannot open a shell: standard input and standard error must be a terminal")),
      });
      return answer === "leave" && !vm.leave();
    } catch (error) {
      signal.throwIfAborted();
      reportError(stderr, error, { isDebug });
      this.exitCode = exitCodeOf(error);
      return false;
    }
  }
}

async function collect(
  session: CliSession,
  text: string,
  { signal, timeoutSeconds }: { readonly signal: AbortSignal; readonly timeoutSeconds: number | undefined },
): Promise<Outcome> {
  const code = await typedCode(session, text, signal);
  try {
    for await (const event of session.stream(code, { signal, ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }) })) {
      if (event.type === "result") return { result: event.result };
    }
    throw new Error("there is no result");
  } catch (error) {
    return { error };
  }
}

/** What a session's result has beside that of a run. */
function extras(outcome: Outcome): Record<string, unknown> {
  const result = "result" in outcome ? outcome.result : partialResult(outcome.error);
  return result === undefined ? {} : { value: result.value ?? null, results: result.results, state_reset: result.stateReset ?? false };
}

function decode(bytes: Uint8Array): string {
  if (bytes.length > INPUT_MAX_BYTES) {
    throw new UsageError(`Cannot read standard input: must be at most ${INPUT_MAX_BYTES} bytes, got more`);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(Buffer.from(bytes));
  } catch (cause) {
    throw new UsageError("Cannot read standard input: code must be UTF-8", { cause });
  }
}
