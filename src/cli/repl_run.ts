/** REPL run: one execution in a session, its output as it comes, and what is to be said when it is over. */
import os from "node:os";
import { OutcomeUnknownError, SandboxError, SessionClosedError } from "../base/errors.ts";
import { TIMEOUT_MAX_SECONDS } from "../base/limits.ts";
import type { Language } from "../run/request.ts";
import type { ExecutionResult } from "../base/result.ts";
import type { CliSession } from "./context.ts";
import { EXIT, exitCodeOf, InterruptedError, printable, reportError, writeReport } from "./failure.ts";
import type { Output } from "./output.ts";
import type { Display } from "./repl_display.ts";
import { highlight } from "./repl_highlight.ts";
import { Modes, PASTE_ON } from "./repl_modes.ts";
import { styled } from "./repl_screen.ts";
import { type Outcome, partialResult } from "./result_json.ts";

/** The user insisted: the code was killed. */
export class CodeKilledError extends SandboxError {
  /** The class, also in minified programs. */
  override readonly name = "CodeKilledError";
  readonly code = "SBX_CODE_KILLED";
  constructor() {
    super("The code did not stop and was ended", "unknown");
  }
}

/** Where an execution shows what it does. */
export interface Shown {
  readonly stdout: Output;
  readonly stderr: Output;
  readonly display: Display;
}

/** How a block is run. */
export interface BlockOptions extends Shown {
  readonly signal: AbortSignal;
  /** Default: the session's. */
  readonly timeoutSeconds?: number | undefined;
  /** What code does to the terminal does not outlive it: neither a hidden cursor nor another screen nor pastes without marks. */
  readonly isRestored?: boolean;
}

/** What may be an object of JavaScript, or a block of statements. */
const BRACES = /^\s*\{[^]*\}\s*$/;

/**
 * What is to run when `text` was typed: `{ a: 1 }` is an object where it can be one, as at every prompt of JavaScript, though at the start
 * of a statement a program means a block.
 */
export async function typedCode(session: CliSession, text: string, signal: AbortSignal): Promise<string> {
  if (session.language !== "javascript" || !BRACES.test(text)) return text;
  const object = `(${text}\n)`;
  const { state } = await session.isComplete(object, { signal }).catch(() => ({ state: "invalid" })); // Whoever runs it learns why.
  return state === "complete" ? object : text;
}

/** Runs what was typed and shows what it shows, its value last. A failure is an outcome too. */
export async function runBlock(session: CliSession, text: string, options: BlockOptions): Promise<Outcome> {
  const { stdout, stderr, display, signal, timeoutSeconds } = options, modes = options.isRestored ? new Modes() : undefined;
  let result: ExecutionResult | undefined;
  const texts = new Set<string>();
  const code = await typedCode(session, text, signal);
  try {
    for await (const event of session.stream(code, { signal, ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }) })) {
      if (event.type === "result") result = event.result;
      else if (event.type === "display") {
        const shown = await display.show(event.data);
        if (shown !== undefined) texts.add(shown);
      } else write(event.text, options[event.type], modes);
    }
  } catch (error) {
    return { error };
  } finally {
    const undone = modes?.undo();
    if (undone) stderr.write(undone + PASTE_ON);
  }
  if (result === undefined) return { error: new OutcomeUnknownError("Cannot tell how the code ended: there is no result") };
  const { value } = result;
  // What has a richer form of the same text has been shown.
  if (value !== undefined && !texts.has(value)) writeValue(stdout, value, session.language);
  return { result };
}

function write(text: string, output: Output, modes: Modes | undefined): void {
  if (output.isTty) modes?.take(text);
  output.write(text);
}

function writeValue(stdout: Output, value: string, language: Language): void {
  const text = printable(value);
  stdout.startLine();
  if (!stdout.hasColor) return stdout.write(`${text}\n`);
  let painted = "", at = 0;
  for (const { start, end, style } of text.startsWith(":") ? [] : highlight(text, language)) {
    painted += text.slice(at, start) + styled(text.slice(start, end), style);
    at = end;
  }
  stdout.write(`${painted}${text.slice(at)}\n`);
}

/** The exit status of one outcome: the program's own, or ours. */
export function exitCodeOfOutcome(outcome: Outcome): number {
  if ("error" in outcome) return outcome.error instanceof CodeKilledError ? 128 + os.constants.signals.SIGKILL : exitCodeOf(outcome.error);
  if (outcome.result.timedOut) return EXIT.timedOut;
  return outcome.result.exitCode < 0 ? EXIT.sandbox : outcome.result.exitCode;
}

/** How what is said depends on the place. */
export interface ReportOptions {
  readonly language: Language;
  readonly isDebug: boolean;
  /** Somebody sits at a prompt and may type commands. */
  readonly isInteractive: boolean;
}

/** Says what the program's own output cannot say. An interrupt of sbx is told once for all, by our caller. */
export function reportOutcome(outcome: Outcome, stderr: Output, options: ReportOptions): void {
  if ("result" in outcome) return reportResult(outcome.result, stderr, options);
  const { error } = outcome;
  if (error instanceof InterruptedError) return;
  if (error instanceof CodeKilledError) {
    return writeReport(stderr, { message: error.message, hint: `Variables may be gone; files are kept.` });
  }
  if (error instanceof SessionClosedError || error instanceof OutcomeUnknownError) {
    const hint = options.isInteractive ? "Everything in it is gone; :reset starts another VM, Ctrl-D leaves." : null;
    return writeReport(stderr, { message: error.message, hint });
  }
  reportError(stderr, error, { isDebug: options.isDebug });
  if (partialResult(error)?.stateReset) sayReset(stderr, options.language);
}

function reportResult(
  { timedOut, exitCode, stateReset }: ExecutionResult,
  stderr: Output,
  { language, isInteractive }: ReportOptions,
): void {
  if (timedOut) {
    const hint = isInteractive
      ? `:timeout SECONDS allows up to ${TIMEOUT_MAX_SECONDS}.`
      : `--timeout SECONDS allows up to ${TIMEOUT_MAX_SECONDS}.`;
    writeReport(stderr, { message: "The code ran out of time and was ended", hint });
  } else if (exitCode < 0) {
    writeReport(stderr, { message: "The code ended without a status" });
  } else if (isInteractive && exitCode > 128 && exitCode !== 130) {
    writeReport(stderr, { message: `The code was ended by ${signalName(exitCode - 128)}` });
  } else if (isInteractive && exitCode > 1 && exitCode !== 130 && language !== "raw") {
    note(stderr, `exit code ${exitCode}`);
  }
  if (stateReset) sayReset(stderr, language);
}

function sayReset(stderr: Output, language: Language): void {
  writeReport(stderr, {
    message: `The ${language === "raw" ? "shell" : language} process was replaced: variables are gone, files are kept`,
  });
}

function signalName(number: number): string {
  const name = Object.entries(os.constants.signals).find(([, candidate]) => candidate === number)?.[0];
  return name === undefined ? `signal ${number}` : `signal ${number} (${name})`;
}

/** A line of ours beside a program's output. */
export function note(stderr: Output, text: string): void {
  stderr.startLine();
  stderr.write(`${styled(printable(text), stderr.hasColor ? "90" : "")}\n`);
}
