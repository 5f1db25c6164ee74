/** Guest tree: what a download takes of a guest. Whatever the guest says of its files is checked before a file of the host has its name. */
import { concurrently } from "../base/async.ts";
import { type FileReason, SandboxFileError, shown } from "../base/errors.ts";
import {
  FILE_MAX_BYTES,
  PATH_COMPONENT_MAX_BYTES,
  PATH_MAX_BYTES,
  TRANSFERS_MAX,
  TREE_ENTRIES_MAX,
  TREE_MAX_BYTES,
} from "../base/limits.ts";
import type { FileInfo } from "../run/session_files.ts";
import type { FileAccess } from "../run/vm_files.ts";
import { below } from "./transfer_spec.ts";

const EXECUTABLE_BITS = 0o111;
/** Control characters, and those that make text run backwards. */
const UNSEEN = /[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;
const encoder = new TextEncoder();

/** A file in the guest. */
export interface GuestFile {
  /** Below the tree's root, with slashes; "" for a tree that is one file. */
  readonly relative: string;
  /** Below the home directory. */
  readonly guest: string;
  /** Bytes, by the guest's word. */
  readonly size: number;
  readonly isExecutable: boolean;
}

/** A directory in the guest with everything below it. */
export interface GuestTree {
  readonly files: readonly GuestFile[];
  /** Below the root, parents first. */
  readonly directories: readonly string[];
  readonly totalBytes: number;
}

interface Directory {
  readonly relative: string;
  /** It was reached through a link to a directory: there may not be another, it may lead in a circle. */
  readonly isLinked: boolean;
}

/**
 * Looks at everything below the directory `root` ("" is the home). Links to files inside the home count as files; links to directories are followed
 * once. Throws `SandboxFileError` for what is neither file nor directory, for names that may not exist on the host, and for more than a tree may have.
 */
export async function readGuestTree(files: FileAccess, root: string, signal: AbortSignal | undefined): Promise<GuestTree> {
  const found: GuestFile[] = [], directories: string[] = [];
  let level: Directory[] = [{ relative: "", isLinked: false }], entryCount = 0, totalBytes = 0;
  while (level.length > 0) {
    const next: Directory[] = [];
    await concurrently(level, { limit: TRANSFERS_MAX, signal }, async ({ relative, isLinked }, ending) => {
      for (const listed of await files.listFiles(below(root, relative) || ".", { signal: ending })) {
        const path = below(relative, listed.name), guest = below(root, path);
        entryCount += 1;
        if (entryCount > TREE_ENTRIES_MAX) {
          throw treeError(root, "too-large", `a directory may hold at most ${TREE_ENTRIES_MAX} files and directories, it holds more`);
        }
        checkName(listed.name, guest);
        const isLink = listed.type === "symlink";
        const info = isLink ? await files.stat(guest, { signal: ending }) : listed;
        if (info.type === "directory") {
          if (isLink && isLinked) throw treeError(guest, "not-a-file", "it is a link to a directory below another such link");
          next.push({ relative: path, isLinked: isLinked || isLink });
        } else {
          const file = checkedFile(path, guest, info);
          totalBytes += file.size;
          found.push(file);
        }
      }
    });
    if (totalBytes > TREE_MAX_BYTES) {
      throw treeError(root, "too-large", `a directory may hold at most ${TREE_MAX_BYTES} bytes, got ${totalBytes}`);
    }
    for (const { relative } of next) directories.push(relative);
    level = next;
  }
  return { files: found, directories, totalBytes };
}

/** A regular file of a size that may be read. Throws `SandboxFileError`. */
export function checkedFile(relative: string, guest: string, { type, size, mode }: FileInfo): GuestFile {
  if (type !== "file") throw treeError(guest, "not-a-file", "it is neither a file nor a directory");
  if (size > FILE_MAX_BYTES) throw treeError(guest, "too-large", `a file must be at most ${FILE_MAX_BYTES} bytes, got ${size}`);
  return { relative, guest, size, isExecutable: (mode & EXECUTABLE_BITS) !== 0 };
}

/** Throws unless `name` is one that a user would give a file: it becomes one on the host, and is shown on terminals. */
function checkName(name: string, guest: string): void {
  const refuse = (why: string) => treeError(guest, "not-a-file", why);
  if (name === "" || name === "." || name === ".." || name.includes("/")) throw refuse("its name leads elsewhere");
  if (!name.isWellFormed() || name.includes("\uFFFD")) throw refuse("its name is no valid UTF-8");
  // What is shown would not be what is there.
  if (name.search(UNSEEN) >= 0) throw refuse("its name has a control character in it");
  if (encoder.encode(name).length > PATH_COMPONENT_MAX_BYTES) throw refuse(`its name has more than ${PATH_COMPONENT_MAX_BYTES} bytes`);
  if (encoder.encode(guest).length > PATH_MAX_BYTES) throw refuse(`its path has more than ${PATH_MAX_BYTES} bytes`);
}

/** What keeps a guest's file from being downloaded. */
export function treeError(guest: string, reason: FileReason, words: string): SandboxFileError {
  const visible = shown(guest).replace(UNSEEN, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return new SandboxFileError(`Cannot download ${visible} from the guest: ${words}`, { side: "guest", path: guest, reason });
}
