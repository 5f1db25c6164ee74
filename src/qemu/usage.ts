/** Usage: what a QEMU has cost its host so far, read from /proc. */
import { readdirSync, readFileSync } from "node:fs";

/** Processor time and memory of one QEMU; null where the host does not tell. */
export interface QemuUsage {
  /** User and system time of all its threads since it started, in milliseconds with fractions. */
  readonly cpuTimeMs: number | null;
  /** The most memory it ever had resident, pages of shared files included, in MiB (2^20 bytes). */
  readonly memoryPeakMiB: number | null;
}

/** `USER_HZ`, the unit of `/proc/PID/stat`: 100 on every architecture we run on. */
const TICK_MS = 10;
const KIB_PER_MIB = 1024;
const NS_PER_MS = 1e6;
/** Name of a jail that waits, or has not yet become QEMU. */
const JAIL_NAME = "sbx-jail";
const UNKNOWN: QemuUsage = { cpuTimeMs: null, memoryPeakMiB: null };

/**
 * Reads the usage of the QEMU that was started as process `pid`, behind the jail or without one. Takes some 0.1 ms: `/proc` answers from
 * memory, and waiting for a thread pool would take longer. Never throws; call it while the process runs, afterwards all is null.
 */
export function readUsage(pid: number): QemuUsage {
  const qemu = qemuPid(pid);
  if (qemu === undefined) return UNKNOWN;
  return { cpuTimeMs: cpuTimeMs(qemu), memoryPeakMiB: memoryPeakMiB(qemu) };
}

/** The process that is QEMU: the jail's child in a pid namespace of its own, else the process itself. Undefined when it cannot be found. */
export function qemuPid(pid: number): number | undefined {
  const child = Number.parseInt(readText(`/proc/${pid}/task/${pid}/children`), 10);
  if (child > 0) return child;
  // No child: either there is no pid namespace and the jail has become QEMU, or this kernel lists no children.
  const name = readText(`/proc/${pid}/comm`).trim();
  return name === "" || name === JAIL_NAME ? undefined : pid;
}

function cpuTimeMs(pid: number): number | null {
  // Whole ticks, but threads that have ended are in it.
  const stat = readText(`/proc/${pid}/stat`);
  if (stat === "") return null;
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const ticksMs = (Number(fields[11]) + Number(fields[12])) * TICK_MS;
  return Math.max(ticksMs, threadTimeMs(pid));
}

/** Time of the threads that live, to the nanosecond. 0 on kernels without scheduler statistics. */
function threadTimeMs(pid: number): number {
  let totalNs = 0;
  for (const thread of readNames(`/proc/${pid}/task`)) {
    totalNs += Number.parseInt(readText(`/proc/${pid}/task/${thread}/schedstat`), 10) || 0;
  }
  return totalNs / NS_PER_MS;
}

function memoryPeakMiB(pid: number): number | null {
  const peakKib = /^VmHWM:\s+(\d+) kB$/m.exec(readText(`/proc/${pid}/status`))?.[1];
  return peakKib === undefined ? null : Number(peakKib) / KIB_PER_MIB;
}

function readText(file: string): string {
  try {
    return readFileSync(file, "latin1");
  } catch {
    return ""; // Ended meanwhile, hidden from us, or no /proc: the caller reports null.
  }
}

function readNames(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return []; // As above.
  }
}
