/** Results: what an execution leaves, as users and the CLI see it. */

/** Display data of one object: MIME type → content (base64 for binary types). */
export type DisplayData = Readonly<Record<string, string>>;

/** How the VM of an execution came to be. */
export type StartKind = "cold" | "template" | "warm";

/** Where the caller's time went, in whole milliseconds, rounded up. */
export interface Timing {
  /** Before a VM was started: validation, admission, baking a template that did not exist. In a session: waiting for earlier executions. */
  readonly setupMs: number;
  /** From QEMU's start to the guest's first answer; 0 only for a warm VM, and in a session, whose VM runs already. */
  readonly bootMs: number;
  /** From the guest's first answer to the result. */
  readonly executeMs: number;
  /** Everything the caller waited. */
  readonly totalMs: number;
}

/** A guest port that is reachable on the host. */
export interface ExposedPort {
  /** Port in the guest. */
  readonly internal: number;
  /** Port on the host. */
  readonly external: number;
  /** The loopback address it is bound to. */
  readonly host: string;
  /** Transport. */
  readonly protocol: "tcp" | "udp";
  /** Where to reach it. */
  readonly url: string;
}

/** What an execution leaves. A non-zero exit, a signal and a time-out are results, not exceptions. */
export interface ExecutionResult {
  /** At most 1,000,000 bytes; bytes that are no UTF-8 become U+FFFD. */
  readonly stdout: string;
  /** At most 100,000 bytes. */
  readonly stderr: string;
  /** Text of a trailing expression (Python, JavaScript), when there was one. */
  readonly value?: string;
  /** Display data, in the order it was shown; at most 16 MiB and 10,000 objects. */
  readonly results: readonly DisplayData[];
  /** 0 success, `128+N` signal N, -1 no status (timed out or lost). */
  readonly exitCode: number;
  /** The code was ended because its time was up. */
  readonly timedOut: boolean;
  /** In a session: the language's process was ended and replaced, so variables are gone and files are not. Of a run: absent. */
  readonly stateReset?: boolean;
  /** As measured in the guest, from the code's arrival to its end; whole milliseconds, rounded up. */
  readonly executionTimeMs: number;
  /** CPU time of the QEMU process on the host during this execution, milliseconds; null where it cannot be read. */
  readonly externalCpuTimeMs: number | null;
  /** Peak resident memory of the QEMU process on the host since its start, in MB (2^20 bytes), shared template pages included; null where it cannot be read. */
  readonly externalMemoryPeakMb: number | null;
  /** Where the time went. */
  readonly timing: Timing;
  /** The VM was ready before it was asked for. */
  readonly warmPoolHit: boolean;
  /** How the VM came to be; in a session the same for all its executions. */
  readonly start: StartKind;
  /** Guest ports reachable on the host. */
  readonly exposedPorts: readonly ExposedPort[];
}
