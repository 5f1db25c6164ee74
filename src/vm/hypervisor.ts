/** Hypervisor: which files and host facts every launch of one scheduler uses, found once; and what one launch may ask. */
import type { ConfinementLayers } from "../qemu/confine.ts";
import { kernelCommandLine } from "../qemu/machine.ts";
import type { Candidate } from "../qemu/probe.ts";
import type { Qemu } from "../qemu/probe.ts";
import type { Platform } from "../host/platform.ts";
import type { Logger } from "../base/log.ts";

/** A file of the images directory and its content's hash. */
export interface AssetFile {
  readonly path: string;
  readonly sha256: string;
}

/** The files machines are made of. */
export interface MachineFiles {
  readonly kernel: AssetFile;
  readonly initrd: AssetFile;
  readonly firmware: AssetFile;
  /** The root file system of a language. Throws `AssetError` when the images directory has none. */
  rootImage(language: string): AssetFile;
}

/** Everything a launch needs that does not differ between launches. */
export interface Hypervisor {
  readonly platform: Platform;
  readonly files: MachineFiles;
  readonly qemu: Qemu;
  readonly candidate: Candidate;
  readonly confinement: ConfinementLayers;
  /** Marks every QEMU of this scheduler in the process list. */
  readonly ownerToken: string;
  readonly log: Logger;
}

/** How a VM comes to be. */
export type Origin =
  /** Boots with memory of its own. */
  | { readonly kind: "cold" }
  /** Boots with its memory in a shared file, which becomes a template's. */
  | { readonly kind: "bake"; readonly ramFile: string; readonly stateFile: string }
  /** Continues where the template stopped; writes stay private. */
  | { readonly kind: "clone"; readonly ramFile: string; readonly stateFile: string };

/** What is asked of a VM. */
export interface LaunchRequest {
  readonly language: string;
  readonly memoryMiB: number;
  readonly origin: Origin;
  /** Gets the kernel's and agent's log as it comes. */
  readonly onConsole?: (bytes: Uint8Array) => void;
  /** Log from the first instruction on, at the price of a slower machine: for diagnosis. */
  readonly isDiagnostic?: boolean;
  /** Overrides the default deadline for the guest's first answer. */
  readonly readyTimeoutMs?: number;
}

/** The kernel's command line for `request`; that of a bake decides the template's key. */
export function commandLineFor(
  hypervisor: Hypervisor,
  request: Pick<LaunchRequest, "language" | "isDiagnostic" | "onConsole"> & { readonly origin: Pick<Origin, "kind"> },
): string {
  const { qemu, candidate, platform } = hypervisor;
  return kernelCommandLine({
    language: request.language,
    console: request.isDiagnostic ? "serial" : "socket",
    hasNanosecondTsc: qemu.isOwn && candidate.accelerator === "tcg" && platform.arch === "x86_64",
    isLogged: !request.isDiagnostic && (request.origin.kind === "bake" || request.onConsole !== undefined),
  });
}
