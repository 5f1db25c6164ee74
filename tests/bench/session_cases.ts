/** Session cases: what SPEC.md promises of sessions, each beside the same channel's own floor, measured in turns with it. */
import { Buffer } from "node:buffer";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import { silentLogger } from "../../src/base/log.ts";
import { downloadTree, uploadTree } from "../../src/cli/transfer.ts";
import { type Language, Scheduler } from "../../src/mod.ts";
import { qemuPid } from "../../src/qemu/usage.ts";
import { LocalMachine } from "../../src/run/local_machine.ts";
import { Session } from "../../src/run/session.ts";
import { checkSession } from "../../src/run/session_request.ts";
import type { Vm } from "../../src/vm/vm.ts";
import { noCopies } from "../support/session_peer.ts";
import { type Bench, clone } from "./cases.ts";
import { measure, type Measurement, median, timed } from "./measure.ts";

const TRANSFER_BYTES = 100_000_000;
const TRANSFER_MEMORY_MIB = 512;
const SMALL_FILES = 1_000;
const MIB = 1_048_576;
/** Local files lie here: a disk that others write to would be measured too. */
const MEMORY_DIRECTORY = "/dev/shm";
/** Prints by how many MiB the available memory of the guest went down at most until a file `stop` appeared. */
const WATCH_MEMORY = `
import os, time
def available():
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
start = least = available()
print("up", flush=True)
while not os.path.exists("stop"):
    least = min(least, available())
    time.sleep(0.005)
os.remove("stop")
print((start - least) / 1024)
`;

/** `exec("pass")` and the answer of the agent alone. */
export async function executeBesideEcho(bench: Bench, count: number): Promise<Measurement[]> {
  await using machine = await openMachine(bench, "python", 256);
  const { session } = machine;
  const pings: number[] = [];
  const executions = await measure('session.exec("pass")', { count, warmUps: 20 }, async () => {
    pings.push(await timed(() => session.ping()));
    return await timed(() => session.exec("pass"));
  });
  return [{ name: "an echo over the same channel", unit: "ms", samples: pings.slice(20) }, executions];
}

/** A line to a running program and its answer: twice the way that output takes, and so more than the delay of output. */
export async function outputDelay(bench: Bench, count: number): Promise<Measurement> {
  await using machine = await openMachine(bench, "python", 256);
  const lines = new TransformStream<string, string>(), writer = lines.writable.getWriter();
  let onLine = () => {};
  const code = "import sys\nprint('up', flush=True)\nfor line in sys.stdin: print(line, end='', flush=True)";
  const answered = () => new Promise<void>((resolve) => onLine = resolve);
  const up = answered();
  const stdin = lines.readable.pipeThrough(new TextEncoderStream());
  const execution = machine.session.exec(code, { stdin, timeoutSeconds: 300, onStdout: () => onLine() });
  await up;
  const delay = await measure("a line to a program and back", { count, warmUps: 5 }, async () => {
    await new Promise((resolve) => setTimeout(resolve, 20)); // A program that has been quiet, as most are.
    return await timed(async () => {
      const answer = answered();
      await writer.write("line\n");
      await answer;
    });
  });
  await writer.close();
  await execution;
  return delay;
}

/** 100 MB each way, in turns with the same number of bytes over the bare channel; and what it takes of the host's memory. */
export async function largeTransfers(bench: Bench, count: number): Promise<Measurement[]> {
  await using machine = await openMachine(bench, "raw", TRANSFER_MEMORY_MIB);
  const { session, vm, directory } = machine, local = path.join(directory, "large");
  writeFileSync(local, Buffer.alloc(TRANSFER_BYTES, "0123456789abcdef\n"));
  const rate = (ms: number) => TRANSFER_BYTES / MIB / (ms / 1000);
  const samples: Record<"up" | "down" | "rawUp" | "rawDown" | "growth", number[]> = {
    up: [],
    down: [],
    rawUp: [],
    rawDown: [],
    growth: [],
  };
  for (let round = 0; round <= count; round++) {
    const growth = new MemoryWatch();
    const taken = {
      rawUp: rate(await timed(() => vm.guest.exchange({ body: zeros(TRANSFER_BYTES) }))),
      up: rate(await timed(() => uploadTree(session, { local, guest: "large" }))),
      rawDown: rate(await timed(() => vm.guest.exchange({ receiveBytes: TRANSFER_BYTES }))),
      down: rate(await timed(() => downloadTree(session, { guest: "large", local: path.join(directory, "back") }))),
      growth: growth.stop(),
    };
    if (round > 0) { for (const [name, value] of Object.entries(taken)) samples[name as keyof typeof samples].push(value); }
  }
  const speed = (name: string, values: number[]): Measurement => ({ name, unit: "MB/s", samples: values });
  return [
    speed("100 MB to the guest, bare channel", samples.rawUp),
    speed("upload of 100 MB", samples.up),
    speed("100 MB from the guest, bare channel", samples.rawDown),
    speed("download of 100 MB", samples.down),
    { name: "host memory that 100 MB each way add", unit: "MB", samples: samples.growth },
  ];
}

/** What the guest has less of while 100 MB come and go, beyond the file itself. */
export async function guestMemory(bench: Bench, count: number): Promise<Measurement[]> {
  await using machine = await openMachine(bench, "python", TRANSFER_MEMORY_MIB);
  const { session, directory } = machine, local = path.join(directory, "large");
  writeFileSync(local, Buffer.alloc(TRANSFER_BYTES, "0123456789abcdef\n"));
  const during = async (work: () => Promise<unknown>) => {
    const { promise: up, resolve } = Promise.withResolvers<void>();
    const watching = session.exec(WATCH_MEMORY, { timeoutSeconds: 300, onStdout: () => resolve() });
    await up;
    await work();
    await session.writeFile("stop", "");
    return Number((await watching).stdout.split("\n")[1]);
  };
  const samples: number[] = [];
  for (let round = 0; round < count; round++) {
    const upMiB = await during(() => uploadTree(session, { local, guest: "large" })) - TRANSFER_BYTES / MIB;
    const downMiB = await during(() => downloadTree(session, { guest: "large", local: path.join(directory, "back") }));
    await session.remove("large");
    samples.push(Math.max(0, upMiB, downMiB));
  }
  return [{ name: "guest memory that a transfer of 100 MB takes", unit: "MB", samples }];
}

/** 1,000 files of 100 bytes each way: per file, beyond an echo's time. */
export async function smallFiles(bench: Bench, count: number): Promise<Measurement[]> {
  await using machine = await openMachine(bench, "raw", 256);
  const { session, directory } = machine, local = path.join(directory, "small");
  mkdirSync(local);
  for (let number = 0; number < SMALL_FILES; number++) writeFileSync(path.join(local, `${number}.txt`), "x".repeat(100));
  const up: number[] = [], down: number[] = [];
  for (let round = 0; round <= count; round++) {
    const echoes: number[] = [];
    for (let number = 0; number < 20; number++) echoes.push(await timed(() => session.ping()));
    const perFile = (ms: number) => Math.max(0, ms / SMALL_FILES - median(echoes));
    const upMs = perFile(await timed(() => uploadTree(session, { local, guest: `small-${round}` })));
    const downMs = perFile(
      await timed(() => downloadTree(session, { guest: `small-${round}`, local: path.join(directory, `back-${round}`) })),
    );
    if (round > 0) {
      up.push(upMs);
      down.push(downMs);
    }
  }
  return [
    { name: "upload of 1,000 small files, each", unit: "ms", samples: up },
    { name: "download of 1,000 small files, each", unit: "ms", samples: down },
  ];
}

/** Many executions of one session: the last thousand beside the first, and what host and machine have grown by in between. */
export async function longSession(bench: Bench, count: number): Promise<Measurement[]> {
  await using machine = await openMachine(bench, "python", 256);
  const { session, pid } = machine, tenth = Math.ceil(count / 10);
  const run = async () => {
    const times: number[] = [];
    for (let number = 0; number < tenth; number++) times.push(await timed(() => session.exec("print(1)")));
    return times;
  };
  const first = await run();
  const before = { host: hostMemory(), machine: pssOf(pid) };
  for (let part = 1; part < 9; part++) await run();
  const last = await run();
  return [
    { name: "execution in a new session", unit: "ms", samples: first },
    { name: "execution after thousands of others", unit: "ms", samples: last },
    { name: "growth of the host over these", unit: "MB", samples: [Math.max(0, hostMemory() - before.host)] },
    { name: "growth of QEMU over these", unit: "MB", samples: [Math.max(0, pssOf(pid) - before.machine)] },
  ];
}

/** So many zeros, in pieces. */
export async function* zeros(byteCount: number): AsyncGenerator<Uint8Array, void, void> {
  const piece = new Uint8Array(262_144);
  for (let rest = byteCount; rest > 0; rest -= piece.length) yield piece.subarray(0, Math.min(rest, piece.length));
}

export interface Machine extends AsyncDisposable {
  readonly session: Session;
  readonly vm: Vm;
  /** QEMU's. */
  readonly pid: number;
  /** Empty, for local files. */
  readonly directory: string;
}

/** A session on a clone, and the clone's own channel. */
export async function openMachine(bench: Bench, language: Language, memoryMiB: number): Promise<Machine> {
  {
    await using scheduler = await Scheduler.open({}, { log: silentLogger() });
    await scheduler.prepare(language, { memoryMb: memoryMiB });
  }
  const vm = await clone(bench, language, memoryMiB);
  await vm.ready;
  const request = checkSession({ language }, { timeoutSeconds: 30, memoryMb: memoryMiB, idleTimeoutSeconds: 3600 });
  const machine = new LocalMachine({ vm, template: undefined, onRelease: () => {} });
  const session = new Session({ machine, request, log: silentLogger(), copies: noCopies(), onEnd: () => {} });
  const directory = mkdtempSync(path.join(existsSync(MEMORY_DIRECTORY) ? MEMORY_DIRECTORY : os.tmpdir(), "sbx-bench-"));
  return {
    session,
    vm,
    pid: qemuPid(vm.child.pid) ?? vm.child.pid,
    directory,
    async [Symbol.asyncDispose]() {
      rmSync(directory, { recursive: true, force: true });
      await session.close();
    },
  };
}

/** The most that this process has grown by. */
class MemoryWatch {
  readonly #startMiB = hostMemory();
  #mostMiB = this.#startMiB;
  readonly #timer = setInterval(() => this.#look(), 10);

  /** MiB. */
  stop(): number {
    clearInterval(this.#timer);
    this.#look();
    return this.#mostMiB - this.#startMiB;
  }

  #look(): void {
    this.#mostMiB = Math.max(this.#mostMiB, process.memoryUsage().rss / MIB);
  }
}

/** Resident memory of this process in MiB, after a collection where the runtime lets us ask for one. */
export function hostMemory(): number {
  (globalThis as { gc?: () => void }).gc?.();
  return process.memoryUsage().rss / MIB;
}

/** Proportional set size of a process in MiB. */
export function pssOf(pid: number): number {
  return Number(/^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1]) / 1024;
}

/** Memory in MiB that no other process has. */
export function ussOf(pid: number): number {
  const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
  return [...rollup.matchAll(/^Private_(?:Clean|Dirty): +(\d+) kB$/gm)].reduce((sum, [, kib]) => sum + Number(kib), 0) / 1024;
}
