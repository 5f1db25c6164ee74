/** Scheduler: the library's entry. Owns everything that runs on its behalf. */
import process from "node:process";
import { SessionClosedError } from "../base/errors.ts";
import { lineLogger, type Logger } from "../base/log.ts";
import { resolveConfig, type ResolvedConfig, type SchedulerConfig } from "../config/config.ts";
import type { BakeProgress } from "./bake.ts";
import { checkMemory } from "./check.ts";
import { CheckpointOf, type RestoreOptions } from "./checkpoint.ts";
import { Copies } from "./copies.ts";
import type { Machine, MachineSource } from "./machine.ts";
import { openSession } from "./open_session.ts";
import { checkLanguage, checkRequest, type Language, type RequestDefaults, type RunRequest } from "./request.ts";
import type { ExecutionResult } from "../base/result.ts";
import { runOnce } from "./run_once.ts";
import { type Checkpoint, Session } from "./session.ts";
import { type CheckedSessionRequest, checkSession, type SessionDefaults, type SessionRequest } from "./session_request.ts";
import type { RunContext } from "./start_vm.ts";
import { Supply } from "./supply.ts";

/** What only programs built on the library set. */
export interface SchedulerHooks {
  /** Where log entries go; default: lines on standard error, of at least `EXEC_SANDBOX_LOG_LEVEL` (default `warning`). */
  readonly log?: Logger;
  /** Told about each step while a template is made, which takes seconds and happens once per language and memory size. */
  readonly onProgress?: (progress: BakeProgress) => void;
}

/**
 * Runs code in VMs. Two schedulers in one process do not see each other.
 *
 * @example
 * ```ts
 * import { Scheduler } from "@exec-sandbox/sbx";
 * await using scheduler = await Scheduler.open();
 * const result = await scheduler.run({ code: "print('hi')", language: "python" });
 * console.log(result.stdout);
 * ```
 */
export class Scheduler implements AsyncDisposable {
  readonly #config: ResolvedConfig;
  readonly #log: Logger;
  readonly #machines: MachineSource;
  readonly #closing = new AbortController();
  readonly #running = new Set<Promise<unknown>>();
  readonly #sessions = new Set<Session>();
  readonly #copies: Copies<Session>;
  #closed: Promise<void> | undefined;

  private constructor(config: ResolvedConfig, machines: MachineSource, log: Logger) {
    this.#config = config;
    this.#machines = machines;
    this.#log = log;
    this.#copies = new Copies<Session>({
      machines,
      defaults: this.#sessionDefaults(),
      closing: this.#closing.signal,
      open: (machine, request) => this.#hand(machine, request),
      track: (work) => this.#track(work),
    });
  }

  /**
   * Opens a scheduler. Explicit fields beat `EXEC_SANDBOX_*` in the environment, which is read here and never again. Throws `VmConfigError`
   * for a bad field and `AssetError` when the images are missing. The caller owns it: `await using`, or `close()`.
   */
  static async open(config: SchedulerConfig = {}, hooks: SchedulerHooks = {}): Promise<Scheduler> {
    const resolved = resolveConfig(config);
    const log = hooks.log ?? lineLogger(resolved.logLevel, (line) => process.stderr.write(`${line}\n`));
    const supply = await Supply.open(resolved, { log, ...(hooks.onProgress ? { onProgress: hooks.onProgress } : {}) });
    return new Scheduler(resolved, supply, log);
  }

  /**
   * Runs code in a VM of its own, which is destroyed afterwards. A non-zero exit, a signal or a time-out of the program is a result, unless
   * `check` is set. Rejects with the signal's reason when aborted; the VM is killed then.
   */
  run(request: RunRequest): Promise<ExecutionResult> {
    const calledAt = performance.now();
    return this.#track(async () => {
      const checked = checkRequest(request, this.#defaults());
      const signal = checked.signal ? AbortSignal.any([checked.signal, this.#closing.signal]) : this.#closing.signal;
      signal.throwIfAborted();
      return await runOnce({ ...checked, signal }, this.#context(calledAt));
    });
  }

  /**
   * Opens a session: one VM that is kept for many executions, files and processes. It takes its part of the host's budget until it is closed,
   * by the caller, by too long a time without use, or with this scheduler. Rejects with the signal's reason when aborted before it is open.
   */
  session(request: SessionRequest): Promise<Session> {
    const calledAt = performance.now();
    return this.#track(async () => {
      const checked = checkSession(request, this.#sessionDefaults());
      const signal = checked.signal ? AbortSignal.any([checked.signal, this.#closing.signal]) : this.#closing.signal;
      signal.throwIfAborted();
      return await openSession({ ...checked, signal }, this.#context(calledAt), (machine, opened) => this.#hand(machine, opened));
    });
  }

  /**
   * A new session that goes on from a checkpoint, or from the one of that name, whichever process made it. What is not given is as in the session
   * it was made of, or by this scheduler's defaults. Rejects with `SnapshotError` when there is none or it does not fit this host.
   */
  async restore(from: Checkpoint | string, options: RestoreOptions = {}): Promise<Session> {
    this.#closing.signal.throwIfAborted();
    return await (from instanceof CheckpointOf ? from : await this.#copies.named(from)).restore(options);
  }

  /** All checkpoints with a name, the oldest first, whichever process made them. */
  checkpoints(): Promise<Checkpoint[]> {
    return this.#track(() => this.#copies.list());
  }

  /** Removes the checkpoint of that name; sessions that were restored from it go on. Rejects with `SnapshotError` when there is none. */
  removeCheckpoint(name: string): Promise<void> {
    return this.#track(async () => await (await this.#copies.named(name)).remove());
  }

  /** Makes the template for `language` now, so that the first run need not. */
  prepare(language: Language, options: { readonly memoryMb?: number; readonly signal?: AbortSignal } = {}): Promise<void> {
    return this.#track(async () => {
      const signal = options.signal ? AbortSignal.any([options.signal, this.#closing.signal]) : this.#closing.signal;
      const memoryMb = checkMemory(options.memoryMb ?? this.#config.defaultMemoryMb), known = checkLanguage(language);
      await this.#machines.prepare({ language: known, memoryMb, signal });
    });
  }

  /**
   * Resolves when the warm pool is full, at once when `warmPoolSize` is 0. Rejects with what keeps it from being full (it is tried again all the same), with
   * `VmCapacityError` when the host's budget can never hold it, with the signal's reason when aborted, and with `SessionClosedError` when the scheduler is closed.
   */
  ready(options: { readonly signal?: AbortSignal } = {}): Promise<void> {
    return this.#track(async () => {
      const signal = options.signal ? AbortSignal.any([options.signal, this.#closing.signal]) : this.#closing.signal;
      await this.#machines.ready(signal);
    });
  }

  /** Aborts what runs, kills every VM and waits until all are dead. May be called twice. */
  close(): Promise<void> {
    this.#closed ??= (async () => {
      this.#closing.abort(new SessionClosedError("Cannot run: the scheduler is closed"));
      for (const session of this.#sessions) session.end("the scheduler is closed");
      await Promise.allSettled(this.#running);
      await this.#machines[Symbol.asyncDispose]();
    })();
    return this.#closed;
  }

  /** The same as `close`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #defaults(): RequestDefaults {
    return { timeoutSeconds: this.#config.defaultTimeoutSeconds, memoryMb: this.#config.defaultMemoryMb };
  }

  #sessionDefaults(): SessionDefaults {
    return { ...this.#defaults(), idleTimeoutSeconds: this.#config.sessionIdleTimeoutSeconds };
  }

  /** Makes a session of a machine, and ends it with this scheduler. */
  #hand(machine: Machine, request: CheckedSessionRequest): Session {
    const onEnd = (ended: Session) => void this.#sessions.delete(ended);
    const session = new Session({ machine, request, log: this.#log, copies: this.#copies, onEnd });
    if (this.#closing.signal.aborted) session.end("the scheduler is closed");
    else if (!session.closed) this.#sessions.add(session);
    return session;
  }

  #context(calledAt: number): RunContext {
    return { machines: this.#machines, log: this.#log, calledAt };
  }

  /** Lets `close` wait for what was under way when it was called. */
  async #track<T>(work: () => Promise<T>): Promise<T> {
    this.#closing.signal.throwIfAborted();
    const running = work();
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }
}
