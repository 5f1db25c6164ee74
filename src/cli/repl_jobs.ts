/** Jobs: whether a shell is there that would continue sbx after Ctrl-Z. */
import { readFileSync } from "node:fs";
import process from "node:process";

/** How far up a shell is looked for. */
const ANCESTORS_MAX = 64;

/** What `/proc/PID/stat` says of one process. */
export interface ProcessPlace {
  readonly parent: number;
  readonly group: number;
  readonly session: number;
}

/**
 * Is the process group of `pid` orphaned: has nobody of it a parent in another group of the same session? The kernel stops no such group for
 * Ctrl-Z, since nobody could continue it (POSIX, "Orphaned Process Group"); whoever handles SIGTSTP has to see to that. False where
 * `placeOf` knows nothing.
 */
export function isGroupOrphaned(pid: number = process.pid, placeOf: (pid: number) => ProcessPlace | undefined = readPlace): boolean {
  const own = placeOf(pid);
  let at = own;
  for (let count = 0; own !== undefined && at !== undefined && count < ANCESTORS_MAX; count += 1) {
    const parent = placeOf(at.parent);
    if (parent === undefined || parent.session !== own.session) return true;
    if (parent.group !== own.group) return false;
    at = parent;
  }
  return false;
}

function readPlace(pid: number): ProcessPlace | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The name before them is in parentheses, and may hold anything.
    const [, parent, group, session] = stat.slice(stat.lastIndexOf(")") + 2).split(" ").map(Number);
    if (parent === undefined || group === undefined || session === undefined) return undefined;
    return { parent, group, session };
  } catch {
    return undefined; // No Linux, or it has ended.
  }
}
