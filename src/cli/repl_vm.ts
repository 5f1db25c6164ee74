/** REPL VM: the session that a prompt stands for. It starts while the user types already, and another can take its place. */
import { abortable } from "../base/async.ts";
import type { Language } from "../run/request.ts";
import type { CliSession } from "./context.ts";

/** A session that answers so often is not closed for lack of use. */
const KEEP_ALIVE_MS = 60_000;

/** Opens a session; an abort ends the opening. */
export type OpenSession = (language: Language, signal: AbortSignal) => Promise<CliSession>;

/** What a `ReplVm` is made of. */
export interface ReplVmOptions {
  readonly open: OpenSession;
  /** Called when everything is over: lets go of what sessions come from. */
  readonly close: () => Promise<void>;
  /** The session stays open as long as nobody types. */
  readonly isKeptAlive: boolean;
}

/** One session at a time. The caller owns it: disposing closes the session, or ends its opening. */
export class ReplVm implements AsyncDisposable {
  readonly #open: OpenSession;
  readonly #isKeptAlive: boolean;
  readonly #close: () => Promise<void>;
  readonly #closings = new Set<Promise<void>>();
  #language: Language;
  #leaving = new AbortController();
  #opening: Promise<CliSession>;
  #isReady = false;
  #timer: ReturnType<typeof setInterval> | undefined;

  /** Starts at once. */
  constructor(language: Language, options: ReplVmOptions) {
    this.#open = options.open;
    this.#close = options.close;
    this.#isKeptAlive = options.isKeptAlive;
    this.#language = language;
    this.#opening = this.#start();
  }

  /** What its session runs, or will run. */
  get language(): Language {
    return this.#language;
  }

  /** Has the session been opened? It may have ended since. */
  get isReady(): boolean {
    return this.#isReady;
  }

  /** The session, once it is open. Rejects when it could not be opened, and with the signal's reason when aborted. */
  session(signal?: AbortSignal): Promise<CliSession> {
    return abortable(this.#opening, signal);
  }

  /** Ends the session and starts another, without waiting for either. */
  replace(language: Language): void {
    this.#end();
    this.#language = language;
    this.#leaving = new AbortController();
    this.#opening = this.#start();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#end();
    await Promise.all(this.#closings);
    await this.#close();
  }

  #start(): Promise<CliSession> {
    this.#isReady = false;
    const { signal } = this.#leaving;
    const opening = Promise.try(() => this.#open(this.#language, signal));
    opening.then((session) => {
      if (signal.aborted) return;
      this.#isReady = true;
      if (this.#isKeptAlive) this.#keepAlive(session);
    }, () => {}); // Whoever waits for the session sees it.
    return opening;
  }

  #keepAlive(session: CliSession): void {
    this.#timer = setInterval(() => void session.ping().catch(() => {}), KEEP_ALIVE_MS); // The next call tells of its loss.
    this.#timer.unref?.();
  }

  #end(): void {
    clearInterval(this.#timer);
    this.#leaving.abort(new DOMException("The session was given up", "AbortError"));
    const closing = this.#opening.then((session) => session.close(), () => {}); // What is not open need not be closed.
    const done = closing.catch(() => {}).finally(() => this.#closings.delete(done)); // Its VM dies with this process at the latest.
    this.#closings.add(done);
  }
}
