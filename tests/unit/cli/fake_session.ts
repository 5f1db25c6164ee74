/** A session without a VM: what code does is up to the test; files are a map; processes are streams. */
import fs from "node:fs/promises";
import { SandboxFileError, SessionClosedError, SnapshotError } from "../../../src/base/errors.ts";
import type { ExposedPort } from "../../../src/base/result.ts";
import type { CliCheckpoint, CliProcess, CliSession } from "../../../src/cli/context.ts";
import type { CodeState, Completion } from "../../../src/run/assist.ts";
import type { CheckpointOptions } from "../../../src/run/checkpoint.ts";
import type { ExecutionEvent } from "../../../src/run/execution_stream.ts";
import type { FileSource } from "../../../src/run/file_source.ts";
import { accessOf, checkAccess, type NetworkAccess } from "../../../src/run/network_request.ts";
import type { Language } from "../../../src/run/request.ts";
import type { FileInfo, ReadFileOptions, WriteFileOptions } from "../../../src/run/session_files.ts";
import type { ProcessInfo, SpawnOptions } from "../../../src/run/session_process.ts";
import type { ExecOptions } from "../../../src/run/session_request.ts";
import { resultOf } from "./fake_context.ts";

/** What an execution may do. */
export interface Execution {
  readonly code: string;
  readonly options: ExecOptions;
  /** Resolves when the session is interrupted. */
  readonly interrupted: Promise<void>;
}

/** What a test decides. */
export interface FakeSessionOptions {
  readonly language?: Language;
  readonly execute?: (execution: Execution) => AsyncIterable<ExecutionEvent>;
  readonly isComplete?: (code: string) => CodeState | Promise<CodeState>;
  readonly complete?: (code: string) => Completion;
  readonly files?: Readonly<Record<string, string>>;
  readonly processes?: readonly ProcessInfo[];
  /** What code may reach at first. */
  readonly access?: NetworkAccess;
  readonly exposedPorts?: readonly ExposedPort[];
  /** Those with a name. */
  readonly checkpoints?: CliCheckpoint[];
}

/** Ends an execution with `fields` in its result. */
export function ended(fields: Parameters<typeof resultOf>[0] = {}): ExecutionEvent {
  return { type: "result", result: resultOf({ stateReset: false, ...fields }) };
}

/** A session whose calls are recorded. */
export class FakeSession implements CliSession {
  readonly language: Language;
  closed = false;
  /** Code in the order it came, and with which options. */
  readonly executed: Array<{ readonly code: string; readonly options: ExecOptions }> = [];
  readonly files: Map<string, string>;
  readonly copies: FakeSession[] = [];
  networkAccess: NetworkAccess;
  readonly exposedPorts: readonly ExposedPort[];
  interrupts = 0;
  pings = 0;
  shell: FakeShell | undefined;
  readonly #options: FakeSessionOptions;
  #interrupted = Promise.withResolvers<void>();

  constructor(options: FakeSessionOptions = {}) {
    this.#options = options;
    this.language = options.language ?? "python";
    this.networkAccess = options.access ?? { allowNetwork: false };
    this.exposedPorts = options.exposedPorts ?? [];
    this.files = new Map(Object.entries(options.files ?? {}));
  }

  async *stream(code: string, options: ExecOptions = {}): AsyncGenerator<ExecutionEvent, void, void> {
    if (this.closed) throw new SessionClosedError("Cannot use the session: its VM was lost");
    this.executed.push({ code, options });
    this.#interrupted = Promise.withResolvers<void>();
    const execution = { code, options, interrupted: this.#interrupted.promise };
    yield* this.#options.execute?.(execution) ?? (async function* () {
      yield ended();
    })();
  }

  async interrupt(): Promise<boolean> {
    this.interrupts += 1;
    this.#interrupted.resolve();
    return true;
  }

  async ping(): Promise<number> {
    this.pings += 1;
    return 1;
  }

  async isComplete(code: string): Promise<CodeState> {
    return await this.#options.isComplete?.(code) ?? { state: "complete", indent: "" };
  }

  async complete(code: string, cursor = code.length): Promise<Completion> {
    return this.#options.complete?.(code.slice(0, cursor)) ?? { start: cursor, candidates: [] };
  }

  async writeFile(path: string, content: FileSource, options: WriteFileOptions = {}): Promise<void> {
    const bytes = typeof content === "object" && "local" in content ? await fs.readFile(content.local) : String(content);
    this.files.set(path, String(bytes));
    options.onProgress?.(bytes.length);
  }

  async readFile(path: string, options: ReadFileOptions = {}): Promise<never> {
    const content = this.files.get(path);
    if (content === undefined) throw new SandboxFileError(`Cannot read: ${path}`, { side: "guest", path, reason: "not-found" });
    if (options.destination instanceof WritableStream) {
      const writer = options.destination.getWriter();
      await writer.write(new TextEncoder().encode(content));
      await writer.close();
    } else await fs.writeFile(String(options.destination), content);
    options.onProgress?.(content.length);
    return content.length as never; // Only destinations are asked for.
  }

  async listFiles(directory = "."): Promise<FileInfo[]> {
    if (directory === "missing") {
      throw new SandboxFileError("Cannot list files: missing", { side: "guest", path: directory, reason: "not-found" });
    }
    const prefix = directory === "." ? "" : `${directory.replace(/\/$/, "")}/`;
    return [...this.files].filter(([name]) => name.startsWith(prefix)).map(([name, content]) => {
      const isDir = content === "/";
      const type = isDir ? "directory" : "file";
      return { name: name.slice(prefix.length), isDir, size: isDir ? 0 : content.length, type, mode: 0o644, modifiedMs: 0 } as const;
    });
  }

  async stat(path: string): Promise<FileInfo> {
    const content = this.files.get(path);
    if (content === undefined) throw new SandboxFileError(`Cannot look: ${path}`, { side: "guest", path, reason: "not-found" });
    const isDir = content === "/";
    return { name: path, isDir, size: isDir ? 0 : content.length, type: isDir ? "directory" : "file", mode: 0o644, modifiedMs: 0 };
  }

  async makeDir(path: string): Promise<void> {
    this.files.set(path, "/");
  }

  async exists(path: string): Promise<boolean> {
    return this.files.has(path);
  }

  async remove(path: string): Promise<void> {
    this.files.delete(path);
  }

  async rename(from: string, to: string): Promise<void> {
    this.files.set(to, this.files.get(from) ?? "");
    this.files.delete(from);
  }

  async processes(): Promise<ProcessInfo[]> {
    return [...this.#options.processes ?? []];
  }

  async spawn(command: string, args: readonly string[] = [], options: SpawnOptions = {}): Promise<CliProcess> {
    this.shell = new FakeShell([command, ...args], options);
    return this.shell;
  }

  async updateNetwork(access: NetworkAccess): Promise<void> {
    if (this.closed) throw new SessionClosedError("Cannot use the session: its VM was lost");
    this.networkAccess = accessOf(checkAccess("change the network", access));
  }

  async checkpoint({ name }: CheckpointOptions = {}): Promise<FakeCheckpoint> {
    const kept = this.#options.checkpoints ?? [];
    const onRemove = () => void (kept.includes(checkpoint) && kept.splice(kept.indexOf(checkpoint), 1));
    const checkpoint = new FakeCheckpoint(name, new Map(this.files), onRemove);
    if (name !== undefined) kept.push(checkpoint);
    return checkpoint;
  }

  async rollback(to: CliCheckpoint | string): Promise<void> {
    const found = typeof to === "string" ? this.#options.checkpoints?.find(({ name }) => name === to) : to;
    if (!(found instanceof FakeCheckpoint) || found.isRemoved) throw new SnapshotError("Cannot roll back: it was removed");
    this.files.clear();
    for (const [name, content] of found.files) this.files.set(name, content);
  }

  async fork(count = 2): Promise<FakeSession[]> {
    const files = Object.fromEntries(this.files);
    const made = Array.from(
      { length: count },
      () => new FakeSession({ ...this.#options, language: this.language, files, access: this.networkAccess }),
    );
    this.copies.push(...made);
    return made;
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}

/** Files as they were. */
export class FakeCheckpoint implements CliCheckpoint {
  readonly name: string | undefined;
  readonly files: ReadonlyMap<string, string>;
  readonly language = "python";
  readonly memoryMb = 256;
  readonly createdAt: Date = new Date(0);
  readonly sizeBytes = 134_000_000;
  isRemoved = false;
  readonly #onRemove: () => void;

  constructor(name: string | undefined, files: ReadonlyMap<string, string>, onRemove: () => void) {
    this.name = name;
    this.files = files;
    this.#onRemove = onRemove;
  }

  async remove(): Promise<void> {
    this.isRemoved = true;
    this.#onRemove();
  }
}

/** A process whose streams the test holds. */
export class FakeShell implements CliProcess {
  readonly argv: readonly string[];
  readonly options: SpawnOptions;
  readonly stdin: WritableStream<Uint8Array>;
  readonly stdout: ReadableStream<Uint8Array>;
  typed = "";
  readonly sizes: string[] = [];
  isDetached = false;
  readonly #ended = Promise.withResolvers<{ exitCode: number }>();
  #output: ReadableStreamDefaultController<Uint8Array> | undefined;

  constructor(argv: readonly string[], options: SpawnOptions) {
    this.argv = argv;
    this.options = options;
    this.stdin = new WritableStream({ write: (bytes) => void (this.typed += new TextDecoder().decode(bytes)) });
    this.stdout = new ReadableStream({ start: (controller) => void (this.#output = controller) });
  }

  /** Writes to the terminal. */
  say(bytes: Uint8Array): void {
    this.#output?.enqueue(bytes);
  }

  /** Ends. */
  exit(exitCode: number): void {
    this.#output?.close();
    this.#ended.resolve({ exitCode });
  }

  /** The VM is lost. */
  fail(error: Error): void {
    this.#ended.promise.catch(() => {}); // Whoever waits sees it.
    this.#output?.error(error);
    this.#ended.reject(error);
  }

  wait(): Promise<{ exitCode: number }> {
    return this.#ended.promise;
  }

  async resize(columns: number, rows: number): Promise<void> {
    this.sizes.push(`${columns}x${rows}`);
  }

  async detach(): Promise<void> {
    this.isDetached = true;
  }
}
