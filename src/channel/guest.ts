/** Guest: the agent's methods as typed calls; everything it says is checked before it is believed. */
import type { Duplex } from "node:stream";
import { abortable, Deadline } from "../base/async.ts";
import { CommunicationError, GuestAgentError, OutcomeUnknownError, type SandboxErrorOptions, shown } from "../base/errors.ts";
import {
  CANCEL_GRACE_MS,
  GUEST_KILL_GRACE_MS,
  PROTOCOL_VERSION,
  RESULT_GRACE_MS,
  STDERR_MAX_BYTES,
  STDOUT_MAX_BYTES,
} from "../base/limits.ts";
import { type Answer, type DataHandler, Mux, type MuxStream } from "./mux.ts";
import { concat, DATA_FLAG, WireError } from "./wire.ts";

/** Of what the agent says in its own words, so much goes into an error. */
const MESSAGE_MAX_CHARS = 1024;

const encoder = new TextEncoder(), decoder = new TextDecoder();

/** What the agent says of itself once it has booted. */
export interface GuestAnnouncement {
  readonly agent: string;
  readonly language: string;
}

/** What the host tells every machine before it uses it. */
export interface GuestIdentity {
  readonly id: string;
  /** 64 bytes from the host's generator. */
  readonly entropy: Uint8Array;
  /** The guest powers off when no frame came for so long; 0: never. */
  readonly silenceMs: number;
}

/** One execution. */
export interface ExecRequest {
  readonly code: string;
  readonly env: Readonly<Record<string, string>>;
  readonly timeoutMs: number;
  /** Nothing runs after it in the VM: the code ends as a program does, with its timers, threads and exit handlers. */
  readonly isFinal?: boolean;
}

/** Which cap ended an execution. */
export type OutputName = "stdout" | "stderr";

/** What the guest says about an execution that ended. */
export interface ExecReply {
  readonly exitCode: number;
  readonly timedOut: boolean;
  /** From the code's arrival in the guest to its end. */
  readonly executionUs: number;
  /** The language's process was replaced: state is gone. */
  readonly isReset: boolean;
  readonly outputLimit: OutputName | undefined;
  readonly value: string | undefined;
}

/** Where the output of an execution goes: raw bytes, valid during the call only. */
export interface ExecSinks {
  onOutput(name: OutputName, bytes: Uint8Array): void;
}

/** How long the host waits beyond what the guest was given. */
export interface Graces {
  /** For the guest to end a program that ran out of time. */
  readonly killMs: number;
  /** For the guest to interrupt an aborted execution before it kills it. */
  readonly cancelMs: number;
  /** For the answer itself, on top of either. */
  readonly resultMs: number;
}

const GRACES: Graces = { killMs: GUEST_KILL_GRACE_MS, cancelMs: CANCEL_GRACE_MS, resultMs: RESULT_GRACE_MS };

/** The agent of one VM. */
export class GuestChannel {
  readonly #mux: Mux;
  readonly #graces: Graces;
  readonly #announced = Promise.withResolvers<GuestAnnouncement>();
  #acknowledged: PromiseWithResolvers<void> | undefined;
  #awaitedId = "";

  /** Speaks over `pipe`, whose other end the agent's control port is. */
  constructor(pipe: Duplex, graces: Graces = GRACES) {
    this.#graces = graces;
    this.#mux = new Mux(pipe, (payload) => this.#onHello(payload));
    this.#announced.promise.catch(() => {}); // A clone announces nothing; nobody waits then.
    this.#mux.closed.addEventListener("abort", () => {
      this.#announced.reject(this.#mux.closed.reason);
      this.#acknowledged?.reject(this.#mux.closed.reason);
    }, { once: true });
  }

  /** Aborts with a `CommunicationError` when the guest cannot be reached any more. */
  get closed(): AbortSignal {
    return this.#mux.closed;
  }

  /** After a cold boot: resolves when the language's process is ready. */
  announced(signal?: AbortSignal): Promise<GuestAnnouncement> {
    return abortable(this.#announced.promise, signal);
  }

  /** Gives the machine its identity, clock and entropy. Calls made before the acknowledgement arrive after it, in order. */
  hello(identity: GuestIdentity, signal?: AbortSignal): Promise<void> {
    this.#acknowledged = Promise.withResolvers<void>();
    this.#acknowledged.promise.catch(() => {}); // Whoever waits sees it.
    this.#awaitedId = identity.id;
    if (this.closed.aborted) this.#acknowledged.reject(this.closed.reason);
    this.#mux.hello({
      protocol: PROTOCOL_VERSION,
      id: identity.id,
      clockUs: Math.round((performance.timeOrigin + performance.now()) * 1000),
      entropy: Array.from(identity.entropy, (byte) => byte.toString(16).padStart(2, "0")).join(""),
      silenceMs: identity.silenceMs,
    });
    return abortable(this.#acknowledged.promise, signal);
  }

  /**
   * Runs code. Rejects with the signal's reason when aborted (the code is interrupted, and killed if it does not stop), with
   * `OutcomeUnknownError` when the channel is lost or the guest does not answer in time, with `GuestAgentError` when the agent refuses.
   */
  async exec(request: ExecRequest, sinks: ExecSinks, signal?: AbortSignal): Promise<ExecReply> {
    signal?.throwIfAborted();
    const env = encoder.encode(Object.entries(request.env).map(([name, value]) => `${name}=${value}\0`).join(""));
    const code = encoder.encode(request.code);
    const stream = this.#mux.open({
      method: "exec",
      envBytes: env.length,
      codeBytes: code.length,
      timeoutMs: request.timeoutMs,
      stdin: false,
      final: request.isFinal ?? false,
      stdoutLimit: STDOUT_MAX_BYTES,
      stderrLimit: STDERR_MAX_BYTES,
    }, outputHandler(sinks));
    void stream.send(env.length === 0 ? code : concat(env, code), DATA_FLAG.body);
    const waitMs = request.timeoutMs + this.#graces.killMs + this.#graces.resultMs;
    using deadline = new Deadline(waitMs, () => lostError(waitMs));
    try {
      return parseExecReply(await this.#answerOf(stream, deadline.signal, signal));
    } catch (cause) {
      if (!(cause instanceof CommunicationError)) throw cause;
      throw new OutcomeUnknownError("Cannot tell how the code ended: the VM was lost while it ran", { cause });
    }
  }

  /** Interrupts the running execution as Ctrl-C would; false when nothing ran. */
  async interrupt(signal?: AbortSignal): Promise<boolean> {
    return (await this.#call({ method: "interrupt" }, signal))["interrupted"] === true;
  }

  /** Resolves when the agent answers. */
  async ping(signal?: AbortSignal): Promise<void> {
    await this.#call({ method: "ping" }, signal);
  }

  /** Makes the guest finish what it does in the background, so that its memory can be saved. */
  async quiesce(signal?: AbortSignal): Promise<void> {
    await this.#call({ method: "quiesce" }, signal);
  }

  /** Stops speaking. The machine itself is its owner's. */
  close(): void {
    this.#mux.close();
  }

  async #call(message: { method: string }, signal?: AbortSignal): Promise<Record<string, unknown>> {
    return answerObject(resultOf(await abortable(this.#mux.open(message).answer, signal), message.method));
  }

  /** The answer; after an abort the guest gets time to stop, and the abort's reason is what the caller sees. */
  async #answerOf(stream: MuxStream, deadline: AbortSignal, signal?: AbortSignal): Promise<Uint8Array> {
    try {
      const waiting = signal ? AbortSignal.any([signal, deadline]) : deadline;
      return resultOf(await abortable(stream.answer, waiting), "exec");
    } catch (error) {
      if (!signal?.aborted) throw error;
      const { cancelMs, resultMs } = this.#graces;
      stream.cancel(cancelMs);
      using grace = new Deadline(cancelMs + resultMs, () => new CommunicationError("Cannot stop the code: no answer"));
      await abortable(stream.answer, grace.signal).catch(() => this.close()); // A guest that does not even stop is lost.
      throw signal.reason;
    }
  }

  #onHello(payload: Uint8Array): void {
    const message = parseObject(payload);
    if (!message) throw new WireError("content", "HELLO carries a JSON object");
    if (message["protocol"] !== PROTOCOL_VERSION) {
      throw new WireError("content", `the agent speaks protocol ${shown(message["protocol"])}, we speak ${PROTOCOL_VERSION}`);
    }
    if (typeof message["id"] === "string") {
      if (message["id"] === this.#awaitedId) this.#acknowledged?.resolve();
      return;
    }
    const { agent, language } = message;
    if (typeof agent !== "string" || typeof language !== "string") {
      throw new WireError("content", `HELLO names agent and language, got ${shown(agent)} and ${shown(language)}`);
    }
    this.#announced.resolve({ agent: agent.slice(0, 64), language: language.slice(0, 64) });
  }
}

function outputHandler(sinks: ExecSinks): DataHandler {
  return (flags, payload) => {
    if (flags === DATA_FLAG.stdout) sinks.onOutput("stdout", payload);
    else if (flags === DATA_FLAG.stderr) sinks.onOutput("stderr", payload);
    else throw new WireError("flags", `output has the flags ${DATA_FLAG.stdout} or ${DATA_FLAG.stderr}, got ${flags}`);
  };
}

function lostError(waitMs: number): OutcomeUnknownError {
  return new OutcomeUnknownError(`Cannot tell how the code ended: no answer from the guest ${waitMs} ms after it was sent`);
}

function resultOf(answer: Answer, method: string): Uint8Array {
  if (answer.kind === "result") return answer.payload;
  const { code, message } = answerObject(answer.payload);
  const options: SandboxErrorOptions = code === "busy" ? { retry: "safe" } : { retry: "unknown" };
  throw new GuestAgentError(
    `Cannot ${method} in the guest: ${quotable(message)} (${quotable(code)})`,
    options,
  );
}

/** What the guest wrote, fit for a message: a terminal must not obey it. */
function quotable(value: unknown): string {
  return typeof value === "string" ? value.slice(0, MESSAGE_MAX_CHARS).replace(/\p{Cc}+/gu, " ") : shown(value);
}

/** The JSON object in `payload`, or undefined when it is none. */
function parseObject(payload: Uint8Array): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(decoder.decode(payload));
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value as Record<string, unknown> : undefined;
  } catch {
    return undefined; // Not JSON and not an object are the same mistake of the peer.
  }
}

function answerObject(payload: Uint8Array): Record<string, unknown> {
  const message = parseObject(payload);
  if (message) return message;
  throw unreadable(payload);
}

/** Throws `GuestAgentError` for a reply that no agent of ours would send. */
function parseExecReply(payload: Uint8Array): ExecReply {
  const { exitCode, timedOut, executionUs, reset, outputLimit, value } = answerObject(payload);
  const isValid = Number.isInteger(exitCode) && (exitCode as number) >= -1 && (exitCode as number) <= 255 &&
    typeof timedOut === "boolean" && typeof reset === "boolean" &&
    Number.isSafeInteger(executionUs) && (executionUs as number) >= 0 &&
    (outputLimit === null || outputLimit === "stdout" || outputLimit === "stderr") &&
    (value === null || typeof value === "string");
  if (!isValid) throw unreadable(payload);
  return {
    exitCode: exitCode as number,
    timedOut,
    executionUs: executionUs as number,
    isReset: reset,
    outputLimit: outputLimit ?? undefined,
    value: value ?? undefined,
  };
}

function unreadable(answer: Uint8Array): GuestAgentError {
  return new GuestAgentError(`Cannot read the guest's answer: ${quotable(decoder.decode(answer.subarray(0, 256)))}`, { retry: "unknown" });
}
