/** Blocks: a program that comes at once, cut into what somebody would have entered block by block. */
import type { Language } from "../run/request.ts";
import { isCommand } from "./repl_highlight.ts";

/** A part of the input. */
export interface Block {
  readonly text: string;
  /** Line of the input in which it begins, from 1. */
  readonly line: number;
  readonly isCommand: boolean;
}

/** Says whether a block may run as it is, or goes on. */
export type IsComplete = (text: string) => Promise<boolean>;

/** Lines that go on with a statement which could have ended before. */
const CONTINUES: Readonly<Record<Exclude<Language, "raw">, RegExp>> = {
  python: /^(?:\s+\S|(?:else|elif|except|finally)\b|#|[)\]}])/,
  javascript: /^\s*(?:else|catch|finally|while|\/\/|\/\*|[.?:,)\]}&|*/+\-=<>({[`])/,
};

/** `exit`, `quit()`, `exit 3`, `sys.exit(3)`, `process.exit(3)`. */
const LEAVE =
  /^\s*(?:(?:(?:sys|process)\.)?exit\s*\(\s*(\d{1,3})?\s*\)|quit\s*\(\s*(\d{1,3})?\s*\)|(?:exit|quit)(?:\s+(\d{1,3}))?)\s*;?\s*$/;

/** Does the block leave the session, and with which status where it names one? */
export function leaving(text: string, language: Language): { readonly exitCode: number | undefined } | undefined {
  const left = LEAVE.exec(text);
  const called = left?.[1] ?? left?.[2];
  if (left === null || (language === "raw" && called !== undefined)) return undefined; // No bash.
  const status = called ?? left[3];
  return { exitCode: status === undefined ? undefined : Number(status) & 0xff };
}

/** Cuts `input`. A `:command` is a block where no other has begun; a block ends where it is complete and the next line begins another. */
export async function* blocksOf(input: string, language: () => Language, isComplete: IsComplete): AsyncGenerator<Block, void, void> {
  let lines: string[] = [], first = 0;
  const all = input.replace(/^\uFEFF/, "").split(/\r?\n/);
  const block = (): Block => ({ text: lines.join("\n"), line: first + 1, isCommand: false });
  for (const [at, line] of all.entries()) {
    const isBlank = line.trim() === "", isOwn = isCommand(line), ours = language();
    // bash reads a program line by line by itself, and knows better where it ends.
    const goesOn = isBlank || (!isOwn && (ours === "raw" || CONTINUES[ours].test(line)));
    if (lines.length > 0 && !goesOn && (ours === "raw" || await isComplete(`${lines.join("\n")}\n\n`))) {
      yield block();
      lines = [];
    }
    if (isOwn && lines.length === 0) {
      yield { text: line.trim(), line: at + 1, isCommand: true };
    } else if (lines.length > 0 || !isBlank) {
      if (lines.length === 0) first = at;
      lines.push(line);
    }
  }
  if (lines.some((line) => line.trim() !== "")) yield block();
}
