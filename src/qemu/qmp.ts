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
    // 128 MB/s by default, which is slower than any disk this runs on.
    await this.execute("migrate-set-parameters", { "max-bandwidth": 2 ** 53 - 1 }, signal);
    await this.execute("migrate", { uri }, signal);
    for (;;) {
      const state = await this.execute("query-migrate", undefined, signal) as Record<string, unknown> | null;
      const { status, "error-desc": reason } = state ?? {};
      if (status === "completed") return;
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
const IGNORE_SHARED_RAM = { capabilities: [{ capability: "x-ignore-shared", state: true }] };

interface QmpMessage {
  readonly QMP?: { readonly version?: { readonly qemu?: { major?: unknown; minor?: unknown; micro?: unknown } } } | null;
  readonly error?: { readonly desc?: unknown } | null;
  readonly return?: unknown;
}
