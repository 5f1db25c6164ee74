/** A terminal in memory: takes keys from the test, and understands the few sequences that the editor draws with. */
import { Buffer } from "node:buffer";
import type { CliTerminal } from "../../../src/cli/context.ts";
import type { TerminalEvent } from "../../../src/cli/repl_editor.ts";
import { EventQueue } from "../../../src/cli/repl_events.ts";
import { KeyDecoder } from "../../../src/cli/repl_keys.ts";
import type { TerminalTaker } from "../../../src/cli/repl_terminal.ts";
import { graphemes, graphemeWidth } from "../../../src/cli/repl_width.ts";

/** Keys by their usual names, as the bytes that xterm sends. */
export const KEYS = {
  enter: "\r",
  tab: "\t",
  shiftTab: "\x1b[Z",
  up: "\x1b[A",
  down: "\x1b[B",
  right: "\x1b[C",
  left: "\x1b[D",
  home: "\x1b[H",
  end: "\x1b[F",
  delete: "\x1b[3~",
  backspace: "\x7f",
  altEnter: "\x1b\r",
} as const;

/** `ctrl("a")` is what Ctrl-A sends. */
export function ctrl(letter: string): string {
  return String.fromCharCode(letter.toUpperCase().charCodeAt(0) & 0x1f);
}

/** `text` as a terminal marks it when it is pasted. */
export function paste(text: string): string {
  return `\x1b[200~${text}\x1b[201~`;
}

/** Rows of cells with a cursor; a cell to the right of a wide character is empty. */
export class FakeTerminal implements CliTerminal {
  columns: number;
  rows: number;
  readonly hasColor: boolean;
  /** Everything written. */
  written = "";
  suspended = 0;
  /** Has it been given back? */
  isDisposed = false;
  /** Who takes everything that is typed, as bytes. */
  taker: TerminalTaker | undefined;
  #interceptor: ((event: TerminalEvent) => boolean) | undefined;
  readonly #cells: string[][] = [[]];
  #row = 0;
  #column = 0;
  readonly #events = new EventQueue();
  #nowMs = 0;
  #wake: (() => void) | undefined;
  /** Settled each time the reader waits for more. */
  #idle: PromiseWithResolvers<void> = Promise.withResolvers<void>();

  constructor(size: { readonly columns?: number; readonly rows?: number; readonly hasColor?: boolean } = {}) {
    this.columns = size.columns ?? 40;
    this.rows = size.rows ?? 12;
    this.hasColor = size.hasColor ?? false;
  }

  get hasInput(): boolean {
    return !this.#events.isEmpty;
  }

  get isNextIndented(): boolean {
    return this.#events.isNextIndented;
  }

  discardTyped(): void {
    this.#events.discardTyped();
  }

  /** Types `strokes` one after the other before any of them is read. */
  async typeAhead(...strokes: readonly string[]): Promise<void> {
    const events = strokes.map((stroke) => new KeyDecoder().push(Buffer.from(stroke)));
    this.#idle = Promise.withResolvers<void>();
    for (const event of events) {
      this.#nowMs += 20;
      for (const each of event) this.#events.push(each, this.#nowMs);
    }
    this.#wake?.();
    await this.#idle.promise;
  }

  /** Types `bytes`, and waits until the editor has dealt with them. */
  async type(...strokes: readonly string[]): Promise<void> {
    for (const stroke of strokes) {
      const decoder = new KeyDecoder();
      await this.send(...decoder.push(Buffer.from(stroke)), ...decoder.flush());
    }
  }

  /** Hands `events` over, and waits until the editor has dealt with them. */
  async send(...events: readonly TerminalEvent[]): Promise<void> {
    this.#idle = Promise.withResolvers<void>();
    this.#nowMs += 20;
    for (const event of events) if (!this.#interceptor?.(event)) this.#events.push(event, this.#nowMs);
    this.#wake?.();
    await this.#idle.promise;
  }

  async next(): Promise<TerminalEvent> {
    for (;;) {
      const event = this.#events.shift();
      if (event !== undefined) return event;
      this.#idle.resolve();
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }

  suspend(): void {
    this.suspended += 1;
  }

  intercept(interceptor: (event: TerminalEvent) => boolean): Disposable {
    this.#interceptor = interceptor;
    return { [Symbol.dispose]: () => void (this.#interceptor = undefined) };
  }

  takeOver(taker: TerminalTaker): Disposable {
    this.taker = taker;
    return { [Symbol.dispose]: () => void (this.taker = undefined) };
  }

  [Symbol.dispose](): void {
    this.isDisposed = true;
    this.#events.push({ type: "closed" }, this.#nowMs);
    this.#wake?.();
  }

  /** Makes the rows so wide; what is too long for them is broken, as most terminals do. */
  resize(columns: number): void {
    const rows: string[][] = [];
    let cursor: readonly [number, number] = [0, 0];
    for (const [at, cells] of this.#cells.entries()) {
      if (at === this.#row) cursor = [rows.length + Math.floor(this.#column / columns), this.#column % columns];
      for (let from = 0; from === 0 || from < cells.length; from += columns) rows.push(cells.slice(from, from + columns));
    }
    while (rows.length <= cursor[0]) rows.push([]);
    this.columns = columns;
    this.#cells.splice(0, this.#cells.length, ...rows);
    [this.#row, this.#column] = cursor;
  }

  /** The rows from the first to the last that is not empty. */
  screen(): string {
    return this.#cells.map((row) => Array.from(row, (cell) => cell ?? " ").join("").trimEnd()).join("\n").trimEnd();
  }

  /** Row and column of the cursor. */
  cursor(): readonly [row: number, column: number] {
    return [this.#row, this.#column];
  }

  write(text: string): void {
    this.written += text;
    // deno-lint-ignore no-control-regex
    for (const part of text.match(/\x1b\[[0-9;?]*[A-Za-z]|[\r\n\x07]|[^\x1b\r\n\x07]+/g) ?? []) {
      if (part === "\r") this.#column = 0;
      else if (part === "\n") this.#lineFeed();
      else if (part.startsWith("\x1b")) this.#sequence(part);
      else if (part !== "\x07") { for (const grapheme of graphemes(part)) this.#put(grapheme); }
    }
  }

  #lineFeed(): void {
    this.#row += 1;
    this.#cells[this.#row] ??= [];
  }

  #put(grapheme: string): void {
    const width = graphemeWidth(grapheme);
    if (this.#column + width > this.columns) throw new Error(`a row of more than ${this.columns} columns was drawn`);
    const row = this.#cells[this.#row] ?? [];
    row[this.#column] = grapheme;
    if (width === 2) row[this.#column + 1] = "";
    this.#column += width;
  }

  #sequence(sequence: string): void {
    const count = Number(/\d+/.exec(sequence)?.[0] ?? 1);
    switch (sequence.at(-1)) {
      case "A":
        if (count > this.#row) throw new Error("the cursor was moved above the screen");
        this.#row -= count;
        break;
      case "C":
        this.#column += count;
        break;
      case "H":
        this.#row = this.#column = 0;
        break;
      case "J":
        this.#cells.length = this.#row + 1;
        this.#cells[this.#row] = sequence === "\x1b[2J" ? [] : (this.#cells[this.#row] ?? []).slice(0, this.#column);
        break;
    }
  }
}
