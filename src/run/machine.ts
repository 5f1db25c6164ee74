/** Machine: a VM in the hands of one run or one session, and where such VMs come from. */
import type { Duplex } from "node:stream";
import type { GuestChannel } from "../channel/guest.ts";
import type { StartKind } from "../base/result.ts";
import type { PackageLanguage } from "../packages/spec.ts";
import type { QemuUsage } from "../qemu/usage.ts";
import type { StoredCheckpoint } from "../vm/checkpoint_store.ts";
import type { OutputCallback } from "./check.ts";
import type { PackageSet } from "./package_request.ts";
import type { PinnedVersion } from "./pins.ts";
import type { Language } from "./request.ts";

/** Which VM is wanted. */
export interface MachineRequest {
  readonly language: Language;
  readonly memoryMb: number;
  readonly signal: AbortSignal | undefined;
  /** It has these packages. */
  readonly packages?: PackageSet | undefined;
  /** Gets the kernel's and agent's log; for a clone first that of its template's boot. */
  readonly onBootLog: OutputCallback | undefined;
  /** It can be saved, unless it boots. Default false. */
  readonly isSavable?: boolean;
  /** It goes on from there instead of from a template. */
  readonly checkpoint?: StoredCheckpoint;
  /** It will take the place of this one (`replaceWith`): no room is looked for. */
  readonly replacing?: Machine;
  /** A machine that did not start, whose place this one takes: what it was made from is made anew. */
  readonly insteadOf?: Machine;
  /** `needed`: `net` must be there. `welcome`: it may be asked for later. Default: it is there or not. */
  readonly net?: "needed" | "welcome";
  /** Started for this request alone, not ahead of it. */
  readonly isFresh?: boolean;
}

/** A VM that has one user. Disposing gives it back and waits until it is dead. */
export interface Machine extends AsyncDisposable {
  /** Names it in logs; no two are the same. */
  readonly id: string;
  readonly guest: GuestChannel;
  /** Our end of the guest's net port; undefined where none was asked for. Destroyed with the machine. */
  readonly net?: Duplex | undefined;
  readonly start: StartKind;
  /** `performance.now()` when its start began: room had been found then. */
  readonly startedAt: number;
  /** Nothing may be sent before it is ready: it boots, or it was warm, and until it has answered another can take its place. */
  readonly answersFirst: boolean;
  /** It was started ahead of the request and is lost, and nothing that was sent to it has had any effect: another may take its place. */
  readonly isReplaceable: boolean;
  /** Resolves with the milliseconds from `startedAt` to the guest's first answer; rejects with a typed error when there will be none. */
  readonly ready: Promise<number>;
  /** Aborts when QEMU has ended or the channel is lost. */
  readonly lost: AbortSignal;
  /**
   * A CPU slot of the host, to be held while the machine works for somebody and disposed then; at once, not a promise, when one is free. The first call takes
   * over the slot that the start had. Rejects with `VmCapacityError` and with the signal's reason.
   */
  occupy(signal: AbortSignal | undefined): Disposable | Promise<Disposable>;
  /** What it has cost since it was handed over. */
  usage(): QemuUsage;
  /** The message of `error`, which ended it, with QEMU's own words when it left any. */
  describeLoss(error: unknown): string;
  /**
   * Saves it. Its guest is held; when this resolves it may go on, and what was written can be kept. Throws `SnapshotError`; rejects with the signal's
   * reason. The machine runs on either way.
   */
  save(signal: AbortSignal | undefined): Promise<MachineSave>;
  /** Gives its room to `next`, which was leased for that, and itself back. */
  replaceWith(next: Machine): void;
  /** Gives it back: it is killed, and nobody waits for that. May be called twice. */
  release(): void;
}

/** What was written of a machine. Disposing drops it unless it was kept. */
export interface MachineSave extends AsyncDisposable {
  /** Makes a checkpoint of it, once. Throws `SnapshotError`. */
  keep(name: string | undefined): Promise<StoredCheckpoint>;
}

/** The checkpoints that a source can restore from. */
export interface CheckpointIndex {
  /** Throws `SnapshotError` when the name is taken. */
  checkFree(name: string): Promise<void>;
  /** The one of that name. Throws `SnapshotError` when there is none. */
  named(name: string): Promise<StoredCheckpoint>;
  /** Those with a name, the oldest first. */
  list(): Promise<StoredCheckpoint[]>;
  /** Removes it; what was restored from it runs on. */
  remove(checkpoint: StoredCheckpoint): Promise<void>;
}

/** Where the VMs of one scheduler come from. Disposing kills all of them and waits. */
export interface MachineSource extends AsyncDisposable {
  readonly checkpoints: CheckpointIndex;
  /** Rejects with `VmCapacityError` when so much memory can never be had at once. */
  checkMemory(memoryMb: number): Promise<void>;
  /**
   * Waits for room and starts a VM; it may be used before it has answered. The caller owns it. Throws `VmCapacityError` and what starting
   * throws; rejects with the signal's reason.
   */
  lease(request: MachineRequest): Promise<Machine>;
  /** Resolves when as many VMs are kept ready as were asked for. Rejects with what keeps it from being so, and with the signal's reason. */
  ready(signal: AbortSignal): Promise<void>;
  /** The newest stable versions of packages named without one; kept from before unless `isFresh`. */
  pinPackages(
    language: PackageLanguage,
    names: readonly string[],
    options: { readonly isFresh: boolean; readonly signal: AbortSignal },
  ): Promise<ReadonlyMap<string, PinnedVersion>>;
  /** Makes what VMs for `language` start from. */
  prepare(request: Pick<MachineRequest, "language" | "memoryMb" | "packages"> & { readonly signal: AbortSignal }): Promise<void>;
}
