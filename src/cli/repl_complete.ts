/** REPL completion: what may stand at the cursor, of commands and files by ourselves, of names by the guest. */
import type { Language } from "../run/request.ts";
import type { CliSession } from "./context.ts";
import type { WordKind } from "./repl_command.ts";
import { findCommand, REPL_COMMANDS } from "./repl_commands.ts";
import type { EditorAssist, Verdict } from "./repl_editor.ts";
import { highlight, isCommand } from "./repl_highlight.ts";
import type { Completion } from "./repl_menu.ts";
import { NETWORK_WORDS } from "./repl_network.ts";
import { isPlain, localPaths, pathsOf } from "./repl_paths.ts";
import { wordsOf } from "./repl_words.ts";

const CANDIDATES_MAX = 1_000;
const LANGUAGES = ["python", "javascript", "raw"];

/** What the help of a REPL needs. */
export interface AssistSource {
  readonly language: Language;
  /** Numbers and names of the checkpoints that there are. */
  checkpoints(): Promise<readonly string[]>;
  /** Asks the session, and gives up when the user presses Ctrl-C: then, and when the session fails, undefined. */
  ask<T>(question: (session: CliSession, signal: AbortSignal) => Promise<T>): Promise<{ readonly answer: T } | "cancelled" | undefined>;
}

/** Help for the editor at the prompt. */
export function replAssist(source: AssistSource): EditorAssist {
  return {
    async check(text): Promise<Verdict> {
      if (isCommand(text)) return { state: "complete" };
      const found = await source.ask((session, signal) => session.isComplete(text, { signal }));
      // Ctrl-C itself comes to the editor next, and clears the block.
      if (found === "cancelled") return { state: "incomplete", indent: "" };
      if (found === undefined) return { state: "complete" }; // Running it will tell what is wrong.
      const { state, indent } = found.answer;
      return state === "incomplete" ? { state, indent: isPlain(indent) ? indent : "" } : { state };
    },
    async complete(text, cursor): Promise<Completion> {
      const before = text.slice(0, cursor);
      if (isCommand(before) || (/^\s*:$/.test(before) && source.language !== "raw")) return await completeCommand(before, source);
      const found = await source.ask((session, signal) => session.complete(text, cursor, { signal }));
      if (found === "cancelled" || found === undefined) return { start: cursor, candidates: [] };
      return { start: found.answer.start, candidates: found.answer.candidates.filter(isPlain) };
    },
    highlight: (text) => highlight(text, source.language),
  };
}

async function completeCommand(before: string, source: AssistSource): Promise<Completion> {
  const words = wordsOf(before), last = words.at(-1) ?? { text: "", start: before.length };
  if (words.length === 1) {
    const names = REPL_COMMANDS.map((command) => `:${command.name}`);
    return { start: last.start, candidates: only(names.filter((name) => name.startsWith(last.text.toLowerCase()))) };
  }
  const kind = kindOf(words[0]?.text.slice(1) ?? "", words.length - 2);
  const candidates = kind === undefined ? [] : await candidatesOf(kind, last.text, source);
  return { start: last.start, candidates: only(candidates.slice(0, CANDIDATES_MAX)) };
}

/** The only candidate is followed by a blank, unless it is a directory. */
function only(candidates: readonly string[]): readonly string[] {
  const [single] = candidates;
  return single === undefined || candidates.length > 1 || single.endsWith("/") ? candidates : [`${single} `];
}

function kindOf(name: string, at: number): WordKind | undefined {
  try {
    const { words, isOpenEnded } = findCommand(name);
    return words[isOpenEnded ? Math.min(at, words.length - 1) : at];
  } catch {
    return undefined; // No command of ours has such words.
  }
}

async function candidatesOf(kind: WordKind, typed: string, source: AssistSource): Promise<string[]> {
  const matching = (names: readonly string[]) => names.filter((name) => name.startsWith(typed));
  switch (kind) {
    case "language":
      return matching(LANGUAGES);
    case "command":
      return matching(REPL_COMMANDS.map((command) => command.name));
    case "checkpoint":
      return matching(await source.checkpoints());
    case "network":
      return matching(NETWORK_WORDS);
    case "number":
    case "domain":
      return [];
    case "local":
      return await localPaths(typed);
    default: {
      const paths = await guestPaths(typed, source);
      return kind === "guest" ? paths : paths.filter((name) => name.endsWith("/"));
    }
  }
}

async function guestPaths(typed: string, source: AssistSource): Promise<string[]> {
  const directory = typed.slice(0, typed.lastIndexOf("/") + 1);
  const found = await source.ask((session, signal) => session.listFiles(directory.replace(/\/+$/, "") || ".", { signal }));
  if (found === "cancelled" || found === undefined) return [];
  return pathsOf(typed, found.answer.map((entry) => ({ name: entry.name, isDirectory: entry.isDir })));
}
