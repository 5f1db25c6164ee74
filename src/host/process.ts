/** Child processes: the only module that spawns. */
import { type ChildProcess, spawn } from "node:child_process";
import { accessSync, constants } from "node:fs";
import path from "node:path";
import type { Duplex, Readable } from "node:stream";
import process from "node:process";
import { abortable, settlesWithin } from "../base/async.ts";

const TERM_GRACE_MS = 2_000;
const KILL_GRACE_MS = 5_000;
/** After a program's end its last output is read at once; who holds the pipe for longer has left its group and is not waited for. */
const DRAIN_GRACE_MS = 1_000;
const CAPTURE_MAX_CHARS = 16 * 1_048_576;
const LINE_MAX_CHARS = 65_536;

/** How a child is started. */
export interface SpawnOptions {
  /** Two-way pipes handed to the child as descriptors 3, 4, …; default 0. */
  readonly pipes?: number;
  /** Give the child a pipe as standard output; default: nowhere. */
  readonly stdout?: "pipe" | "ignore";
  /** Give the child a pipe as standard error; default: nowhere. */
  readonly stderr?: "pipe" | "ignore";
  /** The child's whole environment; default: this process's own. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** SIGTERM comes first when the child is released; `false` for programs that own nothing worth saving. Default true. */
  readonly isTermFirst?: boolean;
  /**
   * The child counts as ended only when its pipes are closed as well: for a launcher whose program may outlive it by some milliseconds
   * after a kill. The owner must read every pipe. Default false.
   */
  readonly isGoneWithPipes?: boolean;
}

/** How a process ended. */
export interface ExitStatus {
  /** Exit status, or null when a signal ended it. */
  readonly code: number | null;
  readonly signal: string | null;
}

/** One child leading its own process group. Its death aborts `gone`, so every wait can race it. */
export class Child implements AsyncDisposable {
  readonly pid: number;
  /** Aborts when the child has ended. */
  readonly gone: AbortSignal;
  /** Resolves when the child has ended. */
  readonly exited: Promise<ExitStatus>;
  /** Our ends of the descriptors 3, 4, … */
  readonly pipes: readonly Duplex[];
  readonly stdout: Readable | null;
  readonly stderr: Readable | null;
  readonly #isTermFirst: boolean;

  private constructor(raw: ChildProcess, pid: number, options: SpawnOptions, exited: Promise<ExitStatus>) {
    this.pid = pid;
    this.pipes = raw.stdio.slice(3) as unknown as Duplex[];
    this.stdout = raw.stdout;
    this.stderr = raw.stderr;
    this.#isTermFirst = options.isTermFirst ?? true;
    // A reset by the dying peer must not become an uncaught exception; readers see the end of the stream, waiters see `gone`.
    for (const stream of [...this.pipes, raw.stdout, raw.stderr]) stream?.on("error", () => {});
    const gone = new AbortController();
    this.gone = gone.signal;
    this.exited = exited.then((status) => {
      try {
        // The leader may be a wrapper: end what it left in the group before the number can be used again.
        signalGroup(pid, "SIGKILL");
      } catch { // What we may not signal has become another user; whoever waits for the leader must learn of its end all the same.
      }
      gone.abort(new Error(`Process ${pid} ${describeExit(status)}`));
      return status;
    });
  }

  /** Starts `argv`; rejects when the program cannot be started (`code: "ENOENT"` …). The caller owns the child. */
  static spawn(argv: readonly [string, ...string[]], options: SpawnOptions = {}): Promise<Child> {
    try {
      return Child.#start(argv, options);
    } catch (error) {
      return Promise.reject(error); // Such as an argument with a NUL in it: the callers' one way to fail is the promise.
    }
  }

  static #start(argv: readonly [string, ...string[]], options: SpawnOptions): Promise<Child> {
    // Deno 2.9 never closes the pipes of a program that cannot be started, so the common reason is found before they are made.
    if (path.isAbsolute(argv[0])) accessSync(argv[0], constants.X_OK);
    const raw = spawn(argv[0], argv.slice(1), {
      detached: true,
      stdio: [
        "ignore",
        options.stdout ?? "ignore",
        options.stderr ?? "ignore",
        ...Array.from({ length: options.pipes ?? 0 }, () => "pipe" as const),
      ],
      ...(options.env === undefined ? {} : { env: { ...options.env } }),
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    const exited = new Promise<ExitStatus>((resolve) =>
      raw.once(options.isGoneWithPipes ? "close" : "exit", (code, signal) => resolve({ code, signal }))
    );
    return new Promise((resolve, reject) => {
      raw.on("error", reject); // Only the first can matter; without a listener a later one would end this process.
      const started = () => {
        if (raw.pid !== undefined) resolve(new Child(raw, raw.pid, options, exited));
      };
      // The process exists when spawn() returns; waiting for the "spawn" event would cost a turn of the event loop per VM.
      if (raw.pid === undefined) raw.once("spawn", started);
      else started();
    });
  }

  /** Kills the whole group at once, without waiting. */
  kill(): void {
    if (!this.gone.aborted) signalGroup(this.pid, "SIGKILL");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const steps = [["SIGTERM", TERM_GRACE_MS], ["SIGKILL", KILL_GRACE_MS]] as const;
    try {
      for (const [signal, graceMs] of this.#isTermFirst ? steps : steps.slice(1)) {
        if (this.gone.aborted) return;
        signalGroup(this.pid, signal);
        if (await settlesWithin(this.exited, graceMs)) return;
      }
    } finally {
      for (const stream of [...this.pipes, this.stdout, this.stderr]) stream?.destroy();
    }
    throw new Error(`Cannot confirm the death of process ${this.pid}`);
  }
}

/** What a finished program left. */
export interface RunOutput extends ExitStatus {
  readonly stdout: string;
  readonly stderr: string;
}

/** How `run` starts a program and passes its output on. */
export interface RunOptions extends Pick<SpawnOptions, "env" | "cwd"> {
  /** Ends the program; the call then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /** Called with each line of standard output and error as it arrives, without its line break; at most 65,536 characters of it. */
  readonly onLine?: (line: string) => void;
}

/**
 * Runs `argv` to its end and returns status and output (the last 16 Mi characters of each stream). Rejects when it cannot be started, when
 * `onLine` throws, and with the signal's reason; it is dead then.
 */
export async function run(argv: readonly [string, ...string[]], options: RunOptions = {}): Promise<RunOutput> {
  options.signal?.throwIfAborted();
  const child = await Child.spawn(argv, { ...options, stdout: "pipe", stderr: "pipe" });
  try {
    const captures = [new Capture(child.stdout, options.onLine), new Capture(child.stderr, options.onLine)] as const;
    const ended = Promise.all(captures.map((capture) => capture.ended));
    const status = await abortable(Promise.race([child.exited, failureOf(ended)]), options.signal);
    if (await abortable(settlesWithin(ended, DRAIN_GRACE_MS), options.signal)) await ended;
    return { ...status, stdout: captures[0].finish(), stderr: captures[1].finish() };
  } finally {
    await child[Symbol.asyncDispose]().catch(() => {}); // An unkillable child is the kernel's; the caller learns of status or abort.
  }
}

/** Never resolves; rejects as `promise` does. */
function failureOf(promise: Promise<unknown>): Promise<never> {
  return promise.then(() => new Promise<never>(() => {}));
}

/** The text of one stream: the last of it, and each line for whoever wants them. */
class Capture {
  /** Resolves at the end of the stream; rejects with what `onLine` throws. */
  readonly ended: Promise<void>;
  readonly #onLine: ((line: string) => void) | undefined;
  // Parts and not one string: cutting a string at every chunk would copy all of it each time.
  readonly #parts: string[] = [];
  #charCount = 0;
  #line = "";
  #hasReturn = false;

  constructor(stream: Readable | null, onLine: ((line: string) => void) | undefined) {
    this.#onLine = onLine;
    this.ended = new Promise((resolve, reject) => {
      stream?.setEncoding("utf8").on("data", (chunk: string) => {
        try {
          this.#take(chunk);
        } catch (error) {
          reject(error);
        }
      });
      stream?.once("end", resolve).once("close", resolve);
    });
    this.ended.catch(() => {}); // `run` reads it, unless it was aborted first.
  }

  /** The text, after the last unfinished line was handed on. */
  finish(): string {
    if (this.#line !== "") this.#onLine?.(this.#line);
    return this.#parts.join("").slice(-CAPTURE_MAX_CHARS);
  }

  #take(chunk: string): void {
    this.#parts.push(chunk);
    this.#charCount += chunk.length;
    for (let first = this.#parts[0]; first && this.#charCount - first.length >= CAPTURE_MAX_CHARS; first = this.#parts[0]) {
      this.#parts.shift();
      this.#charCount -= first.length;
    }
    if (this.#onLine) this.#split(chunk, this.#onLine);
  }

  /** A break may be CR, LF or both, and both may come in two chunks. */
  #split(chunk: string, onLine: (line: string) => void): void {
    const text = this.#hasReturn && chunk.startsWith("\n") ? chunk.slice(1) : chunk;
    this.#hasReturn = chunk.endsWith("\r");
    const pieces = text.split(/\r\n|\n|\r/);
    const rest = pieces.pop() ?? "";
    for (const piece of pieces) {
      const line = (this.#line + piece).slice(0, LINE_MAX_CHARS);
      this.#line = "";
      onLine(line);
    }
    if (this.#line.length < LINE_MAX_CHARS) this.#line = (this.#line + rest).slice(0, LINE_MAX_CHARS);
  }
}

/** `exited with status 3` or `was ended by SIGKILL`. */
export function describeExit(status: ExitStatus): string {
  return status.signal === null ? `exited with status ${status.code}` : `was ended by ${status.signal}`;
}

/** Signal a whole group; a group that is already empty is success, everything else is reported. */
function signalGroup(pid: number, signal: "SIGTERM" | "SIGKILL"): void {
  try {
    process.kill(-pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}
