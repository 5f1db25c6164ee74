/** Session process: a program beside a session's executions, its bytes as web streams. */
import { Buffer } from "node:buffer";
import { abortable, delay } from "../base/async.ts";
import { InputValidationError, shown } from "../base/errors.ts";
import { ARGUMENTS_MAX_BYTES, PATH_MAX_BYTES } from "../base/limits.ts";
import type {
  GuestProcess,
  GuestProcesses,
  GuestProcessInfo,
  GuestSpawn,
  ProcessOutput,
  TerminalSize,
} from "../channel/guest_processes.ts";
import { ByteQueue } from "./byte_queue.ts";
import { checkFields, checkFlag, checkSignal, checkTerminal, checkText } from "./check.ts";
import { streamPieces } from "./file_source.ts";
import { mergeEnv } from "./env.ts";
import { signalNumber } from "./signals.ts";

/** Standard input that is known beforehand. */
export type InputSource = string | Uint8Array | ReadableStream<Uint8Array>;

/** How a program is started. */
export interface SpawnOptions {
  /** Where it starts: relative to the home directory, or absolute. Default: the home directory. */
  readonly cwd?: string;
  /** Added to the session's environment. */
  readonly env?: Readonly<Record<string, string>>;
  /**
   * `true`: `stdin` of the process is a pipe to it. Text, bytes or a stream: it reads that, then the end. `false`: at its end from the
   * beginning. Default: `true` with a `pty`, else `false`.
   */
  readonly stdin?: boolean | InputSource;
  /** Gives it a terminal of that size: it then has one output, `stdout`. */
  readonly pty?: TerminalSize;
  /** It goes on when it is let go of (`detach`), and what it started when it ends. Default false. */
  readonly background?: boolean;
  /** Ends it (SIGTERM, SIGKILL two seconds later); `wait` then rejects with the reason. A background process is let go of. */
  readonly signal?: AbortSignal;
}

/** How a process is taken up again. */
export interface AttachOptions {
  /** `true`: `stdin` of the process is a pipe to it. Default true. */
  readonly stdin?: boolean;
  /** Lets go of it, as with `SpawnOptions`. */
  readonly signal?: AbortSignal;
}

/** How a process ended. */
export interface ProcessStatus {
  /** 0 success, `128+N` for signal N, -1 for one that was let go of and runs on. */
  readonly exitCode: number;
}

/** One process of the list. */
export interface ProcessInfo {
  /** For `attach`. */
  readonly id: number;
  /** Its number in the guest. */
  readonly pid: number;
  /** Program and arguments, cut at 256 bytes in all. */
  readonly argv: readonly string[];
  /** It goes on when nobody is attached. */
  readonly background: boolean;
  /** Somebody is attached to it. */
  readonly attached: boolean;
  /** It has a terminal. */
  readonly pty: boolean;
  /** Null while it runs. */
  readonly exitCode: number | null;
}

const SPAWN_FIELDS: ReadonlySet<string> = new Set<keyof SpawnOptions>(["cwd", "env", "stdin", "pty", "background", "signal"]);
const ATTACH_FIELDS: ReadonlySet<string> = new Set<keyof AttachOptions>(["stdin", "signal"]);
const TERMINAL_FIELDS: ReadonlySet<string> = new Set<keyof TerminalSize>(["columns", "rows"]);
const HOME = "/home/user";

/** A request to start a program, checked. */
export interface CheckedSpawn {
  readonly request: GuestSpawn;
  readonly input: InputSource | undefined;
  readonly signal: AbortSignal | undefined;
}

/** Checks the arguments of `spawn`. Throws `InputValidationError`, `EnvVarValidationError` or `VmConfigError`. */
export function checkSpawn(
  command: string,
  args: readonly string[] = [],
  options: SpawnOptions = {},
  sessionEnv: Readonly<Record<string, string>> = {},
): CheckedSpawn {
  const { cwd, env, stdin, pty, background, signal } = checkFields("spawn", options, SPAWN_FIELDS);
  const terminal = pty === undefined ? null : checkTerminal("spawn", checkFields("spawn", pty, TERMINAL_FIELDS, "pty"));
  const isPipe = typeof stdin === "boolean" || stdin === undefined;
  const input = isPipe ? undefined : checkInput("spawn", stdin);
  return {
    request: {
      argv: checkArguments(command, args),
      env: mergeEnv(sessionEnv, env ?? {}),
      cwd: checkDirectory(cwd),
      hasStdin: isPipe ? stdin ?? terminal !== null : true,
      pty: terminal,
      isBackground: checkFlag("spawn", "background", background),
    },
    input,
    signal: checkSignal("spawn", signal),
  };
}

/** Checks the arguments of `attach`. */
export function checkAttach(id: number, options: AttachOptions = {}): { id: number; hasStdin: boolean; signal: AbortSignal | undefined } {
  if (!Number.isSafeInteger(id) || id < 1) {
    throw new InputValidationError(`Cannot attach: the process must be a whole number of at least 1, got ${shown(id)}`);
  }
  const { stdin, signal } = checkFields("attach", options, ATTACH_FIELDS);
  return { id, hasStdin: checkFlag("attach", "stdin", stdin, true), signal: checkSignal("attach", signal) };
}

/** Standard input as the types say. */
export function checkInput(action: string, input: unknown): InputSource {
  if (input instanceof Uint8Array || (input instanceof ReadableStream && !input.locked)) return input as InputSource;
  if (typeof input === "string" && input.isWellFormed()) return input;
  const got = typeof input === "string"
    ? "a lone surrogate"
    : input instanceof ReadableStream
    ? "a stream with another reader"
    : shown(input);
  throw new InputValidationError(`Cannot ${action}: stdin must be text, bytes or a ReadableStream, got ${got}`);
}

/** The pieces of standard input. */
export function inputPieces(input: InputSource): AsyncIterable<Uint8Array> {
  if (input instanceof ReadableStream) return streamPieces(input, "stdin");
  const bytes = typeof input === "string" ? new TextEncoder().encode(input) : input;
  return (async function* () {
    if (bytes.length > 0) yield bytes;
  })();
}

/** Ends a stream that nobody will read. One that is read already ends with its reader. */
export function giveUpInput(input: InputSource | undefined, reason: unknown): void {
  if (input instanceof ReadableStream && !input.locked) void input.cancel(reason).catch(() => {}); // It has failed itself: nobody minds.
}

/** A list as users see it. */
export function processInfo({ id, pid, argv, isBackground, isAttached, hasPty, exitCode }: GuestProcessInfo): ProcessInfo {
  return { id, pid, argv, background: isBackground, attached: isAttached, pty: hasPty, exitCode: exitCode ?? null };
}

/** How a `SessionProcess` comes to be. */
export interface ProcessStart {
  /** Makes a short call, as long as the session is open. */
  readonly call: <T>(work: (processes: GuestProcesses) => Promise<T>) => Promise<T>;
  /** Starts or attaches. */
  readonly start: (onOutput: ProcessOutput, signal: AbortSignal | undefined) => Promise<GuestProcess>;
  /** Its standard input is fed through `stdin`, or from here. */
  readonly hasStdin: boolean;
  readonly input: InputSource | undefined;
  readonly signal: AbortSignal | undefined;
  /** Aborts with a `SessionClosedError` when the session is closed on purpose. */
  readonly closing: AbortSignal;
}

/**
 * A process that this session started or took up. Output that nobody reads holds the process back once 256 KiB of it wait, as a pipe
 * would: read `stdout` and `stderr`, or cancel them. Disposing lets go of it: a background process goes on, any other is ended.
 */
export class SessionProcess implements AsyncDisposable {
  /** For `session.attach`. */
  readonly id: number;
  /** Its number in the guest. */
  readonly pid: number;
  /** What it reads, where a pipe was asked for; writing waits until the guest takes more. */
  readonly stdin: WritableStream<Uint8Array>;
  /** What it writes; of a process with a terminal all of it. */
  readonly stdout: ReadableStream<Uint8Array>;
  /** What it writes to its standard error. */
  readonly stderr: ReadableStream<Uint8Array>;
  readonly #process: GuestProcess;
  readonly #call: ProcessStart["call"];
  readonly #status: Promise<ProcessStatus>;
  readonly #queues: { readonly stdout: ByteQueue; readonly stderr: ByteQueue };

  /** Starts or attaches; resolves when the process runs. */
  static async open(options: ProcessStart): Promise<SessionProcess> {
    const queues = { stdout: new ByteQueue(), stderr: new ByteQueue() };
    const process = await options.start((name, bytes) => queues[name].push(bytes), options.signal);
    return new SessionProcess(process, queues, options);
  }

  private constructor(process: GuestProcess, queues: { stdout: ByteQueue; stderr: ByteQueue }, options: ProcessStart) {
    this.id = process.id;
    this.pid = process.pid;
    this.#process = process;
    this.#call = options.call;
    this.#queues = queues;
    this.stdout = queues.stdout.readable;
    this.stderr = queues.stderr.readable;
    let end: Promise<ProcessStatus> | undefined;
    this.stdin = inputStream(process, options.hasStdin && options.input === undefined, () => end);
    this.#status = this.#follow(options);
    const onEnd = () => void (end = this.#status);
    this.#status.then(onEnd, onEnd); // Whoever waits sees a failure.
  }

  /** Resolves when it has ended and its output has come: output beyond 256 KiB must be read meanwhile. May be called more than once. */
  wait(): Promise<ProcessStatus> {
    return this.#status;
  }

  /** Sends a signal to it and its group, SIGKILL to all its descendants; false when it has ended. Default SIGTERM. */
  async kill(signal: string | number = "SIGTERM"): Promise<boolean> {
    const number = signalNumber(signal);
    return await this.#call((processes) => processes.signal(this.id, number));
  }

  /** Tells it the new size of its terminal. */
  async resize(columns: number, rows: number): Promise<void> {
    const size = checkTerminal("resize", { columns, rows });
    await this.#call((processes) => processes.resize(this.id, size));
  }

  /** Lets go of it: a background process goes on and can be attached to, any other is ended. `wait` then says -1. */
  async detach(): Promise<void> {
    this.#drop();
    await this.#process.stop();
  }

  /** The same as `detach`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.detach();
  }

  async #follow({ input, signal, closing }: ProcessStart): Promise<ProcessStatus> {
    const failed = new AbortController();
    using feed = input === undefined ? undefined : feedInput(this.#process, input, (error) => failed.abort(error));
    void feed;
    try {
      const status = abortable(abortable(this.#process.ended, signal), failed.signal);
      const exitCode = await status;
      for (const queue of Object.values(this.#queues)) queue.end();
      return { exitCode };
    } catch (error) {
      const stopped = [signal, failed.signal].find((candidate) => candidate?.aborted);
      if (stopped) await this.detach();
      const reason = stopped?.reason ?? (closing.aborted ? closing.reason : error);
      for (const queue of Object.values(this.#queues)) queue.fail(reason);
      throw reason;
    }
  }

  /** Nobody reads any more. */
  #drop(): void {
    for (const queue of Object.values(this.#queues)) queue.end();
    this.#process.release();
  }
}

/** `ended` gives how the process ended, once it has. */
function inputStream(
  process: GuestProcess,
  hasPipe: boolean,
  ended: () => Promise<ProcessStatus> | undefined,
): WritableStream<Uint8Array> {
  return new WritableStream<Uint8Array>({
    start(controller) {
      if (!hasPipe) controller.error(new InputValidationError("Cannot write to the process: it was started without a stdin pipe"));
    },
    async write(chunk) {
      if (!(chunk instanceof Uint8Array)) {
        throw new InputValidationError(`Cannot write to the process: give Uint8Array, got ${shown(chunk)}`);
      }
      await process.send(chunk);
      const end = ended();
      if (!end) return;
      await delay(0); // What writes in a loop must leave others their turn.
      await end; // Bytes for a process that has ended are dropped; a lost one is an error.
    },
    close: () => process.end(),
    abort: () => process.end(),
  });
}

/** Feeds a process from a source; disposing it ends the source. */
function feedInput(process: GuestProcess, input: InputSource, onFailure: (error: unknown) => void): Disposable {
  const iterator = inputPieces(input)[Symbol.asyncIterator]();
  let isOver = false;
  const feed = async () => {
    for (let next = await iterator.next(); !next.done && !isOver; next = await iterator.next()) await process.send(next.value);
    if (!isOver) process.end();
    isOver = true;
  };
  feed().catch(onFailure);
  return {
    [Symbol.dispose]() {
      if (isOver) return;
      isOver = true;
      void Promise.try(() => iterator.return?.()).catch(() => {}); // Its own failure to stop has no reader any more.
    },
  };
}

function checkArguments(command: unknown, args: unknown): string[] {
  const program = checkText("spawn", "command", command);
  if (program === "") throw new InputValidationError("Cannot spawn: command must not be empty");
  if (!Array.isArray(args)) throw new InputValidationError(`Cannot spawn: args must be an array of strings, got ${shown(args)}`);
  const argv = [program, ...args.map((argument, at) => checkText("spawn", `args[${at}]`, argument))];
  const byteCount = argv.reduce((sum, argument) => sum + Buffer.byteLength(argument) + 1, 0);
  if (byteCount <= ARGUMENTS_MAX_BYTES) return argv;
  throw new InputValidationError(`Cannot spawn: command and args must be at most ${ARGUMENTS_MAX_BYTES} bytes in all, got ${byteCount}`);
}

function checkDirectory(cwd: unknown): string {
  if (cwd === undefined) return HOME;
  const text = checkText("spawn", "cwd", cwd);
  const directory = text.startsWith("/") ? text : text === "" ? HOME : `${HOME}/${text}`;
  if (Buffer.byteLength(directory) <= PATH_MAX_BYTES) return directory;
  throw new InputValidationError(`Cannot spawn: cwd must be at most ${PATH_MAX_BYTES} bytes, got ${Buffer.byteLength(directory)}`);
}
