/** Leftovers: temporary directories, and the last test of every file that starts processes or writes files. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { eventually } from "./waiting.ts";

const PREFIX = "sbx-test-";
/** Test files that run before or beside this one in the same process may have children of their own; only later ones count. */
const childrenBefore = new Set(childrenOf(process.pid));
const directories: string[] = [];

/** A directory of this test alone, removed when the test ends. Its path has no symbolic links. */
export function temporaryDirectory(t: TestContext): string {
  const directory = realpathSync(mkdtempSync(path.join(os.tmpdir(), PREFIX)));
  directories.push(directory);
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** True while `pid` runs; a zombie that waits for its parent does not run. */
export function runs(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // Somebody else's runs all the same.
  }
  return stateOf(pid) !== "Z";
}

/** Processes that are not zombies and whose parent is `pid`. */
export function childrenOf(pid: number): number[] {
  return numbers("/proc").filter((candidate) => {
    const fields = statFields(candidate);
    return fields?.[1] === String(pid) && fields[0] !== "Z";
  });
}

/** Processes with `text` among their arguments, this one excepted. */
export function processesWith(text: string): number[] {
  return numbers("/proc").filter((pid) => pid !== process.pid && stateOf(pid) !== "Z" && argumentsOf(pid).includes(text));
}

/** Descriptors this process has open; undefined where the host does not tell. */
export function openDescriptors(): number | undefined {
  const directory = ["/proc/self/fd", "/dev/fd"].find((candidate) => existsSync(candidate));
  return directory === undefined ? undefined : readdirSync(directory).length;
}

/**
 * Declares the last test of a file: no process that its tests started lives, none of their directories exists. What is left is told once
 * and ended: where one process runs many files, the later ones do not fail of it again.
 */
export function noLeftovers(): void {
  test("no child left, no file left", async () => {
    const late = () => childrenOf(process.pid).filter((pid) => !childrenBefore.has(pid));
    const isQuiet = await eventually("every child has ended", () => late().length === 0).then(() => true, () => false);
    const children = isQuiet ? [] : late();
    const left = directories.splice(0).filter((directory) => existsSync(directory));
    const named = children.map((pid) => `${pid} ${argumentsOf(pid).replaceAll("\0", " ")}`);
    for (const pid of children.filter(runs)) {
      childrenBefore.add(pid);
      process.kill(pid, "SIGKILL");
    }
    assert.deepEqual([...named, ...left.flatMap((directory) => [directory, ...readdirSync(directory)])], []);
  });
}

function argumentsOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "latin1");
  } catch {
    return ""; // Ended while we looked.
  }
}

function stateOf(pid: number): string | undefined {
  return statFields(pid)?.[0];
}

/** Fields of `/proc/PID/stat` from the state on; undefined when there is no such process. */
function statFields(pid: number): string[] | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    return undefined;
  }
}

function numbers(directory: string): number[] {
  return existsSync(directory) ? readdirSync(directory).filter((name) => /^\d+$/.test(name)).map(Number) : [];
}
