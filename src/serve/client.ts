/** Client: one process that the server lends VMs to. It has them as long as its control connection lives. */
import type { Socket } from "node:net";
import { CommunicationError, messageOf } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import { encodeError } from "../link/error_codec.ts";
import { LineError, writeLine } from "../link/lines.ts";
import { type Answer, type LeaseProgress, readMessage, type Request, requestSchema, type ServerStatus } from "../link/messages.ts";
import type { MachineSource } from "../run/machine.ts";
import { ClientCheckpoints } from "./client_checkpoints.ts";
import { Lease } from "./lease.ts";

/** Of answers that a client does not read. */
const UNREAD_MAX_BYTES = 4_194_304;
/** Of boot logs and steps of a bake that a client does not read; the rest is dropped. */
const UNREAD_LOG_MAX_BYTES = 1_048_576;
const LOG_LINE_CHARS = 16_384;

/** What clients need of their server. */
export interface ServerParts {
  readonly machines: MachineSource;
  readonly log: Logger;
  /** How many requests of a client may wait for their answer. */
  readonly requestsMax: number;
  /** What can be connected to, by the token that opens it. */
  readonly doors: Map<string, Lease["attach"]>;
  status(): ServerStatus;
}

/** One client, met and trusted. */
export class Client {
  readonly #socket: Socket;
  readonly #parts: ServerParts;
  readonly #requests = new Map<number, { readonly request: Request; readonly controller: AbortController }>();
  /** What is done for them. */
  readonly #running = new Set<Promise<void>>();
  readonly #leases = new Map<number, Lease>();
  readonly #checkpoints: ClientCheckpoints;
  #hasEnded = false;

  /** Speaks over `socket`, whose lines it is given. */
  constructor(socket: Socket, parts: ServerParts) {
    this.#socket = socket;
    this.#parts = parts;
    this.#checkpoints = new ClientCheckpoints(parts.machines.checkpoints);
  }

  /** How many requests wait for a VM, and how many VMs the client has. */
  get counts(): Pick<ServerStatus, "waiting" | "vms"> {
    const waiting = [...this.#requests.values()].filter(({ request }) => request.method === "lease").length;
    return { waiting, vms: this.#leases.size };
  }

  /** Takes one line, whose answer comes when it is there. Throws `LineError` when the client breaks the rules. */
  take(value: unknown): void {
    const request = readMessage(requestSchema, value, "a request"), { id } = request;
    if (request.method === "cancel") return this.#requests.get(id)?.controller.abort(new CommunicationError("it was cancelled"));
    const { requestsMax } = this.#parts;
    if (this.#requests.size >= requestsMax) throw new LineError(`at most ${requestsMax} requests may wait for their answer`);
    if (this.#requests.has(id) || this.#leases.has(id)) throw new LineError(`the id ${id} is used already`);
    if (this.#socket.writableLength > UNREAD_MAX_BYTES) throw new LineError(`at most ${UNREAD_MAX_BYTES} bytes of answers may be unread`);
    const controller = new AbortController();
    this.#requests.set(id, { request, controller });
    const answer = (answer: Answer) => {
      this.#requests.delete(id);
      writeLine(this.#socket, answer);
    };
    const running = this.#do(request, controller.signal)
      .then((result) => answer({ id, result }), (error) => answer({ id, error: encodeError(error) }))
      .finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  /** Tells the requests that wait for a template how far it is. */
  tell(progress: LeaseProgress): void {
    for (const [id, { request }] of this.#requests) {
      if (this.#socket.writableLength > UNREAD_LOG_MAX_BYTES) return;
      const isWaiting = request.method === "lease" || request.method === "prepare";
      if (isWaiting && request.language === progress.language && request.memoryMb === progress.memoryMb) {
        writeLine(this.#socket, { id, progress });
      }
    }
  }

  /** Ends what the client has and what it waits for; resolves when its VMs are dead, and nothing is done for it any more. */
  async end(reason: unknown): Promise<void> {
    this.#hasEnded = true;
    for (const { controller } of this.#requests.values()) controller.abort(reason);
    for (const lease of this.#leases.values()) lease.end();
    // A VM that is being started, or a checkpoint that is being written, is there afterwards: it goes then.
    while (this.#running.size > 0) await Promise.allSettled(this.#running);
    await Promise.all([...this.#leases.values()].map((lease) => lease.over));
    await this.#checkpoints.end().catch((error) => this.#parts.log.debug("checkpoints of a client are left", { reason: messageOf(error) }));
  }

  async #do(request: Exclude<Request, { method: "cancel" }>, signal: AbortSignal): Promise<Record<string, unknown>> {
    switch (request.method) {
      case "lease":
        return { ...(await this.#lease(request, signal)).leased };
      case "release": {
        const lease = this.#leases.get(request.lease);
        const heir = request.heir === undefined ? undefined : this.#leases.get(request.heir);
        if (heir) lease?.giveRoomTo(heir);
        lease?.end();
        await lease?.over;
        return {};
      }
      case "occupy":
        await this.#leaseOf(request.lease).occupy(signal);
        return {};
      case "vacate":
        this.#leaseOf(request.lease).vacate();
        return {};
      case "save":
        await this.#leaseOf(request.lease).save();
        return {};
      case "keep":
        return await this.#keep(this.#leaseOf(request.lease), request.name ?? undefined);
      case "drop":
        await this.#leaseOf(request.lease).drop();
        return {};
      case "check_memory":
        await this.#parts.machines.checkMemory(request.memoryMb);
        return {};
      case "checkpoint_free":
      case "checkpoint_named":
      case "checkpoint_list":
      case "checkpoint_remove":
        return await this.#checkpoints.do(request);
      case "prepare":
        await this.#parts.machines.prepare({ language: request.language, memoryMb: request.memoryMb, signal });
        return {};
      case "ready":
        await this.#parts.machines.ready(signal);
        return {};
      case "status":
        return { ...this.#parts.status() };
    }
  }

  /** Made by a client that has gone meanwhile, it goes too. */
  async #keep(lease: Lease, name: string | undefined): Promise<Record<string, unknown>> {
    const stored = this.#checkpoints.add(await lease.keep(name));
    if (this.#hasEnded) await this.#checkpoints.end();
    return stored;
  }

  async #lease(request: Extract<Request, { method: "lease" }>, signal: AbortSignal): Promise<Lease> {
    const { machines, log, doors } = this.#parts, { id, language, memoryMb, wantsLog, isSavable = false, hasNet = false } = request;
    const onBootLog = wantsLog ? (text: string) => this.#sendLog(id, text) : undefined;
    const checkpoint = request.checkpoint && await this.#checkpoints.find(request.checkpoint);
    const replacing = request.replacing === undefined ? undefined : this.#leaseOf(request.replacing);
    const lease = await Lease.obtain({ language, memoryMb, signal, onBootLog, isSavable, hasNet, checkpoint, replacing }, machines, log);
    const { token, netToken } = lease.leased;
    this.#leases.set(id, lease);
    doors.set(token, (socket, said) => lease.attach(socket, said));
    if (netToken !== null) doors.set(netToken, (socket, said) => lease.attachNet(socket, said));
    void lease.over.finally(() => {
      this.#leases.delete(id);
      for (const door of [token, netToken]) doors.delete(door ?? "");
    });
    if (this.#hasEnded) lease.end(); // It came too late.
    return lease;
  }

  #leaseOf(id: number): Lease {
    const lease = this.#leases.get(id);
    if (lease === undefined) throw new CommunicationError("Cannot use a VM: it is gone");
    return lease;
  }

  #sendLog(id: number, text: string): void {
    for (let at = 0; at < text.length && this.#socket.writableLength < UNREAD_LOG_MAX_BYTES; at += LOG_LINE_CHARS) {
      writeLine(this.#socket, { id, log: text.slice(at, at + LOG_LINE_CHARS) });
    }
  }
}
