/** QMP: QEMU's control protocol, one JSON object a line. */
import type { Duplex } from "node:stream";
import { abortable, delay } from "../base/async.ts";
import { CommunicationError, messageOf, shown } from "../base/errors.ts";

/** QEMU is ours, but it handles hostile guests: a line that never ends is not collected for ever. */
const LINE_MAX_BYTES = 1_048_576;

/** QEMU refused a command. */
export class QmpError extends Error {
  override readonly name = "QmpError";
}

/** A connection to one QEMU's monitor. Commands may be sent before the greeting and before earlier answers: QEMU keeps their order. */
export class Qmp {
  readonly #pipe: Duplex;
  readonly #greeting = Promise.withResolvers<string>();
  readonly #waiting: PromiseWithResolvers<unknown>[] = [];
  readonly #closed = new AbortController();
  readonly #decoder = new TextDecoder();
  #rest = "";

  /** Speaks over `pipe` and switches to command mode at once. */
  constructor(pipe: Duplex) {
    this.#pipe = pipe;
    this.#greeting.promise.catch(() => {}); // Only those who ask for the version wait for it.
    pipe.on("data", (chunk: Uint8Array) => this.#receive(chunk));
    pipe.on("close", () => this.#close(new CommunicationError("Cannot reach QEMU: its monitor was closed")));
    pipe.on("error", (cause) => this.#close(new CommunicationError(`Cannot reach QEMU: ${messageOf(cause)}`, { cause })));
    this.execute("qmp_capabilities").catch(() => {}); // The next command fails with the same reason, and somebody waits for that.
  }

  /** QEMU's version, such as `10.0.13`. */
  version(signal?: AbortSignal): Promise<string> {
    return abortable(this.#greeting.promise, signal);
  }

  /** Runs one command. Rejects with `QmpError` when QEMU refuses it, `CommunicationError` when it is gone. */
  execute(command: string, args?: Readonly<Record<string, unknown>>, signal?: AbortSignal): Promise<unknown> {
    const answer = Promise.withResolvers<unknown>();
    if (this.#closed.signal.aborted) answer.reject(this.#closed.signal.reason);
    else {
      this.#waiting.push(answer);
      this.#pipe.write(JSON.stringify(args ? { execute: command, arguments: args } : { execute: command }) + "\n");
    }
    const outcome = abortable(answer.promise, signal);
    outcome.catch(() => {}); // Pipelined commands are awaited later; until then their failure is no uncaught exception.
    return outcome;
  }

  /** Saves the device state to `uri`, RAM in shared files excepted. The machine is stopped afterwards. */
  async saveState(uri: string, signal?: AbortSignal): Promise<void> {
    await this.execute("migrate-set-capabilities", IGNORE_SHARED_RAM, signal);
    await this.execute("migrate-set-parameters", UNLIMITED, signal);
    await this.execute("migrate", { uri }, signal);
    await this.#migrated(signal);
  }

  /**
   * Saves RAM and device state to `uri`, in the format of `mapped_ram.ts`; the machine has gone on when this returns. Live: it runs while most of its RAM
   * is written, and stands still for the rest only. A guest that writes faster than the disk is stopped after `SETTLE_MS` all the same. Returns the
   * milliseconds that the machine has stood still, as far as can be told from here.
   */
  async saveWhole(
    uri: string,
    { isLive, signal }: { readonly isLive: boolean; readonly signal?: AbortSignal | undefined },
  ): Promise<number> {
    await this.execute("migrate-set-capabilities", MAPPED_RAM, signal);
    await this.execute("migrate-set-parameters", { ...UNLIMITED, "multifd-channels": 2, "downtime-limit": DOWNTIME_MS }, signal);
    let stoppedAt: number | undefined, settle: ReturnType<typeof setTimeout> | undefined;
    let downtimeMs: number, endedAt: number;
    // What was sent is done whether its answer is waited for or not: from here on whoever leaves lets the machine go on.
    try {
      if (!isLive) {
        await this.execute("stop", undefined, signal);
        stoppedAt = performance.now();
      }
      await this.execute("migrate", { uri }, signal);
      settle = setTimeout(() => {
        // A monitor that has gone is noticed by whoever waits for the migration.
        this.execute("migrate-set-parameters", { "downtime-limit": SETTLED_DOWNTIME_MS }).catch(() => {});
      }, SETTLE_MS);
      ({ downtimeMs, endedAt } = await this.#migrated(signal));
    } catch (error) {
      await this.#giveUp().catch(() => {}); // It is lost, and whoever uses it notices.
      throw error;
    } finally {
      clearTimeout(settle);
    }
    await this.execute("cont");
    return performance.now() - (stoppedAt ?? endedAt - downtimeMs);
  }

  /** Ends a migration that nobody waits for, and lets the machine go on. */
  async #giveUp(): Promise<void> {
    await this.execute("migrate_cancel");
    await this.#migrated().catch(() => {}); // That it did not succeed is what was wanted.
    await this.execute("cont");
  }

  /** Resolves with how long the machine stood still, by QEMU's own account, and when it was known not to have ended yet. */
  async #migrated(signal?: AbortSignal): Promise<{ readonly downtimeMs: number; readonly endedAt: number }> {
    for (;;) {
      const endedAt = performance.now();
      const state = await this.execute("query-migrate", undefined, signal) as Record<string, unknown> | null;
      const { status, downtime, "error-desc": reason } = state ?? {};
      if (status === "completed") return { downtimeMs: Number(downtime) || 0, endedAt };
      if (status === undefined || status === "none") throw new QmpError("no migration has begun");
      if (status === "failed" || status === "cancelled") throw new QmpError(`migration ${status}: ${String(reason ?? "no reason given")}`);
      await delay(SAVE_POLL_MS, signal);
    }
  }

  /** Queues the load of a state that `saveState` wrote; the machine then runs. The promise says whether QEMU accepted it. */
  loadState(uri: string, signal?: AbortSignal): Promise<unknown> {
    const capable = this.execute("migrate-set-capabilities", IGNORE_SHARED_RAM, signal);
    const accepted = Promise.all([capable, this.execute("migrate-incoming", { uri }, signal)]);
    accepted.catch(() => {}); // As with each command.
    return accepted;
  }

  /**
   * Loads what `saveWhole` wrote into a machine that was started paused, and lets it go on. Before that QEMU has had two turns to hand the guest what
   * waits on its channel: the agent reads the host's HELLO before any other process of the guest runs.
   */
  async loadSaved(uri: string, signal?: AbortSignal): Promise<void> {
    const capable = this.execute("migrate-set-capabilities", MAPPED_RAM_ALONE, signal);
    const accepted = this.execute("migrate-incoming", { uri }, signal);
    await Promise.all([capable, accepted]);
    for (;;) {
      const state = await this.execute("query-status", undefined, signal) as Record<string, unknown> | null;
      if (state?.["status"] !== "inmigrate") break;
      await delay(SAVE_POLL_MS, signal);
    }
    await this.execute("query-status", undefined, signal);
    await this.execute("cont", undefined, signal);
  }

  #receive(chunk: Uint8Array): void {
    const lines = (this.#rest + this.#decoder.decode(chunk, { stream: true })).split("\n");
    this.#rest = lines.pop() ?? "";
    if (this.#rest.length > LINE_MAX_BYTES) this.#close(new CommunicationError("Cannot understand QEMU: a line has no end"));
    for (const line of lines) this.#dispatch(line);
  }

  #dispatch(line: string): void {
    if (line.trim() === "") return;
    let message: QmpMessage | null;
    try {
      message = JSON.parse(line);
    } catch (cause) {
      return this.#close(new CommunicationError("Cannot understand QEMU: a line is not JSON", { cause }));
    }
    // A QEMU that its guest has taken over says what it likes: nothing in it is taken to be there.
    if (typeof message !== "object" || message === null) {
      return this.#close(new CommunicationError(`Cannot understand QEMU: a message must be an object, got ${shown(message)}`));
    }
    if ("QMP" in message) {
      const { major, minor, micro } = message.QMP?.version?.qemu ?? {};
      this.#greeting.resolve(`${major}.${minor}.${micro}`);
    } else if ("error" in message) this.#waiting.shift()?.reject(new QmpError(String(message.error?.desc)));
    else if ("return" in message) this.#waiting.shift()?.resolve(message.return);
  }

  #close(reason: CommunicationError): void {
    if (this.#closed.signal.aborted) return;
    this.#closed.abort(reason);
    this.#greeting.reject(reason);
    for (const answer of this.#waiting.splice(0)) answer.reject(reason);
  }
}

const SAVE_POLL_MS = 1;
/** How long a machine should stand still at most. */
const DOWNTIME_MS = 100;
/** And at most when it does not come to that. */
const SETTLED_DOWNTIME_MS = 60_000;
/** How long it may take to come to that. */
const SETTLE_MS = 1_000;
/** 128 MB/s by default, which is slower than any disk this runs on. */
const UNLIMITED = { "max-bandwidth": 2 ** 53 - 1 };
const IGNORE_SHARED_RAM = { capabilities: [{ capability: "x-ignore-shared", state: true }] };
const capabilities = (states: Readonly<Record<string, boolean>>) => ({
  capabilities: Object.entries(states).map(([capability, state]) => ({ capability, state })),
});
const MAPPED_RAM_ALONE = capabilities({ "mapped-ram": true });
/** Two threads write, page by page at its place. Capabilities stay as they were set: a clone's machine has loaded with the other one. */
const MAPPED_RAM = capabilities({ "x-ignore-shared": false, "mapped-ram": true, multifd: true });

interface QmpMessage {
  readonly QMP?: { readonly version?: { readonly qemu?: { major?: unknown; minor?: unknown; micro?: unknown } } } | null;
  readonly error?: { readonly desc?: unknown } | null;
  readonly return?: unknown;
}
