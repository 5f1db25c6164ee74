/** Scheduler: the library's entry. Owns everything that runs on its behalf. */
import { existsSync } from "node:fs";
import process from "node:process";
import { SessionClosedError, shown, VmConfigError } from "../base/errors.ts";
import { lineLogger, type Logger } from "../base/log.ts";
import { resolveConfig, type ResolvedConfig, type SchedulerConfig } from "../config/config.ts";
import { placeOf, placeOfSocket, type ServerPlace } from "../link/place.ts";
import { type NetworkHosts, Pins } from "../net/pins.ts";
import type { BakeProgress } from "./bake.ts";
import { type MachineNetwork, networkFinder } from "./network.ts";
import { checkFields, checkMemory, checkSignal } from "./check.ts";
import { CheckpointOf, type RestoreOptions } from "./checkpoint.ts";
import { Copies } from "./copies.ts";
import type { Machine, MachineSource } from "./machine.ts";
import { openSession } from "./open_session.ts";
import { checkLanguage, checkRequest, type Language, type RequestDefaults, type RunRequest } from "./request.ts";
import type { ExecutionResult } from "../base/result.ts";
import { runOnce } from "./run_once.ts";
import { type Checkpoint, Session } from "./session.ts";
import { type CheckedSessionRequest, checkSession, type SessionDefaults, type SessionRequest } from "./session_request.ts";
import { openNetwork, type RunContext } from "./start_vm.ts";
import type { InstallProgress } from "./layers.ts";
import { checkPackages, PACKAGE_FIELDS, type PackageFields } from "./package_request.ts";
import type { PinnedVersion } from "./pins.ts";
import type { SupplyHooks } from "./supply.ts";

/** What only programs built on the library set. */
export interface SchedulerHooks {
  /** Where log entries go; default: lines on standard error, of at least `EXEC_SANDBOX_LOG_LEVEL` (default `warning`). */
  readonly log?: Logger;
  /** Told about each step while a template is made, which takes seconds and happens once per language and memory size. */
  readonly onProgress?: (progress: BakeProgress) => void;
  /** Told about each step of an installation of packages, which happens once for each set of them. */
  readonly onInstall?: (progress: InstallProgress) => void;
  /**
   * For `open`: let the server of `sbx serve` make the VMs when one of this version and configuration answers within milliseconds, and this
   * process do it otherwise, or from the moment on at which the server has gone. Default false.
   */
  readonly isServerUsed?: boolean;
  /**
   * Names that lead where the owner of the host says, whatever DNS knows and also to private and loopback addresses: `{"db.example.com": "10.0.0.5"}`,
   * `{"api.example.com:443": "127.0.0.1:8443"}`. Code still needs leave to reach them. A guest never learns the address.
   */
  readonly networkHosts?: NetworkHosts;
}

/** Which server to connect to, and what requests get that say nothing. */
export interface ConnectOptions extends Pick<SchedulerConfig, "defaultMemoryMb" | "defaultTimeoutSeconds" | "sessionIdleTimeoutSeconds"> {
  /** The server's socket, in a directory that has its secret too. Default: that of the server for this environment's cache directory. */
  readonly socketPath?: string | undefined;
  /** Ends the waiting for the server; the call rejects with its reason. */
  readonly signal?: AbortSignal | undefined;
}

/** What is to be ready for later runs. */
export interface PrepareOptions extends PackageFields {
  /** MB (2^20 bytes), at least 128; default: the scheduler's. */
  readonly memoryMb?: number;
  /** Ends the waiting; the call rejects with its reason. */
  readonly signal?: AbortSignal;
}

const PREPARE_FIELDS: ReadonlySet<string> = new Set<keyof PrepareOptions>(["memoryMb", "signal", ...PACKAGE_FIELDS]);

const CONNECT_FIELDS: ReadonlySet<string> = new Set<keyof ConnectOptions>([
  "defaultMemoryMb",
  "defaultTimeoutSeconds",
  "sessionIdleTimeoutSeconds",
  "socketPath",
  "signal",
]);

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
  readonly #parts: Pick<RunContext, "log" | "networkSupport">;
  readonly #machines: MachineSource;
  readonly #closing = new AbortController();
  readonly #running = new Set<Promise<unknown>>();
  readonly #sessions = new Set<Session>();
  readonly #copies: Copies<Session>;
  #closed: Promise<void> | undefined;

  private constructor(config: ResolvedConfig, machines: MachineSource, parts: Pick<RunContext, "log" | "networkSupport">) {
    this.#config = config;
    this.#machines = machines;
    this.#parts = parts;
    this.#copies = new Copies<Session>({
      machines,
      defaults: this.#sessionDefaults(),
      closing: this.#closing.signal,
      open: (machine, request, network) => this.#hand(machine, request, network),
      openNetwork: (machine, request) => openNetwork(machine, request, this.#parts),
      track: (work) => this.#track(work),
    });
  }

  /**
   * Opens a scheduler. Explicit fields beat `EXEC_SANDBOX_*` in the environment, which is read here and never again. Throws `VmConfigError`
   * for a bad field and `AssetError` when the images are missing. The caller owns it: `await using`, or `close()`.
   */
  static async open(config: SchedulerConfig = {}, hooks: SchedulerHooks = {}): Promise<Scheduler> {
    const resolved = resolveConfig(config), own = ownHooks(hooks, resolved), parts = partsOf(hooks, own);
    const { networkSupport } = parts, { onInstall } = hooks;
    const installing = { networkSupport, ...(onInstall ? { onInstall } : {}) };
    const openSupply = async () => await (await import("./supply.ts")).Supply.open(resolved, { ...own, ...installing });
    const place = hooks.isServerUsed ? placeOf(resolved.cacheDir) : undefined;
    // Where no server runs this look is all that it costs.
    if (place === undefined || !existsSync(place.socket)) return new Scheduler(resolved, await openSupply(), parts);
    const { nearestMachines } = await import("./nearest_machines.ts");
    return new Scheduler(resolved, await nearestMachines({ place, config: resolved, hooks: own, openSupply }), parts);
  }

  /**
   * Connects to the server of `sbx serve`: the same object, with the same calls and results, and VMs that may be warm. What the server makes VMs
   * from and how many it admits is its own configuration; `close` ends what this scheduler has started and leaves the server alone; checkpoints
   * without a name end with it. When the server goes, its VMs go with it: calls then reject with `CommunicationError`, those under way with `OutcomeUnknownError`, and those of
   * sessions with `SessionClosedError`. Throws `CommunicationError` when no server answers, `SandboxDependencyError` when it is of another
   * version, and `SocketAuthError` when it or its directory cannot be trusted.
   *
   * @example
   * ```ts
   * import { Scheduler } from "@exec-sandbox/sbx";
   * await using scheduler = await Scheduler.connect();
   * const result = await scheduler.run({ code: "print('hi')", language: "python" });
   * console.log(result.stdout, result.timing.totalMs);
   * ```
   */
  static async connect(options: ConnectOptions = {}, hooks: Omit<SchedulerHooks, "isServerUsed"> = {}): Promise<Scheduler> {
    const { socketPath, signal, ...defaults } = checkFields("connect", options, CONNECT_FIELDS);
    checkSignal("connect", signal);
    const resolved = resolveConfig(defaults), own = ownHooks(hooks, resolved), parts = partsOf(hooks, own);
    const place = socketPath === undefined ? placeOf(resolved.cacheDir) : checkSocketPath(socketPath);
    const { RemoteMachines } = await import("./remote_machines.ts");
    return new Scheduler(resolved, await RemoteMachines.connect(place, own, { signal }), parts);
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
      return await openSession({ ...checked, signal }, this.#context(calledAt), (...opened) => this.#hand(...opened));
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

  /** Makes the template for `language` now, and installs its packages, so that the first run need not. */
  prepare(language: Language, options: PrepareOptions = {}): Promise<void> {
    return this.#track(async () => {
      const signal = options.signal ? AbortSignal.any([options.signal, this.#closing.signal]) : this.#closing.signal;
      const memoryMb = checkMemory(options.memoryMb ?? this.#config.defaultMemoryMb), known = checkLanguage(language);
      const packages = checkPackages("prepare", checkFields("prepare", options, PREPARE_FIELDS), { language: known, hasEnv: false });
      await this.#machines.prepare({ language: known, memoryMb, packages, signal });
    });
  }

  /**
   * The newest stable versions of packages that are named without one, looked up once and kept for all processes of the user; all anew where
   * `isFresh`. For programs that let people name packages so; requests have full pins. Throws as a run with packages does.
   */
  pinPackages(
    language: "python" | "javascript",
    names: readonly string[],
    options: { readonly isFresh?: boolean; readonly signal?: AbortSignal } = {},
  ): Promise<ReadonlyMap<string, PinnedVersion>> {
    return this.#track(async () => {
      const signal = options.signal ? AbortSignal.any([options.signal, this.#closing.signal]) : this.#closing.signal;
      return await this.#machines.pinPackages(language, names, { isFresh: options.isFresh ?? false, signal });
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
  #hand(machine: Machine, request: CheckedSessionRequest, network: MachineNetwork): Session {
    const onEnd = (ended: Session) => void this.#sessions.delete(ended);
    const session = new Session({ machine, network, request, log: this.#parts.log, copies: this.#copies, onEnd });
    if (this.#closing.signal.aborted) session.end("the scheduler is closed");
    else if (!session.closed) this.#sessions.add(session);
    return session;
  }

  #context(calledAt: number): RunContext {
    return { machines: this.#machines, ...this.#parts, calledAt };
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

function ownHooks({ log, onProgress }: SchedulerHooks, { logLevel }: ResolvedConfig): SupplyHooks {
  return {
    log: log ?? lineLogger(logLevel, (line) => process.stderr.write(`${line}\n`)),
    ...(onProgress ? { onProgress } : {}),
  };
}

/** What only schedulers need. What was given is checked at once. Throws `InputValidationError`. */
function partsOf({ networkHosts }: SchedulerHooks, { log }: SupplyHooks): Pick<RunContext, "log" | "networkSupport"> {
  return { log, networkSupport: networkFinder({ pins: new Pins(networkHosts), env: { ...process.env }, log }) };
}

function checkSocketPath(socketPath: unknown): ServerPlace {
  if (typeof socketPath === "string" && socketPath !== "") return placeOfSocket(socketPath);
  throw new VmConfigError(`Cannot connect: socketPath must be a path, got ${shown(socketPath)}`);
}
