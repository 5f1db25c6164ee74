/** `sbx session` in a terminal, as users see it. */
import { readFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { cacheDirectory } from "../../src/host/platform.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { commandLine, hasProgram, quoted, Terminal } from "./cli_terminal.ts";

/** Why prompts cannot be tested here; false when they can. */
export const skipTerminal: string | false = reasonToSkip() ?? (hasProgram("tmux") ? false : "tmux is not installed");
/** Baking under emulation on a loaded machine takes its time. */
export const ANSWER_MS = 120_000;

/** After this long a line is typed once more. */
const REPEAT_MS = 2_000;

/** History and figures in `directory`; templates where all tests have theirs. */
export function envOf(directory: string): Record<string, string> {
  return {
    EXEC_SANDBOX_IMAGES_DIR: imagesDirectory(),
    EXEC_SANDBOX_LOG_LEVEL: "error",
    EXEC_SANDBOX_SNAPSHOT_CACHE_DIR: process.env["EXEC_SANDBOX_SNAPSHOT_CACHE_DIR"] ?? path.join(cacheDirectory(), "snapshots"),
    EXEC_SANDBOX_CACHE_DIR: directory,
  };
}

/** A prompt that waits for what is typed. */
export interface Prompt extends AsyncDisposable {
  readonly terminal: Terminal;
  /** The process of sbx. */
  pid(): number;
  /** Types a line and Enter, and waits until the screen matches. */
  line(text: string, shows: RegExp): Promise<string>;
  press(key: string, shows: RegExp): Promise<string>;
  /** The same as `line`, again and again: for what comes about at a time of its own. */
  until(text: string, shows: RegExp): Promise<void>;
  /** Leaves with Ctrl-D. */
  leave(): Promise<void>;
}

/** How it is started. */
export interface PromptOptions {
  readonly args?: readonly string[];
  readonly directory: string;
  /** For `env`, before everything else: `-u NAME`, `NAME=VALUE`. */
  readonly env?: readonly string[];
  readonly size?: { readonly columns: number; readonly rows: number };
  readonly waitFor?: RegExp;
}

/** Starts the program in a terminal; what the terminal's line discipline is afterwards is shown too. */
export async function prompt({ args = [], directory, env = [], size, waitFor = /(py|js|sh)>$/ }: PromptOptions): Promise<Prompt> {
  const pidFile = path.join(directory, "pid");
  const pairs = Object.entries(envOf(directory)).map(([name, value]) => quoted(`${name}=${value}`));
  const command = `env ${[...env, ...pairs].join(" ")} sh -c 'echo $$ > "$0"; exec "$@"' ${quoted(pidFile)} ${
    commandLine(["session", ...args])
  }`;
  const terminal = await Terminal.open(`${command}; s=$?; stty -a | grep -o -- "-*icanon"; (exit $s)`, size);
  const shows = (pattern: RegExp) => terminal.shows(pattern, ANSWER_MS);
  await shows(waitFor);
  return {
    terminal,
    pid: () => Number(readFileSync(pidFile, "utf8")),
    line: async (text, pattern) => {
      await terminal.type(text);
      await terminal.press("Enter");
      return await shows(pattern);
    },
    until: async (text, pattern) => {
      const giveUpAt = performance.now() + ANSWER_MS;
      do {
        await terminal.type(text);
        await terminal.press("Enter");
      } while (!(await terminal.shows(pattern, REPEAT_MS).then(() => true, () => performance.now() > giveUpAt)));
      await shows(pattern);
    },
    press: async (key, pattern) => {
      await terminal.press(key);
      return await shows(pattern);
    },
    leave: async () => {
      await terminal.press("C-d");
      await shows(/^icanon\n\[status 0\]/m);
    },
    [Symbol.asyncDispose]: () => terminal[Symbol.asyncDispose](),
  };
}
