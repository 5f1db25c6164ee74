/**
 * sbx runs untrusted Python, JavaScript/TypeScript and shell code, each execution in its own QEMU microVM on the user's own machine.
 *
 * @example
 * ```ts
 * import { Scheduler } from "@exec-sandbox/sbx";
 * await using scheduler = await Scheduler.open();
 * const result = await scheduler.run({ code: "print('hi')", language: "python" });
 * console.log(result.stdout, result.exitCode);
 * ```
 *
 * @module
 */
export { type ConnectOptions, type PrepareOptions, Scheduler, type SchedulerHooks } from "./run/scheduler.ts";
export type { InstallProgress } from "./run/layers.ts";
export type { PackageFields } from "./run/package_request.ts";
export type { PinnedVersion } from "./run/pins.ts";
export type { OutputCallback } from "./run/check.ts";
export type { FileHook, Language, RunRequest } from "./run/request.ts";
export type { NetworkAccess, NetworkFields, PortRequest } from "./run/network_request.ts";
export type { NetworkEvent } from "./net/events.ts";
export type { NetworkReason } from "./net/policy.ts";
export type { AddressClass } from "./net/address.ts";
export type { NetworkHosts } from "./net/pins.ts";
export type { FileAccess } from "./run/vm_files.ts";
export type { DisplayData, ExecutionResult, ExposedPort, StartKind, Timing } from "./base/result.ts";
export type { Candidate, Checkpoint, RaceWinner, Session } from "./run/session.ts";
export type { CheckpointOf, CheckpointOptions, RestoreOptions } from "./run/checkpoint.ts";
export type { CandidateFor, ForkMapOptions, RaceOptions, WinnerOf } from "./run/forks.ts";
export type { ExecOptions, SessionRequest } from "./run/session_request.ts";
export type { CodeState, Completion } from "./run/assist.ts";
export type { ExecutionEvent, ExecutionStream } from "./run/execution_stream.ts";
export type { OutputEvent } from "./run/execute.ts";
export type { FileSource, FileSources, LocalSource } from "./run/file_source.ts";
export type {
  CallOptions,
  FileInfo,
  MakeDirOptions,
  ReadFileOptions,
  RemoveOptions,
  StatOptions,
  WriteFileOptions,
} from "./run/session_files.ts";
export type { SessionProcess } from "./run/session_process.ts";
export type { AttachOptions, InputSource, ProcessInfo, ProcessStatus, SpawnOptions } from "./run/session_process.ts";
export type { EntryType } from "./channel/guest_files.ts";
export type { TerminalSize } from "./channel/guest_processes.ts";
export type { BakeProgress } from "./run/bake.ts";
export type { SchedulerConfig } from "./config/config.ts";
export type { LogFields, Logger, LogLevel } from "./base/log.ts";
export {
  AssetError,
  CleanupError,
  CommunicationError,
  EnvVarValidationError,
  ExecutionFailedError,
  type FileReason,
  GuestAgentError,
  InputValidationError,
  NoneAcceptedError,
  OutcomeUnknownError,
  OutputLimitError,
  PackageInstallError,
  PackageNotAllowedError,
  PermanentError,
  type RaceOutcome,
  type Retry,
  SandboxDependencyError,
  SandboxError,
  type SandboxErrorOptions,
  SandboxFileError,
  SessionClosedError,
  SnapshotError,
  SocketAuthError,
  TransientError,
  VmCapacityError,
  VmConfigError,
  VmTimeoutError,
  type WithResult,
} from "./base/errors.ts";
