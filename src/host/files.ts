/** Files: hashes, atomic publishing, private directories and locks between processes. */
import { createHash, randomUUID } from "node:crypto";
import { createReadStream, readFileSync } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { delay } from "../base/async.ts";

const LOCK_POLL_MS = 50;
const TEMPORARY_PREFIX = ".tmp-";
/** How names of locks begin that `sweepLocks` may find. */
export const LOCK_PREFIX = ".lock-";

/** SHA-256 of a file in lower-case hex; reads it in pieces, whatever its size. */
export async function sha256File(file: string, signal?: AbortSignal): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20, ...(signal ? { signal } : {}) })) hash.update(chunk);
  return hash.digest("hex");
}

/** True when something exists at `file`. */
export async function exists(file: string): Promise<boolean> {
  return await fs.stat(file).then(() => true, () => false);
}

/** Creates `directory` (and its parents) for this user alone. */
export async function makePrivateDirectory(directory: string): Promise<string> {
  await fs.mkdir(directory, { recursive: true, mode: 0o700 });
  return directory;
}

/** Writes `file` whole or not at all: other processes see the old content or the new, never a part. */
export async function writeFileAtomic(file: string, data: string | Uint8Array, mode = 0o644): Promise<void> {
  const temporary = path.join(path.dirname(file), temporaryName());
  try {
    const handle = await fs.open(temporary, "wx", mode);
    try {
      await handle.writeFile(data);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await fs.rename(temporary, file);
  } catch (error) {
    await fs.rm(temporary, { force: true });
    throw error;
  }
}

/** A directory beside its later place, removed again when disposed unless it was published. */
export class StagedDirectory implements AsyncDisposable {
  readonly path: string;

  private constructor(directory: string) {
    this.path = directory;
  }

  /** Creates it in `parent` (which is created too), so that publishing is one `rename` on one file system. */
  static async create(parent: string): Promise<StagedDirectory> {
    await makePrivateDirectory(parent);
    const directory = path.join(parent, temporaryName());
    await fs.mkdir(directory, { mode: 0o700 });
    return new StagedDirectory(directory);
  }

  /** Moves it to `target`. When another process was first, its directory stays and this one is dropped. */
  async publish(target: string): Promise<void> {
    try {
      await fs.rename(this.path, target);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code !== "ENOTEMPTY" && code !== "EEXIST") throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await fs.rm(this.path, { recursive: true, force: true });
  }
}

/** Removes what dead processes left of `StagedDirectory` and `writeFileAtomic` in `parent`. */
export async function sweepTemporaries(parent: string): Promise<void> {
  const names = await fs.readdir(parent).catch(() => []); // No such directory: nothing to sweep.
  for (const name of names.filter(isLeftBehind)) await fs.rm(path.join(parent, name), { recursive: true, force: true });
}

/** True for the name of something in the making whose maker is dead. */
export function isLeftBehind(name: string): boolean {
  const owner = /^\.tmp-(\d+)-(\d+)-/.exec(name);
  return owner !== null && !isSameProcess({ pid: Number(owner[1]), startTicks: Number(owner[2]) });
}

/** Removes the lock files in `parent` whose holders are dead, so that they do not stay where nobody ever wants that lock again. */
export async function sweepLocks(parent: string): Promise<void> {
  const names = await fs.readdir(parent).catch(() => []); // No such directory: nothing to sweep.
  for (const name of names.filter((candidate) => candidate.startsWith(LOCK_PREFIX))) await breakIfDead(path.join(parent, name));
}

/** Identifies a process beyond the reuse of its number. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Start time in clock ticks since boot (field 22 of `/proc/PID/stat`); 0 where there is no `/proc`. */
  readonly startTicks: number;
}

/** The identity of process `pid`, or undefined when no such process runs. */
export function processIdentity(pid: number): ProcessIdentity | undefined {
  try {
    // The name in parentheses may itself contain spaces and parentheses: fields count from the last one.
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    if (fields[0] === "Z" || fields[0] === "X") return undefined;
    return { pid, startTicks: Number(fields[19]) };
  } catch {
    if (process.platform === "linux") return undefined; // /proc has no entry: no such process.
  }
  try {
    process.kill(pid, 0);
    return { pid, startTicks: 0 };
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM" ? { pid, startTicks: 0 } : undefined;
  }
}

/** True while that very process runs. */
export function isSameProcess(identity: ProcessIdentity): boolean {
  const current = processIdentity(identity.pid);
  return current !== undefined && current.startTicks === identity.startTicks;
}

/** This process's identity. */
export function ownIdentity(): ProcessIdentity {
  return processIdentity(process.pid) ?? { pid: process.pid, startTicks: 0 };
}

/** An exclusive lock between processes; a holder that died holds nothing. */
export class FileLock implements AsyncDisposable {
  readonly #file: string;
  readonly #token: string;

  private constructor(file: string, token: string) {
    this.#file = file;
    this.#token = token;
  }

  /** Waits for the lock; `onWait` is called once when somebody else holds it. Rejects with the signal's reason. */
  static async acquire(file: string, options: { signal?: AbortSignal; onWait?: (holderPid: number) => void } = {}): Promise<FileLock> {
    await makePrivateDirectory(path.dirname(file));
    let hasWaited = false;
    for (;;) {
      options.signal?.throwIfAborted();
      const lock = await FileLock.tryAcquire(file);
      if (lock) return lock;
      const holder = hasWaited ? undefined : (await readLock(file))?.holder;
      if (holder && isSameProcess(holder)) {
        hasWaited = true;
        options.onWait?.(holder.pid);
      }
      await delay(LOCK_POLL_MS, options.signal);
    }
  }

  /** The lock, or undefined when a living process holds it. */
  static async tryAcquire(file: string): Promise<FileLock | undefined> {
    const token = randomUUID();
    const temporary = path.join(path.dirname(file), temporaryName());
    await fs.writeFile(temporary, JSON.stringify({ ...ownIdentity(), token }), { flag: "wx", mode: 0o600 });
    try {
      // link() fails when the name is taken, and the content is whole from the first moment: no reader ever sees half a holder.
      await fs.link(temporary, file);
      return new FileLock(file, token);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    } finally {
      await fs.rm(temporary, { force: true });
    }
    await breakIfDead(file);
    return undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if ((await readLock(this.#file))?.holder?.token === this.#token) await fs.rm(this.#file, { force: true });
  }
}

/** The living process that holds the lock; undefined when none does. */
export async function lockHolder(file: string): Promise<ProcessIdentity | undefined> {
  const holder = (await readLock(file))?.holder;
  return holder && isSameProcess(holder) ? holder : undefined;
}

interface Holder extends ProcessIdentity {
  readonly token: string;
}

interface LockFile {
  readonly text: string;
  /** Undefined when the file is none of ours, or was damaged. */
  readonly holder: Holder | undefined;
}

/** What is at `file`, or undefined when nothing is. Throws when that cannot be known: such a lock is nobody's to break. */
async function readLock(file: string): Promise<LockFile | undefined> {
  try {
    const text = await fs.readFile(file, "utf8");
    return { text, holder: parseHolder(text) };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

function parseHolder(text: string): Holder | undefined {
  try {
    const { pid, startTicks, token } = JSON.parse(text);
    const isHolder = Number.isInteger(pid) && pid > 0 && Number.isInteger(startTicks) && typeof token === "string";
    return isHolder ? { pid, startTicks, token } : undefined;
  } catch {
    return undefined; // Not JSON, or null: no holder of ours wrote it.
  }
}

/**
 * Takes a dead holder's lock file away. The right to do so is a lock of its own, named after the very content: whoever has it finds that
 * content still there or already gone, and never removes what a living process has put in its place.
 */
async function breakIfDead(file: string): Promise<void> {
  const found = await readLock(file);
  if (!found || (found.holder && isSameProcess(found.holder))) return;
  const digest = createHash("sha256").update(found.text).digest("hex").slice(0, 16);
  await using right = await FileLock.tryAcquire(`${file}.${digest}`);
  if (right && (await readLock(file))?.text === found.text) await fs.rm(file, { force: true });
}

/** Removes a directory so that nobody finds a part of it: it first loses its name. */
export async function removeDirectoryAtOnce(directory: string): Promise<void> {
  const gone = path.join(path.dirname(directory), temporaryName());
  try {
    await fs.rename(directory, gone);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return; // Somebody else was first.
    throw error;
  }
  await fs.rm(gone, { recursive: true, force: true });
}

/** A name for something in the making: it names its owner, so that others can tell what a dead process left. */
export function temporaryName(): string {
  const { pid, startTicks } = ownIdentity();
  return `${TEMPORARY_PREFIX}${pid}-${startTicks}-${randomUUID()}`;
}
