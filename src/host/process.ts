/** Child processes: the only module that spawns. */
import { type ChildProcess, spawn } from "node:child_process";
import type { Duplex, Readable } from "node:stream";
import process from "node:process";
import { settlesWithin } from "../base/async.ts";

const TERM_GRACE_MS = 2_000;
const KILL_GRACE_MS = 5_000;
const CAPTURE_MAX_BYTES = 16 * 1_048_576;

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
      // The leader may be a wrapper: end what it left in the group before the number can be used again.
      signalGroup(pid, "SIGKILL");
      gone.abort(new Error(`Process ${pid} ${describeExit(status)}`));
      return status;
    });
  }

  /** Starts `argv`; rejects when the program cannot be started (`code: "ENOENT"` …). The caller owns the child. */
  static spawn(argv: readonly [string, ...string[]], options: SpawnOptions = {}): Promise<Child> {
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
    const exited = new Promise<ExitStatus>((resolve) => raw.once("exit", (code, signal) => resolve({ code, signal })));
    return new Promise((resolve, reject) => {
      raw.once("error", reject);
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
      for (const stream of this.pipes) stream.destroy();
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
  /** Called with each line of standard output and error as it arrives, without its line break. */
  readonly onLine?: (line: string) => void;
}

/** Runs `argv` to its end and returns status and output (the last 16 MiB of each stream). Rejects when it cannot be started. */
export async function run(argv: readonly [string, ...string[]], options: RunOptions = {}): Promise<RunOutput> {
  options.signal?.throwIfAborted();
  const child = await Child.spawn(argv, { ...options, stdout: "pipe", stderr: "pipe" });
  const onAbort = () => void child[Symbol.asyncDispose]().catch(() => {}); // An unkillable child is the kernel's; the caller learns of the abort.
  options.signal?.addEventListener("abort", onAbort, { once: true });
  try {
    const [stdout, stderr] = await Promise.all([collect(child.stdout, options.onLine), collect(child.stderr, options.onLine)]);
    const status = await child.exited;
    options.signal?.throwIfAborted();
    return { ...status, stdout, stderr };
  } finally {
    options.signal?.removeEventListener("abort", onAbort);
  }
}

async function collect(stream: Readable | null, onLine?: (line: string) => void): Promise<string> {
  let text = "", line = "";
  stream?.setEncoding("utf8");
  for await (const chunk of stream ?? []) {
    text = (text + chunk).slice(-CAPTURE_MAX_BYTES);
    if (!onLine) continue;
    const lines = (line + chunk).split(/\r?\n|\r/);
    line = (lines.pop() ?? "").slice(-CAPTURE_MAX_BYTES);
    for (const whole of lines) onLine(whole);
  }
  if (onLine && line !== "") onLine(line);
  return text;
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
