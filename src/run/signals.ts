/** Signals: the guest's numbers, which are Linux's whatever the host is. */
import { InputValidationError, shown } from "../base/errors.ts";

const SIGNAL_MAX = 64;
/** Numbers of x86-64 and AArch64 (signal(7)). */
const NUMBERS: Readonly<Record<string, number>> = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGILL: 4,
  SIGTRAP: 5,
  SIGABRT: 6,
  SIGBUS: 7,
  SIGFPE: 8,
  SIGKILL: 9,
  SIGUSR1: 10,
  SIGSEGV: 11,
  SIGUSR2: 12,
  SIGPIPE: 13,
  SIGALRM: 14,
  SIGTERM: 15,
  SIGCHLD: 17,
  SIGCONT: 18,
  SIGSTOP: 19,
  SIGTSTP: 20,
  SIGTTIN: 21,
  SIGTTOU: 22,
  SIGURG: 23,
  SIGXCPU: 24,
  SIGXFSZ: 25,
  SIGVTALRM: 26,
  SIGPROF: 27,
  SIGWINCH: 28,
  SIGIO: 29,
  SIGSYS: 31,
};

/** The number of a signal given by name (`SIGTERM`) or number. Throws `InputValidationError`. */
export function signalNumber(signal: unknown): number {
  if (typeof signal === "number" && Number.isInteger(signal) && signal >= 1 && signal <= SIGNAL_MAX) return signal;
  const known = typeof signal === "string" && Object.hasOwn(NUMBERS, signal) ? NUMBERS[signal] : undefined;
  if (known !== undefined) return known;
  throw new InputValidationError(`Cannot kill: signal must be a name such as "SIGTERM", or 1 to ${SIGNAL_MAX}, got ${shown(signal)}`);
}
