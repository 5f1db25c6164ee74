/** Vm: one running machine, from spawn to its confirmed death. */
import { randomBytes } from "node:crypto";
import type { Duplex } from "node:stream";
import { abortable, Deadline } from "../base/async.ts";
import { CommunicationError, messageOf, SandboxDependencyError, SnapshotError, VmTimeoutError } from "../base/errors.ts";
import type { Scope } from "../base/scope.ts";
import type { GuestChannel } from "../channel/guest.ts";
import { type Child, describeExit } from "../host/process.ts";
import { type Qmp, QmpError } from "../qemu/qmp.ts";
import { type QemuUsage, readUsage } from "../qemu/usage.ts";
import type { Console } from "./console.ts";
import { isBooting, type LaunchRequest, type Origin } from "./hypervisor.ts";

/** How much of the console's tail may appear in a message. */
const MESSAGE_TAIL_CHARS = 600;

/** What `launch` hands over. */
export interface VmParts {
  readonly id: string;
  readonly request: LaunchRequest;
  readonly child: Child;
  readonly qmp: Qmp;
  readonly guest: GuestChannel;
  readonly console: Console;
  readonly net?: Duplex | undefined;
  /** Where its QEMU can save it, if anywhere. */
  readonly savesDirectory: string | undefined;
  /** `performance.now()` just before the spawn. */
  readonly startedAt: number;
  readonly readyTimeoutMs: number;
  readonly owned: Scope;
}

/** A machine. Disposing kills it and waits until it is dead. */
export class Vm implements AsyncDisposable {
  readonly id: string;
  readonly child: Child;
  readonly qmp: Qmp;
  readonly guest: GuestChannel;
  readonly console: Console;
  /** Our end of the guest's net port, where one was asked for (ARCHITECTURE, "Network"). Bytes of the guest are hostile. Destroyed with the VM. */
  readonly net: Duplex | undefined;
  /** Resolves with the milliseconds from `startedAt` to the guest's first answer; rejects with a typed error when there will be none. */
  readonly ready: Promise<number>;
  readonly #parts: VmParts;
  readonly #ready = Promise.withResolvers<number>();
  #startedAt: number;
  #hasLoaded = false;
  #renewals = 0;
  #disposal: Promise<void> | undefined;

  /** Made by `launch` only. */
  constructor(parts: VmParts) {
    this.#parts = parts;
    ({ id: this.id, child: this.child, qmp: this.qmp, guest: this.guest, console: this.console, net: this.net } = parts);
    this.#startedAt = parts.startedAt;
    this.net?.resume(); // Until somebody wants it: an end that nobody reads is not noticed.
    this.ready = this.#ready.promise;
    this.ready.catch(() => {}); // Whoever waits sees it.
  }

  /** Aborts when QEMU has ended or the channel is lost. */
  get lost(): AbortSignal {
    return AbortSignal.any([this.child.gone, this.guest.closed]);
  }

  /** `lost` has aborted. */
  get isLost(): boolean {
    return this.child.gone.aborted || this.guest.closed.aborted;
  }

  /** It boots: nothing may be sent before it is ready. */
  get isCold(): boolean {
    return isBooting(this.#parts.request.origin);
  }

  /** `performance.now()` just before the spawn, or when it was greeted where that came later. */
  get startedAt(): number {
    return this.#startedAt;
  }

  /**
   * It is dead, and its guest never ran: QEMU answers that it loads the state before it does so, what it wrote can be read after its death, and
   * there was no answer. So nothing that was sent to the guest has had any effect.
   */
  get hasNeverRun(): boolean {
    return this.child.gone.aborted && !this.isCold && !this.#hasLoaded;
  }

  /** Sends everything a start needs and settles `ready`; for a clone that was spawned ahead `startedAt` is now. */
  greet(startedAt = this.#startedAt): void {
    this.#startedAt = startedAt;
    void this.#greet().then(() => this.#ready.resolve(performance.now() - this.startedAt), (error) => this.#ready.reject(error));
  }

  /** Gives a machine that runs another identity, the time and new entropy. Resolves with its answer; rejects with the channel's or the signal's reason. */
  async renew(signal?: AbortSignal): Promise<void> {
    this.#renewals += 1;
    await this.guest.hello({ id: `${this.id}-${this.#renewals}`, entropy: randomBytes(64), silenceMs: 0 }, signal);
  }

  /** Memory of its guest. */
  get memoryMiB(): number {
    return this.#parts.request.memoryMiB;
  }

  /** Where its QEMU can save it, if anywhere. */
  get savesDirectory(): string | undefined {
    return this.#parts.savesDirectory;
  }

  /** CPU time and peak memory of QEMU so far. */
  usage(): QemuUsage {
    return readUsage(this.child.pid);
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= (async () => {
      this.child.kill();
      this.guest.close();
      // Whoever reads it may have stopped for a while; the process counts as ended only when its pipes are closed.
      this.net?.destroy();
      await this.#parts.owned[Symbol.asyncDispose]();
    })();
    return this.#disposal;
  }

  async #greet(): Promise<void> {
    const { origin } = this.#parts.request;
    using deadline = new Deadline(this.#parts.readyTimeoutMs, () => this.#timeoutError());
    // The load is awaited through the guest's answer; its own promise only tells why there is none.
    const loaded = this.#load(origin);
    void loaded.then(() => this.#hasLoaded = true, () => {}); // Its failure is `refused`.
    const refused = loaded.then(() => new Promise<never>(() => {}));
    const exited = abortable(new Promise<never>(() => {}), this.child.gone);
    try {
      await abortable(Promise.race([this.#meet(deadline.signal), refused, exited]), deadline.signal);
    } catch (cause) {
      throw await this.#startError(cause);
    }
  }

  #load(origin: Origin): Promise<unknown> {
    if (origin.kind === "clone") return this.qmp.loadState(`file:${origin.files.stateFile}`);
    if (origin.kind === "restore") return this.qmp.loadSaved(`file:${origin.files.stateFile}`, this.child.gone);
    return Promise.resolve();
  }

  async #meet(signal: AbortSignal): Promise<void> {
    if (this.isCold) await this.guest.announced(signal);
    await this.guest.hello({ id: this.id, entropy: randomBytes(64), silenceMs: 0 }, signal);
  }

  /** Why there is no machine, from whatever was noticed first. */
  async #startError(cause: unknown): Promise<unknown> {
    if (cause instanceof VmTimeoutError) return cause;
    const action = this.#parts.request.origin.kind === "restore" ? "restore the checkpoint" : "start from the template";
    if (cause instanceof QmpError) return new SnapshotError(`Cannot ${action}: QEMU said "${cause.message}"`, { cause });
    // The channel's end is noticed before the process's; the process knows why.
    await abortable(this.child.exited, AbortSignal.timeout(1000)).catch(() => {}); // Still alive: the channel alone broke.
    if (!this.child.gone.aborted) return cause;
    const status = await this.child.exited;
    const message = `QEMU ${describeExit(status)} before the guest was ready${this.#explanation()}`;
    if (!this.isCold && status.signal === null) return new SnapshotError(`Cannot ${action}: ${message}`, { cause });
    if (status.signal === null && status.code !== 0) {
      return new SandboxDependencyError(`Cannot start a VM: ${message}`, { cause, hint: "`sbx doctor` checks each part." });
    }
    return new CommunicationError(`Cannot start a VM: ${message}`, { cause });
  }

  #timeoutError(): VmTimeoutError {
    return new VmTimeoutError(
      `Cannot start a VM: no answer from the guest after ${this.#parts.readyTimeoutMs} ms${this.#explanation()}`,
      { hint: "`sbx doctor` checks each part; a heavily loaded host needs fewer VMs at once." },
    );
  }

  #explanation(): string {
    const said = this.console.complaint || this.console.tail.slice(-MESSAGE_TAIL_CHARS).trim();
    return said === "" ? "" : `: ${said}`;
  }
}

/** The message of a VM that was lost, with QEMU's own words when it left any. */
export function describeLoss(vm: Vm, error: unknown): string {
  return vm.console.complaint === "" ? messageOf(error) : `${messageOf(error)} (${vm.console.complaint})`;
}
