/** Spares: QEMU processes spawned ahead for the templates in use, so that a start only has to load the state of the devices. */
import type { Gate } from "../admission/gate.ts";
import type { Reservation } from "../admission/line.ts";
import { messageOf } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import type { Template } from "../vm/template.ts";
import type { Vm } from "../vm/vm.ts";

/** A template that was started from so often within this time is in use: whoever starts one VM and ends does not pay for a second. */
const USES_MIN = 2;
const USE_WINDOW_MS = 60_000;
const IDLE_MAX_MS = 60_000;
/** What one takes before it has a guest: QEMU itself (measured: 15 MB). The guest's memory is found for whoever gets it. */
const SPARE_MIB = 24;
/** Less than that of a warm VM: another is there in milliseconds. */
const WORTH = 0;

/** Where spares come from and go to. */
export interface SparesParts {
  readonly gate: Gate;
  /** How many there are at most, one for each template. */
  readonly size: number;
  /** Processors of the host. A spare is spawned on one that nobody uses. */
  readonly cpus: number;
  readonly log: Logger;
  /** Aborts when no more are to be made. */
  readonly closing: AbortSignal;
  /** Spawns one, not greeted. */
  readonly spawn: (template: Template) => Promise<Vm>;
  /** Kills one, without waiting. */
  readonly end: (vm: Vm) => void;
  /** How long one is kept that nobody takes. */
  readonly idleMaxMs?: number;
}

interface Spare {
  readonly template: Template;
  readonly vm: Vm;
  readonly reservation: Reservation;
  readonly timer: ReturnType<typeof setTimeout>;
}

/** At most one for each template. */
export class Spares {
  readonly #parts: SparesParts;
  /** By the template's key. */
  readonly #spares = new Map<string, Spare>();
  readonly #startedAt = new Map<string, readonly number[]>();
  readonly #making = new Map<string, Promise<void>>();

  /** Nothing is made before `used` was called. */
  constructor(parts: SparesParts) {
    this.#parts = parts;
    parts.closing.addEventListener("abort", () => this.clear(), { once: true });
  }

  /** The spare for `template`, if there is one that lives; it is the caller's then. */
  take(template: Template): Vm | undefined {
    const spare = this.#spares.get(template.key);
    if (!spare) return undefined;
    this.#remove(spare);
    // Made of a template that has been replaced since: its translations, and its memory, are of another bake.
    if (spare.template.bakeId === template.bakeId && !spare.vm.isLost) return spare.vm;
    this.#parts.end(spare.vm);
    return undefined;
  }

  /** A VM was started from `template`: when that happens often, a spare is made for the next. */
  used(template: Template): void {
    const { size, closing } = this.#parts, now = performance.now();
    const recent = [...this.#startedAt.get(template.key) ?? [], now].filter((at) => now - at < USE_WINDOW_MS).slice(-USES_MIN);
    this.#startedAt.set(template.key, recent);
    const isWanted = recent.length >= USES_MIN && !closing.aborted && !this.#spares.has(template.key) &&
      !this.#making.has(template.key) && this.#making.size < size;
    if (isWanted) this.#making.set(template.key, this.#make(template).finally(() => this.#making.delete(template.key)));
  }

  /** Resolves when none is being made any more. */
  async closed(): Promise<void> {
    await Promise.all(this.#making.values());
  }

  /** Ends all of them. */
  clear(): void {
    for (const spare of this.#spares.values()) this.#end(spare);
  }

  async #make(template: Template): Promise<void> {
    const { size, gate, cpus, closing, log, spawn, end, idleMaxMs = IDLE_MAX_MS } = this.#parts, { key } = template;
    try {
      // What was asked for goes first: it has been sent when this turn of the event loop is over.
      await new Promise((resolve) => setImmediate(resolve));
      while (gate.isContended || gate.held.cpus >= cpus) await gate.changed(closing);
      closing.throwIfAborted();
      const evicted = new AbortController();
      const reservation = gate.reserve(SPARE_MIB, { worth: WORTH, evict: () => evicted.abort() });
      if (!reservation) return;
      // The oldest is of the template that was not used for longest.
      const [oldest] = this.#spares.values();
      if (oldest && this.#spares.size + this.#making.size > size) this.#end(oldest);
      using room = new DisposableStack();
      room.use(reservation);
      const vm = await spawn(template);
      if (closing.aborted || evicted.signal.aborted || vm.isLost) return end(vm);
      room.move();
      const spare: Spare = { template, vm, reservation, timer: setTimeout(() => this.#end(spare), idleMaxMs) };
      this.#spares.set(key, spare);
      for (const signal of [vm.lost, evicted.signal]) signal.addEventListener("abort", () => this.#end(spare), { once: true });
    } catch (error) {
      // Whoever starts a VM next is told what is wrong.
      if (!closing.aborted) log.debug("no spare QEMU could be started", { language: template.language, reason: messageOf(error) });
    }
  }

  #remove(spare: Spare): boolean {
    if (this.#spares.get(spare.template.key) !== spare) return false;
    this.#spares.delete(spare.template.key);
    clearTimeout(spare.timer);
    spare.reservation[Symbol.dispose]();
    return true;
  }

  #end(spare: Spare): void {
    if (this.#remove(spare)) this.#parts.end(spare.vm);
  }
}
