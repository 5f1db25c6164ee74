/** Local machine: a VM of this process, with the room that was found for it. */
import type { StartKind } from "../base/result.ts";
import type { GuestChannel } from "../channel/guest.ts";
import type { QemuUsage } from "../qemu/usage.ts";
import type { Template } from "../vm/template.ts";
import { describeLoss, type Vm } from "../vm/vm.ts";
import type { Machine } from "./machine.ts";

/** What one consists of. */
export interface LocalMachineParts {
  readonly vm: Vm;
  /** What it was cloned from. */
  readonly template: Template | undefined;
  /** Called once, when it is given back. */
  readonly onRelease: () => void;
}

/** A VM whose QEMU this process started. */
export class LocalMachine implements Machine {
  readonly vm: Vm;
  readonly template: Template | undefined;
  readonly start: StartKind;
  #onRelease: (() => void) | undefined;

  /** The machine of `parts`. */
  constructor({ vm, template, onRelease }: LocalMachineParts) {
    this.vm = vm;
    this.template = template;
    this.start = template ? "template" : "cold";
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

  usage(): QemuUsage {
    return this.vm.usage();
  }

  describeLoss(error: unknown): string {
    return describeLoss(this.vm, error);
  }

  release(): void {
    const onRelease = this.#onRelease;
    this.#onRelease = undefined;
    onRelease?.();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.release();
    await this.vm[Symbol.asyncDispose]();
  }
}
