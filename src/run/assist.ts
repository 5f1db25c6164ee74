/** Assist: what a guest says about code that somebody types, checked before it is believed. */
import { Deadline } from "../base/async.ts";
import { CommunicationError, GuestAgentError, InputValidationError, OutcomeUnknownError, shown } from "../base/errors.ts";
import { ASSIST_TIMEOUT_MS, COMPLETIONS_MAX, GUEST_KILL_GRACE_MS } from "../base/limits.ts";
import type { GuestChannel } from "../channel/guest.ts";
import type { BackgroundOutput } from "./background_output.ts";
import { checkCodeText } from "./request.ts";

/** What may stand at the end of the code. */
export interface Completion {
  /** From here (UTF-16 units) to the cursor the candidates replace the code. */
  readonly start: number;
  /** At most 1,000. */
  readonly candidates: readonly string[];
}

/** Whether code can be run as it stands. */
export interface CodeState {
  /** `incomplete`: a block, bracket or string is not closed yet; `invalid`: no continuation can mend it. */
  readonly state: "complete" | "incomplete" | "invalid";
  /** What the next line would begin with. */
  readonly indent: string;
}

/** A question about code: either kind. */
export interface AssistQuestion<T> {
  readonly kind: "complete" | "is_complete";
  readonly code: string;
  /** For code in which there is nothing to ask about. */
  readonly blank: T;
  /** The answer in `value`, or undefined when it is none. */
  readonly parse: (value: Record<string, unknown>) => T | undefined;
}

const STATES: readonly CodeState["state"][] = ["complete", "incomplete", "invalid"];
const INDENT_MAX_CHARS = 1024;

/** The question what may stand at `cursor`. */
export function completionQuestion(code: string, cursor: number = code.length): AssistQuestion<Completion> {
  const text = checkCodeText(code);
  if (!Number.isInteger(cursor) || cursor < 0 || cursor > text.length) {
    throw new InputValidationError(`Cannot complete: cursor must be a whole number between 0 and ${text.length}, got ${shown(cursor)}`);
  }
  return {
    kind: "complete",
    code: text.slice(0, cursor).toWellFormed(),
    blank: { start: cursor, candidates: [] },
    parse: ({ start, candidates }) => {
      const isValid = Number.isInteger(start) && (start as number) >= 0 && (start as number) <= cursor && Array.isArray(candidates) &&
        candidates.length <= COMPLETIONS_MAX && candidates.every((candidate) => typeof candidate === "string");
      return isValid ? { start: start as number, candidates: candidates as string[] } : undefined;
    },
  };
}

/** The question whether a block is unfinished. */
export function completenessQuestion(code: string): AssistQuestion<CodeState> {
  return {
    kind: "is_complete",
    code: checkCodeText(code),
    blank: { state: "complete", indent: "" },
    parse: ({ state, indent }) => {
      const known = STATES.find((candidate) => candidate === state);
      return known && typeof indent === "string" ? { state: known, indent: indent.slice(0, INDENT_MAX_CHARS) } : undefined;
    },
  };
}

/** Who waits for an answer, and who gets what programs print in the background meanwhile. */
export interface AskOptions {
  readonly signal: AbortSignal | undefined;
  readonly background: BackgroundOutput;
}

/** Asks the guest, between executions. Throws `GuestAgentError` when it says nothing useful in time, `CommunicationError` when it is lost. */
export async function ask<T>(guest: GuestChannel, question: AssistQuestion<T>, { signal, background }: AskOptions): Promise<T> {
  const { kind, code, blank, parse } = question;
  if (!/\S/.test(code)) return blank;
  const action = kind === "complete" ? "complete" : "judge the code";
  const late = new GuestAgentError(`Cannot ${action}: no answer after ${ASSIST_TIMEOUT_MS} ms`);
  using deadline = new Deadline(ASSIST_TIMEOUT_MS, () => late);
  // Our own time ends first: an interrupt keeps the state, a time-out in the guest would not.
  const timeoutMs = ASSIST_TIMEOUT_MS + GUEST_KILL_GRACE_MS;
  const both = signal ? AbortSignal.any([signal, deadline.signal]) : deadline.signal;
  const { value } = await guest.exec({ code, env: {}, timeoutMs, assist: kind }, {
    onOutput: (name, bytes) => background.push(name, bytes),
  }, both).catch((cause) => {
    // A question runs nothing: there is no outcome to be in doubt about.
    if (!(cause instanceof OutcomeUnknownError)) throw cause;
    throw new CommunicationError(`Cannot ${action}: the VM was lost before it answered`, { cause });
  });
  const answer = parseValue(value);
  const parsed = answer && parse(answer);
  if (parsed === undefined) throw new GuestAgentError("Cannot read the guest's answer about the code", { retry: "unknown" });
  return parsed;
}

function parseValue(value: string | undefined): Record<string, unknown> | undefined {
  try {
    const answer: unknown = JSON.parse(value ?? "");
    return typeof answer === "object" && answer !== null ? answer as Record<string, unknown> : undefined;
  } catch {
    return undefined; // No JSON, as the caller is told.
  }
}
