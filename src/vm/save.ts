/** Save: a running machine → the files of a checkpoint, in two halves: what stops the machine, and what need not. */
import { Buffer } from "node:buffer";
import { createHash, randomUUID } from "node:crypto";
import { constants } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import { messageOf, SandboxError, SnapshotError } from "../base/errors.ts";
import { RAM_NAME } from "../qemu/machine.ts";
import { findMappedRam, MAPPED_RAM_HEAD_BYTES, type MappedRam } from "../qemu/mapped_ram.ts";
import { QmpError } from "../qemu/qmp.ts";
import type { Vm } from "./vm.ts";

/** Device state and QEMU's own small pieces of memory take about 1 MiB. */
const REST_MAX_BYTES = 64 * 2 ** 20;
/** The directory is this user's alone; behind its confinement QEMU is another user. */
const WRITABLE_MODE = 0o666, SAVED_MODE = 0o444;

/** What is saved, and by what. */
export interface SaveOptions {
  readonly memoryMiB: number;
  /** Most of the memory is written while the machine runs; only our QEMU does that right (images/qemu/patches). Any other is stopped for all of it. */
  readonly isLive: boolean;
}

/** What QEMU has written of a machine. Disposing removes it. */
export class RawSave implements AsyncDisposable {
  readonly file: string;
  readonly #options: SaveOptions;
  #pauseMs = 0;

  private constructor(file: string, options: SaveOptions) {
    this.file = file;
    this.#options = options;
  }

  /** How long the machine stood still. */
  get pauseMs(): number {
    return this.#pauseMs;
  }

  /**
   * Writes `vm` to a file of its own. The guest must be held; it may go on as soon as this returns. Throws `SnapshotError` when it cannot be saved, and
   * the signal's reason; the machine runs on then.
   */
  static async take(vm: Vm, options: SaveOptions, signal?: AbortSignal): Promise<RawSave> {
    if (vm.savesDirectory === undefined) {
      throw new SnapshotError("Cannot save the VM: it was started where nothing can be kept", {
        retry: "never",
        hint: "The cache directory must be writable, and a template must fit into it.",
      });
    }
    const save = new RawSave(path.join(vm.savesDirectory, randomUUID()), options);
    try {
      await checkRoom(vm.savesDirectory, options.memoryMiB);
      await fs.writeFile(save.file, "", { flag: "wx" });
      await fs.chmod(save.file, WRITABLE_MODE); // The umask took part of it.
      save.#pauseMs = await vm.qmp.saveWhole(`file:${save.file}`, { isLive: options.isLive, signal });
      return save;
    } catch (cause) {
      await save[Symbol.asyncDispose]();
      if (signal?.aborted || (cause instanceof SandboxError && !(cause instanceof QmpError))) throw cause;
      throw saveError(cause, vm.savesDirectory);
    }
  }

  /** Makes the checkpoint's two files in `directory`, out of QEMU's reach. Returns what `Restorable` has to know of them. */
  async complete(directory: string): Promise<SavedFiles> {
    const ramFile = path.join(directory, RAM_FILE), stateFile = path.join(directory, STATE_FILE);
    try {
      await fs.rename(this.file, ramFile);
      await using ram = await openRegular(ramFile);
      const head = await readExactly(ram, 0, MAPPED_RAM_HEAD_BYTES);
      const layout = findMappedRam(head, { name: RAM_NAME, bytes: this.#options.memoryMiB * 2 ** 20 });
      if (!layout) throw new Error("QEMU wrote something else than the memory of the machine");
      const rest = await readRest(ram, layout.pagesOffset + layout.ramBytes);
      const stateSha256 = await writeState(stateFile, head, layout, rest);
      await ram.chmod(SAVED_MODE);
      await fs.chmod(stateFile, SAVED_MODE);
      const sizes = await Promise.all([ramFile, stateFile].map((file) => fs.stat(file)));
      const sizeBytes = sizes.reduce((sum, { blocks }) => sum + blocks * 512, 0);
      const [ramFileBytes = 0, stateFileBytes = 0] = sizes.map(({ size }) => size);
      return { ramOffset: layout.pagesOffset, ramFileBytes, stateFileBytes, stateSha256, sizeBytes };
    } catch (cause) {
      throw saveError(cause, directory);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await fs.rm(this.file, { force: true });
  }
}

/** Names of the files of a checkpoint. */
export const RAM_FILE = "ram", STATE_FILE = "state";

/** What is known of the files of a checkpoint. */
export interface SavedFiles {
  readonly ramOffset: number;
  readonly ramFileBytes: number;
  readonly stateFileBytes: number;
  /** Of `stateDigest`. */
  readonly stateSha256: string;
  /** Disk that both take. */
  readonly sizeBytes: number;
}

/** Hash of the state without the hole where the guest's memory was. Throws when the file is shorter than it must be. */
export async function stateDigest(stateFile: string, ramOffset: number, memoryMiB: number): Promise<string> {
  await using state = await fs.open(stateFile, "r");
  return digest(await readExactly(state, 0, ramOffset), await readRest(state, ramOffset + memoryMiB * 2 ** 20));
}

function digest(head: Uint8Array, rest: Uint8Array): string {
  return createHash("sha256").update(head).update(rest).digest("hex");
}

/** The file again with no page in it: QEMU takes what is not there for what the memory has already. */
async function writeState(stateFile: string, head: Uint8Array, layout: MappedRam, rest: Uint8Array): Promise<string> {
  const emptied = Buffer.from(head.subarray(0, layout.pagesOffset));
  emptied.fill(0, layout.bitmapOffset, layout.bitmapOffset + layout.bitmapBytes);
  await using state = await fs.open(stateFile, "wx");
  await state.write(emptied, 0, layout.bitmapOffset + layout.bitmapBytes, 0);
  await state.write(rest, 0, rest.length, layout.pagesOffset + layout.ramBytes);
  return digest(emptied, rest);
}

/** A write that fails is told by QEMU, but one in a dozen times (10.0) it ends of that: a machine is not saved where all of its memory might not fit. */
async function checkRoom(directory: string, memoryMiB: number): Promise<void> {
  const { bavail, bsize } = await fs.statfs(directory), neededBytes = memoryMiB * 2 ** 20 + REST_MAX_BYTES;
  if (bavail * bsize >= neededBytes) return;
  throw new SnapshotError(`Cannot save the VM: no space is left in ${directory}: ${neededBytes} bytes must be free, got ${bavail * bsize}`);
}

/** A QEMU that its guest has taken over may have put a link or a pipe in the file's place. */
async function openRegular(file: string): Promise<fs.FileHandle> {
  const handle = await fs.open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  if ((await handle.stat()).isFile()) return handle;
  await handle.close();
  throw new Error("QEMU wrote something else than a file");
}

async function readRest(file: fs.FileHandle, restAt: number): Promise<Uint8Array> {
  const { size } = await file.stat();
  if (size <= restAt || size - restAt > REST_MAX_BYTES) throw new Error(`the state has ${size - restAt} bytes`);
  return await readExactly(file, restAt, size - restAt);
}

async function readExactly(file: fs.FileHandle, position: number, byteCount: number): Promise<Uint8Array> {
  const bytes = Buffer.alloc(byteCount);
  const { bytesRead } = await file.read(bytes, 0, byteCount, position);
  if (bytesRead !== byteCount) throw new Error(`the file ends at ${position + bytesRead}`);
  return bytes;
}

/** What stood in the way, with the place where there was no room. */
function saveError(cause: unknown, directory: string): SnapshotError {
  if (cause instanceof SnapshotError) return cause;
  const isFull = (cause as NodeJS.ErrnoException).code === "ENOSPC" || /No space left|ENOSPC|Disk quota/i.test(messageOf(cause));
  const reason = isFull ? `no space is left in ${directory}` : messageOf(cause);
  return new SnapshotError(`Cannot save the VM: ${reason}`, { cause });
}
