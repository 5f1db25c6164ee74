/** Cases: every figure SPEC.md promises, each measured beside the floor. */
import { existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import process from "node:process";
import { Child, run as runProgram } from "../../src/host/process.ts";
import { readPlatform } from "../../src/host/platform.ts";
import { type Language, Scheduler } from "../../src/mod.ts";
import { resolveConfig } from "../../src/config/config.ts";
import { type Assets, defaultImagesDirectory, openAssets } from "../../src/images/assets.ts";
import { Qmp } from "../../src/qemu/qmp.ts";
import { qemuPid } from "../../src/qemu/usage.ts";
import { findHypervisor } from "../../src/run/find_hypervisor.ts";
import type { Hypervisor } from "../../src/vm/hypervisor.ts";
import { launch } from "../../src/vm/launch.ts";
import { type Template, templateIdentity, TemplateStore } from "../../src/vm/template.ts";
import type { Vm } from "../../src/vm/vm.ts";
import { warmUpText } from "../../src/run/warm_up.ts";
import { measure, type Measurement, timed } from "./measure.ts";

const MEMORY_MIB = 256;
/** A program that prints. */
export const PRINT: Readonly<Record<Language, string>> = {
  python: "print('hello')",
  javascript: "console.log('hello')",
  raw: "echo hello",
};
const NOTHING: Readonly<Record<Language, string>> = { python: "pass", javascript: ";", raw: ":" };
/** A logger that drops everything. */
export const silent = { debug() {}, info() {}, warning() {}, error() {} };

/** What the cases share. */
export interface Bench {
  readonly assets: Assets;
  readonly hypervisor: Hypervisor;
  readonly templates: TemplateStore;
}

/** Finds assets and host once. */
export async function openBench(): Promise<Bench> {
  const config = resolveConfig(), platform = readPlatform();
  const assets = await openAssets(config.imagesDir ?? defaultImagesDirectory(config.cacheDir, platform.arch));
  const hypervisor = await findHypervisor({ config, platform, assets, ownerToken: "00000000000bec4e", log: silent });
  return { assets, hypervisor, templates: new TemplateStore(config.snapshotCacheDir) };
}

/** F: our QEMU with no machine at all, spawn → QMP greeting. */
export function floor({ hypervisor }: Bench, count: number): Promise<Measurement> {
  const options = [
    "-M",
    "none",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-chardev",
    "socket,id=qmp,fd=3",
    "-mon",
    "chardev=qmp,mode=control",
  ];
  return measure("F: QEMU without a machine, spawn to QMP greeting", { count, warmUps: 3 }, async () => {
    const startedAt = performance.now();
    await using child = await Child.spawn([hypervisor.qemu.path, ...options], { pipes: 1, isTermFirst: false });
    await new Qmp(child.pipes[0]!).version();
    return performance.now() - startedAt;
  });
}

/** Cold boot to the agent's announcement. */
export function coldBoot({ hypervisor }: Bench, language: Language, count: number): Promise<Measurement> {
  return measure(`cold boot to ready, ${language}`, { count, warmUps: 1 }, async () => {
    await using vm = await launch(hypervisor, { language, memoryMiB: MEMORY_MIB, origin: { kind: "cold" } });
    return await vm.ready;
  });
}

/** `Scheduler.open` alone. */
export function schedulerOpen(count: number): Promise<Measurement> {
  return measure("Scheduler.open", { count, warmUps: 2 }, async () => {
    const startedAt = performance.now();
    await using _scheduler = await Scheduler.open({}, { log: silent });
    return performance.now() - startedAt;
  });
}

/** One trivial execution on a VM that runs. */
export async function executeNothing(bench: Bench, language: Language, count: number): Promise<Measurement> {
  await using vm = await clone(bench, language);
  return await measure(
    `execution of nothing on a running VM, ${language}`,
    { count, warmUps: 5 },
    () => timed(() => execute(vm, NOTHING[language])),
  );
}

/** Proportional set size of a clone that has executed once and idles. */
export async function idleMemory(bench: Bench, language: Language, count: number): Promise<Measurement> {
  return await measure(`memory (PSS) of an idle clone, ${language}`, { count, warmUps: 0, unit: "MB" }, async () => {
    await using vm = await clone(bench, language);
    await execute(vm, PRINT[language]);
    // Idle, not just started: our own QEMU lets go of the file of translations a second later.
    await new Promise((resolve) => setTimeout(resolve, 3000));
    const pid = qemuPid(vm.child.pid);
    const pssKib = /^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1];
    return Number(pssKib) / 1024;
  });
}

/** `sbx --version` as a whole process, and an empty program compiled the same way. */
export async function version(count: number): Promise<Measurement[]> {
  const program = "dist/sbx", empty = "dist/empty";
  if (!existsSync(program)) return [];
  await writeFile("dist/empty.ts", "");
  await runProgram(["bun", "build", "--compile", "--minify", "--bytecode", "--format=esm", "dist/empty.ts", "--outfile", empty]);
  const wall = (path: string) => () => timed(() => runProgram([path, "--version"]));
  return [
    await measure("an empty compiled program, wall", { count, warmUps: 3 }, wall(empty)),
    await measure("sbx --version, wall", { count, warmUps: 3 }, wall(program)),
  ];
}

/** `sbx run` as a whole process. */
export async function commandLineRun(count: number): Promise<Measurement[]> {
  const program = "dist/sbx";
  if (!existsSync(program)) return [];
  return [
    await measure("sbx run -q print, wall", { count, warmUps: 3 }, () =>
      timed(async () => {
        const { code, stderr } = await runProgram([program, "run", "--no-serve", "-q", PRINT.python], { env: environment() });
        if (code !== 0) throw new Error(`sbx run failed: ${stderr}`);
      })),
  ];
}

/** That of this process, for others. */
export function environment(): Record<string, string> {
  return Object.fromEntries(Object.entries(process.env).filter((entry): entry is [string, string] => entry[1] !== undefined));
}

/** The template that a scheduler has made. */
export async function templateOf({ hypervisor, templates }: Bench, language: Language, memoryMiB: number): Promise<Template> {
  const template = await templates.find(templateIdentity(hypervisor, { language, memoryMiB, warmUp: warmUpText(language) }));
  if (!template) throw new Error(`no template for ${language}: run the case that makes it first`);
  return template;
}

/** A machine from that template. */
export async function clone(bench: Bench, language: Language, memoryMiB = MEMORY_MIB): Promise<Vm> {
  const files = await templateOf(bench, language, memoryMiB);
  return await launch(bench.hypervisor, { language, memoryMiB, origin: { kind: "clone", files } });
}

/** Runs code on a machine. Throws when it fails. */
export async function execute(vm: Vm, code: string): Promise<void> {
  const reply = await vm.guest.exec({ code, env: {}, timeoutMs: 10_000 }, { onOutput: () => {} });
  if (reply.exitCode !== 0) throw new Error(`exit code ${reply.exitCode}`);
}
