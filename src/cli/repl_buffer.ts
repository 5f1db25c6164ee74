/** Edit buffer: the text being typed, its cursor, and what keys do to them; no terminal and no time. */
import { graphemes, nextBoundary, previousBoundary, textWidth } from "./repl_width.ts";

const KILLS_MAX = 32;
const UNDO_MAX = 256;
const WORD = /[\p{L}\p{N}\p{M}_]/u;

interface State {
  readonly text: string;
  readonly cursor: number;
}

/** One block of lines and a cursor in it. Positions are UTF-16 indices at the border of two characters. */
export class EditBuffer {
  #text = "";
  #cursor = 0;
  /** Column that Up and Down aim at while they follow each other. */
  #goal: number | undefined;
  readonly #undo: State[] = [];
  #isTyping = false;
  readonly #kills: string[] = [];
  #isKilling = false;
  /** What the last yank put in, while nothing else has happened. */
  #yanked: { readonly start: number; readonly at: number } | undefined;

  /** All of it. */
  get text(): string {
    return this.#text;
  }

  /** Where the next character goes. */
  get cursor(): number {
    return this.#cursor;
  }

  /** Line of the cursor, from 0. */
  get line(): number {
    return this.#text.slice(0, this.#cursor).split("\n").length - 1;
  }

  /** Is the cursor in the last line? */
  get isInLastLine(): boolean {
    return !this.#text.includes("\n", this.#cursor);
  }

  /** The text of the cursor's line in front of it. */
  get lineBeforeCursor(): string {
    return this.#text.slice(this.#lineStart(), this.#cursor);
  }

  /** Replaces everything; the cursor goes to the end, or to `cursor`. */
  set(text: string, cursor: number = text.length): void {
    if (text !== this.#text) this.#remember();
    this.#move(cursor);
    this.#text = text;
    this.#cursor = cursor;
  }

  /** Empties it, the way back included. What was cut stays. */
  reset(): void {
    this.#move(0);
    this.#text = "";
    this.#undo.length = 0;
  }

  /** Puts `text` in at the cursor. Characters typed one after the other are undone together. */
  insert(text: string): void {
    const isTyped = graphemes(text).length === 1 && text !== "\n" && text !== " ";
    if (!isTyped || !this.#isTyping) this.#remember();
    this.#splice(this.#cursor, this.#cursor, text);
    this.#isTyping = isTyped;
  }

  /** Replaces `start`..cursor. */
  replaceBefore(start: number, text: string): void {
    this.#remember();
    this.#splice(start, this.#cursor, text);
  }

  /** Backspace. In the indentation of a line it takes up to `indent` blanks. */
  backspace(indent = 0): void {
    const before = this.lineBeforeCursor;
    const isIndentation = before !== "" && /^ +$/.test(before) && indent > 0;
    const count = isIndentation ? (before.length - 1) % indent + 1 : this.#cursor - previousBoundary(this.#text, this.#cursor);
    if (this.#cursor > 0) this.#erase(this.#cursor - count, this.#cursor);
  }

  /** Delete. */
  delete(): void {
    if (this.#cursor < this.#text.length) this.#erase(this.#cursor, nextBoundary(this.#text, this.#cursor));
  }

  /** One character back. */
  left(): void {
    this.#move(previousBoundary(this.#text, this.#cursor));
  }

  /** One character on. */
  right(): void {
    this.#move(this.#cursor < this.#text.length ? nextBoundary(this.#text, this.#cursor) : this.#cursor);
  }

  /** To the start of the word. */
  wordLeft(): void {
    this.#move(this.#wordStart());
  }

  /** To the end of the word. */
  wordRight(): void {
    this.#move(this.#wordEnd());
  }

  /** To the line's start. */
  home(): void {
    this.#move(this.#lineStart());
  }

  /** To the line's end. */
  end(): void {
    this.#move(this.#lineEnd());
  }

  /** To the start of everything. */
  first(): void {
    this.#move(0);
  }

  /** To the end of everything. */
  last(): void {
    this.#move(this.#text.length);
  }

  /** To the line above; false where there is none. */
  up(): boolean {
    const start = this.#lineStart();
    if (start === 0) return false;
    this.#moveToLine(start < 2 ? 0 : this.#text.lastIndexOf("\n", start - 2) + 1, start - 1);
    return true;
  }

  /** To the line below; false where there is none. */
  down(): boolean {
    const end = this.#lineEnd();
    if (end === this.#text.length) return false;
    const next = this.#text.indexOf("\n", end + 1);
    this.#moveToLine(end + 1, next < 0 ? this.#text.length : next);
    return true;
  }

  /** Cuts to the line's end; at the end, the line break. */
  killToEnd(): void {
    const end = this.#lineEnd();
    this.#kill(this.#cursor, end === this.#cursor ? Math.min(end + 1, this.#text.length) : end);
  }

  /** Cuts to the line's start. */
  killToStart(): void {
    this.#kill(this.#lineStart(), this.#cursor);
  }

  /** Cuts back to white space. */
  killBlankWord(): void {
    const before = this.#text.slice(0, this.#cursor);
    this.#kill(before.replace(/\S*\s*$/, "").length, this.#cursor);
  }

  /** Cuts back to the start of the word. */
  killWordLeft(): void {
    this.#kill(this.#wordStart(), this.#cursor);
  }

  /** Cuts to the end of the word. */
  killWordRight(): void {
    this.#kill(this.#cursor, this.#wordEnd());
  }

  /** Puts in what was cut last. */
  yank(): void {
    this.#yank(this.#cursor, this.#kills.length - 1);
  }

  /** After a yank: what was cut before that instead. */
  yankPrevious(): void {
    if (this.#yanked === undefined) return;
    const { start, at } = this.#yanked;
    this.#yank(start, (at + this.#kills.length - 1) % this.#kills.length);
  }

  /** Exchanges the two characters around the cursor. */
  transpose(): void {
    if (this.#cursor === this.#lineEnd()) this.left();
    const start = previousBoundary(this.#text, this.#cursor), end = nextBoundary(this.#text, this.#cursor);
    if (this.lineBeforeCursor === "" || end > this.#lineEnd()) return;
    this.#remember();
    const pair = this.#text.slice(this.#cursor, end) + this.#text.slice(start, this.#cursor);
    this.#cursor = end;
    this.#splice(start, end, pair);
  }

  /** Takes the last change back. */
  undo(): void {
    const state = this.#undo.pop();
    if (state === undefined) return;
    this.#move(state.cursor);
    this.#text = state.text;
  }

  #lineStart(): number {
    return this.#cursor === 0 ? 0 : this.#text.lastIndexOf("\n", this.#cursor - 1) + 1;
  }

  #lineEnd(): number {
    const end = this.#text.indexOf("\n", this.#cursor);
    return end < 0 ? this.#text.length : end;
  }

  #wordStart(): number {
    let at = this.#cursor;
    const isWord = () => WORD.test(this.#text.slice(previousBoundary(this.#text, at), at));
    while (at > 0 && !isWord()) at = previousBoundary(this.#text, at);
    while (at > 0 && isWord()) at = previousBoundary(this.#text, at);
    return at;
  }

  #wordEnd(): number {
    let at = this.#cursor;
    const { length } = this.#text;
    const isWord = () => WORD.test(this.#text.slice(at, nextBoundary(this.#text, at)));
    while (at < length && !isWord()) at = nextBoundary(this.#text, at);
    while (at < length && isWord()) at = nextBoundary(this.#text, at);
    return at;
  }

  #moveToLine(start: number, end: number): void {
    const goal = this.#goal ?? textWidth(this.lineBeforeCursor);
    let at = start, width = 0;
    for (const grapheme of graphemes(this.#text.slice(start, end))) {
      width += textWidth(grapheme);
      if (width > goal) break;
      at += grapheme.length;
    }
    this.#move(at);
    this.#goal = goal;
  }

  #kill(start: number, end: number): void {
    if (start === end) return;
    const cut = this.#text.slice(start, end), last = this.#kills.at(-1);
    if (this.#isKilling && last !== undefined) this.#kills[this.#kills.length - 1] = end === this.#cursor ? cut + last : last + cut;
    else this.#kills.push(cut);
    if (this.#kills.length > KILLS_MAX) this.#kills.shift();
    this.#erase(start, end);
    this.#isKilling = true;
  }

  #yank(start: number, at: number): void {
    const text = this.#kills[at];
    if (text === undefined) return;
    this.#remember();
    this.#splice(start, this.#cursor, text);
    this.#yanked = { start, at };
  }

  #erase(start: number, end: number): void {
    this.#remember();
    this.#splice(start, end, "");
  }

  /** Replaces a range that ends at the cursor or begins there; the cursor ends up behind the new text. */
  #splice(start: number, end: number, text: string): void {
    this.#move(start + text.length);
    this.#text = this.#text.slice(0, start) + text + this.#text.slice(end);
  }

  #remember(): void {
    this.#undo.push({ text: this.#text, cursor: this.#cursor });
    if (this.#undo.length > UNDO_MAX) this.#undo.shift();
  }

  /** Every step comes through here, so that what depends on the step before ends. */
  #move(cursor: number): void {
    this.#cursor = cursor;
    this.#goal = undefined;
    this.#isTyping = false;
    this.#isKilling = false;
    this.#yanked = undefined;
  }
}
