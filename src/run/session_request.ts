/** Session requests: what is asked of a session when it is opened and with each execution, and the checks of both. */
import { InputValidationError, shown } from "../base/errors.ts";
import { IDLE_TIMEOUT_MAX_SECONDS, IDLE_TIMEOUT_MIN_SECONDS } from "../base/limits.ts";
import { checkCallback, checkFields, checkFlag, checkMemory, checkSignal, checkTimeout, type OutputCallback } from "./check.ts";
import { checkEnv, mergeEnv } from "./env.ts";
import type { ExecutionRequest } from "./execute.ts";
import { checkFiles, type FileSources } from "./file_source.ts";
import { type CheckedNetwork, checkNetwork, NETWORK_FIELDS, type NetworkFields } from "./network_request.ts";
import { checkPackages, PACKAGE_FIELDS, type PackageFields, type PackageSet } from "./package_request.ts";
import { checkCode, checkLanguage, type Language, type RequestDefaults } from "./request.ts";
import { checkInput, giveUpInput, inputPieces, type InputSource } from "./session_process.ts";

/** A session: one VM that is kept. */
export interface SessionRequest extends NetworkFields, PackageFields {
  /** What runs its code. */
  readonly language: Language;
  /** Seconds each execution may run, 1-300, unless it says otherwise; default: the scheduler's. */
  readonly timeoutSeconds?: number;
  /** Seconds without any use after which the session closes, 10-3600; default: the scheduler's. */
  readonly idleTimeoutSeconds?: number;
  /** MB (2^20 bytes), at least 128; default: the scheduler's. */
  readonly memoryMb?: number;
  /** Environment of each execution and process; at most 100 variables. */
  readonly env?: Readonly<Record<string, string>>;
  /** Files written before the session is handed over: path below the home directory → content. */
  readonly files?: FileSources;
  /** Ends the opening; the session, once it is open, does not mind it. */
  readonly signal?: AbortSignal;
  /** `check` of each execution that does not say otherwise. Default false. */
  readonly check?: boolean;
  /** `onStdout` of each execution that does not say otherwise. */
  readonly onStdout?: OutputCallback;
  /** `onStderr` of each execution that does not say otherwise. */
  readonly onStderr?: OutputCallback;
  /** Kernel and agent log; for a clone first that of its template's boot. */
  readonly onBootLog?: OutputCallback;
}

/** One execution of a session. */
export interface ExecOptions {
  /** Seconds the code may run, 1-300, from its start; default: the session's. */
  readonly timeoutSeconds?: number;
  /** Environment of this execution only, on top of the session's. */
  readonly env?: Readonly<Record<string, string>>;
  /** Interrupts the code, and kills it if it does not stop; the call rejects with the signal's reason. The session lives. */
  readonly signal?: AbortSignal;
  /** Throw `ExecutionFailedError` or `VmTimeoutError` for an unsuccessful result. Default: the session's. */
  readonly check?: boolean;
  /** What the code reads from its standard input; default: nothing, it is at its end. A stream that fails ends the execution. */
  readonly stdin?: InputSource;
  /** Standard output as it comes. */
  readonly onStdout?: OutputCallback;
  /** Standard error as it comes. */
  readonly onStderr?: OutputCallback;
}

/** A session's request in which every field is checked and has its value. */
export interface CheckedSessionRequest
  extends
    Readonly<Required<Omit<SessionRequest, keyof NetworkFields | keyof PackageFields | "signal" | "onStdout" | "onStderr" | "onBootLog">>> {
  readonly network: CheckedNetwork;
  readonly packages: PackageSet | undefined;
  readonly signal: AbortSignal | undefined;
  readonly onStdout: OutputCallback | undefined;
  readonly onStderr: OutputCallback | undefined;
  readonly onBootLog: OutputCallback | undefined;
}

/** An execution's request in which every field is checked and has its value. */
export type CheckedExec = Omit<ExecutionRequest, "isFinal" | "events" | "stdin"> & {
  readonly check: boolean;
  /** Opened when it is read, which is not before the execution's turn. */
  readonly stdin: AsyncIterable<Uint8Array> | undefined;
  /** Ends the stream that was given as standard input, where nobody has begun to read it. */
  readonly giveUp: (reason: unknown) => void;
};

const SESSION_FIELDS: ReadonlySet<string> = new Set<keyof SessionRequest>([
  "language",
  "timeoutSeconds",
  "idleTimeoutSeconds",
  "memoryMb",
  "env",
  "files",
  "signal",
  "check",
  "onStdout",
  "onStderr",
  "onBootLog",
  ...NETWORK_FIELDS,
  ...PACKAGE_FIELDS,
]);
const EXEC_FIELDS: ReadonlySet<string> = new Set<keyof ExecOptions>([
  "timeoutSeconds",
  "env",
  "signal",
  "check",
  "stdin",
  "onStdout",
  "onStderr",
]);

/** What the scheduler says where a request says nothing. */
export type SessionDefaults = RequestDefaults & { readonly idleTimeoutSeconds: number };

/** Checks a request for a session. Throws `InputValidationError`, `EnvVarValidationError`, `PackageNotAllowedError` or `VmConfigError`; nothing has started then. */
export function checkSession(
  request: SessionRequest,
  defaults: SessionDefaults,
): CheckedSessionRequest {
  const action = "open a session";
  const { onStdout, onStderr, onBootLog } = checkFields(action, request, SESSION_FIELDS, "the request");
  const language = checkLanguage(request.language, action), env = checkEnv(request.env ?? {});
  return {
    language,
    timeoutSeconds: checkTimeout(request.timeoutSeconds ?? defaults.timeoutSeconds, action),
    idleTimeoutSeconds: checkIdleTimeout(request.idleTimeoutSeconds ?? defaults.idleTimeoutSeconds),
    memoryMb: checkMemory(request.memoryMb ?? defaults.memoryMb),
    env,
    files: checkFiles(action, request.files ?? {}),
    network: checkNetwork(action, request),
    packages: checkPackages(action, request, { language, hasEnv: Object.keys(env).length > 0 }),
    check: checkFlag(action, "check", request.check),
    signal: checkSignal(action, request.signal),
    onStdout: checkCallback(action, "onStdout", onStdout),
    onStderr: checkCallback(action, "onStderr", onStderr),
    onBootLog: checkCallback(action, "onBootLog", onBootLog),
  };
}

/** Checks one execution. Throws as `checkSession` does; the session is not touched then. */
export function checkExec(code: string, options: ExecOptions, session: CheckedSessionRequest): CheckedExec {
  const text = checkCode(code);
  const { stdin, onStdout, onStderr } = checkFields("run", options, EXEC_FIELDS);
  const input = stdin === undefined ? undefined : checkInput("run", stdin);
  return {
    code: text,
    env: mergeEnv(session.env, options.env ?? {}),
    timeoutSeconds: checkTimeout(options.timeoutSeconds ?? session.timeoutSeconds),
    check: checkFlag("run", "check", options.check, session.check),
    signal: checkSignal("run", options.signal),
    onStdout: checkCallback("run", "onStdout", onStdout) ?? session.onStdout,
    onStderr: checkCallback("run", "onStderr", onStderr) ?? session.onStderr,
    stdin: input === undefined ? undefined : { [Symbol.asyncIterator]: () => inputPieces(input)[Symbol.asyncIterator]() },
    giveUp: (reason) => giveUpInput(input, reason),
  };
}

/** Seconds, whole or not, within the limits. */
function checkIdleTimeout(seconds: unknown): number {
  const isValid = typeof seconds === "number" && seconds >= IDLE_TIMEOUT_MIN_SECONDS && seconds <= IDLE_TIMEOUT_MAX_SECONDS;
  if (isValid) return seconds;
  const range = `between ${IDLE_TIMEOUT_MIN_SECONDS} and ${IDLE_TIMEOUT_MAX_SECONDS}`;
  throw new InputValidationError(`Cannot open a session: idleTimeoutSeconds must be ${range}, got ${shown(seconds)}`);
}
