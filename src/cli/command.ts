/** Commands as data: one tree from which parsing, help and completions derive. */
import { assert } from "../base/errors.ts";
import type { CliContext } from "./context.ts";

/** What a shell may offer for a value. */
export type Completion = "file" | "nothing" | readonly string[];

/** An option of a command. */
export interface OptionSpec {
  /** Long name without dashes. */
  readonly long: string;
  /** One letter. */
  readonly short?: string;
  /** Name of its value in the help; an option without one is a flag. */
  readonly value?: string;
  /** May be given more than once. */
  readonly isRepeatable?: boolean;
  /** What a shell offers as its value; default nothing. */
  readonly completion?: Completion;
  /** One line of help. */
  readonly help: string;
}

/** The positional arguments of a command. */
export interface ArgumentSpec {
  readonly name: string;
  readonly isRequired?: boolean;
  readonly isVariadic?: boolean;
  readonly completion: Completion;
  readonly help: string;
}

/** A command, or a group of them. */
export interface Command {
  readonly name: string;
  /** One line, for the list of commands. */
  readonly summary: string;
  readonly options?: readonly OptionSpec[];
  readonly argument?: ArgumentSpec;
  /** Command lines for the help, each with what it does. */
  readonly examples?: ReadonlyArray<readonly [line: string, meaning: string]>;
  /** A signal is how it ends: then its own status counts, and nothing is told. */
  readonly isEndedBySignal?: boolean;
  /** The commands of a group. */
  readonly commands?: readonly Command[];
  /** Does the work and returns the exit status. Every command that is no group has one. */
  run?(context: CliContext, input: Input, loadTree: LoadTree): Promise<number>;
}

/** Loads every command. */
export type LoadTree = () => Promise<readonly Command[]>;

/** The command that a first argument stands for which names none. */
export const DEFAULT_COMMAND = "run";

/** Options of every command; the parser answers them itself. */
export const COMMON_OPTIONS: readonly OptionSpec[] = [
  { long: "help", short: "h", help: "show this help" },
  { long: "version", short: "V", help: "show the version" },
];

/** What the user gave to one command. */
export class Input {
  /** Positional arguments in order. */
  readonly positionals: readonly string[];
  readonly #given: ReadonlyMap<string, readonly string[]>;
  readonly #known: ReadonlySet<string>;

  /** `given` has an entry for each option on the command line: its values, none for a flag. */
  constructor(command: Command, positionals: readonly string[], given: ReadonlyMap<string, readonly string[]>) {
    this.positionals = positionals;
    this.#given = given;
    this.#known = new Set((command.options ?? []).map((option) => option.long));
  }

  /** Was the option `long` given? */
  has(long: string): boolean {
    assert(this.#known.has(long), `no option --${long}`);
    return this.#given.has(long);
  }

  /** The last value of option `long`. */
  value(long: string): string | undefined {
    return this.values(long).at(-1);
  }

  /** Every value of option `long`, in order. */
  values(long: string): readonly string[] {
    assert(this.#known.has(long), `no option --${long}`);
    return this.#given.get(long) ?? [];
  }
}
