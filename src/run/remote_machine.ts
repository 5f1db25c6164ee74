/** Remote machine: a VM of the server of `sbx serve`, spoken to over a connection of its own that carries its control channel. */
import { readFileSync } from "node:fs";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { settlesWithin } from "../base/async.ts";
import { messageOf } from "../base/errors.ts";
import type { StartKind } from "../base/result.ts";
import { GuestChannel } from "../channel/guest.ts";
import type { ClientLink, LeasedVm } from "../link/client_link.ts";
import { type QemuUsage, readUsage } from "../qemu/usage.ts";
import type { Machine, MachineSave } from "./machine.ts";

/** The server kills at once; only one that hangs takes longer. */
const END_TIMEOUT_MS = 10_000;
const UNKNOWN: QemuUsage = { cpuTimeMs: null, memoryPeakMiB: null };

/** A VM that was ready when it was lent, and that lives as long as its connection. */
export class RemoteMachine implements Machine {
  readonly id: string;
  readonly start: StartKind;
  readonly startedAt: number;
  readonly answersFirst = false;
  /** The server replaces those that are lost before they were lent. */
  readonly isReplaceable = false;
  readonly guest: GuestChannel;
  readonly ready: Promise<number>;
  readonly #link: ClientLink;
  readonly #leased: LeasedVm;
  readonly #onRelease: () => void;
  #net: Socket | undefined;
  #released: Promise<void> | undefined;
  #isVisible: boolean | undefined;
  #hasFirstSlot: boolean;

  /** The machine of a lease, whose connection it owns. It may come with its first CPU slot. `onRelease` is called once, when it has been given back. */
  constructor(link: ClientLink, leased: LeasedVm, { hasSlot, onRelease }: { readonly hasSlot: boolean; readonly onRelease: () => void }) {
    this.#hasFirstSlot = hasSlot;
    this.#link = link;
    this.#leased = leased;
    this.#onRelease = onRelease;
    this.id = leased.vm;
    this.start = leased.start;
    this.startedAt = performance.now() - leased.ageMs;
    this.ready = Promise.resolve(leased.bootMs);
    this.guest = new GuestChannel(leased.socket, undefined, leased);
  }

  /** Connected when it is first asked for: few VMs that may have a network use one. */
  get net(): Duplex | undefined {
    const { netToken } = this.#leased;
    if (netToken !== null && !this.#released) this.#net ??= this.#link.connect(netToken);
    return this.#net;
  }

  get lost(): AbortSignal {
    return this.guest.closed;
  }

  /** The first slot is the one that the lease came with; for each further one the server is asked. */
  occupy(signal: AbortSignal | undefined): Disposable | Promise<Disposable> {
    const hasSlot = this.#hasFirstSlot;
    this.#hasFirstSlot = false;
    let isHeld = true;
    const slot: Disposable = {
      [Symbol.dispose]: () => {
        if (isHeld && !this.#released) this.#link.vacate(this.#leased.lease);
        isHeld = false;
      },
    };
    return hasSlot ? slot : this.#link.occupy(this.#leased.lease, signal).then(() => slot);
  }

  /** Read here and not asked of the server: both are on one host. Unknown where they do not see the same processes. */
  usage(): QemuUsage {
    const { pid, cpuTimeBaseMs } = this.#leased;
    this.#isVisible ??= commandLineOf(pid).includes(this.id);
    if (!this.#isVisible) return UNKNOWN;
    const { cpuTimeMs, memoryPeakMiB } = readUsage(pid);
    return { cpuTimeMs: cpuTimeMs === null ? null : Math.max(0, cpuTimeMs - cpuTimeBaseMs), memoryPeakMiB };
  }

  /** What QEMU said last is in the server's log. */
  describeLoss(error: unknown): string {
    const { gone } = this.#link;
    return gone.aborted ? `${messageOf(error)} (${messageOf(gone.reason)})` : messageOf(error);
  }

  /** The save is waited for whatever the signal does: another must not begin before it is over. */
  async save(signal: AbortSignal | undefined): Promise<MachineSave> {
    const link = this.#link, { lease } = this.#leased;
    await link.save(lease);
    const save: MachineSave = {
      keep: (name) => link.keep(lease, name),
      [Symbol.asyncDispose]: () => link.drop(lease).catch(() => {}), // Nothing is kept of a VM, or a server, that has gone.
    };
    if (!signal?.aborted) return save;
    await save[Symbol.asyncDispose]();
    throw signal.reason;
  }

  /** One of this process has room of its own. */
  replaceWith(next: Machine): void {
    this.#release(next instanceof RemoteMachine ? next.#leased.lease : undefined);
  }

  /** What the server knows it by. */
  get lease(): number {
    return this.#leased.lease;
  }

  release(): void {
    this.#release();
  }

  #release(heir?: number): void {
    if (this.#released) return;
    this.guest.close();
    // Asked for, and not by closing the connection alone: while the guest takes nothing the server reads nothing, and so would not see its end.
    this.#released = this.#link.release(this.#leased.lease, heir).catch(() => {}) // A server that has gone has taken its VMs along.
      .finally(() => {
        this.#disconnect();
        this.#onRelease();
      });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.release();
    await settlesWithin(this.#released ?? Promise.resolve(), END_TIMEOUT_MS);
    this.#disconnect();
  }

  #disconnect(): void {
    this.#net?.destroy();
    this.#leased.socket.destroy();
  }
}

function commandLineOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "latin1");
  } catch {
    return ""; // Ended, hidden from us, or no /proc.
  }
}
