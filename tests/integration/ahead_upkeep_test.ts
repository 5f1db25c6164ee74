/** Upkeep of what is started ahead: who stands still or is of a lost template is replaced, failures are retried ever more slowly, spares age, and idle VMs cost no processor. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import process from "node:process";
import test, { after, before } from "node:test";
import { Gate } from "../../src/admission/gate.ts";
import { resolveConfig } from "../../src/config/config.ts";
import { readPlatform } from "../../src/host/platform.ts";
import { defaultImagesDirectory, openAssets } from "../../src/images/assets.ts";
import type { Language } from "../../src/mod.ts";
import { findHypervisor } from "../../src/run/find_hypervisor.ts";
import { Spares } from "../../src/run/spares.ts";
import { WarmPool, type WarmPoolParts } from "../../src/run/warm_pool.ts";
import { warmUpText } from "../../src/run/warm_up.ts";
import type { Hypervisor } from "../../src/vm/hypervisor.ts";
import { launch, spawnVm } from "../../src/vm/launch.ts";
import { type Template, templateIdentity, TemplateStore } from "../../src/vm/template.ts";
import type { Vm } from "../../src/vm/vm.ts";
import { qemuPids } from "../support/ahead.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";

const MEMORY_MIB = 256;
const log = { debug() {}, info() {}, warning() {}, error() {} };
let vms: TestScheduler, hypervisor: Hypervisor, templates: TemplateStore;
before(async () => {
  vms = await openTestScheduler();
  const config = resolveConfig(), platform = readPlatform();
  const assets = await openAssets(config.imagesDir ?? defaultImagesDirectory(config.cacheDir, platform.arch));
  hypervisor = await findHypervisor({ config, platform, assets, ownerToken: "00000000000a4ead", log });
  templates = new TemplateStore(config.snapshotCacheDir);
});
after(() => vms.close());

async function templateOf(language: Language): Promise<Template> {
  await vms.scheduler.prepare(language, { memoryMb: MEMORY_MIB });
  const template = await templates.find(templateIdentity(hypervisor, { language, memoryMiB: MEMORY_MIB, warmUp: warmUpText(language) }));
  assert.ok(template);
  return template;
}

/** What pools and spares of a test share: room, and the machines they have. */
class Owner implements AsyncDisposable {
  readonly gate = new Gate({ memoryMiB: 4 * MEMORY_MIB, cpus: 4 });
  readonly closing = new AbortController();
  readonly #vms = new Set<Vm>();
  readonly #ending: Promise<void>[] = [];
  #closed: () => Promise<void> = () => Promise.resolve();

  get parts() {
    return { gate: this.gate, log, closing: this.closing.signal, end: (vm: Vm) => void this.#ending.push(vm[Symbol.asyncDispose]()) };
  }

  async clone(template: Template): Promise<Vm> {
    const { language, memoryMiB } = template;
    const vm = await launch(hypervisor, { language, memoryMiB, origin: { kind: "clone", files: template } });
    this.#vms.add(vm);
    await vm.ready;
    return vm;
  }

  async spawn(template: Template): Promise<Vm> {
    const { language, memoryMiB } = template;
    const vm = await spawnVm(hypervisor, { language, memoryMiB, origin: { kind: "clone", files: template } });
    this.#vms.add(vm);
    return vm;
  }

  pool(parts: Pick<WarmPoolParts, "make" | "languages"> & Partial<WarmPoolParts>): WarmPool {
    const pool = new WarmPool({ size: 1, memoryMb: MEMORY_MIB, isIntact: () => Promise.resolve(true), ...this.parts, ...parts });
    this.#closed = () => pool.closed();
    return pool;
  }

  /** Closes them, and finds nothing held. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.closing.abort(new Error("over"));
    await this.#closed();
    await Promise.all(this.#ending);
    await Promise.all([...this.#vms].map((vm) => vm[Symbol.asyncDispose]()));
    assert.deepEqual(this.gate.held, { memoryMiB: 0, reservedMiB: 0, cpus: 0 });
  }
}

const never = new AbortController().signal;

test("a warm VM that stands still, and one whose template is not what it was, is replaced although nobody asks for it", async () => {
  const template = await templateOf("raw");
  await using owner = new Owner();
  let isIntact = true;
  const pool = owner.pool({
    languages: ["raw"],
    make: async () => ({ vm: await owner.clone(template), template }),
    isIntact: () => Promise.resolve(isIntact),
    health: { intervalMs: 50, timeoutMs: 2_000 },
  });
  await settled(pool.ready(never), "the pool");
  const [still] = qemuPids();
  assert.ok(still);
  process.kill(still, "SIGSTOP");
  await eventually(
    "another has taken its place",
    () => pool.has("raw", MEMORY_MIB) && qemuPids().length === 1 && !qemuPids().includes(still),
  );
  const [lost] = qemuPids();
  isIntact = false;
  await eventually("the one of a lost template is gone", () => !qemuPids().includes(lost ?? 0));
  isIntact = true;
  await eventually("the pool is full again", () => pool.has("raw", MEMORY_MIB));
  const taken = pool.take("raw", MEMORY_MIB);
  assert.ok(taken);
  await taken.vm.guest.ping(never);
  await taken.vm[Symbol.asyncDispose]();
  taken.room[Symbol.dispose]();
});

test("what cannot be made is tried again, each time after twice as long; other languages do not wait for it", async () => {
  const template = await templateOf("raw");
  await using owner = new Owner();
  const triedAt: number[] = [];
  const pool = owner.pool({
    languages: ["python", "raw"],
    make: async (language) => {
      if (language === "python" && triedAt.push(performance.now()) <= 4) throw new Error("not now");
      return { vm: await owner.clone(template), template };
    },
  });
  await assert.rejects(settled(pool.ready(never), "the first failure"), /Cannot fill the warm pool: not now/);
  await eventually("the other language is there", () => pool.has("raw", MEMORY_MIB));
  assert.ok(!pool.has("python", MEMORY_MIB));
  await eventually("the fourth attempt", () => triedAt.length >= 4);
  const taken = pool.take("raw", MEMORY_MIB);
  assert.ok(taken);
  await taken.vm[Symbol.asyncDispose]();
  taken.room[Symbol.dispose]();
  await eventually("another of the other language", () => pool.has("raw", MEMORY_MIB));
  assert.equal(triedAt.length, 4, "which waits for no attempt at the first, and brings none forward");
  await eventually("it is full at last", () => pool.has("python", MEMORY_MIB));
  await settled(pool.ready(never), "a full pool");
  const [first = 0, second = 0, third = 0, fourth = 0, fifth = 0] = triedAt;
  // A timer may be a millisecond early.
  assert.ok(second - first >= 499, `${second - first}`);
  assert.ok(third - second >= 999, `${third - second}`);
  assert.ok(fourth - third >= 1_999, `${fourth - third}`);
  assert.ok(fifth - fourth >= 3_999, `${fifth - fourth}`);
});

test("a spare that nobody takes ends when its time is over, and its room comes back", async () => {
  const template = await templateOf("raw");
  await using owner = new Owner();
  const spares = new Spares({ ...owner.parts, size: 1, cpus: 4, spawn: (of) => owner.spawn(of), idleMaxMs: 300 });
  for (let use = 0; use < 2; use += 1) spares.used(template);
  await eventually("a spare", () => qemuPids().length === 1);
  await eventually("it holds room, and is within its bound", () => owner.gate.held.reservedMiB > 0 || qemuPids().length === 0);
  await eventually("it has ended", () => qemuPids().length === 0);
  assert.deepEqual([spares.take(template), owner.gate.held.reservedMiB], [undefined, 0]);
  await spares.closed();
});

/** Processor time of a process so far, in hundredths of a second. */
function cpuTicks(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1"), fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return Number(fields[11]) + Number(fields[12]);
}

test("an idle VM of each language costs memory, and no processor to speak of", async () => {
  await using owner = new Owner();
  const code = { python: "print(1)", javascript: "console.log(1)", raw: "echo 1" } as const;
  for (const language of ["python", "javascript", "raw"] as const) {
    const vm = await owner.clone(await templateOf(language));
    await vm.guest.exec({ code: code[language], env: {}, timeoutMs: 60_000 }, { onOutput: () => {} }, never);
    await vm.guest.quiesce(never);
  }
  await sleep(1_000); // What an execution leaves to be done is over.
  const pids = qemuPids(), before = pids.map(cpuTicks);
  assert.equal(pids.length, 3);
  await sleep(2_000);
  const ticks = pids.map((pid, at) => cpuTicks(pid) - (before[at] ?? 0));
  assert.ok(ticks.every((each) => each <= 20), `at most a tenth of a processor each, got ${ticks} hundredths of a second in two seconds`);
});

noLeftovers();
