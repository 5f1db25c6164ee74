/** Session: one VM that is kept; executions one after the other, everything else beside them. */
import { abortable } from "../base/async.ts";
import type { Logger } from "../base/log.ts";
import type { GuestProcesses } from "../channel/guest_processes.ts";
import { ask, type AssistQuestion, type CodeState, completenessQuestion, type Completion, completionQuestion } from "./assist.ts";
import { checkFields, checkSignal } from "./check.ts";
import { checkCheckpoint, type CheckpointOf, type CheckpointOptions } from "./checkpoint.ts";
import { conclude, measured, wholeMs } from "./conclude.ts";
import type { Copies, Original } from "./copies.ts";
import { type EventSink, execute } from "./execute.ts";
import { ExecutionStream } from "./execution_stream.ts";
import type { FileSource } from "./file_source.ts";
import {
  type CandidateFor,
  checkForkMap,
  checkRace,
  forkMap,
  type ForkMapOptions,
  race,
  type RaceOptions,
  type WinnerOf,
} from "./forks.ts";
import type { Machine } from "./machine.ts";
import type { NetworkPolicy } from "../net/policy.ts";
import { type MachineNetwork, networkOf } from "./network.ts";
import { accessOf, checkAccess, checkPort, type NetworkAccess, type PortRequest } from "./network_request.ts";
import type { Language } from "./request.ts";
import type { ExecutionResult, ExposedPort } from "../base/result.ts";
import { SessionCore } from "./session_core.ts";
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

/** A session as it was at one moment. */
export type Checkpoint = CheckpointOf<Session>;
/** One way to go on in a race: code, or what is done with a fork. */
export type Candidate<T = ExecutionResult> = CandidateFor<Session, T>;
/** Who won a race. */
export type RaceWinner<T = ExecutionResult> = WinnerOf<Session, T>;

/** What a session is made of. It owns the machine. */
export interface SessionParts {
  readonly machine: Machine;
  /** The machine's network. Default: there is none to be had. */
  readonly network?: MachineNetwork | undefined;
  readonly request: CheckedSessionRequest;
  readonly log: Logger;
  /** Makes copies of it. */
  readonly copies: Copies<Session>;
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
  readonly #parts: SessionParts;
  readonly #core: SessionCore;
  #execCount = 0;

  /** Made by `Scheduler.session` only. */
  constructor(parts: SessionParts) {
    this.#parts = parts;
    this.id = parts.machine.id;
    this.language = parts.request.language;
    const { machine, network, request: { idleTimeoutSeconds } } = parts;
    this.#core = new SessionCore({ machine, network, idleTimeoutSeconds, onEnd: () => parts.onEnd(this) });
  }

  /** Guest ports reachable on the host. */
  get exposedPorts(): readonly ExposedPort[] {
    return this.#core.network?.exposedPorts ?? [];
  }

  /** What code may reach now, as `updateNetwork` takes it. */
  get networkAccess(): NetworkAccess {
    return accessOf(this.#policy);
  }

  /** True once no call can succeed any more. */
  get closed(): boolean {
    return this.#core.isClosed;
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

  /**
   * Interrupts the running execution as Ctrl-C would, one that waits for a CPU slot when it has begun; false when nothing runs. Code may ignore it: a
   * time-out or an abort it cannot.
   */
  async interrupt(): Promise<boolean> {
    return await this.#core.use(async () => {
      if (this.#core.starting) await this.#core.starting;
      return await abortable(this.#core.guest.interrupt(), this.#core.ended);
    });
  }

  /** The milliseconds that the guest takes to answer. */
  async ping(options: CallOptions = {}): Promise<number> {
    const signal = checkSignal("ping", checkFields("ping", options, CALL_FIELDS).signal);
    return await this.#core.use(async () => {
      const startedAt = performance.now();
      await abortable(this.#core.guest.ping(signal), this.#core.ended);
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
    return await this.#openProcess({ hasStdin: request.hasStdin, input, signal }, (processes, ...how) => processes.spawn(request, ...how));
  }

  /** The processes that run, and those that have ended and that nobody has attached to since. */
  async processes(options: CallOptions = {}): Promise<ProcessInfo[]> {
    const signal = checkSignal("list processes", checkFields("list processes", options, CALL_FIELDS).signal);
    return await this.#core.call(async () => (await this.#core.guest.processes.list(signal)).map(processInfo));
  }

  /** Takes a process up again: first come the last 64 KiB of each output that nobody has read. */
  async attach(id: number, options: AttachOptions = {}): Promise<SessionProcess> {
    const { hasStdin, signal } = checkAttach(id, options);
    return await this.#openProcess(
      { hasStdin, input: undefined, signal },
      (processes, ...how) => processes.attach(id, { hasStdin }, ...how),
    );
  }

  /**
   * Saves the session as it is, in its turn among the executions; transfers and other calls under way are waited for. It goes on at once. Rejects with
   * `SnapshotError` when it cannot be saved, or when the name is taken. The caller owns the checkpoint.
   */
  async checkpoint(options: CheckpointOptions = {}): Promise<Checkpoint> {
    return await this.#parts.copies.take(this.#original, checkCheckpoint(options));
  }

  /**
   * Goes on, in its turn, as it was at a checkpoint: one of this session or of a copy, or the name of one. What ran then runs; calls and processes of
   * now end with a `CommunicationError`. When the checkpoint cannot be had the session goes on as it is.
   */
  async rollback(to: Checkpoint | string, options: CallOptions = {}): Promise<void> {
    const signal = checkSignal("roll back", checkFields("roll back", options, CALL_FIELDS).signal);
    await this.#parts.copies.rollBack(this.#original, to, signal);
  }

  /**
   * `count` new sessions with the same variables, files and running processes, each on its own from here on; this one goes on. They need as much
   * room as any session: rejects with `VmCapacityError` where there can never be enough. The caller owns all of them.
   */
  async fork(count = 2, options: CallOptions = {}): Promise<Session[]> {
    const signal = checkSignal("fork", checkFields("fork", options, CALL_FIELDS).signal);
    return await this.#parts.copies.fork(this.#original, count, signal);
  }

  /** Does `fn` on a fork of its own for each input; results in the order of the inputs. Forks are closed afterwards. The first failure ends the rest. */
  async forkMap<I, O>(
    inputs: readonly I[],
    fn: (fork: Session, input: I, index: number) => O | Promise<O>,
    options: ForkMapOptions = {},
  ): Promise<O[]> {
    const checked = checkForkMap(inputs, fn, options);
    await this.#parts.copies.checkRoom(this.#original, Math.min(inputs.length, 1));
    await using checkpoint = await this.checkpoint(checked.signal ? { signal: checked.signal } : {});
    return await forkMap(checkpoint, inputs, fn, checked);
  }

  /**
   * Tries candidates side by side, each on a fork of its own. The first whose result `accept` takes wins; the others are ended at once. Rejects
   * with `NoneAcceptedError` when there is none.
   */
  async race<T = ExecutionResult>(
    candidates: ReadonlyArray<Candidate<T>>,
    accept: (result: T, index: number) => boolean | Promise<boolean>,
    options: RaceOptions = {},
  ): Promise<RaceWinner<T>> {
    const checked = checkRace(candidates, accept, options);
    await this.#parts.copies.checkRoom(this.#original, 1);
    await using checkpoint = await this.checkpoint(checked.signal ? { signal: checked.signal } : {});
    return await race(checkpoint, candidates, accept, checked);
  }

  /** Changes what code may reach from now on, as the fields of the same names in a request. Connections that are not allowed any more are cut. */
  async updateNetwork(access: NetworkAccess): Promise<void> {
    const policy = checkAccess("change the network", access);
    await this.#core.call(() => networkOf(this.#core, "change the network").update(policy));
  }

  /** Makes a port of the guest reachable on 127.0.0.1, until the session ends; at most 10 in all. Rejects with `VmConfigError` when the port cannot be had. */
  async expose(port: number | PortRequest): Promise<ExposedPort> {
    const spec = checkPort("expose a port", port);
    return await this.#core.call(() => networkOf(this.#core, "expose a port").expose(spec));
  }

  /** Ends what runs and the VM, and waits until it is dead. May be called twice. */
  async close(): Promise<void> {
    await this.#core[Symbol.asyncDispose]();
  }

  /** The same as `close`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** For the scheduler: ends it without waiting. `why` follows "Cannot use the session: ". */
  end(why: string): void {
    this.#core.end(why);
  }

  get #original(): Original {
    const { request } = this.#parts;
    return { core: this.#core, request: { ...request, network: { ...request.network, policy: this.#policy } } };
  }

  get #policy(): NetworkPolicy {
    return this.#core.network?.policy ?? this.#parts.request.network.policy;
  }

  async #execute(checked: CheckedExec, call: { readonly calledAt: number; readonly events?: EventSink }): Promise<ExecutionResult> {
    const { log } = this.#parts, core = this.#core;
    const inTurn = core.inTurn(checked.signal, async () => {
      this.#execCount += 1;
      const startedAt = performance.now();
      const { machine, background } = core;
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
      const measures = { usage: { ...usage, cpuTimeMs }, timing, start: machine.start, exposedPorts: this.exposedPorts };
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
    return await this.#core.inTurn(signal, () => ask(this.#core.guest, question, { signal, background: this.#core.background }));
  }

  async #onFiles<T>({ run, giveUp }: FileCall<T>): Promise<T> {
    if (this.closed) giveUp?.(this.#core.ended.reason);
    return await this.#core.call(() => run(this.#core.guest.files));
  }

  async #openProcess(
    options: Pick<ProcessStart, "hasStdin" | "input" | "signal">,
    start: (processes: GuestProcesses, ...how: Parameters<ProcessStart["start"]>) => ReturnType<ProcessStart["start"]>,
  ): Promise<SessionProcess> {
    const core = this.#core;
    const opening = core.call(() => {
      // Of the machine that has it now: after a rollback the same number is another process.
      const { processes } = core.guest;
      const call = <T>(work: (of: GuestProcesses) => Promise<T>) => core.call(() => work(processes));
      return SessionProcess.open({ ...options, start: (...how) => start(processes, ...how), call, closing: core.closing });
    });
    const process = await opening.catch((error) => {
      giveUpInput(options.input, error);
      throw error;
    });
    // A session with a process that somebody is attached to is in use.
    const use = core.keepInUse(), over = () => use[Symbol.dispose]();
    process.wait().then(over, over);
    return process;
  }
}
