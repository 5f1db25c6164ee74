/** Probe: which QEMU, and which accelerators are worth trying. What really works, only a boot tells (vm/canary). */
import { constants } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import { SandboxDependencyError } from "../base/errors.ts";
import { ask } from "../host/ask.ts";
import type { Platform } from "../host/platform.ts";
import type { Accelerator } from "./machine.ts";

/** The oldest QEMU whose `memory-backend-file` maps a file it opened for reading privately and writable (`readonly=on,rom=off`). */
export const QEMU_MIN_VERSION = "8.2";

/** A QEMU and where its firmware comes from. */
export interface Qemu {
  readonly path: string;
  readonly version: string;
  /** Changes with every other build of the program, also of the same version. */
  readonly fingerprint: string;
  /** Built by us: static, and all it needs is in the images directory. */
  readonly isOwn: boolean;
}

/** An accelerator with the CPU model to ask it for. */
export interface Candidate {
  readonly accelerator: Accelerator;
  readonly cpu: string;
}

/** What to try, in order; the last one always works. */
export interface Candidates {
  readonly candidates: readonly Candidate[];
  /** Why hardware acceleration is not even tried; empty when it is. */
  readonly reason: string;
  /** The user asked for software emulation. */
  readonly isForced: boolean;
}

/**
 * Software emulation: the guest's CPU is made by QEMU and the same on every host. On x86-64 without the promise that string instructions
 * are fast: QEMU emulates them byte by byte, while the loops that kernel and C library use instead copy four times as fast.
 */
const EMULATED_CPUS: Readonly<Record<Platform["arch"], string>> = { x86_64: "max,-erms,-fsrm,-fsrs,-fzrm", aarch64: "max" };

/** Facts about the host that decide what is tried. */
export interface AcceleratorFacts {
  readonly platform: Pick<Platform, "os" | "arch">;
  readonly isEmulationForced: boolean;
  /** Why `/dev/kvm` cannot be opened; undefined when it can. */
  readonly kvmProblem: string | undefined;
  /** `/proc/cpuinfo` has `vmx` or `svm`, or the architecture has no such flag. */
  readonly hasVirtualizationFlag: boolean;
  /** The module that makes a `/dev/kvm` without hardware behind it. */
  readonly isPvm: boolean;
}

/** Pure: the ladder of accelerators and CPU models. The guest never sees nested virtualization. */
export function acceleratorCandidates(facts: AcceleratorFacts): Candidates {
  const emulation: Candidate = { accelerator: "tcg", cpu: EMULATED_CPUS[facts.platform.arch] };
  const emulationOnly = (reason: string): Candidates => ({ candidates: [emulation], reason, isForced: facts.isEmulationForced });
  if (facts.isEmulationForced) return emulationOnly("EXEC_SANDBOX_FORCE_EMULATION is set");
  if (facts.platform.os === "macos") return { candidates: [{ accelerator: "hvf", cpu: "host" }, emulation], reason: "", isForced: false };
  if (facts.kvmProblem !== undefined) return emulationOnly(facts.kvmProblem);
  if (facts.isPvm) return emulationOnly("this host's /dev/kvm is kvm-pvm, which cannot run an ordinary Linux guest");
  if (!facts.hasVirtualizationFlag) return emulationOnly("this host's CPU shows neither vmx nor svm, although /dev/kvm exists");
  if (facts.platform.arch === "aarch64") {
    return { candidates: [{ accelerator: "kvm", cpu: "host" }, emulation], reason: "", isForced: false };
  }
  return {
    candidates: [
      { accelerator: "kvm", cpu: "host,-svm,-vmx" },
      // Some nested hosts let QEMU read MSR 0x10a and refuse to set it, which aborts the start.
      { accelerator: "kvm", cpu: "host,-svm,-vmx,-arch-capabilities" },
      emulation,
    ],
    reason: "",
    isForced: false,
  };
}

/** Reads the facts from the host. */
export async function readAcceleratorFacts(platform: Platform, isEmulationForced: boolean): Promise<AcceleratorFacts> {
  if (platform.os === "macos") {
    return { platform, isEmulationForced, kvmProblem: undefined, hasVirtualizationFlag: true, isPvm: false };
  }
  const [kvmProblem, cpuinfo, isPvm] = await Promise.all([
    fs.access("/dev/kvm", constants.R_OK | constants.W_OK).then(() => undefined, describeKvmProblem),
    fs.readFile("/proc/cpuinfo", "utf8").catch(() => ""), // Unreadable: no flag is seen, and emulation is used.
    fs.access("/sys/module/kvm_pvm").then(() => true, () => false),
  ]);
  const hasVirtualizationFlag = platform.arch === "aarch64" || /^flags\s*:.*\b(vmx|svm)\b/m.test(cpuinfo);
  return { platform, isEmulationForced, kvmProblem, hasVirtualizationFlag, isPvm };
}

function describeKvmProblem(error: NodeJS.ErrnoException): string {
  if (error.code === "EACCES") return "/dev/kvm may not be opened by this user; add the user to the group kvm";
  return "this host has no /dev/kvm";
}

/** Where QEMU is looked for: an explicit path, our own build, then PATH. */
export interface QemuSources {
  /** `EXEC_SANDBOX_QEMU`. */
  readonly explicit: string | undefined;
  /** Our own build with its version, when the images directory has one for this host. */
  readonly own: { readonly path: string; readonly version: string; readonly fingerprint: string } | undefined;
  readonly arch: Platform["arch"];
  /** `PATH` of this process. */
  readonly searchPath: string;
}

/** The QEMU to use. Throws `SandboxDependencyError` when there is none, it does not run, or it is too old. */
export async function findQemu(sources: QemuSources): Promise<Qemu> {
  if (sources.explicit === undefined && sources.own) return { ...sources.own, isOwn: true };
  const name = `qemu-system-${sources.arch}`;
  const program = sources.explicit ?? await findInPath(name, sources.searchPath);
  if (program === undefined) {
    throw new SandboxDependencyError(`Cannot find QEMU: neither the images directory nor PATH has one (${name})`, {
      hint: "Run `sbx images build` or `sbx prefetch`, or install QEMU 8.2 or newer.",
    });
  }
  const version = await readVersion(program);
  if (!isAtLeast(version, QEMU_MIN_VERSION)) {
    throw new SandboxDependencyError(`Cannot use ${program}: QEMU must be version ${QEMU_MIN_VERSION} or newer, got ${version}`, {
      hint: "Run `sbx images build` or `sbx prefetch` for sbx's own QEMU, or set EXEC_SANDBOX_QEMU to a newer one.",
    });
  }
  const { size, mtimeMs } = await fs.stat(program);
  return { path: program, version, fingerprint: `${size}-${mtimeMs}`, isOwn: false };
}

/** Compares dotted versions, number by number. */
export function isAtLeast(version: string, wanted: string): boolean {
  const own = version.split(".").map(Number), least = wanted.split(".").map(Number);
  for (const [at, part] of least.entries()) {
    if ((own[at] ?? 0) !== part) return (own[at] ?? 0) > part;
  }
  return true;
}

async function readVersion(program: string): Promise<string> {
  const output = await ask("Cannot start QEMU", [program, "--version"]);
  const version = /version (\d+\.\d+(?:\.\d+)?)/.exec(output.stdout)?.[1];
  if (version === undefined) {
    throw new SandboxDependencyError(
      `Cannot use ${program}: it does not say which QEMU it is: ${(output.stderr || output.stdout).trim().slice(0, 200)}`,
    );
  }
  return version;
}

async function findInPath(name: string, searchPath: string): Promise<string | undefined> {
  for (const directory of searchPath.split(path.delimiter)) {
    const candidate = path.join(directory, name);
    if (path.isAbsolute(directory) && await fs.access(candidate, constants.X_OK).then(() => true, () => false)) return candidate;
  }
  return undefined;
}
