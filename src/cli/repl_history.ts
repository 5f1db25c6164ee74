/** History: what was entered, of this session and of earlier ones, in one private file for each language. */
import { type FileHandle, open } from "node:fs/promises";
import { constants } from "node:fs";
import path from "node:path";
import { Buffer } from "node:buffer";
import { FileLock, makePrivateDirectory, writeFileAtomic } from "../host/files.ts";

const ENTRIES_MAX = 2_000;
/** The file is cut back to the newest entries when it is longer. */
const FILE_MAX_BYTES = 1_048_576;
/** A longer entry is remembered by this session alone. */
const ENTRY_MAX_BYTES = 65_536;
/** A session that was stopped with the lock in its hand must not stop the others. */
const LOCK_TIMEOUT_MS = 1_000;

/** Entries, oldest first. A line of the file is one entry as a JSON string, so sessions that write at once do not mix their lines. */
export class History {
  readonly #file: string | undefined;
  readonly #entries: string[];
  #writing: Promise<void> = Promise.resolve();

  /** `file` takes what is added; without one nothing is kept. For tests; else `open`. */
  constructor(entries: readonly string[] = [], file?: string) {
    this.#entries = entries.slice(-ENTRIES_MAX);
    this.#file = file;
  }

  /** The history in `file`, whose directory is made. What cannot be read is empty, what cannot be kept lasts as long as the session. */
  static async open(file: string): Promise<History> {
    // A read-only home or a full disk is no reason to refuse a session, nor to forget what can be read.
    await makePrivateDirectory(path.dirname(file)).catch(() => {});
    const { entries, isLong } = await readEntries(file).catch(() => ({ entries: [], isLong: false }));
    // What cannot be shortened can still be read.
    if (isLong) await shorten(file).catch(() => {});
    return new History(entries, file);
  }

  /** What is kept, oldest first. */
  get entries(): readonly string[] {
    return this.#entries;
  }

  /** Adds `entry`, unless it begins with a space, is blank or repeats the last one. */
  add(entry: string): void {
    const text = entry.trimEnd();
    if (text === "" || /^[ \t]/.test(entry) || text === this.#entries.at(-1)) return;
    this.#entries.push(text);
    if (this.#entries.length > ENTRIES_MAX) this.#entries.shift();
    const line = `${JSON.stringify(text)}\n`;
    const file = this.#file;
    if (file === undefined || Buffer.byteLength(line) > ENTRY_MAX_BYTES) return;
    this.#writing = this.#writing.then(() => append(file, line)).catch(() => {}); // A full disk costs the entry alone.
  }

  /** Resolves when everything added is in the file. */
  flush(): Promise<void> {
    return this.#writing;
  }
}

/** Under a lock, because another session may just be rewriting the file. */
async function append(file: string, line: string): Promise<void> {
  await using _lock = await lock(file);
  await using handle = await openRegular(file, constants.O_RDWR | constants.O_APPEND | constants.O_CREAT);
  const { size } = await handle.stat();
  const last = Buffer.alloc(1);
  if (size > 0) await handle.read(last, 0, 1, size - 1);
  // What a full disk or a crash cut off must not swallow this one.
  await handle.appendFile(size > 0 && last.toString() !== "\n" ? `\n${line}` : line);
}

/** Rewrites `file` with its newest half. */
async function shorten(file: string): Promise<void> {
  await using _lock = await lock(file);
  const { entries } = await readEntries(file);
  const lines: string[] = [];
  let bytes = 0;
  for (const entry of entries.slice(-ENTRIES_MAX).reverse()) {
    const line = `${JSON.stringify(entry)}\n`;
    bytes += Buffer.byteLength(line);
    if (bytes > FILE_MAX_BYTES / 2) break;
    lines.push(line);
  }
  await writeFileAtomic(file, lines.reverse().join(""), 0o600);
}

function lock(file: string): Promise<FileLock> {
  return FileLock.acquire(`${file}.lock`, { signal: AbortSignal.timeout(LOCK_TIMEOUT_MS) });
}

/** The entries among the newest bytes of `file`, and whether it has more bytes than it may keep. */
async function readEntries(file: string): Promise<{ entries: string[]; isLong: boolean }> {
  await using handle = await openRegular(file, constants.O_RDONLY);
  const { size } = await handle.stat();
  const newest = Buffer.alloc(Math.min(size, FILE_MAX_BYTES));
  const { bytesRead } = await handle.read(newest, 0, newest.length, size - newest.length);
  const entries = newest.subarray(0, bytesRead).toString("utf8").split("\n").flatMap((line) => {
    try {
      const entry: unknown = JSON.parse(line);
      return typeof entry === "string" ? [entry] : [];
    } catch {
      return []; // The empty end, a line that somebody edited, or half of one.
    }
  });
  return { entries, isLong: size > FILE_MAX_BYTES };
}

/** A FIFO or a device in its place would have us wait, or read for ever. */
async function openRegular(file: string, flags: number): Promise<FileHandle> {
  const handle = await open(file, flags | constants.O_NONBLOCK, 0o600);
  if ((await handle.stat()).isFile()) return handle;
  await handle.close();
  throw new Error(`not a file: ${file}`);
}
