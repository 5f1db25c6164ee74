/** Hypervisor: which files and host facts every launch of one scheduler uses, found once; and what one launch may ask. */
import type { ConfinementLayers } from "../qemu/confine.ts";
import { kernelCommandLine, type Layer } from "../qemu/machine.ts";
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
  /** A directory of this scheduler alone: in one of each VM's own QEMU can save it. Absent: none of them can be saved. */
  readonly savesRoot?: string | undefined;
  readonly log: Logger;
}

/** What a template consists of. */
export interface TemplateFiles {
  /** The guest's memory, mapped by every clone. */
  readonly ramFile: string;
  /** QEMU's device state. */
  readonly stateFile: string;
  /** Host code that our own emulator has made of the guest's; empty with any other. */
  readonly translationsFile: string;
  /** Tells one bake from the next of the same key: translations fit the memory of their own bake alone. */
  readonly bakeId: string;
}

/** What a checkpoint consists of. */
export interface CheckpointFiles {
  /** As QEMU wrote it; the guest's memory begins at `ramOffset`. Mapped by every VM that is restored. */
  readonly ramFile: string;
  readonly ramOffset: number;
  /** The same without the guest's memory. */
  readonly stateFile: string;
}

/** How a VM comes to be. */
export type Origin =
  /** Boots with memory of its own. */
  | { readonly kind: "cold" }
  /** Boots with its memory in a shared file, which becomes a template's. */
  | { readonly kind: "bake"; readonly files: TemplateFiles }
  /** Continues where the template stopped; writes stay private. */
  | { readonly kind: "clone"; readonly files: TemplateFiles }
  /** Goes on where a VM was when it was saved; writes stay private. */
  | { readonly kind: "restore"; readonly files: CheckpointFiles };

/** Its kernel boots: the guest says when it is ready. Any other VM goes on from where it was. */
export function isBooting({ kind }: Pick<Origin, "kind">): boolean {
  return kind === "cold" || kind === "bake";
}

/** What is asked of a VM. */
export interface LaunchRequest {
  readonly language: string;
  readonly memoryMiB: number;
  readonly origin: Origin;
  /** Packages, or what is needed to install them. A clone's must be its template's. */
  readonly layer?: Layer | undefined;
  /** Gets the kernel's and agent's log as it comes. */
  readonly onConsole?: (bytes: Uint8Array) => void;
  /** Its QEMU gets a directory to save it to: the one place that it can write to. Nothing that boots can be saved. Default false. */
  readonly isSavable?: boolean;
  /** Log from the first instruction on, at the price of a slower machine: for diagnosis. */
  readonly isDiagnostic?: boolean;
  /** The guest's net port is connected: `vm.net`. Default false. */
  readonly hasNet?: boolean;
  /** Overrides the default deadline for the guest's first answer. */
  readonly readyTimeoutMs?: number;
}

/** The kernel's command line for `request`; that of a bake decides the template's key. */
export function commandLineFor(
  hypervisor: Hypervisor,
  request: Pick<LaunchRequest, "language" | "isDiagnostic" | "onConsole" | "layer"> & { readonly origin: Pick<Origin, "kind"> },
): string {
  return kernelCommandLine({
    language: request.language,
    console: request.isDiagnostic ? "serial" : "socket",
    hasNanosecondTsc: isOwnEmulator(hypervisor),
    isLogged: !request.isDiagnostic && (request.origin.kind === "bake" || request.onConsole !== undefined),
    layer: request.layer?.kind,
  });
}

/** Our own QEMU emulates, with what its patches (images/qemu/patches) add to it. */
export function isOwnEmulator({ qemu, candidate, platform }: Hypervisor): boolean {
  return qemu.isOwn && candidate.accelerator === "tcg" && platform.arch === "x86_64";
}
