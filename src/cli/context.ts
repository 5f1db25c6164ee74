/** Context: everything a command may touch of the world, so that commands run in tests without a process or a VM. */
import type { Arch } from "../host/platform.ts";
import type { Assets } from "../images/assets.ts";
import type { BuildOptions, BuildResult } from "../images/build.ts";
import type { VerifiedFile } from "../images/verify.ts";
import type { CacheEntry } from "../run/inventory.ts";
import type { ExecutionEvent } from "../run/execution_stream.ts";
import type { Scheduler } from "../run/scheduler.ts";
import type { CheckpointOptions } from "../run/checkpoint.ts";
import type { Checkpoint, Session } from "../run/session.ts";
import type { CallOptions } from "../run/session_files.ts";
import type { SessionProcess, SpawnOptions } from "../run/session_process.ts";
import type { ExecOptions, SessionRequest } from "../run/session_request.ts";
import type { FileAccess } from "../run/vm_files.ts";
import type { FoundServer, Installation, StartOptions } from "../serve/host_server.ts";
import type { Server } from "../serve/server.ts";
import type { DoctorChecks } from "./doctor_report.ts";
import type { InputStream, Output } from "./output.ts";
import type { EditorTerminal } from "./repl_editor.ts";
import type { ProcessTerminal } from "./repl_terminal.ts";

/** A step of long work, such as the baking of a template. */
export interface ProgressEvent {
  /** What is being done: `template python`, `kernel` … Events of one task share it. */
  readonly task: string;
  /** What the task does at the moment. */
  readonly message?: string;
  /** 0-100, where it is known. */
  readonly percent?: number;
  /** Told on a terminal only; elsewhere the last event of the task is enough. */
  readonly isDetail?: boolean;
  /** Set once, by the last event of the task. */
  readonly isDone?: boolean;
}

/** Called with each step. */
export type OnProgress = (event: ProgressEvent) => void;

/** How commands open a scheduler. */
export interface OpenOptions {
  readonly onProgress: OnProgress;
  /** Takes each line of the host's own log, without its line break. */
  readonly onLog: (line: string) => void;
  /** Log everything, whatever `EXEC_SANDBOX_LOG_LEVEL` says. */
  readonly isDebug: boolean;
  /** Log no warnings, unless `EXEC_SANDBOX_LOG_LEVEL` asks for them. */
  readonly isQuiet: boolean;
  /** Packages that are not in the catalog are refused. Default true. */
  readonly isValidated?: boolean;
  /** Let a server that runs make the VMs. */
  readonly isServerUsed: boolean;
}

/** What commands need of a scheduler. */
export interface CliScheduler extends Pick<Scheduler, "run" | "prepare" | "pinPackages" | typeof Symbol.asyncDispose> {
  /** As `Scheduler.session`. */
  session(request: SessionRequest): Promise<CliSession>;
  /** As `Scheduler.checkpoints`. */
  checkpoints(): Promise<CliCheckpoint[]>;
}

/** Calls of a session that commands make as they are. */
type SessionCalls =
  | "language"
  | "closed"
  | "interrupt"
  | "ping"
  | "complete"
  | "isComplete"
  | keyof FileAccess
  | "networkAccess"
  | "exposedPorts"
  | "updateNetwork"
  | "processes"
  | "close";

/** What commands need of a session. */
export interface CliSession extends Pick<Session, SessionCalls> {
  /** As `Session.stream`. */
  stream(code: string, options?: ExecOptions): AsyncIterable<ExecutionEvent>;
  /** As `Session.spawn`. */
  spawn(command: string, args?: readonly string[], options?: SpawnOptions): Promise<CliProcess>;
  /** As `Session.checkpoint`. */
  checkpoint(options?: CheckpointOptions): Promise<CliCheckpoint>;
  /** As `Session.rollback`. */
  rollback(to: CliCheckpoint | string, options?: CallOptions): Promise<void>;
  /** As `Session.fork`. */
  fork(count?: number, options?: CallOptions): Promise<CliSession[]>;
}

/** What commands need of a checkpoint. */
export type CliCheckpoint = Pick<Checkpoint, "name" | "language" | "memoryMb" | "createdAt" | "sizeBytes" | "remove">;

/** What commands need of a process in a session. */
export type CliProcess = Pick<SessionProcess, "stdin" | "stdout" | "wait" | "resize" | "detach">;

/** The user's terminal, taken over until disposed. */
export type CliTerminal =
  & EditorTerminal
  & Pick<ProcessTerminal, "intercept" | "takeOver" | typeof Symbol.dispose>;

/** Who hears of a fetch or a verification, and what ends it. */
export interface FetchRequest {
  readonly onProgress: OnProgress;
  readonly signal: AbortSignal;
}

/** What a build of the images is asked for. */
export type BuildRequest = Pick<
  BuildOptions,
  "sourceDir" | "pythonCatalog" | "languages" | "isForced" | "onProgress" | "onWarning" | "signal"
>;

/** What commands need of one images directory. Everything rejects with `AssetError` where files are missing or damaged. */
export interface CliImages {
  readonly directory: string;
  open(): Promise<Assets>;
  /** Compares every byte with the manifest. */
  verify(request: FetchRequest): Promise<readonly VerifiedFile[]>;
  /** Makes sure that the wanted version is there, whole: verifies it, or downloads it. */
  fetch(request: FetchRequest): Promise<void>;
  /** Builds from source, and publishes here. */
  build(request: BuildRequest): Promise<BuildResult>;
  /** Removes the files; returns the bytes freed. */
  remove(): Promise<number>;
}

/** What commands need of all that is kept on this host. */
export interface CliCache {
  /** All of it, and where it lies; with the packages that layers have where `withInstalled` asks for them. */
  list(options: { readonly withInstalled?: boolean }): Promise<{ readonly directory: string; readonly entries: readonly CacheEntry[] }>;
  /** Removes one entry, at once for whoever looks for it. Machines that run from it keep their files. */
  remove(entry: CacheEntry): Promise<void>;
  /** Removes what dead processes left. */
  sweep(): Promise<void>;
}

/** What the command line does with the server of this host. */
export interface CliServer {
  /** Starts one in this process. The caller owns it. */
  start(options: StartOptions): Promise<Pick<Server, "place" | "ready" | typeof Symbol.asyncDispose>>;
  /** The one that runs. */
  find(signal: AbortSignal): Promise<FoundServer | undefined>;
  /** Ends the one that runs, and returns its pid; undefined when none does. */
  stop(): Promise<number | undefined>;
  /** Has the service manager start one, with these arguments. */
  install(args: readonly string[]): Promise<Installation>;
  /** Undoes that; undefined when nothing is installed. */
  uninstall(): Promise<Installation | undefined>;
}

/** What a command may touch. */
export interface CliContext {
  readonly stdin: InputStream;
  readonly stdout: Output;
  readonly stderr: Output;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Aborts with an `InterruptedError` when the user or the system ends the program. */
  readonly signal: AbortSignal;
  openScheduler(options: OpenOptions): Promise<CliScheduler>;
  /** Takes over the terminal that standard input and standard error are. There is one, so it can be taken over once at a time. */
  openTerminal(): Promise<CliTerminal>;
  /** The images of `arch`, default this host's own. */
  openImages(arch?: Arch): Promise<CliImages>;
  /** What is kept on this host. */
  openCache(): Promise<CliCache>;
  /** The server of this host, whether it runs or not. */
  openServer(): Promise<CliServer>;
  /** The checks of `sbx doctor`; the caller disposes them. */
  doctorChecks(): Promise<DoctorChecks>;
}
