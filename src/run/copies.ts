/** Copies: what a scheduler does with the states of its sessions: save, restore, roll back, fork. */
import { randomBytes } from "node:crypto";
import { abortable, delay } from "../base/async.ts";
import { CommunicationError, GuestAgentError, InputValidationError, shown, VmCapacityError } from "../base/errors.ts";
import type { GuestChannel } from "../channel/guest.ts";
import type { StoredCheckpoint } from "../vm/checkpoint_store.ts";
import { checkName, CheckpointOf, type RestoreOptions } from "./checkpoint.ts";
import { checkFields } from "./check.ts";
import type { Machine, MachineSave, MachineSource } from "./machine.ts";
import { type MachineNetwork, needsNet } from "./network.ts";
import { inherited, NETWORK_FIELDS } from "./network_request.ts";
import type { SessionCore } from "./session_core.ts";
import { type CheckedSessionRequest, checkSession, type SessionDefaults, type SessionRequest } from "./session_request.ts";

/** How often a guest that is not ready to be saved is asked again: its language's process is being replaced. */
const HOLD_PAUSE_MS = 20;
const HOLD_TIMEOUT_MS = 10_000;
const RESTORE_FIELDS: ReadonlySet<string> = new Set<keyof RestoreOptions>([
  "timeoutSeconds",
  "idleTimeoutSeconds",
  "env",
  "signal",
  "check",
  "onStdout",
  "onStderr",
  "onBootLog",
  ...NETWORK_FIELDS,
]);

/** What is used of the scheduler. */
export interface CopiesParts<S> {
  readonly machines: MachineSource;
  readonly defaults: SessionDefaults;
  /** Aborts when the scheduler closes. */
  readonly closing: AbortSignal;
  /** Hands a machine that has answered over as a session of the scheduler. */
  open(machine: Machine, request: CheckedSessionRequest, network: MachineNetwork): S;
  /** The network of such a machine. */
  openNetwork(machine: Machine, request: CheckedSessionRequest): Promise<MachineNetwork>;
  /** Lets the scheduler's `close` wait for what is under way. */
  track<T>(work: () => Promise<T>): Promise<T>;
}

/** A session, as far as copies of it are concerned. */
export interface Original {
  readonly core: SessionCore;
  readonly request: CheckedSessionRequest;
}

/** Makes and uses checkpoints. */
export class Copies<S extends AsyncDisposable> {
  readonly #parts: CopiesParts<S>;

  /** Owns nothing. */
  constructor(parts: CopiesParts<S>) {
    this.#parts = parts;
  }

  /** Saves a session, in its turn. The session goes on as soon as its memory is written, before the checkpoint is complete. */
  take(
    { core, request }: Original,
    options: { readonly name: string | undefined; readonly signal: AbortSignal | undefined },
  ): Promise<CheckpointOf<S>> {
    const { name, signal } = options, { machines } = this.#parts;
    return this.#parts.track(async () => {
      if (name !== undefined) await machines.checkpoints.checkFree(name);
      await using save = await core.alone(signal, () => saveMachine(core, signal));
      return this.#checkpoint(await save.keep(name), request);
    });
  }

  /** A new session that goes on from a checkpoint, with what `base` asked for where `options` say nothing. */
  restore(stored: StoredCheckpoint, options: RestoreOptions, base?: CheckedSessionRequest): Promise<S> {
    return this.#parts.track(async () => {
      const { machines, closing, defaults } = this.#parts;
      const request = checkRestore(stored, checkFields("restore", options, RESTORE_FIELDS), { base, defaults });
      const signal = request.signal ? AbortSignal.any([request.signal, closing]) : closing;
      signal.throwIfAborted();
      const machine = await machines.lease({
        ...request,
        signal,
        checkpoint: stored,
        net: needsNet(request.network) ? "needed" : "welcome",
      });
      try {
        using _slot = await machine.occupy(signal);
        await abortable(machine.ready, signal);
        await using stack = new AsyncDisposableStack();
        const network = stack.use(await this.#parts.openNetwork(machine, { ...request, signal }));
        await abortable(network.answered(), signal);
        stack.move();
        return this.#parts.open(machine, request, network);
      } catch (error) {
        machine.release();
        throw error;
      }
    });
  }

  /** The session goes on, in place, from the checkpoint. When that cannot be had it goes on from where it is. */
  rollBack({ core, request }: Original, to: CheckpointOf<S> | string, signal: AbortSignal | undefined): Promise<void> {
    return this.#parts.track(async () => {
      const { machines } = this.#parts, { language, memoryMb } = request;
      const stored = to instanceof CheckpointOf ? CheckpointOf.storedOf(to) : await machines.checkpoints.named(checkName(to));
      if (stored.language !== language || stored.memoryMiB !== memoryMb) {
        const wanted = `of a ${language} session with ${memoryMb} MB`, got = `of a ${stored.language} session with ${stored.memoryMiB} MB`;
        throw new InputValidationError(`Cannot roll back: the checkpoint must be ${wanted}, got one ${got}`);
      }
      await core.alone(signal, async () => {
        const until = AbortSignal.any([core.ended, ...(signal ? [signal] : [])]);
        const next = await machines.lease({
          language,
          memoryMb,
          signal: until,
          onBootLog: undefined,
          checkpoint: stored,
          replacing: core.machine,
          net: core.network?.isUsed ? "needed" : "welcome",
        });
        try {
          await abortable(next.ready, until);
        } catch (error) {
          next.release();
          throw error;
        }
        core.moveTo(next, rolledBackError());
      });
    });
  }

  /** `count` sessions that go on from where this one is. All of them, or none. */
  async fork(original: Original, count: number, signal: AbortSignal | undefined): Promise<S[]> {
    const range = "a whole number of at least 1";
    if (!Number.isSafeInteger(count) || count < 1) {
      throw new InputValidationError(`Cannot fork: count must be ${range}, got ${shown(count)}`);
    }
    await this.checkRoom(original, count);
    await using checkpoint = await this.take(original, { name: undefined, signal });
    const failed = new AbortController(), until = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal;
    const restoring = Array.from({ length: count }, () => checkpoint.restore({ signal: until }));
    const outcomes = await Promise.allSettled(restoring.map((session) =>
      session.catch((error) => {
        failed.abort(error); // The others are of no use alone.
        throw error;
      })
    ));
    if (outcomes.every((outcome) => outcome.status === "fulfilled")) return outcomes.map(({ value }) => value);
    await Promise.all(outcomes.map((outcome) => outcome.status === "fulfilled" ? outcome.value[Symbol.asyncDispose]() : undefined));
    signal?.throwIfAborted();
    throw failed.signal.reason;
  }

  /** Forks wait for room like any VM, but not for room that there can never be: the session itself stays. Throws `VmCapacityError`. */
  async checkRoom({ request: { memoryMb } }: Original, count: number): Promise<void> {
    try {
      await this.#parts.machines.checkMemory(Math.min(memoryMb * (count + 1), Number.MAX_SAFE_INTEGER)); // More than any host has.
    } catch (cause) {
      if (!(cause instanceof VmCapacityError)) throw cause;
      const more = count === 1 ? `another session of ${memoryMb} MB does` : `${count} more sessions of ${memoryMb} MB do`;
      const message = `Cannot fork: ${more} not fit beside this one: ${cause.message}`;
      throw new VmCapacityError(message, {
        retry: "never",
        hint: count > 1 ? "Fork less at once, use forkMap, or raise memoryOvercommitRatio." : "Raise memoryOvercommitRatio.",
        cause,
      });
    }
  }

  /** The checkpoint of that name. */
  async named(name: unknown): Promise<CheckpointOf<S>> {
    return this.#checkpoint(await this.#parts.machines.checkpoints.named(checkName(name)));
  }

  /** All checkpoints with a name. */
  async list(): Promise<CheckpointOf<S>[]> {
    return (await this.#parts.machines.checkpoints.list()).map((stored) => this.#checkpoint(stored));
  }

  #checkpoint(stored: StoredCheckpoint, base?: CheckedSessionRequest): CheckpointOf<S> {
    return new CheckpointOf({
      stored,
      restore: (options) => this.restore(stored, options, base),
      remove: () => this.#parts.machines.checkpoints.remove(stored),
    });
  }
}

/** Writes the session's machine down while nothing of the session is under way. */
async function saveMachine(core: SessionCore, signal: AbortSignal | undefined): Promise<MachineSave> {
  const { machine, guest } = core, until = signal ? AbortSignal.any([signal, core.ended]) : core.ended;
  try {
    await abortable(hold(guest, until), until);
    return await machine.save(signal);
  } finally {
    const resumed = guest.resume(randomBytes(64)).catch(() => {}); // A guest that is lost ends the session; the save has its own error.
    await abortable(resumed, until).catch(() => {}); // Whoever has given up waits for no guest: what is sent next is behind the greeting.
  }
}

async function hold(guest: GuestChannel, signal: AbortSignal): Promise<void> {
  const startedAt = performance.now();
  for (;;) {
    signal.throwIfAborted();
    try {
      return await guest.hold();
    } catch (error) {
      const isBusy = error instanceof GuestAgentError && error.retry === "safe";
      if (!isBusy || performance.now() - startedAt > HOLD_TIMEOUT_MS) throw error;
      await delay(HOLD_PAUSE_MS, signal);
    }
  }
}

/** What a restored session is asked for. Throws as `checkSession`. */
function checkRestore(
  { language, memoryMiB }: StoredCheckpoint,
  options: RestoreOptions,
  { base, defaults }: { readonly base: CheckedSessionRequest | undefined; readonly defaults: SessionDefaults },
): CheckedSessionRequest {
  // What has packages cannot be saved, so there are none to be restored.
  const { network, packages: _, ...others } = base ?? {};
  const request: Record<string, unknown> = { ...others, files: {}, signal: undefined, ...options, language, memoryMb: memoryMiB };
  for (const [field, value] of Object.entries(request)) if (value === undefined) delete request[field];
  const checked = checkSession(request as unknown as SessionRequest, defaults);
  return network ? { ...checked, network: inherited(options, checked.network, network) } : checked;
}

function rolledBackError(): CommunicationError {
  return new CommunicationError("Cannot go on with what was under way: the session was rolled back", {
    retry: "never",
    hint: "Processes of then run on: session.processes() lists them, session.attach(id) takes one up.",
  });
}
