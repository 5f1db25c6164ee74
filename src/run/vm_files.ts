/** VM files: what may be done with the files of a VM, by the same calls in a session and around a run. */
import { abortable } from "../base/async.ts";
import type { GuestFiles } from "../channel/guest_files.ts";
import type { FileSource } from "./file_source.ts";
import {
  type CallOptions,
  existsCall,
  type FileCall,
  type FileInfo,
  listFilesCall,
  makeDirCall,
  type MakeDirOptions,
  readFileCall,
  type ReadFileOptions,
  removeCall,
  type RemoveOptions,
  renameCall,
  statCall,
  type StatOptions,
  writeFileCall,
  type WriteFileOptions,
} from "./session_files.ts";

/** The files of a VM. A `Session` is one; `RunRequest.prepare` and `collect` are given one. */
export interface FileAccess {
  /** Writes a file, whole or not at all; parents are made. `path` is relative to the home directory. */
  writeFile(path: string, content: FileSource, options?: WriteFileOptions): Promise<void>;
  /** Reads a file to a local file or a stream; resolves with its size in bytes. */
  readFile(
    path: string,
    options: ReadFileOptions & { readonly destination: NonNullable<ReadFileOptions["destination"]> },
  ): Promise<number>;
  /** Reads a file as text. */
  readFile(path: string, options: ReadFileOptions & { readonly encoding: "utf-8" }): Promise<string>;
  /** Reads a file. */
  readFile(
    path: string,
    options?: ReadFileOptions & { readonly encoding?: undefined; readonly destination?: undefined },
  ): Promise<Uint8Array>;
  /** The entries of a directory, sorted by name. Default: the home directory. */
  listFiles(path?: string, options?: CallOptions): Promise<FileInfo[]>;
  /** What is at a path. */
  stat(path: string, options?: StatOptions): Promise<FileInfo>;
  /** Whether something is at a path. */
  exists(path: string, options?: CallOptions): Promise<boolean>;
  /** Makes a directory. */
  makeDir(path: string, options?: MakeDirOptions): Promise<void>;
  /** Removes what is at a path. */
  remove(path: string, options?: RemoveOptions): Promise<void>;
  /** Gives a file or directory another path. */
  rename(from: string, to: string, options?: CallOptions): Promise<void>;
}

/** The files of the VM of one run. Every call ends when the run does, with its reason. */
export class VmFiles implements FileAccess {
  readonly #files: GuestFiles;
  readonly #ending: AbortSignal | undefined;

  /** `ending` aborts when the run is over. */
  constructor(files: GuestFiles, ending: AbortSignal | undefined) {
    this.#files = files;
    this.#ending = ending;
  }

  async writeFile(path: string, content: FileSource, options?: WriteFileOptions): Promise<void> {
    await this.#make(writeFileCall(path, content, options));
  }

  async readFile(
    path: string,
    options: ReadFileOptions & { readonly destination: NonNullable<ReadFileOptions["destination"]> },
  ): Promise<number>;
  async readFile(path: string, options: ReadFileOptions & { readonly encoding: "utf-8" }): Promise<string>;
  async readFile(
    path: string,
    options?: ReadFileOptions & { readonly encoding?: undefined; readonly destination?: undefined },
  ): Promise<Uint8Array>;
  async readFile(path: string, options?: ReadFileOptions): Promise<Uint8Array | string | number> {
    return await this.#make(readFileCall(path, options));
  }

  async listFiles(path = ".", options?: CallOptions): Promise<FileInfo[]> {
    return await this.#make(listFilesCall(path, options));
  }

  async stat(path: string, options?: StatOptions): Promise<FileInfo> {
    return await this.#make(statCall(path, options));
  }

  async exists(path: string, options?: CallOptions): Promise<boolean> {
    return await this.#make(existsCall(path, options));
  }

  async makeDir(path: string, options?: MakeDirOptions): Promise<void> {
    await this.#make(makeDirCall(path, options));
  }

  async remove(path: string, options?: RemoveOptions): Promise<void> {
    await this.#make(removeCall(path, options));
  }

  async rename(from: string, to: string, options?: CallOptions): Promise<void> {
    await this.#make(renameCall(from, to, options));
  }

  async #make<T>(call: FileCall<T>): Promise<T> {
    if (this.#ending?.aborted) call.giveUp?.(this.#ending.reason);
    this.#ending?.throwIfAborted();
    return await abortable(call.run(this.#files), this.#ending);
  }
}
