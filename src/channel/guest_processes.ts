/** Guest processes: programs that run beside the executions of a session, as typed calls. */
import { abortable, Semaphore } from "../base/async.ts";
import { type FileReason, InputValidationError, SandboxFileError, shown, VmCapacityError } from "../base/errors.ts";
import { SESSION_PROCESSES_MAX } from "../base/limits.ts";
import { answerObject, isCount, type JsonObject, parseObject, type Refusal, refusalError, refusalOf, unreadable } from "./answer.ts";
import type { Answer, DataHandler, Mux, MuxStream } from "./mux.ts";
import { callAnswer, environmentBlock, type Graces, type Message, stopStream } from "./stream_io.ts";
import { concat, DATA_FLAG, WireError } from "./wire.ts";

/** Short calls about processes at once; the rest wait their turn. */
const CALLS_AT_ONCE = 4;
const encoder = new TextEncoder();

/** Size of a terminal in character cells. */
export interface TerminalSize {
  /** Characters in a row, 1-65,535. */
  readonly columns: number;
  /** Rows, 1-65,535. */
  readonly rows: number;
}

/** A program to be started. Everything has been checked. */
export interface GuestSpawn {
  /** The program and its arguments. */
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** Absolute. */
  readonly cwd: string;
  /** Its standard input is a pipe that is fed; otherwise it is at its end. */
  readonly hasStdin: boolean;
  readonly pty: TerminalSize | null;
  /** It goes on when nobody is attached to it any more. */
  readonly isBackground: boolean;
}

/** Where a process's output goes: raw bytes, valid during the call only. The guest waits for what is returned. */
export type ProcessOutput = (name: "stdout" | "stderr", bytes: Uint8Array) => void | Promise<void>;

/** One line of the list of processes. */
export interface GuestProcessInfo {
  readonly id: number;
  readonly pid: number;
  /** Program and arguments, cut at 256 bytes in all. */
  readonly argv: readonly string[];
  readonly isBackground: boolean;
  readonly isAttached: boolean;
  readonly hasPty: boolean;
  /** Undefined while it runs. */
  readonly exitCode: number | undefined;
}

/** The processes of one VM. */
export class GuestProcesses {
  readonly #mux: Mux;
  readonly #graces: Graces;
  readonly #calls = new Semaphore(CALLS_AT_ONCE);
  #attachedCount = 0;

  /** Made by `GuestChannel` only. */
  constructor(mux: Mux, graces: Graces) {
    this.#mux = mux;
    this.#graces = graces;
  }

  /** Starts a program; resolves when it runs. An abort before that ends it. */
  async spawn(request: GuestSpawn, onOutput: ProcessOutput, signal?: AbortSignal): Promise<GuestProcess> {
    const env = environmentBlock(request.env), argv = encoder.encode(request.argv.map((word) => `${word}\0`).join(""));
    const { cwd, hasStdin: stdin, pty, isBackground: background } = request;
    const message = { method: "spawn", envBytes: env.length, argvBytes: argv.length, cwd, stdin, pty, background };
    const refused = (refusal: Refusal) => spawnError(refusal, request);
    return await this.#start({ message, refused, body: concat(env, argv) }, onOutput, signal);
  }

  /** Takes a process up again: first comes the last output that nobody has taken. */
  async attach(id: number, options: { readonly hasStdin: boolean }, onOutput: ProcessOutput, signal?: AbortSignal): Promise<GuestProcess> {
    const message = { method: "attach", id, stdin: options.hasStdin };
    const refused = (refusal: Refusal) =>
      refusal.code === "not_found" ? new InputValidationError(`Cannot attach: there is no process ${id}`) : refusalError(refusal, "attach");
    return await this.#start({ message, refused }, onOutput, signal);
  }

  /** Those that run, and those that have ended and that nobody has attached to since. */
  async list(signal?: AbortSignal): Promise<GuestProcessInfo[]> {
    const payload = await this.#call({ method: "process_list" }, signal);
    const { processes } = answerObject(payload);
    if (!Array.isArray(processes)) throw unreadable(payload);
    return processes.map((process) => {
      const info = parseInfo(process);
      if (!info) throw unreadable(payload);
      return info;
    });
  }

  /** Sends a signal to a process's group; false when it has ended. */
  async signal(id: number, number: number, signal?: AbortSignal): Promise<boolean> {
    return answerObject(await this.#call({ method: "process_signal", id, signal: number }, signal))["delivered"] === true;
  }

  /** Tells a process the size of its terminal. */
  async resize(id: number, { columns, rows }: TerminalSize, signal?: AbortSignal): Promise<void> {
    await this.#call({ method: "process_resize", id, columns, rows }, signal);
  }

  async #call(message: Message, signal?: AbortSignal): Promise<Uint8Array> {
    const answer = await callAnswer(this.#mux, message, { turns: this.#calls, signal });
    const refusal = refusalOf(answer);
    if (refusal) throw refusalError(refusal, message.method.replaceAll("_", " "));
    return answer.payload;
  }

  async #start(
    { message, refused, body }: {
      readonly message: Message;
      readonly refused: (refusal: Refusal) => Error;
      readonly body?: Uint8Array;
    },
    onOutput: ProcessOutput,
    signal?: AbortSignal,
  ): Promise<GuestProcess> {
    signal?.throwIfAborted();
    if (this.#attachedCount >= SESSION_PROCESSES_MAX) throw tooManyError(message.method);
    const started = Promise.withResolvers<{ id: number; pid: number }>();
    const stream = this.#mux.open(message, startHandler(started.resolve, onOutput));
    this.#attachedCount += 1;
    const over = () => void (this.#attachedCount -= 1);
    stream.answer.then(over, over);
    if (body) void stream.send(body, DATA_FLAG.body);
    try {
      const first = await abortable(Promise.race([started.promise, stream.answer]), signal);
      if ("pid" in first) return new GuestProcess(stream, first, () => stopStream(this.#mux, stream, this.#graces));
      const refusal = refusalOf(first);
      throw refusal ? refused(refusal) : unreadable(first.payload); // It cannot end before it has started.
    } catch (error) {
      if (signal?.aborted && !this.#mux.closed.aborted) await stopStream(this.#mux, stream, this.#graces);
      throw error;
    }
  }
}

/** A process that we are attached to. */
export class GuestProcess {
  readonly id: number;
  /** Its number in the guest. */
  readonly pid: number;
  /** Resolves with its exit code when it has ended and its output has come, with -1 when it was let go; rejects with a `CommunicationError`. */
  readonly ended: Promise<number>;
  readonly #stream: MuxStream;
  #isLetGo = false;
  readonly #stop: () => Promise<void>;

  /** Made by `GuestProcesses` only. */
  constructor(stream: MuxStream, { id, pid }: { readonly id: number; readonly pid: number }, stop: () => Promise<void>) {
    this.id = id;
    this.pid = pid;
    this.#stream = stream;
    this.#stop = stop;
    this.ended = stream.answer.then((answer) => this.#isLetGo ? exitCodeAfterStop(answer) : exitCodeOf(answer));
    this.ended.catch(() => {}); // Whoever waits sees it.
  }

  /** Feeds its standard input; resolves when the bytes are on their way. Bytes for a process that has ended are dropped. */
  send(bytes: Uint8Array): Promise<void> {
    return this.#stream.send(bytes, DATA_FLAG.body);
  }

  /** Ends its standard input. */
  end(): void {
    this.#stream.end();
  }

  /** Its output is not wanted any more: it must not wait for it. */
  release(): void {
    this.#stream.release();
  }

  /** Lets go: a background process goes on, any other is ended. Resolves when the guest has done so. */
  async stop(): Promise<void> {
    this.#isLetGo = true;
    await this.#stop();
  }
}

/** Tells the start, then passes the output on. */
function startHandler(onStart: (started: { id: number; pid: number }) => void, onOutput: ProcessOutput): DataHandler {
  let hasStarted = false;
  return (flags, payload) => {
    if (flags === DATA_FLAG.event && !hasStarted) {
      const event = parseObject(payload);
      if (!event || !isCount(event["id"]) || !isCount(event["pid"])) throw new WireError("content", "a start has an id and a pid");
      hasStarted = true;
      return onStart({ id: event["id"], pid: event["pid"] });
    }
    if (!hasStarted) throw new WireError("content", "a process says that it runs before it says anything else");
    if (flags === DATA_FLAG.stdout) return onOutput("stdout", payload);
    if (flags === DATA_FLAG.stderr) return onOutput("stderr", payload);
    throw new WireError("flags", `output of a process has the flags ${DATA_FLAG.stdout} or ${DATA_FLAG.stderr}, got ${flags}`);
  };
}

function exitCodeOf(answer: Answer): number {
  const refusal = refusalOf(answer);
  if (refusal) throw refusalError(refusal, "run a process");
  const { exitCode } = answerObject(answer.payload);
  if (!isCount(exitCode) || exitCode > 255) throw unreadable(answer.payload);
  return exitCode;
}

/** A background process has no exit code then, whatever the guest says instead. */
function exitCodeAfterStop(answer: Answer): number {
  try {
    return exitCodeOf(answer);
  } catch {
    return -1; // It goes on.
  }
}

function parseInfo(value: unknown): GuestProcessInfo | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  const { id, pid, argv, background, attached, pty, exitCode } = value as JsonObject;
  const isValid = isCount(id) && isCount(pid) && Array.isArray(argv) && argv.every((word) => typeof word === "string") &&
    (exitCode === null || isCount(exitCode));
  if (!isValid) return undefined;
  return {
    id,
    pid,
    argv,
    isBackground: background === true,
    isAttached: attached === true,
    hasPty: pty === true || (typeof pty === "object" && pty !== null),
    exitCode: exitCode ?? undefined,
  };
}

function spawnError(refusal: Refusal, { argv, cwd }: GuestSpawn): Error {
  const reasons: Readonly<Record<string, FileReason>> = {
    not_found: "not-found",
    permission: "permission",
    not_directory: "not-directory",
  };
  const reason = Object.hasOwn(reasons, refusal.code) ? reasons[refusal.code] : undefined;
  if (refusal.code === "limit" || refusal.code === "busy") return tooManyError("spawn", refusalError(refusal, "spawn"));
  if (!reason) return refusalError(refusal, "spawn");
  const path = reason === "not-directory" ? cwd : argv[0] ?? "";
  return new SandboxFileError(`Cannot spawn ${shown(argv[0])} in the guest: ${refusal.message}`, { side: "guest", path, reason });
}

function tooManyError(method: string, cause?: Error): VmCapacityError {
  const message = `Cannot ${method}: a session has at most ${SESSION_PROCESSES_MAX} processes at once`;
  return new VmCapacityError(message, cause === undefined ? {} : { cause });
}
