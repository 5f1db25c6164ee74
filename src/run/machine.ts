/** Machine: a VM in the hands of one run or one session, and where such VMs come from. */
import type { GuestChannel } from "../channel/guest.ts";
import type { StartKind } from "../base/result.ts";
import type { QemuUsage } from "../qemu/usage.ts";
import type { OutputCallback } from "./check.ts";
import type { Language } from "./request.ts";

/** Which VM is wanted. */
export interface MachineRequest {
  readonly language: Language;
  readonly memoryMb: number;
  readonly signal: AbortSignal | undefined;
  /** Gets the kernel's and agent's log; for a clone first that of its template's boot. */
  readonly onBootLog: OutputCallback | undefined;
  /** A machine that did not start, whose place this one takes: what it was made from is made anew. */
  readonly insteadOf?: Machine;
  /** Started for this request alone, not ahead of it. */
  readonly isFresh?: boolean;
}

/** A VM that has one user. Disposing gives it back and waits until it is dead. */
export interface Machine extends AsyncDisposable {
  /** Names it in logs; no two are the same. */
  readonly id: string;
  readonly guest: GuestChannel;
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
  /** Gives it back: it is killed, and nobody waits for that. May be called twice. */
  release(): void;
}

/** Where the VMs of one scheduler come from. Disposing kills all of them and waits. */
export interface MachineSource extends AsyncDisposable {
  /**
   * Waits for room and starts a VM; it may be used before it has answered. The caller owns it. Throws `VmCapacityError` and what starting
   * throws; rejects with the signal's reason.
   */
  lease(request: MachineRequest): Promise<Machine>;
  /** Resolves when as many VMs are kept ready as were asked for. Rejects with what keeps it from being so, and with the signal's reason. */
  ready(signal: AbortSignal): Promise<void>;
  /** Makes what VMs for `language` start from. */
  prepare(request: { readonly language: Language; readonly memoryMb: number; readonly signal: AbortSignal }): Promise<void>;
}
