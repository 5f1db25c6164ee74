/** Local machine: a VM of this process, with the room that was found for it. */
import type { Duplex } from "node:stream";
import { Deadline } from "../base/async.ts";
import { assert, CommunicationError, SnapshotError } from "../base/errors.ts";
import type { StartKind } from "../base/result.ts";
import type { GuestChannel } from "../channel/guest.ts";
import type { QemuUsage } from "../qemu/usage.ts";
import type { Template } from "../vm/template.ts";
import { describeLoss, type Vm } from "../vm/vm.ts";
import type { Machine, MachineSave } from "./machine.ts";

/** A warm machine that has not answered by then is given up: starting another takes less. Only a host that stands still is as slow. */
const CLAIM_TIMEOUT_MS = 5_000;
const cannotBeSaved = () => Promise.reject(new SnapshotError("Cannot save the VM: it was not started for that", { retry: "never" }));
const ALWAYS_FREE: Disposable = { [Symbol.dispose]() {} };

/** What one consists of. */
export interface LocalMachineParts {
  readonly vm: Vm;
  /** What it was cloned from. */
  readonly template: Template | undefined;
  /** How far it had come before it was asked for: `spare` had QEMU's process, `warm` has executed. Default: nothing. */
  readonly ahead?: "spare" | "warm" | undefined;
  /** It goes on from a checkpoint. Default false. */
  readonly isRestored?: boolean;
  /** Saves it; default: it cannot be saved. */
  readonly save?: (signal: AbortSignal | undefined) => Promise<MachineSave>;
  /** The memory that was found for it; disposed when it is given back. */
  readonly room?: Disposable | undefined;
  /** Slots for what it does; default: there is always one. */
  readonly occupy?: (signal: AbortSignal | undefined) => Disposable | Promise<Disposable>;
  /** What its start was given, for the first who works with it. */
  readonly slot?: Disposable | undefined;
  /** Called once, when it is given back. */
  readonly onRelease: () => void;
}

/** A VM whose QEMU this process started. */
export class LocalMachine implements Machine {
  readonly vm: Vm;
  readonly template: Template | undefined;
  readonly start: StartKind;
  readonly startedAt: number;
  readonly ready: Promise<number>;
  readonly #occupy: NonNullable<LocalMachineParts["occupy"]>;
  readonly #isSpare: boolean;
  readonly #save: NonNullable<LocalMachineParts["save"]>;
  #room: Disposable | undefined;
  #slot: Disposable | undefined;
  #onRelease: (() => void) | undefined;
  /** What it had cost before it was handed over. */
  #before: QemuUsage | undefined;
  #hasAnswered = false;

  /** The machine of `parts`. One that was started ahead is claimed: it is greeted now, anew where it runs. */
  constructor(parts: LocalMachineParts) {
    const { vm, template, ahead, isRestored, save = cannotBeSaved, room, occupy = () => ALWAYS_FREE, slot, onRelease } = parts;
    this.vm = vm;
    this.template = template;
    this.start = ahead === "warm" ? "warm" : template || isRestored ? "template" : "cold";
    this.#isSpare = ahead === "spare";
    this.#save = save;
    this.#room = room;
    this.#occupy = occupy;
    this.#slot = slot;
    this.#onRelease = onRelease;
    this.startedAt = ahead ? performance.now() : vm.startedAt;
    if (ahead === "spare") vm.greet(this.startedAt);
    this.ready = ahead === "warm" ? this.#renew() : vm.ready;
    this.ready.catch(() => {}); // Whoever waits sees it.
    // Read when the greeting has left: it need not wait for that.
    if (ahead) queueMicrotask(() => this.#before = vm.usage());
  }

  get id(): string {
    return this.vm.id;
  }

  get guest(): GuestChannel {
    return this.vm.guest;
  }

  get net(): Duplex | undefined {
    return this.vm.net;
  }

  get answersFirst(): boolean {
    return this.vm.isCold || this.start === "warm";
  }

  get isReplaceable(): boolean {
    if (this.start === "warm") return !this.#hasAnswered;
    return this.#isSpare && this.vm.hasNeverRun;
  }

  get lost(): AbortSignal {
    return this.vm.lost;
  }

  occupy(signal: AbortSignal | undefined): Disposable | Promise<Disposable> {
    const slot = this.#slot;
    this.#slot = undefined;
    return slot ?? this.#occupy(signal);
  }

  usage(): QemuUsage {
    const usage = this.vm.usage(), before = this.#before?.cpuTimeMs ?? 0;
    return { ...usage, cpuTimeMs: usage.cpuTimeMs === null ? null : Math.max(0, usage.cpuTimeMs - before) };
  }

  describeLoss(error: unknown): string {
    return describeLoss(this.vm, error);
  }

  async save(signal: AbortSignal | undefined): Promise<MachineSave> {
    return await this.#save(signal);
  }

  replaceWith(next: Machine): void {
    assert(next instanceof LocalMachine, "a machine of another source has no use for the room");
    next.#room = this.#room;
    this.#room = undefined;
    this.release();
  }

  release(): void {
    this.#slot?.[Symbol.dispose]();
    const onRelease = this.#onRelease;
    this.#onRelease = undefined;
    onRelease?.();
    const room = this.#room;
    this.#room = undefined;
    room?.[Symbol.dispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.release();
    await this.vm[Symbol.asyncDispose]();
  }

  async #renew(): Promise<number> {
    using deadline = new Deadline(
      CLAIM_TIMEOUT_MS,
      () => new CommunicationError(`Cannot use a warm VM: no answer from the guest after ${CLAIM_TIMEOUT_MS} ms`),
    );
    await this.vm.renew(deadline.signal);
    this.#hasAnswered = true;
    return performance.now() - this.startedAt;
  }
}
