/** Warm pool: VMs that have executed before and wait for somebody. Filled in the background, never in the way of those who wait for something. */
import type { Gate } from "../admission/gate.ts";
import type { Reservation } from "../admission/line.ts";
import { abortable, delay } from "../base/async.ts";
import { messageOf, SandboxError, SessionClosedError, VmCapacityError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import type { Template } from "../vm/template.ts";
import type { Vm } from "../vm/vm.ts";
import type { Language } from "./request.ts";

/** While others work a VM is made only after so long: at last the pool fills on a busy host too. */
const CALM_MAX_MS = 2_000;
const BACKOFF_MIN_MS = 500;
const BACKOFF_MAX_MS = 60_000;
/** A guest that idles answers in a millisecond; only a host that stands still takes so long. */
const HEALTH = { intervalMs: 30_000, timeoutMs: 10_000 };
/** More than that of a spare: seconds of a processor went into one. */
const WORTH = 1;

/** A VM that has executed, and what it was cloned from. */
export interface Warm {
  readonly vm: Vm;
  readonly template: Template;
}

/** What a pool is made of. */
export interface WarmPoolParts {
  /** VMs of each language. */
  readonly size: number;
  readonly languages: readonly Language[];
  readonly memoryMb: number;
  readonly gate: Gate;
  readonly log: Logger;
  /** Aborts when no more are to be made. */
  readonly closing: AbortSignal;
  /** Makes one. The caller owns it; nothing is left of one that fails or is aborted. */
  readonly make: (language: Language, signal: AbortSignal) => Promise<Warm>;
  /** Whether what its memory is made of is still as it was. */
  readonly isIntact: (template: Template) => Promise<boolean>;
  /** Kills one, without waiting. */
  readonly end: (vm: Vm) => void;
  /** How often each is looked at, and how long it may take to answer. */
  readonly health?: { readonly intervalMs: number; readonly timeoutMs: number };
}

interface Pooled extends Warm {
  readonly language: Language;
  readonly reservation: Reservation;
}

/** Ready VMs, the same number for each language. */
export class WarmPool {
  readonly #parts: WarmPoolParts;
  readonly #pooled = new Set<Pooled>();
  readonly #health: ReturnType<typeof setInterval> | undefined;
  #filling: Promise<void> | undefined;
  /** Those who wait until it is full. */
  #waiting = newWaiting();
  /** Languages of which none could be made: how often in a row, and when (`performance.now()`) that is tried again. */
  readonly #failed = new Map<Language, { readonly count: number; readonly retryAt: number }>();
  /** Ends the waiting for the next attempt. */
  #wake: (() => void) | undefined;
  #turn = 0;

  /** Begins to fill. Whoever made it awaits `closed` after `closing` has aborted. */
  constructor(parts: WarmPoolParts) {
    this.#parts = parts;
    if (parts.size === 0) return;
    const { intervalMs, timeoutMs } = parts.health ?? HEALTH;
    this.#health = setInterval(() => void this.#check(timeoutMs), intervalMs);
    parts.closing.addEventListener("abort", () => this.#close(), { once: true });
    this.#fill();
  }

  /** A VM that is ready now, and its room; they are the caller's then. Undefined where there is none, or where others wait for room. */
  take(language: Language, memoryMb: number): (Warm & { readonly room: Disposable }) | undefined {
    const pooled = this.#find(language, memoryMb), room = pooled?.reservation.claim();
    if (!pooled || !room) return undefined;
    this.#pooled.delete(pooled);
    this.#fill();
    return { vm: pooled.vm, template: pooled.template, room };
  }

  /** Whether `take` may find one. */
  has(language: Language, memoryMb: number): boolean {
    return this.#find(language, memoryMb) !== undefined;
  }

  /** Resolves when it is full; rejects with what keeps it from being so, `SessionClosedError` when it is closed, and the signal's reason. */
  async ready(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const { size, languages, memoryMb, gate } = this.#parts, wantedMb = size * languages.length * memoryMb;
    if (wantedMb > gate.budget.memoryMiB) {
      throw new VmCapacityError(
        `Cannot fill the warm pool: ${size} VMs with ${memoryMb} MB for each of ${languages.length} languages are ${wantedMb} MB, ` +
          `and the budget of this host is ${gate.budget.memoryMiB} MB in all`,
        { retry: "never", hint: "Lower warmPoolSize or defaultMemoryMb, or raise memoryOvercommitRatio." },
      );
    }
    if (this.#lacking().length > 0) await abortable(this.#waiting.promise, signal);
  }

  /** Resolves when nothing is being made any more. */
  async closed(): Promise<void> {
    await this.#filling;
  }

  #find(language: Language, memoryMb: number): Pooled | undefined {
    if (memoryMb !== this.#parts.memoryMb) return undefined;
    return this.#pooled.values().find((pooled) => pooled.language === language && !pooled.vm.isLost);
  }

  /** Languages that have too few, by turns: one of which none can be made keeps the others from nothing. */
  #lacking(): Language[] {
    const { languages, size } = this.#parts;
    const count = (language: Language) => this.#pooled.values().filter((pooled) => pooled.language === language).toArray().length;
    const turn = languages.map((_, at) => languages[(this.#turn + at) % languages.length]).filter((language) => language !== undefined);
    return turn.filter((language) => count(language) < size);
  }

  #fill(): void {
    if (this.#parts.closing.aborted) return;
    this.#wake?.();
    this.#filling ??= this.#keepFull().finally(() => this.#filling = undefined);
  }

  /** Makes one after the other until none is lacking. */
  async #keepFull(): Promise<void> {
    const { closing, languages } = this.#parts;
    try {
      for (let lacking = this.#lacking(); lacking.length > 0; lacking = this.#lacking()) {
        closing.throwIfAborted();
        const retryAt = (language: Language) => this.#failed.get(language)?.retryAt ?? 0;
        const language = lacking.find((each) => retryAt(each) <= performance.now());
        if (language === undefined) {
          await this.#pause(Math.min(...lacking.map(retryAt)) - performance.now());
          continue;
        }
        this.#turn = languages.indexOf(language) + 1;
        try {
          if (await this.#add(language)) this.#failed.delete(language);
        } catch (error) {
          closing.throwIfAborted();
          this.#onFailure(language, error);
        }
      }
    } catch {
      return; // It is being closed.
    }
    this.#waiting.resolve();
    this.#waiting = newWaiting();
  }

  /** Waits for `ms`, or until one is lacking that was not before. */
  async #pause(ms: number): Promise<void> {
    const over = new AbortController();
    this.#wake = () => over.abort();
    try {
      await delay(Math.max(1, ms), AbortSignal.any([this.#parts.closing, over.signal]));
    } catch {
      this.#parts.closing.throwIfAborted();
    } finally {
      this.#wake = undefined;
    }
  }

  /** True when one more is in the pool. */
  async #add(language: Language): Promise<boolean> {
    const { gate, memoryMb, closing, make, end } = this.#parts;
    await this.#calm();
    const evicted = new AbortController();
    const evict = () => evicted.abort(new VmCapacityError("Cannot keep a VM warm: its room is needed"));
    using reserved = new DisposableStack();
    const reservation = gate.reserve(memoryMb, { worth: WORTH, evict }), slot = gate.reserveSlot({ worth: WORTH, evict });
    for (const each of [reservation, slot]) if (each) reserved.use(each);
    // No room for it now: that is no failure, and whoever waits until it is full goes on waiting.
    if (!reservation || !slot) {
      await gate.changed(closing);
      return false;
    }
    const signal = AbortSignal.any([closing, evicted.signal]);
    let warm: Warm;
    try {
      warm = await make(language, signal);
    } catch (error) {
      if (evicted.signal.aborted && !closing.aborted) return false;
      throw error;
    }
    if (signal.aborted || warm.vm.isLost) {
      end(warm.vm);
      return false;
    }
    reserved.move();
    slot[Symbol.dispose]();
    const pooled: Pooled = { ...warm, language, reservation };
    this.#pooled.add(pooled);
    for (const end of [warm.vm.lost, evicted.signal]) end.addEventListener("abort", () => this.#drop(pooled), { once: true });
    return true;
  }

  /** Waits until nobody works or waits, but no longer than a pool may stay empty. */
  async #calm(): Promise<void> {
    const { gate, closing } = this.#parts;
    // Whoever has just been answered may call again at once.
    await new Promise((resolve) => setImmediate(resolve));
    if (gate.isQuiet) return;
    const enough = new AbortController();
    const timer = setTimeout(() => enough.abort(), CALM_MAX_MS);
    try {
      await gate.quiet(AbortSignal.any([closing, enough.signal]));
    } catch {
      closing.throwIfAborted();
      while (gate.isContended) await gate.changed(closing);
    } finally {
      clearTimeout(timer);
    }
  }

  #onFailure(language: Language, error: unknown): void {
    this.#waiting.reject(
      SandboxError.is(error) ? error : new VmCapacityError(`Cannot fill the warm pool: ${messageOf(error)}`, { cause: error }),
    );
    this.#waiting = newWaiting();
    const isFirst = this.#failed.size === 0, count = (this.#failed.get(language)?.count ?? 0) + 1;
    this.#failed.set(language, { count, retryAt: performance.now() + Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** (count - 1)) });
    if (!isFirst) return;
    this.#parts.log.warning("the warm pool cannot be filled; it is tried again", { language, reason: messageOf(error) });
  }

  #drop(pooled: Pooled): void {
    if (!this.#pooled.delete(pooled)) return;
    pooled.reservation[Symbol.dispose]();
    this.#parts.end(pooled.vm);
    this.#fill();
  }

  async #check(timeoutMs: number): Promise<void> {
    for (const pooled of [...this.#pooled]) {
      const isIntact = this.#parts.isIntact(pooled.template);
      const answered = pooled.vm.guest.ping(AbortSignal.timeout(timeoutMs)).then(() => true, () => false);
      if (!(await isIntact && await answered)) this.#drop(pooled);
    }
  }

  #close(): void {
    clearInterval(this.#health);
    this.#waiting.reject(new SessionClosedError("Cannot fill the warm pool: the scheduler is closed"));
    for (const pooled of this.#pooled) {
      this.#pooled.delete(pooled);
      pooled.reservation[Symbol.dispose]();
      this.#parts.end(pooled.vm);
    }
  }
}

function newWaiting(): PromiseWithResolvers<void> {
  const waiting = Promise.withResolvers<void>();
  waiting.promise.catch(() => {}); // Whoever waits sees it.
  return waiting;
}
