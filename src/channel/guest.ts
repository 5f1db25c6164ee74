/** Guest: the agent's methods as typed calls; everything it says is checked before it is believed. */
import type { Duplex } from "node:stream";
import { abortable, Deadline, Semaphore } from "../base/async.ts";
import { CommunicationError, GuestAgentError, OutcomeUnknownError, shown } from "../base/errors.ts";
import {
  CANCEL_GRACE_MS,
  GUEST_KILL_GRACE_MS,
  PROTOCOL_VERSION,
  RESULT_GRACE_MS,
  STDERR_MAX_BYTES,
  STDOUT_MAX_BYTES,
  STREAM_CREDIT_BYTES,
} from "../base/limits.ts";
import { answerObject, isCount, type JsonObject, parseObject, resultOf, unreadable } from "./answer.ts";
import type { DisplayData } from "../base/result.ts";
import { DisplayReader } from "./display.ts";
import { GuestFiles } from "./guest_files.ts";
import { GuestProcesses } from "./guest_processes.ts";
import { type DataHandler, type HandOver, Mux, type MuxStream } from "./mux.ts";
import { BodySource, callAnswer, type CallTurn, environmentBlock, type Graces, type Message, stopStream } from "./stream_io.ts";
import { concat, DATA_FLAG, WireError } from "./wire.ts";

const encoder = new TextEncoder();
const HOLD_HINT = { retry: "never", hint: "Build or download the images of this version: `sbx images build`, `sbx prefetch`." } as const;

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
  /** The program's standard input; default: it is at its end. What the source throws ends the execution, and is what the caller gets. */
  readonly stdin?: AsyncIterable<Uint8Array> | undefined;
  /** The code is not run: the answer is about it, as JSON in `value`. */
  readonly assist?: "complete" | "is_complete";
}

/** The guest's network: everything it may do is decided on the host; this only says which parts of it there are. */
export interface NetworkRequest {
  /** There is a way out: an address, a default route, a resolver. Without, only ports that the host exposes can be reached. */
  readonly outbound: boolean;
  /** The host reaches IPv6 addresses. Default false. */
  readonly ipv6?: boolean;
  /** Certificates that the guest trusts besides its own, in PEM; at most 262,144 bytes. Default none. */
  readonly ca?: Uint8Array;
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
  /** Display data came that could not be read, and was left out. */
  readonly isDisplayMalformed: boolean;
}

/**
 * Where what an execution shows goes. Where a promise is returned, the guest is held back until it has settled, and that time does not
 * count as the guest's silence.
 */
export interface ExecSinks {
  /** Raw bytes, valid during the call only. */
  onOutput(name: OutputName, bytes: Uint8Array): void | Promise<void>;
  /** Display data of one object. */
  onDisplay?(data: DisplayData): void | Promise<void>;
}

const GRACES: Graces = { killMs: GUEST_KILL_GRACE_MS, cancelMs: CANCEL_GRACE_MS, resultMs: RESULT_GRACE_MS };

/** What the next owner of a channel has to know. */
export interface GuestHandOver extends HandOver {
  /** What the guest was told that it is called. */
  readonly guestId: string;
}

/** The agent of one VM. */
export class GuestChannel {
  /** Files below the user's home. */
  readonly files: GuestFiles;
  /** Processes beside the executions. */
  readonly processes: GuestProcesses;
  readonly #mux: Mux;
  readonly #graces: Graces;
  readonly #interrupts = new Semaphore(1);
  readonly #pings = new Semaphore(1);
  readonly #networks = new Semaphore(1);
  readonly #announced = Promise.withResolvers<GuestAnnouncement>();
  #acknowledged: PromiseWithResolvers<void> | undefined;
  #awaitedId = "";

  /** Speaks over `pipe`, whose other end the agent's control port is. `from` is what `handOver` gave for one that was another's. */
  constructor(pipe: Duplex, graces: Graces = GRACES, from: Omit<GuestHandOver, "pipe"> = { firstStream: 1, guestId: "" }) {
    this.#graces = graces;
    this.#mux = new Mux(pipe, (payload) => this.#onHello(payload), from.firstStream);
    this.#awaitedId = from.guestId;
    this.files = new GuestFiles(this.#mux, graces);
    this.processes = new GuestProcesses(this.#mux, graces);
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
    const env = environmentBlock(request.env);
    const code = encoder.encode(request.code);
    const display = new DisplayReader();
    const stream = this.#mux.open({
      method: "exec",
      envBytes: env.length,
      codeBytes: code.length,
      timeoutMs: request.timeoutMs,
      stdin: request.stdin !== undefined,
      final: request.isFinal ?? false,
      ...(request.assist === undefined ? {} : { assist: request.assist }),
      stdoutLimit: STDOUT_MAX_BYTES,
      stderrLimit: STDERR_MAX_BYTES,
    }, outputHandler(sinks, display));
    void stream.send(env.length === 0 ? code : concat(env, code), DATA_FLAG.body);
    const waitMs = request.timeoutMs + this.#graces.killMs + this.#graces.resultMs;
    using deadline = new Deadline(waitMs, () => lostError(waitMs), () => stream.heldBytes > 0);
    using input = request.stdin === undefined ? undefined : new BodySource(stream, request.stdin);
    try {
      const payload = await this.#answerOf(stream, deadline.signal, [signal, input?.failed]);
      return { ...parseExecReply(payload), isDisplayMalformed: display.isMalformed };
    } catch (cause) {
      // What it does now is nobody's any more: the channel cannot be used for anything else.
      if (cause === deadline.signal.reason) this.#mux.close(new CommunicationError(`Cannot reach the guest: no answer after ${waitMs} ms`));
      if (!(cause instanceof CommunicationError)) throw cause;
      throw new OutcomeUnknownError("Cannot tell how the code ended: the VM was lost while it ran", { cause });
    }
  }

  /** Interrupts the running execution as Ctrl-C would; false when nothing ran. */
  async interrupt(signal?: AbortSignal): Promise<boolean> {
    return (await this.#call({ method: "interrupt" }, { turns: this.#interrupts, signal }))["interrupted"] === true;
  }

  /** Sets the guest's network up, or changes it. What is sent after the call finds it as asked for, whether its promise has settled or not. */
  async network({ outbound, ipv6 = false, ca = new Uint8Array(0) }: NetworkRequest, signal?: AbortSignal): Promise<void> {
    if (ca.length > STREAM_CREDIT_BYTES) {
      throw new RangeError(`Cannot set up the network: ca must be at most ${STREAM_CREDIT_BYTES} bytes, got ${ca.length}`);
    }
    await this.#call({ method: "net", outbound, caBytes: ca.length, ipv6 }, { turns: this.#networks, signal, body: ca });
  }

  /** Does once what a guest with a network does, with nobody beyond: for a bake, so that clones find it done before. Leaves nothing. */
  async rehearseNetwork(signal?: AbortSignal): Promise<void> {
    await this.#call({ method: "net", rehearse: true }, { turns: this.#networks, signal });
  }

  /** Resolves when the agent answers. */
  async ping(signal?: AbortSignal): Promise<void> {
    await this.#call({ method: "ping" }, { turns: this.#pings, signal });
  }

  /**
   * Moves bytes that mean nothing: `body` to the guest, then, and at the same time, `receiveBytes` back. What files are transferred at is
   * measured against it. Resolves with the bytes that the guest counted.
   */
  async exchange(
    { body, receiveBytes = 0 }: { readonly body?: AsyncIterable<Uint8Array>; readonly receiveBytes?: number },
    signal?: AbortSignal,
  ): Promise<number> {
    signal?.throwIfAborted();
    const stream = this.#mux.open({ method: "ping", sendBytes: receiveBytes, body: body !== undefined });
    using source = body && new BodySource(stream, body);
    try {
      const payload = resultOf(await abortable(abortable(stream.answer, signal), source?.failed), "ping");
      const { receivedBytes } = answerObject(payload);
      if (!isCount(receivedBytes)) throw unreadable(payload);
      return receivedBytes;
    } catch (error) {
      if (!this.closed.aborted) await stopStream(this.#mux, stream, { cancelMs: 0, resultMs: this.#graces.resultMs });
      throw error;
    }
  }

  /** Makes the guest finish what it does in the background, so that its memory can be saved. */
  async quiesce(signal?: AbortSignal): Promise<void> {
    await this.#call({ method: "quiesce" }, { turns: this.#pings, signal });
  }

  /**
   * Makes the guest fall silent so that the machine can be saved while its processes run: neither side sends anything until `resume`, and the
   * output of processes stays in their pipes. No execution and no transfer may be under way. Throws `GuestAgentError` when the guest is not ready for it.
   */
  async hold(): Promise<void> {
    const message = { method: "quiesce", hold: true };
    const answering = callAnswer(this.#mux, message, { turns: new Semaphore(1) });
    this.#mux.hold();
    try {
      const answer = answerObject(resultOf(await answering, "save the machine"));
      // An agent from before there was such a thing has sent its answer and goes on sending.
      if (answer["held"] !== true) throw new GuestAgentError("Cannot save the machine: its agent is older than this program", HOLD_HINT);
    } catch (error) {
      this.#mux.unhold();
      throw error;
    }
  }

  /** After `hold`: both sides go on, with everything that waited. The guest's clock is set and its generators are renewed. */
  async resume(entropy: Uint8Array): Promise<void> {
    await this.hello({ id: this.#awaitedId, entropy, silenceMs: 0 });
  }

  /** Lets another speak to a guest that has nothing to do; this end only tells of its loss from then on. */
  handOver(): GuestHandOver {
    return { ...this.#mux.handOver(), guestId: this.#awaitedId };
  }

  /** Stops speaking; what waits for the guest ends with `reason`. The machine itself is its owner's. */
  close(reason?: CommunicationError): void {
    this.#mux.close(reason);
  }

  async #call(message: Message, turn: CallTurn): Promise<JsonObject> {
    return answerObject(resultOf(await callAnswer(this.#mux, message, turn), message.method));
  }

  /** The answer; after an abort by any of `signals` the guest gets time to stop, and the abort's reason is what the caller sees. */
  async #answerOf(
    stream: MuxStream,
    deadline: AbortSignal,
    signals: ReadonlyArray<AbortSignal | undefined>,
  ): Promise<Uint8Array> {
    try {
      const waiting = signals.reduce((promise, signal) => abortable(promise, signal), abortable(stream.answer, deadline));
      return resultOf(await waiting, "exec");
    } catch (error) {
      const aborted = signals.find((signal) => signal?.aborted);
      if (!aborted) throw error;
      await stopStream(this.#mux, stream, this.#graces);
      throw aborted.reason;
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

function outputHandler(sinks: ExecSinks, display: DisplayReader): DataHandler {
  return (flags, payload) => {
    if (flags === DATA_FLAG.stdout) return sinks.onOutput("stdout", payload);
    if (flags === DATA_FLAG.stderr) return sinks.onOutput("stderr", payload);
    if (flags !== DATA_FLAG.display) {
      throw new WireError("flags", `output has the flags ${DATA_FLAG.stdout}, ${DATA_FLAG.stderr} or ${DATA_FLAG.display}, got ${flags}`);
    }
    const taken = display.push(payload).map((data) => sinks.onDisplay?.(data)).filter((promise) => promise !== undefined);
    return taken.length === 0 ? undefined : Promise.all(taken).then(() => {});
  };
}

function lostError(waitMs: number): OutcomeUnknownError {
  return new OutcomeUnknownError(`Cannot tell how the code ended: no answer from the guest ${waitMs} ms after it was sent`);
}

/** Throws `GuestAgentError` for a reply that no agent of ours would send. */
function parseExecReply(payload: Uint8Array): Omit<ExecReply, "isDisplayMalformed"> {
  const { exitCode, timedOut, executionUs, reset, outputLimit, value } = answerObject(payload);
  const isValid = Number.isInteger(exitCode) && (exitCode as number) >= -1 && (exitCode as number) <= 255 &&
    typeof timedOut === "boolean" && typeof reset === "boolean" &&
    isCount(executionUs) &&
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
