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
export { Scheduler, type SchedulerHooks } from "./run/scheduler.ts";
export type { Language, OutputCallback, RunRequest } from "./run/request.ts";
export type { DisplayData, ExecutionResult, ExposedPort, StartKind, Timing } from "./run/result.ts";
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
  OutcomeUnknownError,
  OutputLimitError,
  PackageNotAllowedError,
  PermanentError,
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
