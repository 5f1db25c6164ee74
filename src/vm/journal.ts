/** Journal: says before the first spawn which QEMUs will be ours, so that a later process can end what a dead one left. */
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { messageOf } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import { isSameProcess, ownIdentity, type ProcessIdentity, sweepTemporaries, writeFileAtomic } from "../host/files.ts";
import { run } from "../host/process.ts";

const TOKEN = /^[0-9a-f]{16}$/;

/**
 * One owner's entry: `<root>/<token>` with the owner's identity. Every QEMU carries the token in its `-name`, so the process list itself
 * is the record of what was started, and nothing is written per VM.
 */
export class Journal implements AsyncDisposable {
  readonly token: string;
  /** For files that live no longer than this owner: made by whoever needs it, and removed with the entry. */
  readonly directory: string;
  readonly #file: string;

  private constructor(file: string, token: string) {
    this.#file = file;
    this.token = token;
    this.directory = directoryOf(file);
  }

  /** Writes this process's entry. A directory that cannot be written is logged: the kernel still ends QEMU with its parent. */
  static async open(root: string, log: Logger): Promise<Journal> {
    const token = randomBytes(8).toString("hex");
    const file = path.join(root, token);
    try {
      await fs.mkdir(root, { recursive: true, mode: 0o700 });
      await writeFileAtomic(file, JSON.stringify(ownIdentity()), 0o600);
    } catch (error) {
      log.warning("the journal cannot be written; leftovers of a crash would not be found later", { reason: messageOf(error) });
    }
    return new Journal(file, token);
  }

  /** Removes the directory and the entry; call it when every QEMU is dead. */
  async [Symbol.asyncDispose](): Promise<void> {
    await fs.rm(this.directory, { recursive: true, force: true }).catch(() => {}); // As below.
    await fs.rm(this.#file, { force: true }).catch(() => {}); // A directory that became unwritable: the reaper finds nothing to end.
  }
}

/** Ends the QEMUs of owners that died, and removes their entries. Returns how many processes it ended. */
export async function reap(root: string, log: Logger): Promise<number> {
  await sweepTemporaries(root); // Of owners that died while they wrote their entry.
  const dead: string[] = [];
  for (const token of await fs.readdir(root).catch(() => [])) { // No directory: nobody ever wrote an entry.
    if (!TOKEN.test(token)) continue;
    const owner = await readOwner(path.join(root, token));
    if (owner && !isSameProcess(owner)) dead.push(token);
  }
  if (dead.length === 0) return 0;
  const processes = await commandLines();
  let endedCount = 0;
  for (const token of dead) {
    const orphans = processes.filter(({ pid, args }) => pid !== process.pid && args.includes(`vm-${token}-`));
    const ended = orphans.filter(({ pid }) => endProcess(pid, log));
    endedCount += ended.length;
    // What we may not end is left to whoever may: the entry is how it will be found.
    if (ended.length < orphans.length) continue;
    // The directory first: without an entry nobody would look for it.
    await fs.rm(directoryOf(path.join(root, token)), { recursive: true, force: true });
    await fs.rm(path.join(root, token), { force: true });
  }
  return endedCount;
}

function directoryOf(entry: string): string {
  return `${entry}.d`;
}

async function readOwner(file: string): Promise<ProcessIdentity | undefined> {
  try {
    const { pid, startTicks } = JSON.parse(await fs.readFile(file, "utf8"));
    return Number.isInteger(pid) && pid > 1 && Number.isInteger(startTicks) ? { pid, startTicks } : undefined;
  } catch {
    return undefined; // Removed meanwhile by its owner or another reaper.
  }
}

/** True when the process is ended or has ended by itself. */
function endProcess(pid: number, log: Logger): boolean {
  try {
    process.kill(pid, "SIGKILL");
    log.warning("ended a QEMU whose owner died", { pid });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return true; // Gone already is what we wanted.
    log.warning("a QEMU whose owner died cannot be ended", { pid, reason: messageOf(error) });
    return false;
  }
}

/** Every process of this user with its arguments. */
async function commandLines(): Promise<Array<{ pid: number; args: string }>> {
  if (process.platform !== "linux") return listWithPs();
  return readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map((name) => {
    try {
      return { pid: Number(name), args: readFileSync(`/proc/${name}/cmdline`, "latin1") };
    } catch {
      return { pid: Number(name), args: "" }; // Ended while we looked.
    }
  });
}

async function listWithPs(): Promise<Array<{ pid: number; args: string }>> {
  const { stdout } = await run(["ps", "-axo", "pid=,args="]);
  return stdout.split("\n").map((line) => ({ pid: Number.parseInt(line), args: line }));
}
