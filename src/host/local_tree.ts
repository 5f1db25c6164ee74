/** Local tree: what an upload takes of this host: a file, or a directory with all that is in it. */
import fs from "node:fs/promises";
import path from "node:path";
import type { SandboxFileError } from "../base/errors.ts";
import { FILE_MAX_BYTES, TREE_ENTRIES_MAX } from "../base/limits.ts";
import { asFileError, localError } from "./local_file.ts";

const EXECUTABLE_BITS = 0o111;

/** A file of a tree. */
export interface TreeFile {
  /** Below the tree's root, with slashes; "" for a tree that is one file. */
  readonly relative: string;
  /** Where it is on this host. */
  readonly local: string;
  /** Bytes, when it was looked at. */
  readonly size: number;
  readonly isExecutable: boolean;
}

/** A file, or a directory and everything below it. */
export interface LocalTree {
  readonly isDirectory: boolean;
  readonly files: readonly TreeFile[];
  /** Directories with nothing in them, below the root; the root itself is "". */
  readonly emptyDirectories: readonly string[];
  readonly totalBytes: number;
}

/**
 * Looks at `root`, following it when it is a symbolic link. Links inside are followed where they lead to something inside; what leads out of
 * the tree or back to a directory above it is refused, and so is what is neither a file nor a directory. Throws `SandboxFileError`.
 */
export async function readLocalTree(root: string, signal?: AbortSignal): Promise<LocalTree> {
  try {
    const found = await fs.stat(root);
    if (found.isDirectory()) return await new TreeReader(await fs.realpath(root), signal).read(root);
    const file = treeFile("", root, found);
    return { isDirectory: false, files: [file], emptyDirectories: [], totalBytes: file.size };
  } catch (cause) {
    signal?.throwIfAborted(); // Its reason is the caller's own, whatever code that has.
    throw asFileError("read", root, cause);
  }
}

class TreeReader {
  readonly #realRoot: string;
  readonly #signal: AbortSignal | undefined;
  readonly #files: TreeFile[] = [];
  readonly #emptyDirectories: string[] = [];
  #entryCount = 0;

  constructor(realRoot: string, signal: AbortSignal | undefined) {
    this.#realRoot = realRoot;
    this.#signal = signal;
  }

  async read(root: string): Promise<LocalTree> {
    await this.#readDirectory("", root, [this.#realRoot]);
    const totalBytes = this.#files.reduce((sum, { size }) => sum + size, 0);
    return { isDirectory: true, files: this.#files, emptyDirectories: this.#emptyDirectories, totalBytes };
  }

  /** `above`: where the directories on the way really are, this one last. */
  async #readDirectory(relative: string, local: string, above: readonly string[]): Promise<void> {
    this.#signal?.throwIfAborted();
    try {
      const names = (await fs.readdir(local)).sort();
      if (names.length === 0) this.#emptyDirectories.push(relative);
      for (const name of names) {
        await this.#readEntry(relative === "" ? name : `${relative}/${name}`, path.join(local, name), above);
      }
    } catch (cause) {
      this.#signal?.throwIfAborted();
      throw asFileError("read", local, cause);
    }
  }

  async #readEntry(relative: string, local: string, above: readonly string[]): Promise<void> {
    this.#entryCount += 1;
    if (this.#entryCount > TREE_ENTRIES_MAX) {
      throw localError("upload", local, [
        "too-large",
        `a directory may hold at most ${TREE_ENTRIES_MAX} files and directories, it holds more`,
      ]);
    }
    // Node shows bytes that are no UTF-8 as this character, and would then not find the file.
    if (relative.includes("\uFFFD")) throw localError("upload", local, ["not-a-file", "its name is no valid UTF-8"]);
    let found = await this.#ask(local, fs.lstat(local));
    let real = path.join(above.at(-1) ?? "", path.basename(local));
    if (found.isSymbolicLink()) {
      real = await this.#ask(local, fs.realpath(local));
      this.#checkLink(local, real, above);
      found = await this.#ask(local, fs.stat(local));
    }
    if (found.isDirectory()) await this.#readDirectory(relative, local, [...above, real]);
    else this.#files.push(treeFile(relative, local, found));
  }

  #checkLink(local: string, real: string, above: readonly string[]): void {
    const isInside = real === this.#realRoot || real.startsWith(this.#realRoot === "/" ? "/" : `${this.#realRoot}/`);
    if (!isInside) throw localError("upload", local, ["permission", "it is a symbolic link that leads out of the directory"]);
    if (above.includes(real)) throw localError("upload", local, ["not-a-file", "it is a symbolic link to a directory above it"]);
  }

  async #ask<T>(local: string, answer: Promise<T>): Promise<T> {
    try {
      return await answer;
    } catch (cause) {
      throw asFileError("read", local, cause);
    }
  }
}

interface Found {
  readonly size: number;
  readonly mode: number;
  isFile(): boolean;
}

function treeFile(relative: string, local: string, found: Found): TreeFile {
  if (!found.isFile()) throw notAFile(local);
  if (found.size > FILE_MAX_BYTES) {
    throw localError("upload", local, ["too-large", `a file must be at most ${FILE_MAX_BYTES} bytes, got ${found.size}`]);
  }
  return { relative, local, size: found.size, isExecutable: (found.mode & EXECUTABLE_BITS) !== 0 };
}

function notAFile(local: string): SandboxFileError {
  return localError("upload", local, ["not-a-file", "it is neither a file nor a directory"]);
}
