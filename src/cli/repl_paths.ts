/** REPL paths: files as words of a command. */
import { readdir } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { quotedWord } from "./repl_words.ts";

/** An entry of a directory. */
export interface Entry {
  readonly name: string;
  readonly isDirectory: boolean;
}

/** Paths that begin with `typed`, as words; hidden ones only when asked for. */
export function pathsOf(typed: string, entries: readonly Entry[]): string[] {
  const cut = typed.lastIndexOf("/") + 1, begun = typed.slice(cut);
  return entries
    .filter(({ name }) => name.startsWith(begun) && isPlain(name) && (begun !== "" || !name.startsWith(".")))
    .map(({ name, isDirectory }) => `${quotedWord(typed.slice(0, cut) + name)}${isDirectory ? "/" : ""}`)
    .sort();
}

/** Paths of this host that begin with `typed`. */
export async function localPaths(typed: string): Promise<string[]> {
  const directory = expandHome(typed.slice(0, typed.lastIndexOf("/") + 1));
  try {
    const entries = await readdir(path.resolve(directory || "."), { withFileTypes: true });
    return pathsOf(typed, entries.map((entry) => ({ name: entry.name, isDirectory: entry.isDirectory() })));
  } catch {
    return []; // No such directory, or not for us to read.
  }
}

/** `~` and `~/…` as a shell reads them. */
export function expandHome(local: string): string {
  return local === "~" || local.startsWith("~/") ? os.homedir() + local.slice(1) : local;
}

/** Nothing in it that a terminal would act on. */
export function isPlain(text: string): boolean {
  // deno-lint-ignore no-control-regex
  return !/[\x00-\x1f\x7f-\x9f]/.test(text);
}
