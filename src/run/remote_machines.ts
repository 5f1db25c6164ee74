/** Remote machines: the VMs that the server of `sbx serve` lends to this process. */
import { VmConfigError } from "../base/errors.ts";
import { VERSION } from "../config/version.ts";
import { ClientLink } from "../link/client_link.ts";
import type { ServerPlace } from "../link/place.ts";
import type { CheckpointIndex, MachineRequest, MachineSource } from "./machine.ts";
import { guarded } from "./output.ts";
import { RemoteMachine } from "./remote_machine.ts";
import type { SupplyHooks } from "./supply.ts";

/** A source whose VMs another process owns. Each lives as long as its connection, and all of them no longer than this process. */
export class RemoteMachines implements MachineSource {
  readonly link: ClientLink;
  readonly checkpoints: CheckpointIndex = {
    checkFree: (name) => this.link.checkFree(name),
    named: (name) => this.link.checkpointNamed(name),
    list: () => this.link.checkpoints(),
    remove: (checkpoint) => this.link.removeCheckpoint(checkpoint),
  };
  readonly #hooks: SupplyHooks;
  readonly #machines = new Set<RemoteMachine>();

  private constructor(link: ClientLink, hooks: SupplyHooks) {
    this.link = link;
    this.#hooks = hooks;
  }

  /** Meets the server; throws as `ClientLink.open`. */
  static async connect(
    place: ServerPlace,
    hooks: SupplyHooks,
    options: { readonly timeoutMs?: number; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<RemoteMachines> {
    return new RemoteMachines(await ClientLink.open(place, { version: VERSION, ...options }), hooks);
  }

  async checkMemory(memoryMb: number): Promise<void> {
    await this.link.checkMemory(memoryMb);
  }

  /** What does not start is made anew by the server, so nothing is lent in the place of anything. */
  async lease(
    { language, memoryMb, signal, onBootLog, isSavable, checkpoint, replacing, net, packages }: MachineRequest,
  ): Promise<RemoteMachine> {
    if (packages) throw noPackages();
    const { log, onProgress } = this.#hooks, onLog = guarded(onBootLog, "onBootLog", log);
    const wishes = {
      isSavable,
      hasNet: net !== undefined,
      checkpoint: checkpoint && { id: checkpoint.id, name: checkpoint.name ?? null },
      replacing: replacing instanceof RemoteMachine ? replacing.lease : undefined,
    };
    const leased = await this.link.lease({ language, memoryMb, ...wishes }, { signal, onProgress, onLog });
    const hasSlot = wishes.replacing === undefined, onRelease = () => void this.#machines.delete(machine);
    const machine: RemoteMachine = new RemoteMachine(this.link, leased, { hasSlot, onRelease });
    this.#machines.add(machine);
    return machine;
  }

  /** Resolves when the server's pool is full, whatever its size. */
  async ready(signal: AbortSignal): Promise<void> {
    await this.link.ready(signal);
  }

  async prepare({ language, memoryMb, packages, signal }: Parameters<MachineSource["prepare"]>[0]): Promise<void> {
    if (packages) throw noPackages();
    await this.link.prepare({ language, memoryMb }, { signal, onProgress: this.#hooks.onProgress });
  }

  pinPackages(): Promise<never> {
    return Promise.reject(noPackages());
  }

  /** Gives every VM back, waits until the server says that they are dead, and leaves. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#machines].map((machine) => machine[Symbol.asyncDispose]()));
    this.link[Symbol.dispose]();
  }
}

/** Packages are installed by the process that uses them. */
function noPackages(): VmConfigError {
  return new VmConfigError("Cannot use packages: the VMs of a server have none", { hint: "Use `Scheduler.open()`." });
}
