/** Client link: a client's connection to the server, the proof that it is the right one, and the VMs that are had through it. */
import net, { type Socket } from "node:net";
import type { z } from "zod";
import { abortable, Deadline } from "../base/async.ts";
import { CommunicationError, messageOf, SandboxDependencyError, SocketAuthError } from "../base/errors.ts";
import { decodeError } from "./error_codec.ts";
import { LineError, LineReader, writeLine } from "./lines.ts";
import {
  answerSchema,
  type CheckpointRef,
  checkpointSchema,
  checkpointsSchema,
  type Leased,
  leasedSchema,
  type LeaseProgress,
  type LeaseWishes,
  readMessage,
  type Request,
  type ServerStatus,
  statusSchema,
  type VmRequest,
  type Welcome,
  welcomeSchema,
} from "./messages.ts";
import { checkPlace, type ServerPlace } from "./place.ts";
import { isProven, newNonce, prove, readSecret } from "./secret.ts";

/** A server that has not said who it is by then never will. */
const HANDSHAKE_TIMEOUT_MS = 5_000;

/** How a link is opened. */
export interface LinkOptions {
  /** Of this program. */
  readonly version: string;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/** Who hears of what happens while a VM is waited for, and while it lives. */
export interface LeaseEvents {
  readonly onProgress?: ((progress: LeaseProgress) => void) | undefined;
  /** Gets the boot log. */
  readonly onLog?: ((text: string) => void) | undefined;
}

/** A VM that was lent. */
export interface LeasedVm extends Leased {
  /** What the server is told of it by. */
  readonly lease: number;
  /** Its control channel, from the first byte to come. */
  readonly socket: Socket;
}

/** A checkpoint of the server. */
type Checkpoint = z.output<typeof checkpointSchema>;

/** A request without its id. */
type Body<R = Request> = R extends unknown ? Omit<R, "id"> : never;

interface Pending extends LeaseEvents {
  readonly answer: PromiseWithResolvers<Record<string, unknown>>;
  /** What was asked for is granted although it is not wanted any more. */
  readonly onLate: () => void;
}

/** One client of one server. */
export class ClientLink implements Disposable {
  readonly welcome: Welcome;
  readonly #place: ServerPlace;
  readonly #control: Socket;
  readonly #gone = new AbortController();
  readonly #pending = new Map<number, Pending>();
  readonly #leases = new Map<number, LeaseEvents>();
  #nextId = 1;

  private constructor(place: ServerPlace, meeting: Meeting, welcome: Welcome) {
    this.#place = place;
    this.#control = meeting.socket;
    this.welcome = welcome;
    meeting.onLine = (value) => this.#onAnswer(value);
    meeting.onEnd = (reason) => this.#lose(reason);
    if (meeting.ended) this.#lose(meeting.ended);
    this.#control.unref(); // Who only has a link open need not live on.
  }

  /**
   * Meets the server at `place`. Throws `CommunicationError` when none answers, `SocketAuthError` when the place or the peer cannot be
   * trusted, `SandboxDependencyError` when its version is another. Nothing is asked of a peer that has not proven who it is.
   */
  static async open(place: ServerPlace, { version, timeoutMs = HANDSHAKE_TIMEOUT_MS, signal }: LinkOptions): Promise<ClientLink> {
    signal?.throwIfAborted();
    checkPlace(place);
    using deadline = new Deadline(timeoutMs, () => unreachable(place, `no answer within ${timeoutMs} ms`));
    const meeting = new Meeting(place);
    try {
      const welcome = await abortable(abortable(meet(place, meeting, version), deadline.signal), signal);
      return new ClientLink(place, meeting, welcome);
    } catch (error) {
      meeting.socket.destroy();
      throw error;
    }
  }

  /** Aborts with a `CommunicationError` when the server cannot be reached any more. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  /** Waits for a VM. The caller owns it: `release`, and closing its connection. */
  async lease(
    request: VmRequest & LeaseWishes,
    { signal, ...events }: LeaseEvents & { readonly signal?: AbortSignal | undefined },
  ): Promise<LeasedVm> {
    const lease = this.#nextId++;
    const body: Body = { method: "lease", ...request, wantsLog: events.onLog !== undefined };
    const onLate = () => void this.release(lease).catch(() => {}); // A server that has gone has taken it along.
    const result = await this.#call(body, { id: lease, signal, onLate, ...events });
    try {
      const leased = readMessage(leasedSchema, result, "the server's VM");
      this.#leases.set(lease, events);
      return { ...leased, lease, socket: this.connect(leased.token) };
    } catch (error) {
      onLate();
      throw error;
    }
  }

  /** The connection that a lease's token stands for, once. The caller owns it. */
  connect(token: string): Socket {
    const socket = connect(this.#place);
    writeLine(socket, { open: "vm", token });
    return socket;
  }

  /** Gives a VM back, and its room to the VM of another lease; resolves when it is dead. */
  async release(lease: number, heir?: number): Promise<void> {
    await this.#call({ method: "release", lease, heir }, {});
    this.#leases.delete(lease);
  }

  /** Waits for a CPU slot for a VM; `vacate` gives it back. */
  async occupy(lease: number, signal: AbortSignal | undefined): Promise<void> {
    await this.#call({ method: "occupy", lease }, { signal, onLate: () => this.vacate(lease) });
  }

  /** Gives a slot back. */
  vacate(lease: number): void {
    void this.#call({ method: "vacate", lease }, {}).catch(() => {}); // Of a VM that is gone, nothing is held.
  }

  /** Saves a VM whose guest is held. */
  async save(lease: number): Promise<void> {
    await this.#call({ method: "save", lease }, {});
  }

  /** Makes a checkpoint of what `save` wrote. */
  async keep(lease: number, name: string | undefined): Promise<Checkpoint> {
    return readMessage(checkpointSchema, await this.#call({ method: "keep", lease, name: name ?? null }, {}), "the server's checkpoint");
  }

  /** Forgets what `save` wrote, unless it was kept. */
  async drop(lease: number): Promise<void> {
    await this.#call({ method: "drop", lease }, {});
  }

  /** Rejects when so much memory can never be had at once. */
  async checkMemory(memoryMb: number): Promise<void> {
    await this.#call({ method: "check_memory", memoryMb }, {});
  }

  /** Rejects when the name is taken. */
  async checkFree(name: string): Promise<void> {
    await this.#call({ method: "checkpoint_free", name }, {});
  }

  /** The checkpoint of that name. */
  async checkpointNamed(name: string): Promise<Checkpoint> {
    return readMessage(checkpointSchema, await this.#call({ method: "checkpoint_named", name }, {}), "the server's checkpoint");
  }

  /** Those with a name. */
  async checkpoints(): Promise<Checkpoint[]> {
    return readMessage(checkpointsSchema, await this.#call({ method: "checkpoint_list" }, {}), "the server's checkpoints").checkpoints;
  }

  /** Removes one. */
  async removeCheckpoint({ id, name }: Pick<Checkpoint, "id" | "name">): Promise<void> {
    const checkpoint: CheckpointRef = { id, name: name ?? null };
    await this.#call({ method: "checkpoint_remove", checkpoint }, {});
  }

  /** Resolves when the server keeps as many VMs ready as it was asked for. */
  async ready(signal: AbortSignal): Promise<void> {
    await this.#call({ method: "ready" }, { signal });
  }

  /** Has the server make what VMs start from. */
  async prepare(
    request: VmRequest,
    options: Pick<LeaseEvents, "onProgress"> & { readonly signal: AbortSignal },
  ): Promise<void> {
    await this.#call({ method: "prepare", ...request }, options);
  }

  /** What the server says of itself. */
  async status(signal?: AbortSignal): Promise<ServerStatus> {
    return readMessage(statusSchema, await this.#call({ method: "status" }, { signal }), "the server's status");
  }

  /** Ends all that this client has at the server. */
  [Symbol.dispose](): void {
    this.#lose("it was closed by us");
  }

  async #call(
    body: Body,
    { id = this.#nextId++, signal, onLate = () => {}, onProgress, onLog }: LeaseEvents & {
      readonly id?: number;
      readonly signal?: AbortSignal | undefined;
      readonly onLate?: () => void;
    },
  ): Promise<Record<string, unknown>> {
    this.#gone.signal.throwIfAborted();
    signal?.throwIfAborted();
    const answer = Promise.withResolvers<Record<string, unknown>>();
    this.#pending.set(id, { answer, onLate, onProgress, onLog });
    this.#control.ref(); // Somebody waits.
    writeLine(this.#control, { id, ...body });
    try {
      return await abortable(answer.promise, signal);
    } catch (error) {
      if (this.#pending.has(id)) {
        writeLine(this.#control, { id, method: "cancel" });
        answer.promise.then(onLate, () => {}); // That it was cancelled is no news.
      }
      throw error;
    }
  }

  #onAnswer(value: unknown): void {
    const answer = readMessage(answerSchema, value, "the server's answer"), { id } = answer;
    const pending = this.#pending.get(id);
    if ("progress" in answer) return pending?.onProgress?.(answer.progress);
    if ("log" in answer) return (pending ?? this.#leases.get(id))?.onLog?.(answer.log);
    if (pending === undefined) throw new LineError(`request ${id} waits for no answer`);
    this.#pending.delete(id);
    if (this.#pending.size === 0) this.#control.unref();
    if ("error" in answer) pending.answer.reject(decodeError(answer.error));
    else pending.answer.resolve(answer.result);
  }

  #lose(why: string): void {
    if (this.#gone.signal.aborted) return;
    this.#gone.abort(unreachable(this.#place, why));
    this.#control.destroy();
    for (const { answer } of this.#pending.values()) {
      answer.promise.catch(() => {}); // Whoever waits sees it.
      answer.reject(this.#gone.signal.reason);
    }
    this.#pending.clear();
  }
}

/** A control connection from its first byte on: lines and the end go to whoever has it at that moment. */
class Meeting {
  readonly socket: Socket;
  /** Why nothing comes any more. */
  ended: string | undefined;
  onLine: (value: unknown) => void = () => {};
  onEnd: (reason: string, code?: string) => void = () => {};

  constructor(place: ServerPlace) {
    this.socket = connect(place);
    const end = (reason: string, code?: string) => {
      this.ended ??= reason;
      this.onEnd(reason, code);
    };
    new LineReader(this.socket, (value) => this.onLine(value), (error) => end(error.message));
    this.socket.on("error", (error: NodeJS.ErrnoException) => end(messageOf(error), error.code));
    for (const event of ["end", "close"]) this.socket.once(event, () => end("it closed the connection"));
  }
}

/** Both ends prove that they know the secret; ours last, so that nobody but the server can learn anything of us. */
async function meet(place: ServerPlace, meeting: Meeting, version: string): Promise<Welcome> {
  const { socket } = meeting, clientNonce = newNonce();
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  meeting.onLine = resolve;
  meeting.onEnd = (reason, code) => reject(unreachable(place, reason, code));
  writeLine(socket, { open: "control", version, nonce: clientNonce });
  const said = await promise;
  const theirs = (said as { readonly version?: unknown } | null)?.version;
  // Another version's line need not be as ours; that it is another is all that it must say.
  if (typeof theirs === "string" && theirs !== version) throw otherVersion(place, version, theirs.slice(0, 64));
  let welcome;
  try {
    welcome = readMessage(welcomeSchema, said, "the server's welcome");
  } catch (error) {
    throw unreachable(place, messageOf(error));
  }
  // Read after the server has spoken: one that has just taken another's place has written its own by then.
  const secret = await readSecret(place.secret), nonces = { clientNonce, serverNonce: welcome.nonce };
  if (!isProven(secret, { role: "server", ...nonces }, welcome.proof)) {
    throw new SocketAuthError(`Cannot trust the server at ${place.socket}: it does not know the secret that lies beside it`, {
      hint: "Stop what listens there, and start `sbx serve` anew.",
    });
  }
  writeLine(socket, { proof: prove(secret, { role: "client", ...nonces }) });
  return welcome;
}

/** A connection, on which lines may be written at once. */
function connect(place: ServerPlace): Socket {
  const socket = net.connect({ path: place.socket });
  socket.on("error", () => {}); // Told by whoever waits.
  return socket;
}

function otherVersion({ socket }: ServerPlace, ours: string, theirs: string): SandboxDependencyError {
  return new SandboxDependencyError(`Cannot use the server at ${socket}: it must be of version ${ours}, got ${theirs}`, {
    hint: "Restart it with this version: `sbx serve --stop`, then `sbx serve`.",
  });
}

function unreachable({ socket }: ServerPlace, why: string, code?: string): CommunicationError {
  const isAbsent = code !== undefined && ["ENOENT", "ECONNREFUSED", "ENOTSOCK"].includes(code);
  if (isAbsent) {
    return new CommunicationError(`Cannot reach a server at ${socket}: none runs there`, { hint: "Start one with `sbx serve`." });
  }
  return new CommunicationError(`Cannot reach the server at ${socket}: ${why}`, { hint: "`sbx serve --status` tells whether it runs." });
}
