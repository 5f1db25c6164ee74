/** REPL VM: the session that a prompt stands for. It starts while the user types already, and another can take its place. */
import { abortable } from "../base/async.ts";
import type { NetworkAccess } from "../run/network_request.ts";
import type { Language } from "../run/request.ts";
import type { CliCheckpoint, CliSession } from "./context.ts";

/** A session that answers so often is not closed for lack of use. */
const KEEP_ALIVE_MS = 60_000;

/** Opens a session; an abort ends the opening. `access` is what it may reach, where that is not what the prompt was started with. */
export type OpenSession = (language: Language, signal: AbortSignal, access: NetworkAccess | undefined) => Promise<CliSession>;

/** What a `ReplVm` is made of. */
export interface ReplVmOptions {
  readonly open: OpenSession;
  /** The checkpoints with a name. */
  readonly namedCheckpoints: () => Promise<readonly CliCheckpoint[]>;
  /** Called when everything is over: lets go of what sessions come from. */
  readonly close: () => Promise<void>;
  /** The session stays open as long as nobody types. */
  readonly isKeptAlive: boolean;
}

/** A session that is there, or on its way. */
interface Place {
  readonly language: Language;
  readonly opening: Promise<CliSession>;
  readonly leaving: AbortController;
  isReady: boolean;
  /** What it may reach; undefined: what the prompt was started with. */
  access: NetworkAccess | undefined;
  timer: ReturnType<typeof setInterval> | undefined;
}

/** One session at a time, and those that it is a copy of. The caller owns it: disposing closes all of them, or ends an opening. */
export class ReplVm implements AsyncDisposable {
  readonly #options: ReplVmOptions;
  readonly #closings = new Set<Promise<void>>();
  /** Those without a name, by the number that the user knows them by. */
  readonly checkpoints = new Map<number, CliCheckpoint>();
  #lastNumber = 0;
  #newest: string | undefined;
  /** The originals of copies, the outermost first. */
  readonly #originals: Place[] = [];
  #place: Place;

  /** Starts at once. */
  constructor(language: Language, options: ReplVmOptions) {
    this.#options = options;
    this.#place = this.#start(language, undefined);
  }

  /** What its session runs, or will run. */
  get language(): Language {
    return this.#place.language;
  }

  /** Has the session been opened? It may have ended since. */
  get isReady(): boolean {
    return this.#place.isReady;
  }

  /** The checkpoint made last, by name or number. */
  get newestCheckpoint(): string | undefined {
    return this.#newest;
  }

  /** The session, once it is open. Rejects when it could not be opened, and with the signal's reason when aborted. */
  session(signal?: AbortSignal): Promise<CliSession> {
    return abortable(this.#place.opening, signal);
  }

  /** Ends the session and starts another, without waiting for either. */
  replace(language: Language): void {
    const { access } = this.#place;
    this.#end(this.#place);
    this.#place = this.#start(language, access);
  }

  /** What the session may reach was changed: so may one that takes its place. */
  setAccess(access: NetworkAccess): void {
    this.#place.access = access;
  }

  /** Goes on with a copy, which it owns from now on, until `leave`. */
  enter(copy: CliSession): void {
    this.#originals.push(this.#place);
    this.#place = this.#placeOf(copy.language, this.#place.access, () => Promise.resolve(copy));
  }

  /** Closes a copy and goes back to its original; false when the session is none. */
  leave(): boolean {
    const original = this.#originals.pop();
    if (original === undefined) return false;
    this.#end(this.#place);
    this.#place = original;
    return true;
  }

  /** Takes note of a checkpoint; returns what the user calls it. */
  keep(checkpoint: CliCheckpoint): string {
    if (checkpoint.name === undefined) this.checkpoints.set(++this.#lastNumber, checkpoint);
    this.#newest = checkpoint.name ?? String(this.#lastNumber);
    return this.#newest;
  }

  /** The checkpoints with a name, of this prompt or not. */
  async namedCheckpoints(): Promise<readonly CliCheckpoint[]> {
    return await this.#options.namedCheckpoints();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const place of [this.#place, ...this.#originals]) this.#end(place);
    await Promise.all(this.#closings);
    await this.#options.close();
  }

  #start(language: Language, access: NetworkAccess | undefined): Place {
    return this.#placeOf(language, access, (signal) => this.#options.open(language, signal, access));
  }

  #placeOf(language: Language, access: NetworkAccess | undefined, open: (signal: AbortSignal) => Promise<CliSession>): Place {
    const leaving = new AbortController(), { signal } = leaving;
    const opening = Promise.try(() => open(signal));
    const place: Place = { language, opening, leaving, isReady: false, access, timer: undefined };
    opening.then((session) => {
      if (signal.aborted) return;
      place.isReady = true;
      if (!this.#options.isKeptAlive) return;
      place.timer = setInterval(() => void session.ping().catch(() => {}), KEEP_ALIVE_MS); // The next call tells of its loss.
      place.timer.unref?.();
    }, () => {}); // Whoever waits for the session sees it.
    return place;
  }

  #end({ opening, leaving, timer }: Place): void {
    clearInterval(timer);
    leaving.abort(new DOMException("The session was given up", "AbortError"));
    const closing = opening.then((session) => session.close(), () => {}); // What is not open need not be closed.
    const done = closing.catch(() => {}).finally(() => this.#closings.delete(done)); // Its VM dies with this process at the latest.
    this.#closings.add(done);
  }
}
