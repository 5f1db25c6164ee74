/** VMs for tests: one scheduler per file, and the proof that nothing is left when it is closed. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import { after, before } from "node:test";
import { resolveConfig } from "../../src/config/config.ts";
import { placeOfSocket } from "../../src/link/place.ts";
import { Scheduler, type SchedulerConfig, type SchedulerHooks } from "../../src/mod.ts";
import { Server } from "../../src/serve/server.ts";

/** A scheduler and the check that ends its file. */
export interface TestScheduler {
  readonly scheduler: Scheduler;
  /** Closes the scheduler, once; the last one fails when a process of ours is still there. */
  close(): Promise<void>;
}

/** Where `openTestScheduler` gets VMs from: this process, or a server that it starts. */
let isServed = false;

/** Declares the tests of files in tests/integration once more, with VMs that a server lends. For files of tests/conformance. */
export async function testsOverServer(...names: readonly string[]): Promise<void> {
  before(() => void (isServed = true));
  after(() => void (isServed = false));
  // A module of its own beside the one whose tests run over this process's VMs.
  for (const name of names) await import(`../integration/${name}?served`);
}

/** How many schedulers are open, and what ran before the first of them. While another is open a VM of its may just be ending. */
let openCount = 0;
let others: ReadonlySet<string> = new Set();

/** Opens a scheduler on the assets of this machine; a test file that cannot have one fails, it does not pass unseen. */
export async function openTestScheduler(config: SchedulerConfig = {}, hooks: SchedulerHooks = {}): Promise<TestScheduler> {
  if (openCount === 0) others = new Set(descendants());
  const server = isServed ? await openTestServer(config) : undefined;
  const scheduler = server ? await server.connect(config, hooks) : await Scheduler.open(config, { log: quiet, ...hooks });
  openCount += 1;
  return {
    scheduler,
    async close() {
      openCount -= 1;
      await scheduler.close();
      await server?.close();
      if (openCount > 0) return; // The last one looks.
      assert.deepEqual(descendants().filter((line) => !others.has(line)), [], "no process is left when the scheduler is closed");
    },
  };
}

let serverCount = 0;

/** A server in this process, at a place of its own. */
export async function openTestServer(config: SchedulerConfig = {}) {
  const directory = path.join(os.tmpdir(), `sbx-test-server-${process.pid}-${serverCount++}`),
    place = placeOfSocket(`${directory}/sbx.sock`);
  const server = await Server.start({ config: resolveConfig(config), log: quiet, place });
  return {
    server,
    place,
    connect({ defaultMemoryMb, defaultTimeoutSeconds, sessionIdleTimeoutSeconds }: SchedulerConfig = {}, hooks: SchedulerHooks = {}) {
      const defaults = { defaultMemoryMb, defaultTimeoutSeconds, sessionIdleTimeoutSeconds };
      return Scheduler.connect({ socketPath: place.socket, ...defaults }, { log: quiet, ...hooks });
    },
    /** Stops it, and fails when it leaves a file. */
    async close() {
      await server[Symbol.asyncDispose]();
      assert.deepEqual(readdirSync(directory), [], "a server leaves its directory empty");
      rmSync(directory, { recursive: true });
    },
  };
}

/** Processes below this one that are no zombies, as `pid name`. */
export function descendants(root: number = process.pid): string[] {
  const children = new Map<number, Array<{ pid: number; name: string; state: string }>>();
  for (const entry of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const stat = readFileSync(`/proc/${entry}/stat`, "latin1");
      const [state = "", parent = ""] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      const name = stat.slice(stat.indexOf("(") + 1, stat.lastIndexOf(")"));
      children.set(Number(parent), [...(children.get(Number(parent)) ?? []), { pid: Number(entry), name, state }]);
    } catch {
      // Ended while we looked.
    }
  }
  const below = (pid: number): string[] =>
    (children.get(pid) ?? []).flatMap((child) => [...(child.state === "Z" ? [] : [`${child.pid} ${child.name}`]), ...below(child.pid)]);
  return below(root);
}

/** QEMU's pid: the only process that has the session's name among its arguments and no child. */
export function qemuOf({ id }: { readonly id: string }): number {
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) => pid !== process.pid);
  const named = pids.filter((pid) => {
    try {
      const argv = readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
      return argv.includes(id) && !argv[0]?.includes("sbx-jail");
    } catch {
      return false; // Ended while we looked.
    }
  });
  assert.equal(named.length, 1, `one QEMU of ${id}`);
  return named[0] as number;
}

const quiet = { debug: () => {}, info: () => {}, warning: () => {}, error: (message: string) => void process.stderr.write(`${message}\n`) };
