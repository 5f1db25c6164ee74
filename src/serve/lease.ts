/** Lease: one VM in the hands of one client. The server passes its bytes on and reads none of them. */
import type { Socket } from "node:net";
import { abortable, Deadline } from "../base/async.ts";
import { assert, CommunicationError, messageOf, SnapshotError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import type { GuestHandOver } from "../channel/guest.ts";
import type { Leased, VmRequest } from "../link/messages.ts";
import { newNonce } from "../link/secret.ts";
import { readUsage } from "../qemu/usage.ts";
import type { OutputCallback } from "../run/check.ts";
import { LocalMachine } from "../run/local_machine.ts";
import type { Machine, MachineRequest, MachineSave, MachineSource } from "../run/machine.ts";
import { onMachine } from "../run/start_vm.ts";
import type { StoredCheckpoint } from "../vm/checkpoint_store.ts";

/** A client connects to its VM at once. */
const ATTACH_TIMEOUT_MS = 5_000;
/** A client that does not take what a VM said last is not waited for. */
const LAST_BYTES_TIMEOUT_MS = 5_000;

/** What one is obtained with. */
export interface LeaseOptions extends VmRequest {
  readonly signal: AbortSignal;
  readonly onBootLog: OutputCallback | undefined;
  readonly isSavable: boolean;
  /** Its net port may be connected to. */
  readonly hasNet: boolean;
  readonly checkpoint: StoredCheckpoint | undefined;
  /** It will have the room of that one (`giveRoomTo`), and comes without a CPU slot: whoever replaces a VM has one of it. */
  readonly replacing: Lease | undefined;
}

/** A VM that is ready, until its client, its connection or the VM itself is gone. */
export class Lease {
  /** What its client is told. */
  readonly leased: Leased;
  /** Settles when its VM is dead. */
  readonly over: Promise<void>;
  readonly #machine: LocalMachine;
  readonly #channel: GuestHandOver;
  readonly #attached = Promise.withResolvers<Socket>();
  readonly #ending = new AbortController();
  readonly #slots: Disposable[] = [];
  #save: MachineSave | undefined;

  private constructor(machine: LocalMachine, slot: Disposable | undefined, bootMs: number, log: Logger) {
    this.#machine = machine;
    if (slot) this.#slots.push(slot);
    this.#channel = machine.guest.handOver();
    const { id, start, startedAt, vm: { child: { pid } } } = machine;
    const cpuTimeBaseMs = Math.max(0, (readUsage(pid).cpuTimeMs ?? 0) - (machine.usage().cpuTimeMs ?? 0));
    const { firstStream, guestId } = this.#channel, ageMs = performance.now() - startedAt;
    const netToken = machine.net ? newNonce() : null;
    machine.net?.pause(); // What the guest says before the client has connected is for the client.
    this.leased = { token: newNonce(), netToken, vm: id, start, ageMs, bootMs, pid, cpuTimeBaseMs, firstStream, guestId };
    this.over = this.#live(log);
  }

  /** Waits for a VM that is ready, and for another when the first does not start. Throws what starting throws, and the signal's reason. */
  static async obtain({ checkpoint, replacing, hasNet, ...options }: LeaseOptions, machines: MachineSource, log: Logger): Promise<Lease> {
    const { signal } = options;
    const request: MachineRequest = {
      ...options,
      ...(checkpoint ? { checkpoint } : {}),
      ...(replacing ? { replacing: replacing.#machine } : {}),
      ...(hasNet ? { net: "welcome" as const } : {}),
    };
    const lend = async (machine: Machine) => {
      assert(machine instanceof LocalMachine, "a server lends its own machines");
      const slot = replacing ? undefined : await machine.occupy(signal);
      try {
        return new Lease(machine, slot, await abortable(machine.ready, signal), log);
      } catch (error) {
        slot?.[Symbol.dispose]();
        throw error;
      }
    };
    if (!checkpoint) return await onMachine(request, { machines, log }, lend);
    const machine = await machines.lease(request);
    try {
      return await lend(machine);
    } catch (error) {
      machine.release();
      throw error;
    }
  }

  /** Saves the VM, whose guest the client holds. */
  async save(): Promise<void> {
    await this.drop();
    this.#save = await this.#machine.save(this.#ending.signal);
  }

  /** Makes a checkpoint of what `save` wrote. */
  async keep(name: string | undefined): Promise<StoredCheckpoint> {
    if (!this.#save) throw new SnapshotError("Cannot keep the checkpoint: nothing was saved", { retry: "never" });
    return await this.#save.keep(name);
  }

  /** Forgets what `save` wrote, unless it was kept. */
  async drop(): Promise<void> {
    const save = this.#save;
    this.#save = undefined;
    await save?.[Symbol.asyncDispose]();
  }

  /** Gives the room of its VM to that of another lease; it is to be ended then. */
  giveRoomTo(heir: Lease): void {
    this.#machine.replaceWith(heir.#machine);
  }

  /** Connects the client with the guest, each held back by the other. `said` is what the client has sent already. False when it cannot be. */
  attach(socket: Socket, said: Uint8Array): boolean {
    if (this.#ending.signal.aborted) return false;
    const { pipe } = this.#channel;
    if (said.length > 0) pipe.write(said);
    socket.pipe(pipe, { end: false });
    pipe.pipe(socket, { end: false });
    socket.once("close", () => this.end());
    this.#attached.resolve(socket);
    return true;
  }

  /** The same with its net port. A client that leaves has ended the VM's network. */
  attachNet(socket: Socket, said: Uint8Array): boolean {
    const { net } = this.#machine;
    if (!net || this.#ending.signal.aborted) return false;
    if (said.length > 0) net.write(said);
    socket.pipe(net, { end: false });
    net.pipe(socket, { end: false });
    socket.once("close", () => net.destroy());
    net.once("close", () => socket.destroy());
    return true;
  }

  /** Waits for another CPU slot, and keeps it. */
  async occupy(signal: AbortSignal): Promise<void> {
    const slot = await this.#machine.occupy(signal);
    if (this.#ending.signal.aborted) slot[Symbol.dispose]();
    else this.#slots.push(slot);
  }

  /** Gives one of its slots back. */
  vacate(): void {
    this.#slots.pop()?.[Symbol.dispose]();
  }

  /** Kills the VM, if it lives. */
  end(): void {
    this.#ending.abort(new CommunicationError("Cannot reach the guest: its VM was given back"));
  }

  async #live(log: Logger): Promise<void> {
    const { pipe } = this.#channel, { signal } = this.#ending;
    const ended = new Promise<void>((resolve) => {
      for (const event of ["end", "close"]) pipe.once(event, () => resolve());
    });
    let socket: Socket | undefined;
    try {
      using deadline = new Deadline(ATTACH_TIMEOUT_MS, () => new CommunicationError("Cannot lend a VM: its client does not connect"));
      socket = await abortable(abortable(this.#attached.promise, deadline.signal), signal);
      await abortable(ended, signal);
      log.warning("a VM that was lent is lost", { reason: this.#machine.describeLoss(this.#machine.lost.reason) });
    } catch {
      socket?.destroy(); // It was given back, or never taken: nobody reads any more.
    } finally {
      this.end();
      while (this.#slots.length > 0) this.vacate();
      await this.drop().catch(() => {}); // It goes with the VM's directory.
      await this.#machine[Symbol.asyncDispose]().catch((error) => log.error("a VM could not be ended", { reason: messageOf(error) }));
      if (socket && !socket.destroyed) endWithin(socket, LAST_BYTES_TIMEOUT_MS);
    }
  }
}

/** Ends a socket behind what was written to it, and cuts it off when that is not taken. */
function endWithin(socket: Socket, ms: number): void {
  socket.end();
  const timer = setTimeout(() => socket.destroy(), ms);
  socket.once("close", () => clearTimeout(timer));
}
