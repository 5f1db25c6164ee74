/** Session: one VM that is kept; executions one after the other, everything else beside them. */
import { abortable, Semaphore } from "../base/async.ts";
import { OutcomeUnknownError, SessionClosedError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import type { GuestProcesses } from "../channel/guest_processes.ts";
import { ask, type AssistQuestion, type CodeState, completenessQuestion, type Completion, completionQuestion } from "./assist.ts";
import { BackgroundOutput } from "./background_output.ts";
import { checkFields, checkSignal } from "./check.ts";
import { conclude, measured, wholeMs } from "./conclude.ts";
import { type EventSink, execute } from "./execute.ts";
import { ExecutionStream } from "./execution_stream.ts";
import type { FileSource } from "./file_source.ts";
import { IdleTimer } from "./idle_timer.ts";
import type { Machine } from "./machine.ts";
import type { Language } from "./request.ts";
import type { ExecutionResult, ExposedPort } from "../base/result.ts";
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
import {
  type AttachOptions,
  checkAttach,
  checkSpawn,
  giveUpInput,
  type ProcessInfo,
  processInfo,
  type ProcessStart,
  SessionProcess,
  type SpawnOptions,
} from "./session_process.ts";
import { type CheckedExec, type CheckedSessionRequest, checkExec, type ExecOptions } from "./session_request.ts";
import type { FileAccess } from "./vm_files.ts";

const CALL_FIELDS: ReadonlySet<string> = new Set<keyof CallOptions>(["signal"]);

/** What a session is made of. It owns the machine. */
export interface SessionParts {
  readonly machine: Machine;
  readonly request: CheckedSessionRequest;
  readonly log: Logger;
  /** Called once, when the session has ended. */
  readonly onEnd: (session: Session) => void;
}

/**
 * One VM that is kept. Executions run one after the other, in the order of the calls; file operations, `interrupt`, processes and pings run
 * beside them. After a lost VM, `close` or too long a time without use every call rejects with `SessionClosedError`. The caller owns it:
 * `await using`, or `close()`.
 *
 * @example
 * ```ts
 * import { Scheduler } from "@exec-sandbox/sbx";
 * await using scheduler = await Scheduler.open();
 * await using session = await scheduler.session({ language: "python" });
 * await session.exec("x = 20");
 * console.log((await session.exec("x + 22")).value);
 * ```
 */
export class Session implements AsyncDisposable, FileAccess {
  /** Names it in logs; no two are the same. */
  readonly id: string;
  /** What runs its code. */
  readonly language: Language;
  /** Guest ports reachable on the host. */
  readonly exposedPorts: readonly ExposedPort[] = [];
  readonly #parts: SessionParts;
  readonly #idle: IdleTimer;
  /** One execution at a time. */
  readonly #turns = new Semaphore(1);
  /** Aborts when the session was ended on purpose: what runs ends with that reason. */
  readonly #closing = new AbortController();
  /** Aborts when the session has ended, for whatever reason: what waits ends with it. */
  readonly #ended = new AbortController();
  readonly #background = new BackgroundOutput();
  #execCount = 0;

  /** Made by `Scheduler.session` only. */
  constructor(parts: SessionParts) {
    this.#parts = parts;
    this.id = parts.machine.id;
    this.language = parts.request.language;
    const { idleTimeoutSeconds } = parts.request;
    this.#idle = new IdleTimer(idleTimeoutSeconds * 1000, () => this.end(`it was not used for ${idleTimeoutSeconds} s`));
    const { machine } = parts, { lost } = machine;
    const onLost = () => this.#end(`its VM was lost: ${machine.describeLoss(lost.reason)}`);
    if (lost.aborted) onLost();
    else lost.addEventListener("abort", onLost, { once: true });
  }

  /** True once no call can succeed any more. */
  get closed(): boolean {
    return this.#ended.signal.aborted;
  }

  /** Executions sent to the guest so far. */
  get execCount(): number {
    return this.#execCount;
  }

  /**
   * Runs code, after the executions that were asked for earlier, once the host has a CPU slot for it. A non-zero exit, a signal or a time-out of the program is a result, unless
   * `check` is set. Rejects with `OutputLimitError` when output goes past its cap, with `OutcomeUnknownError` when the VM is lost meanwhile
   * (the session is closed then), and with the signal's reason when aborted.
   */
  async exec(code: string, options: ExecOptions = {}): Promise<ExecutionResult> {
    const calledAt = performance.now();
    return await this.#execute(checkExec(code, options, this.#parts.request), { calledAt });
  }

  /** The same as `exec`, as a loop over what the code shows: output, display data, and the result last. Arguments are checked at once. */
  stream(code: string, options: ExecOptions = {}): ExecutionStream {
    const checked = checkExec(code, options, this.#parts.request);
    return new ExecutionStream(async (events, leaving) => {
      const controller = new AbortController(), { signal } = checked;
      const onAbort = () => controller.abort(signal?.aborted ? signal.reason : leaving.reason);
      // Not AbortSignal.any: a signal that outlives many loops would keep all of them.
      for (const source of [signal, leaving]) source?.addEventListener("abort", onAbort, { once: true });
      if (signal?.aborted) onAbort();
      try {
        return await this.#execute({ ...checked, signal: controller.signal }, { calledAt: performance.now(), events });
      } finally {
        signal?.removeEventListener("abort", onAbort);
      }
    });
  }

  /** Interrupts the running execution as Ctrl-C would; false when nothing runs. Code may ignore it: a time-out or an abort it cannot. */
  async interrupt(): Promise<boolean> {
    return await this.#use(() => abortable(this.#parts.machine.guest.interrupt(), this.#ended.signal));
  }

  /** The milliseconds that the guest takes to answer. */
  async ping(options: CallOptions = {}): Promise<number> {
    const signal = checkSignal("ping", checkFields("ping", options, CALL_FIELDS).signal);
    return await this.#use(async () => {
      const startedAt = performance.now();
      await abortable(this.#parts.machine.guest.ping(signal), this.#ended.signal);
      return performance.now() - startedAt;
    });
  }

  /** What may stand at `cursor` (UTF-16 units; default: at the end) of code that somebody types. Waits its turn among the executions. */
  async complete(code: string, cursor?: number, options: CallOptions = {}): Promise<Completion> {
    return await this.#ask(completionQuestion(code, cursor), options);
  }

  /** Whether code is a finished block, to be run when Enter is pressed. Waits its turn among the executions. */
  async isComplete(code: string, options: CallOptions = {}): Promise<CodeState> {
    return await this.#ask(completenessQuestion(code), options);
  }

  /**
   * Writes a file, whole or not at all; parents are made. `path` is relative to the home directory. Rejects with `SandboxFileError`; a stream
   * that fails ends the transfer with its own error.
   */
  async writeFile(path: string, content: FileSource, options: WriteFileOptions = {}): Promise<void> {
    await this.#onFiles(writeFileCall(path, content, options));
  }

  /** Reads a file to a local file or a stream; resolves with its size in bytes. */
  async readFile(
    path: string,
    options: ReadFileOptions & { readonly destination: NonNullable<ReadFileOptions["destination"]> },
  ): Promise<number>;
  /** Reads a file as text. */
  async readFile(path: string, options: ReadFileOptions & { readonly encoding: "utf-8" }): Promise<string>;
  /** Reads a file. Rejects with `SandboxFileError`. */
  async readFile(
    path: string,
    options?: ReadFileOptions & { readonly encoding?: undefined; readonly destination?: undefined },
  ): Promise<Uint8Array>;
  async readFile(path: string, options: ReadFileOptions = {}): Promise<Uint8Array | string | number> {
    return await this.#onFiles(readFileCall(path, options));
  }

  /** The entries of a directory, sorted by name; at most 100,000. Default: the home directory. */
  async listFiles(path = ".", options: CallOptions = {}): Promise<FileInfo[]> {
    return await this.#onFiles(listFilesCall(path, options));
  }

  /** What is at a path. Rejects with `SandboxFileError` when nothing is. */
  async stat(path: string, options: StatOptions = {}): Promise<FileInfo> {
    return await this.#onFiles(statCall(path, options));
  }

  /** Whether something is at a path; false too for a link that leads nowhere. */
  async exists(path: string, options: CallOptions = {}): Promise<boolean> {
    return await this.#onFiles(existsCall(path, options));
  }

  /** Makes a directory. */
  async makeDir(path: string, options: MakeDirOptions = {}): Promise<void> {
    await this.#onFiles(makeDirCall(path, options));
  }

  /** Removes a file, an empty directory, or with `recursive` a directory and what is in it. */
  async remove(path: string, options: RemoveOptions = {}): Promise<void> {
    await this.#onFiles(removeCall(path, options));
  }

  /** Gives a file or directory another path; a file that is there is replaced. */
  async rename(from: string, to: string, options: CallOptions = {}): Promise<void> {
    await this.#onFiles(renameCall(from, to, options));
  }

  /** Starts a program beside the executions, at most 32 at once; resolves when it runs. It is found on `PATH`, no shell is involved. */
  async spawn(command: string, args: readonly string[] = [], options: SpawnOptions = {}): Promise<SessionProcess> {
    const { request, input, signal } = checkSpawn(command, args, options, this.#parts.request.env);
    const { processes } = this.#parts.machine.guest;
    const start: ProcessStart["start"] = (onOutput, until) => processes.spawn(request, onOutput, until);
    return await this.#openProcess({ start, hasStdin: request.hasStdin, input, signal });
  }

  /** The processes that run, and those that have ended and that nobody has attached to since. */
  async processes(options: CallOptions = {}): Promise<ProcessInfo[]> {
    const signal = checkSignal("list processes", checkFields("list processes", options, CALL_FIELDS).signal);
    return await this.#use(async () => (await this.#parts.machine.guest.processes.list(signal)).map(processInfo));
  }

  /** Takes a process up again: first come the last 64 KiB of each output that nobody has read. */
  async attach(id: number, options: AttachOptions = {}): Promise<SessionProcess> {
    const { hasStdin, signal } = checkAttach(id, options);
    const { processes } = this.#parts.machine.guest;
    const start: ProcessStart["start"] = (onOutput, until) => processes.attach(id, { hasStdin }, onOutput, until);
    return await this.#openProcess({ start, hasStdin, input: undefined, signal });
  }

  /** Ends what runs and the VM, and waits until it is dead. May be called twice. */
  async close(): Promise<void> {
    this.end("it was closed");
    await this.#parts.machine[Symbol.asyncDispose]();
  }

  /** The same as `close`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** For the scheduler: ends it without waiting. `why` follows "Cannot use the session: ". */
  end(why: string): void {
    if (!this.closed) this.#closing.abort(closedError(why));
    this.#end(why);
  }

  #end(why: string): void {
    if (this.closed) return;
    this.#idle.stop();
    this.#ended.abort(this.#closing.signal.aborted ? this.#closing.signal.reason : closedError(why));
    this.#parts.machine.release();
    this.#parts.onEnd(this);
  }

  async #execute(checked: CheckedExec, call: { readonly calledAt: number; readonly events?: EventSink }): Promise<ExecutionResult> {
    const { machine, log } = this.#parts;
    const inTurn = this.#inTurn(checked.signal, async () => {
      this.#execCount += 1;
      const startedAt = performance.now();
      const background = this.#background;
      const running = execute(machine.guest, { ...checked, events: call.events, background }, log);
      running.catch(() => {}); // It is awaited below.
      await null; // What was sent has left now: the guest need not wait while we read what its machine has cost so far.
      const before = machine.usage(), execution = await running;
      const usage = machine.usage(), finishedAt = performance.now();
      const cpuTimeMs = usage.cpuTimeMs === null || before.cpuTimeMs === null ? null : usage.cpuTimeMs - before.cpuTimeMs;
      const timing = {
        setupMs: wholeMs(startedAt - call.calledAt),
        bootMs: 0,
        executeMs: wholeMs(finishedAt - startedAt),
        totalMs: wholeMs(finishedAt - call.calledAt),
      };
      const measures = { usage: { ...usage, cpuTimeMs }, timing, start: machine.start };
      const result = { ...measured(execution, measures), stateReset: execution.reply.isReset };
      return conclude(result, { outputLimit: execution.outputLimit, check: checked.check, timeoutSeconds: checked.timeoutSeconds });
    });
    return await inTurn.catch((error) => {
      checked.giveUp(error);
      throw error;
    });
  }

  async #ask<T>(question: AssistQuestion<T>, options: CallOptions): Promise<T> {
    const signal = checkSignal("ask about code", checkFields("ask about code", options, CALL_FIELDS).signal);
    return await this.#inTurn(signal, () => ask(this.#parts.machine.guest, question, { signal, background: this.#background }));
  }

  /** Runs `work` when everything that was asked for earlier is over. What starts at once is sent before any other call can be made. */
  async #inTurn<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    return await this.#use(async () => {
      signal?.throwIfAborted();
      using _turn = this.#turns.tryAcquire() ?? await this.#granted(this.#turns.acquire(signal));
      const slot = this.#parts.machine.occupy(signal);
      using _slot = slot instanceof Promise ? await this.#granted(slot) : slot;
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof OutcomeUnknownError)) throw error;
        throw new OutcomeUnknownError(this.#parts.machine.describeLoss(error), { cause: error });
      }
    });
  }

  /** What is waited for in a line, unless the session ends first. */
  async #granted(waiting: Promise<Disposable>): Promise<Disposable> {
    try {
      return await abortable(waiting, this.#ended.signal);
    } catch (error) {
      waiting.then((grant) => grant[Symbol.dispose](), () => {}); // Nobody waits for it any more; whoever is next may go.
      throw error;
    }
  }

  async #onFiles<T>({ run, giveUp }: FileCall<T>): Promise<T> {
    if (this.closed) giveUp?.(this.#ended.signal.reason);
    return await this.#use(() => run(this.#parts.machine.guest.files));
  }

  async #openProcess(options: Omit<ProcessStart, "call" | "closing">): Promise<SessionProcess> {
    const call = <T>(work: (processes: GuestProcesses) => Promise<T>) => this.#use(() => work(this.#parts.machine.guest.processes));
    const opening = this.#use(() => SessionProcess.open({ ...options, call, closing: this.#closing.signal }));
    const process = await opening.catch((error) => {
      giveUpInput(options.input, error);
      throw error;
    });
    // A session with a process that somebody is attached to is in use.
    const use = this.#idle.use(), over = () => use[Symbol.dispose]();
    process.wait().then(over, over);
    return process;
  }

  /** Makes a call unless the session has ended. A session that is closed meanwhile ends it. */
  async #use<T>(work: () => Promise<T>): Promise<T> {
    this.#ended.signal.throwIfAborted();
    using _use = this.#idle.use();
    return await abortable(work(), this.#closing.signal);
  }
}

function closedError(why: string): SessionClosedError {
  return new SessionClosedError(`Cannot use the session: ${why}`, { hint: "Open another with scheduler.session()." });
}
