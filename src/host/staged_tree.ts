/** Staged tree: a download in the making, beside its place on this host; it appears there whole, or nothing changes. */
import type { Stats } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import { temporaryName } from "./files.ts";
import { asFileError, localError } from "./local_file.ts";

/** Bytes gather to so many before they are written: each write is a way to another thread and back. */
const BUFFER_BYTES = 262_144;
const FILE_MODE = 0o666;
const EXECUTABLE_MODE = 0o777;

/** What is downloaded. */
export type TreeKind = "file" | "directory";

/**
 * A file or a directory that is to be at `target`. It is made under a temporary name on the same file system. No symbolic link is followed or
 * replaced at `target` or below it; links in the path to it are the user's own. Disposing it unpublished removes it.
 */
export class StagedTree implements AsyncDisposable {
  readonly #target: string;
  readonly #kind: TreeKind;
  readonly #stage: string;
  /** A directory is there already: what was staged is moved into it. */
  readonly #isMerge: boolean;
  readonly #directories: string[] = [];
  readonly #files: string[] = [];
  readonly #sinks = new Set<FileSink>();
  #isPublished = false;

  private constructor(target: string, kind: TreeKind, stage: string, isMerge: boolean) {
    this.#target = target;
    this.#kind = kind;
    this.#stage = stage;
    this.#isMerge = isMerge;
  }

  /** Begins one; directories that the path to `target` lacks are made. Throws `SandboxFileError`. */
  static async create(target: string, kind: TreeKind): Promise<StagedTree> {
    try {
      await makeParents(target);
      const found = await lookAt(target);
      checkPlace(target, kind, found);
      const isMerge = kind === "directory" && found !== undefined;
      const stage = path.join(isMerge ? target : path.dirname(target), temporaryName());
      if (kind === "directory") await fs.mkdir(stage);
      return new StagedTree(target, kind, stage, isMerge);
    } catch (cause) {
      throw asFileError("write", target, cause);
    }
  }

  /** Makes a directory whose parent has been made. `relative` has been checked: it has slashes, and no "." or ".." between them. */
  async makeDirectory(relative: string): Promise<void> {
    try {
      await fs.mkdir(path.join(this.#stage, relative));
      this.#directories.push(relative);
    } catch (cause) {
      throw asFileError("write", path.join(this.#target, relative), cause);
    }
  }

  /** Takes the bytes of a file, which is there when the stream is closed. `relative` is "" for a tree that is one file. */
  writeFile(relative: string, options: { readonly isExecutable: boolean }): WritableStream<Uint8Array> {
    const shown = path.join(this.#target, relative);
    this.#files.push(relative);
    const mode = options.isExecutable ? EXECUTABLE_MODE : FILE_MODE;
    const sink = new FileSink({ file: path.join(this.#stage, relative), shown, mode }, () => this.#sinks.delete(sink));
    this.#sinks.add(sink);
    return new WritableStream(sink);
  }

  /** Puts it into its place. What stands in the way is found before anything is moved. Throws `SandboxFileError`. */
  async publish(): Promise<void> {
    try {
      const found = await lookAt(this.#target);
      checkPlace(this.#target, this.#kind, found);
      if (this.#isMerge) await this.#merge();
      else await fs.rename(this.#stage, this.#target);
      this.#isPublished = !this.#isMerge;
    } catch (cause) {
      throw asFileError("write", this.#target, cause);
    }
  }

  async #merge(): Promise<void> {
    const missing: string[] = [];
    for (const directory of this.#directories) {
      const place = path.join(this.#target, directory), found = await lookAt(place);
      checkPlace(place, "directory", found);
      if (!found) missing.push(place);
    }
    for (const file of this.#files) {
      const place = path.join(this.#target, file);
      checkPlace(place, "file", await lookAt(place));
    }
    for (const place of missing) await fs.mkdir(place);
    for (const file of this.#files) await fs.rename(path.join(this.#stage, file), path.join(this.#target, file));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // What is still being written would come to lie in a directory that is being removed.
    await Promise.all([...this.#sinks].map((sink) => sink.end()));
    if (!this.#isPublished) await fs.rm(this.#stage, { recursive: true, force: true });
  }
}

/**
 * Finds before a run what would keep a download from its place: a link there, a parent that is no directory or may not be written to. What is
 * there may be of either kind still. Throws `SandboxFileError`.
 */
export async function checkTarget(target: string): Promise<void> {
  try {
    const found = await lookAt(target);
    if (found) checkPlace(target, found.isDirectory() ? "directory" : "file", found);
    let parent = path.dirname(target);
    while (!await lookAt(parent)) parent = path.dirname(parent);
    if (!(await fs.stat(parent)).isDirectory()) throw localError("write", target, ["not-directory", `${parent} is no directory`]);
    await fs.access(found?.isDirectory() ? target : parent, fs.constants.W_OK);
  } catch (cause) {
    throw asFileError("write", target, cause);
  }
}

async function makeParents(target: string): Promise<void> {
  const parent = path.dirname(target);
  try {
    await fs.mkdir(parent, { recursive: true });
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== "EEXIST") throw cause;
    throw localError("write", target, ["not-directory", `${parent} is no directory`], cause);
  }
}

/** What is at a path, links not followed; undefined when nothing is. */
async function lookAt(file: string): Promise<Stats | undefined> {
  try {
    return await fs.lstat(file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

function checkPlace(place: string, kind: TreeKind, found: Stats | undefined): void {
  if (!found) return;
  if (found.isSymbolicLink()) throw localError("write", place, ["permission", "a symbolic link is there, and links are not followed"]);
  if (kind === "directory") {
    if (!found.isDirectory()) throw localError("write", place, ["not-directory", "something that is no directory is there"]);
  } else if (found.isDirectory()) {
    throw localError("write", place, ["is-directory", "a directory is there"]);
  } else if (!found.isFile()) {
    throw localError("write", place, ["not-a-file", "something that is no regular file is there"]);
  }
}

/** Writes one new file. */
class FileSink implements UnderlyingSink<Uint8Array> {
  readonly #file: string;
  /** For messages: where the file is going to be. */
  readonly #shown: string;
  readonly #mode: number;
  readonly #onEnd: () => void;
  /** As large as what came at once, then `BUFFER_BYTES`: most files are small. */
  #buffer = new Uint8Array(0);
  #bufferedBytes = 0;
  #handle: fs.FileHandle | undefined;
  #last: Promise<void> = Promise.resolve();
  #isEnded = false;

  constructor({ file, shown, mode }: { readonly file: string; readonly shown: string; readonly mode: number }, onEnd: () => void) {
    this.#file = file;
    this.#shown = shown;
    this.#mode = mode;
    this.#onEnd = onEnd;
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (this.#isEnded) throw new Error("Cannot write: the download is over"); // Whoever still writes has been aborted.
    for (let rest = bytes; rest.length > 0;) {
      if (this.#bufferedBytes === this.#buffer.length) await this.#makeRoom(rest.length);
      const part = rest.subarray(0, this.#buffer.length - this.#bufferedBytes);
      this.#buffer.set(part, this.#bufferedBytes);
      this.#bufferedBytes += part.length;
      rest = rest.subarray(part.length);
    }
  }

  async close(): Promise<void> {
    await this.#flush();
    await this.end();
  }

  async abort(): Promise<void> {
    await this.end();
  }

  /** Closes the file when nothing is being written any more. */
  async end(): Promise<void> {
    this.#isEnded = true;
    await Promise.allSettled([this.#last]);
    const handle = this.#handle;
    this.#handle = undefined;
    await handle?.close().catch((cause) => {
      throw asFileError("write", this.#shown, cause);
    });
    this.#onEnd();
  }

  async #flush(): Promise<void> {
    this.#last = this.#writeBuffer();
    try {
      await this.#last;
    } catch (cause) {
      throw asFileError("write", this.#shown, cause);
    }
  }

  async #makeRoom(wantedBytes: number): Promise<void> {
    if (this.#buffer.length === BUFFER_BYTES) return await this.#flush();
    const isFirst = this.#buffer.length === 0;
    const larger = new Uint8Array(isFirst ? Math.min(wantedBytes, BUFFER_BYTES) : BUFFER_BYTES);
    larger.set(this.#buffer);
    this.#buffer = larger;
  }

  async #writeBuffer(): Promise<void> {
    // "wx": on a file system that knows no upper and lower case two names of the guest may be one here.
    this.#handle ??= await fs.open(this.#file, "wx", this.#mode);
    for (let at = 0; at < this.#bufferedBytes;) {
      at += (await this.#handle.write(this.#buffer, at, this.#bufferedBytes - at)).bytesWritten;
    }
    this.#bufferedBytes = 0;
  }
}
