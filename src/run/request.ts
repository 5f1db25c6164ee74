/** Requests: what a caller asks for, and the check of every field before anything starts. */

/** The three languages. */
export type Language = "python" | "javascript" | "raw";

/** Called with decoded text of at most 64 KiB as it arrives. One that throws is logged once and called no more. */
export type OutputCallback = (text: string) => void;

/** One execution in a VM of its own. */
export interface RunRequest {
  /** 1 to 1,048,576 bytes of UTF-8, not only white space, no NUL. */
  readonly code: string;
  readonly language: Language;
  /** Whole seconds the code may run, 1-300; default: the scheduler's. Starting the VM has its own deadline. */
  readonly timeoutSeconds?: number;
  /** MB (2^20 bytes), at least 128; default: the scheduler's. */
  readonly memoryMb?: number;
  /** Environment of this execution only; at most 100 variables. */
  readonly env?: Readonly<Record<string, string>>;
  /** Ends the execution; the call rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /** Throw `ExecutionFailedError` or `VmTimeoutError` for an unsuccessful result. Default false. */
  readonly check?: boolean;
  readonly onStdout?: OutputCallback;
  readonly onStderr?: OutputCallback;
  /** Kernel and agent log; for a clone first that of its template's boot. */
  readonly onBootLog?: OutputCallback;
}
