/** Events: what came from the terminal and was not read yet, with the time at which it came. */
import type { TerminalEvent } from "./repl_editor.ts";

/** Typed ahead and not read; more is not kept. */
const EVENTS_MAX = 100_000;
/** Nobody types so fast: what follows within this time was pasted. */
const PASTE_GAP_MS = 8;

/** First come, first read. */
export class EventQueue {
  #events: Array<{ readonly event: TerminalEvent; readonly atMs: number }> = [];
  /** When the event that was read last came. */
  #readMs = -Infinity;

  get isEmpty(): boolean {
    return this.#events.length === 0;
  }

  /** Does what comes next have its own indentation: pasted without marks, or typed ahead with blanks in front? */
  get isNextIndented(): boolean {
    const [next] = this.#events;
    if (next === undefined) return false;
    return next.atMs - this.#readMs < PASTE_GAP_MS || (next.event.type === "text" && /^[ \t]/.test(next.event.text));
  }

  /** Appends what came at `atMs`. */
  push(event: TerminalEvent, atMs: number): void {
    if (this.#events.length < EVENTS_MAX) this.#events.push({ event, atMs });
  }

  /** Forgets what was typed and not read. */
  discardTyped(): void {
    this.#events = this.#events.filter(({ event: { type } }) => type === "resize" || type === "resume" || type === "closed");
  }

  /** Takes the oldest event off; undefined when there is none. */
  shift(): TerminalEvent | undefined {
    const next = this.#events.shift();
    if (next !== undefined) this.#readMs = next.atMs;
    return next?.event;
  }
}
