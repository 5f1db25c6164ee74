/** Forks: many ways to go on from one session, tried side by side. */
import { abortable, concurrently } from "../base/async.ts";
import { InputValidationError, NoneAcceptedError, type RaceOutcome, shown } from "../base/errors.ts";
import type { ExecutionResult } from "../base/result.ts";
import { checkFields, checkFlag, checkInteger, checkSignal } from "./check.ts";
import type { CheckpointOf } from "./checkpoint.ts";
import type { ExecOptions } from "./session_request.ts";

const FORKS_AT_ONCE = 4;
const FORKS_MAX = 10_000;
const FORK_MAP_FIELDS: ReadonlySet<string> = new Set<keyof ForkMapOptions>(["concurrency", "signal"]);
const RACE_FIELDS: ReadonlySet<string> = new Set<keyof RaceOptions>(["concurrency", "keepSession", "signal"]);

/** What is asked of a session here. */
interface Fork {
  exec(code: string, options: ExecOptions): Promise<ExecutionResult>;
  end(why: string): void;
  close(): Promise<void>;
}

/** How `forkMap` works. */
export interface ForkMapOptions {
  /** Forks at once, as far as the host has room. Default 4. */
  readonly concurrency?: number;
  /** Ends all of it with the signal's reason. */
  readonly signal?: AbortSignal;
}

/** How `race` works. */
export interface RaceOptions {
  /** Candidates at once, as far as the host has room. Default: all of them. */
  readonly concurrency?: number;
  /** The winner's session is handed over instead of being closed. Default false. */
  readonly keepSession?: boolean;
  /** Ends all of it with the signal's reason. */
  readonly signal?: AbortSignal;
}

/** One way to go on: code, whose `ExecutionResult` is the result, or what is done with a fork. The signal aborts when another has won. */
export type CandidateFor<S, T> = string | ((fork: S, signal: AbortSignal) => T | Promise<T>);

/** Who won. */
export interface WinnerOf<S, T> {
  /** Of the candidate. */
  readonly index: number;
  /** What was accepted. */
  readonly result: T;
  /** The session as the candidate left it, with `keepSession`: the caller owns it then. */
  readonly session: S | undefined;
}

/** One fork for each input; results in the order of the inputs. */
export async function forkMap<S extends Fork, I, O>(
  checkpoint: CheckpointOf<S>,
  inputs: readonly I[],
  work: (fork: S, input: I, index: number) => O | Promise<O>,
  { concurrency, signal }: CheckedForks,
): Promise<O[]> {
  const results: O[] = [];
  await concurrently(inputs.entries(), { limit: concurrency, signal }, async ([index, input], until) => {
    results[index] = await inFork(checkpoint, until, (fork) => work(fork, input, index));
  });
  return results;
}

/** The first candidate whose result is accepted; the others are ended at once. Throws `NoneAcceptedError`. */
export async function race<S extends Fork, T>(
  checkpoint: CheckpointOf<S>,
  candidates: ReadonlyArray<CandidateFor<S, T>>,
  accept: (result: T, index: number) => boolean | Promise<boolean>,
  { concurrency, keepSession, signal }: CheckedForks & { readonly keepSession: boolean },
): Promise<WinnerOf<S, T>> {
  const won = new AbortController(), until = signal ? AbortSignal.any([signal, won.signal]) : won.signal;
  const outcomes: RaceOutcome[] = [];
  let winner: WinnerOf<S, T> | undefined;
  const run = async ([index, candidate]: [number, CandidateFor<S, T>], over: AbortSignal) => {
    let kept = false;
    await inFork(checkpoint, over, async (fork) => {
      const outcome = await attempt(fork, candidate, over);
      over.throwIfAborted();
      outcomes[index] = outcome;
      if ("error" in outcome || !await accept(outcome.result as T, index) || winner) return;
      kept = keepSession;
      winner = { index, result: outcome.result as T, session: keepSession ? fork : undefined };
      won.abort(new Error("another candidate has won"));
    }, () => kept);
  };
  await concurrently(candidates.entries(), { limit: concurrency, signal: until }, run).catch(async (error) => {
    if (winner && !signal?.aborted) return;
    await winner?.session?.close();
    throw error;
  });
  if (winner) return winner;
  throw new NoneAcceptedError(`Cannot name a winner: none of the ${candidates.length} results was accepted`, { outcomes });
}

/** Restores a fork, works with it, and closes it unless it is kept. Whoever works with it when `signal` aborts finds it closed. */
async function inFork<S extends Fork, T>(
  checkpoint: CheckpointOf<S>,
  signal: AbortSignal,
  work: (fork: S) => T | Promise<T>,
  isKept: () => boolean = () => false,
): Promise<T> {
  const fork = await checkpoint.restore({ signal });
  const onAbort = () => {
    if (!isKept()) fork.end("what it was made for is over");
  };
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await abortable(Promise.resolve(work(fork)), isKept() ? undefined : signal);
  } finally {
    signal.removeEventListener("abort", onAbort);
    if (!isKept()) await fork.close();
  }
}

/** A candidate that fails has lost, as one whose result is not accepted. */
async function attempt<S extends Fork, T>(fork: S, candidate: CandidateFor<S, T>, signal: AbortSignal): Promise<RaceOutcome> {
  try {
    if (typeof candidate !== "string") return { result: await candidate(fork, signal) };
    return { result: await fork.exec(candidate, { signal }) };
  } catch (error) {
    return { error };
  }
}

/** Options with every value. */
export interface CheckedForks {
  readonly concurrency: number;
  readonly signal: AbortSignal | undefined;
}

/** Checks the arguments of `forkMap`. */
export function checkForkMap(inputs: unknown, work: unknown, options: ForkMapOptions): CheckedForks {
  const { concurrency = FORKS_AT_ONCE, signal } = checkFields("map over forks", options, FORK_MAP_FIELDS);
  checkList("map over forks", "inputs", inputs, { min: 0 });
  checkFunction("map over forks", "fn", work);
  return checkedForks("map over forks", concurrency, signal);
}

/** Checks the arguments of `race`. */
export function checkRace(
  candidates: readonly unknown[],
  accept: unknown,
  options: RaceOptions,
): CheckedForks & { readonly keepSession: boolean } {
  const { concurrency, keepSession, signal } = checkFields("race", options, RACE_FIELDS);
  checkList("race", "candidates", candidates, { min: 1 });
  for (const [index, candidate] of candidates.entries()) {
    if (typeof candidate === "string" || typeof candidate === "function") continue;
    throw new InputValidationError(`Cannot race: candidates[${index}] must be code or a function, got ${shown(candidate)}`);
  }
  checkFunction("race", "accept", accept);
  return { ...checkedForks("race", concurrency ?? candidates.length, signal), keepSession: checkFlag("race", "keepSession", keepSession) };
}

function checkedForks(action: string, concurrency: unknown, signal: unknown): CheckedForks {
  return { concurrency: checkInteger(action, "concurrency", concurrency, { min: 1, max: FORKS_MAX }), signal: checkSignal(action, signal) };
}

function checkList(action: string, name: string, list: unknown, { min }: { readonly min: number }): void {
  if (Array.isArray(list) && list.length >= min && list.length <= FORKS_MAX) return;
  const got = Array.isArray(list) ? `${list.length} entries` : shown(list);
  throw new InputValidationError(`Cannot ${action}: ${name} must be an array of ${min} to ${FORKS_MAX} entries, got ${got}`);
}

function checkFunction(action: string, name: string, value: unknown): void {
  if (typeof value !== "function") throw new InputValidationError(`Cannot ${action}: ${name} must be a function, got ${shown(value)}`);
}
