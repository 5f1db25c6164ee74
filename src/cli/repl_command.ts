/** REPL command: what one is, and what it works on. */
import type { Language } from "../run/request.ts";
import type { CliSession } from "./context.ts";
import type { Output } from "./output.ts";
import type { Progress } from "./progress.ts";
import type { ReplVm } from "./repl_vm.ts";

/** What a word of a command is. */
export type WordKind = "local" | "guest" | "guest-directory" | "language" | "command" | "number" | "checkpoint" | "network" | "domain";

/** What commands work on. */
export interface ReplWorld {
  readonly vm: ReplVm;
  readonly stdout: Output;
  readonly stderr: Output;
  readonly progress: Progress;
  /** Ends what the command does. */
  readonly signal: AbortSignal;
  /** Seconds that the code may run from now on. */
  setTimeout(seconds: number): void;
  /** Another language, or the same anew. */
  changeVm(language: Language): Promise<void>;
  /** Runs a shell in the terminal. Throws `UsageError` where there is no terminal. */
  runShell(session: CliSession): Promise<void>;
}

/** A command. */
export interface ReplCommand {
  readonly name: string;
  /** Other names of it. */
  readonly aliases?: readonly string[];
  /** Its words; those in brackets may be left out. */
  readonly usage: string;
  readonly words: readonly WordKind[];
  /** The last of them may be repeated. */
  readonly isOpenEnded?: boolean;
  /** How many of its words must be there. */
  readonly wordsMin: number;
  readonly help: string;
  /** Does the work; `leave` ends the session. */
  run(words: readonly string[], world: ReplWorld): Promise<"leave" | void>;
}
