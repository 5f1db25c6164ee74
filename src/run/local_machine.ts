/** Local machine: a VM of this process, with the room that was found for it. */
import type { StartKind } from "../base/result.ts";
import type { GuestChannel } from "../channel/guest.ts";
import type { QemuUsage } from "../qemu/usage.ts";
import type { Template } from "../vm/template.ts";
import { describeLoss, type Vm } from "../vm/vm.ts";
import type { Machine } from "./machine.ts";

const ALWAYS_FREE: Disposable = { [Symbol.dispose]() {} };

/** What one consists of. */
export interface LocalMachineParts {
  readonly vm: Vm;
  /** What it was cloned from. */
  readonly template: Template | undefined;
  /** Slots for what it does; default: there is always one. */
  readonly occupy?: (signal: AbortSignal | undefined) => Disposable | Promise<Disposable>;
  /** What its start was given, for the first who works with it. */
  readonly slot?: Disposable;
  /** Called once, when it is given back. */
  readonly onRelease: () => void;
}

/** A VM whose QEMU this process started. */
export class LocalMachine implements Machine {
  readonly vm: Vm;
  readonly template: Template | undefined;
  readonly start: StartKind;
  readonly #occupy: NonNullable<LocalMachineParts["occupy"]>;
  #slot: Disposable | undefined;
  #onRelease: (() => void) | undefined;

  /** The machine of `parts`. */
  constructor({ vm, template, occupy = () => ALWAYS_FREE, slot, onRelease }: LocalMachineParts) {
    this.vm = vm;
    this.template = template;
    this.start = template ? "template" : "cold";
    this.#occupy = occupy;
    this.#slot = slot;
    this.#onRelease = onRelease;
  }

  get id(): string {
    return this.vm.id;
  }

  get guest(): GuestChannel {
    return this.vm.guest;
  }

  get startedAt(): number {
    return this.vm.startedAt;
  }

  get isCold(): boolean {
    return this.vm.isCold;
  }

  get ready(): Promise<number> {
    return this.vm.ready;
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
    return this.vm.usage();
  }

  describeLoss(error: unknown): string {
    return describeLoss(this.vm, error);
  }

  release(): void {
    this.#slot?.[Symbol.dispose]();
    const onRelease = this.#onRelease;
    this.#onRelease = undefined;
    onRelease?.();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.release();
    await this.vm[Symbol.asyncDispose]();
  }
}
