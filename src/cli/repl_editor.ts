/** Line editor: turns keys into a block of code, with history, completion and search. */
import { EditBuffer } from "./repl_buffer.ts";
import type { History } from "./repl_history.ts";
import type { Key } from "./repl_keys.ts";
import { commonPrefix, type Completion, Menu } from "./repl_menu.ts";
import { Screen, type Size, type Span, type Styled, styled } from "./repl_screen.ts";
import { HistorySearch, HistoryWalk } from "./repl_search.ts";
import { fitText } from "./repl_width.ts";

/** What happens at a terminal. `closed`: nothing more will come. */
export type TerminalEvent = Key | { readonly type: "resize" } | { readonly type: "resume" } | { readonly type: "closed" };

/** The terminal as the editor needs it. */
export interface EditorTerminal extends Size {
  readonly hasColor: boolean;
  /** Is there more typed than was read? */
  readonly hasInput: boolean;
  /** Does what comes next have its own indentation: pasted without marks, or typed ahead with blanks in front? */
  readonly isNextIndented: boolean;
  write(text: string): void;
  /** Forgets what was typed ahead. */
  discardTyped(): void;
  /** The next event, in order. */
  next(): Promise<TerminalEvent>;
  /** Stops this process as Ctrl-Z does; a `resume` event tells of its continuation. Rings where nobody could continue it. */
  suspend(): void;
}

/** What somebody who knows the language says of a block. */
export type Verdict = { readonly state: "complete" | "invalid" } | { readonly state: "incomplete"; readonly indent: string };

/** Help from outside. Neither function rejects. */
export interface EditorAssist {
  /** May the block run as it is, or does it go on, and with which indentation? */
  check(text: string): Promise<Verdict>;
  /** What may stand at the cursor. */
  complete(text: string, cursor: number): Promise<Completion>;
  highlight(text: string): readonly Span[];
}

/** How one block is asked for. */
export interface ReadOptions {
  readonly prompt: Styled;
  /** In front of every line but the first. */
  readonly continuation: Styled;
  readonly history: History;
  readonly assist: EditorAssist;
  /** Blanks of one step of indentation. */
  readonly indent: number;
}

/** What came of it. */
export type Entered =
  | { readonly type: "block"; readonly text: string }
  /** Ctrl-C; `text` is what was given up. */
  | { readonly type: "cancelled"; readonly text: string }
  /** Ctrl-D on an empty line, or the terminal is gone. */
  | { readonly type: "end" };

const SEARCH_KEYS: ReadonlySet<string> = new Set(["ctrl-r", "ctrl-s", "backspace", "ctrl-g", "escape", "ctrl-c", "enter"]);

/** The first thing typed on a line that ends what an earlier one began. */
const CLOSING = /^[)\]}]$/;

type Action = (this: LineEditor) => void | Entered | Promise<Entered | void>;

/** Reads blocks from a terminal. What was cut can be put into later blocks. */
export class LineEditor {
  readonly #terminal: EditorTerminal;
  readonly #screen: Screen;
  readonly #buffer = new EditBuffer();
  #options: ReadOptions | undefined;
  #menu: Menu | undefined;
  #search: HistorySearch | undefined;
  #walk: HistoryWalk | undefined;
  #status = "";
  #isClosed = false;
  /** Is the last line break's indentation the editor's? */
  #isIndentOwn = false;

  /** Draws on `terminal` and reads from it. */
  constructor(terminal: EditorTerminal) {
    this.#terminal = terminal;
    this.#screen = new Screen((text) => terminal.write(text));
  }

  /** Reads one block. */
  async read(options: ReadOptions): Promise<Entered> {
    this.#options = options;
    this.#buffer.reset();
    this.#walk = undefined;
    this.#draw();
    try {
      for (;;) {
        const event = await this.#terminal.next();
        const entered = await this.#handle(event);
        if (entered !== undefined) return entered;
        if (!this.#terminal.hasInput) this.#draw();
      }
    } finally {
      this.#menu = this.#search = this.#options = undefined;
    }
  }

  /** Nothing is read any more: a prompt that waits is taken off the screen, what was typed stays above what follows. */
  close(): void {
    if (this.#options !== undefined) {
      if (this.#buffer.text === "") this.#screen.erase(this.#terminal.columns);
      else this.#finish();
    }
    this.#isClosed = true;
  }

  /** Writes lines above the block being typed, or just writes them. */
  printAbove(text: string): void {
    if (this.#options === undefined) return this.#terminal.write(text);
    this.#screen.erase(this.#terminal.columns);
    this.#terminal.write(text);
    this.#draw();
  }

  /** Shows `text` under the block until it is replaced; empty for none. */
  setStatus(text: string): void {
    if (text === this.#status) return;
    this.#status = text;
    if (this.#options !== undefined) this.#draw();
  }

  async #handle(event: TerminalEvent): Promise<Entered | void> {
    switch (event.type) {
      case "closed":
        this.#finish();
        return { type: "end" };
      case "resume":
        this.#screen.forget();
        return;
      case "resize":
      case "answer":
        return;
      case "text":
      case "paste":
        if (this.#search !== undefined && event.type === "text") return this.#search.look(this.#search.query + event.text);
        this.#settle();
        this.#walk = undefined;
        // What closes a block stands as far left as what opened it; pasted text has its own indentation.
        if (CLOSING.test(event.text) && this.#isIndentOwn && /^ +$/.test(this.#buffer.lineBeforeCursor)) {
          this.#buffer.backspace(this.#given().indent);
        }
        return this.#buffer.insert(event.text);
      case "key":
        return await this.#press(event.name);
    }
  }

  async #press(name: string): Promise<Entered | void> {
    if (this.#search !== undefined) {
      if (SEARCH_KEYS.has(name)) return await this.#searchKey(name, this.#search);
      this.#settle();
    }
    if (this.#menu !== undefined && this.#menuKey(name, this.#menu)) return;
    if (!["up", "down", "ctrl-p", "ctrl-n"].includes(name)) this.#walk = undefined;
    const action = Object.hasOwn(ACTIONS, name) ? ACTIONS[name] : undefined;
    return await action?.call(this);
  }

  /** Enter runs what is complete and continues what is not; inside a block it breaks the line. */
  async enter(): Promise<Entered | void> {
    const { assist } = this.#given(), buffer = this.#buffer;
    if (!buffer.isInLastLine) return this.newline();
    // What once was complete is so again, though its empty last line was not kept.
    const isRecalled = buffer.text.includes("\n") && this.#given().history.entries.includes(buffer.text);
    if (buffer.text.trim() !== "" && !isRecalled) {
      const verdict = await assist.check(buffer.text);
      if (verdict.state === "incomplete") {
        const isAtEnd = buffer.text.slice(buffer.cursor).trim() === "";
        return this.#breakLine(isAtEnd ? verdict.indent : "");
      }
    }
    return this.#submit();
  }

  /** A line break that never runs anything, with the indentation of the line before. */
  newline(): void {
    this.#breakLine(/^[ \t]*/.exec(this.#buffer.lineBeforeCursor)?.[0] ?? "");
  }

  #breakLine(indent: string): void {
    this.#isIndentOwn = !this.#terminal.isNextIndented;
    this.#buffer.insert(`\n${this.#isIndentOwn ? indent : ""}`);
  }

  cancel(): Entered {
    const { text } = this.#buffer;
    this.#finish("^C");
    return { type: "cancelled", text };
  }

  endOrDelete(): Entered | void {
    if (this.#buffer.text !== "") return this.#buffer.delete();
    this.#finish();
    return { type: "end" };
  }

  suspend(): void {
    this.#finish();
    this.#terminal.suspend();
  }

  clearScreen(): void {
    this.#screen.forget();
    this.#terminal.write("\x1b[H\x1b[2J");
  }

  /** Up and Down move in the block, and past its first and last line in the history. */
  vertical(direction: -1 | 1): void {
    const buffer = this.#buffer;
    if (this.#walk === undefined && (direction === -1 ? buffer.up() : buffer.down())) return;
    this.#walk ??= new HistoryWalk(this.#given().history.entries, buffer.text);
    const entry = this.#walk.step(direction);
    if (entry !== undefined) buffer.set(entry);
    // At either end of the history the cursor moves again.
    else if (buffer.text.includes("\n")) this.#walk = undefined;
  }

  startSearch(): void {
    this.#search = new HistorySearch(this.#given().history.entries, this.#buffer.text);
  }

  /** Tab indents where nothing stands before the cursor; else it completes as far as there is no doubt, then offers. */
  async complete(): Promise<void> {
    const { assist, indent } = this.#given(), buffer = this.#buffer;
    const before = buffer.lineBeforeCursor;
    if (before.trim() === "") return buffer.insert(" ".repeat(indent - before.length % indent));
    const completion = await assist.complete(buffer.text, buffer.cursor);
    const { start, candidates } = completion, typed = buffer.text.slice(start, buffer.cursor);
    const common = commonPrefix(candidates);
    const [only] = candidates;
    if (only === undefined || (candidates.length === 1 && only === typed)) return this.#terminal.write("\x07");
    if (common.length > typed.length && common.startsWith(typed)) buffer.replaceBefore(start, common);
    else if (candidates.length === 1) buffer.replaceBefore(start, only);
    if (candidates.length > 1) this.#menu = new Menu(completion, buffer.text.slice(start, buffer.cursor));
  }

  edit(change: (buffer: EditBuffer, indent: number) => void): void {
    change(this.#buffer, this.#given().indent);
  }

  #menuKey(name: string, menu: Menu): boolean {
    if (["tab", "shift-tab", "down", "up", "ctrl-n", "ctrl-p"].includes(name)) {
      menu.choose(name === "tab" || name === "down" || name === "ctrl-n" ? 1 : -1);
      this.#buffer.replaceBefore(menu.start, menu.text);
      return true;
    }
    const isUndone = name === "escape" || name === "ctrl-g", isChosen = menu.text !== menu.original;
    if (isUndone) this.#buffer.replaceBefore(menu.start, menu.original);
    this.#menu = undefined;
    return isUndone || (name === "enter" && isChosen);
  }

  async #searchKey(name: string, search: HistorySearch): Promise<Entered | void> {
    if (name === "ctrl-r") return search.next(-1);
    if (name === "ctrl-s") return search.next(1);
    if (name === "backspace") return search.look(search.query.slice(0, -1));
    if (name === "enter") {
      this.#settle();
      return await this.enter();
    }
    this.#search = undefined;
    if (name === "ctrl-c") return this.cancel();
  }

  /** Takes what a search or a menu shows as what is typed. */
  #settle(): void {
    if (this.#search?.found !== undefined) this.#buffer.set(this.#search.found);
    this.#search = this.#menu = undefined;
  }

  #submit(): Entered {
    const { text } = this.#buffer;
    this.#finish();
    this.#given().history.add(text);
    return { type: "block", text };
  }

  /** Leaves the block on the screen as it is, with the cursor below. */
  #finish(mark = ""): void {
    if (this.#isClosed) return;
    this.#settle();
    const view = this.#view();
    this.#screen.draw({ ...view, text: view.text + mark, below: [] }, this.#terminal, true);
  }

  #draw(): void {
    if (this.#isClosed) return;
    this.#screen.draw(this.#view(), this.#terminal);
  }

  #view() {
    const { prompt, continuation, assist } = this.#given(), { hasColor, columns } = this.#terminal;
    const paint = (text: string) => hasColor ? assist.highlight(text) : [];
    const status = this.#status === "" ? [] : [styled(fitText(this.#status, columns - 1), hasColor ? "90" : "")];
    if (this.#search !== undefined) {
      const { query, found = this.#search.before, isFailed } = this.#search;
      const at = found.lastIndexOf(query);
      const label = `${isFailed ? "no more " : ""}history with \`${query}\`: `;
      return {
        prompt: { text: fitText(label, Math.max(8, columns - 20)), style: prompt.style },
        continuation,
        text: found,
        cursor: at < 0 ? found.length : at,
        spans: paint(found),
        below: status,
      };
    }
    const { text, cursor } = this.#buffer;
    const menu = this.#menu?.rows(this.#terminal, hasColor) ?? [];
    return { prompt, continuation, text, cursor, spans: paint(text), below: [...menu, ...status] };
  }

  #given(): ReadOptions {
    if (this.#options === undefined) throw new Error("Internal error: the editor is not reading");
    return this.#options;
  }
}

const edits = (change: (buffer: EditBuffer, indent: number) => void): Action =>
  function () {
    this.edit(change);
  };

/** What each key does, as in Emacs, readline and most shells. */
const ACTIONS: Readonly<Record<string, Action>> = {
  "enter": LineEditor.prototype.enter,
  "alt-enter": LineEditor.prototype.newline,
  "shift-enter": LineEditor.prototype.newline,
  "ctrl-j": LineEditor.prototype.newline,
  "tab": LineEditor.prototype.complete,
  "ctrl-c": LineEditor.prototype.cancel,
  "ctrl-d": LineEditor.prototype.endOrDelete,
  "ctrl-z": LineEditor.prototype.suspend,
  "ctrl-l": LineEditor.prototype.clearScreen,
  "ctrl-r": LineEditor.prototype.startSearch,
  "up": function () {
    this.vertical(-1);
  },
  "down": function () {
    this.vertical(1);
  },
  "ctrl-p": function () {
    this.vertical(-1);
  },
  "ctrl-n": function () {
    this.vertical(1);
  },
  "backspace": edits((buffer, indent) => buffer.backspace(indent)),
  "delete": edits((buffer) => buffer.delete()),
  "left": edits((buffer) => buffer.left()),
  "ctrl-b": edits((buffer) => buffer.left()),
  "right": edits((buffer) => buffer.right()),
  "ctrl-f": edits((buffer) => buffer.right()),
  "home": edits((buffer) => buffer.home()),
  "ctrl-a": edits((buffer) => buffer.home()),
  "end": edits((buffer) => buffer.end()),
  "ctrl-e": edits((buffer) => buffer.end()),
  "ctrl-home": edits((buffer) => buffer.first()),
  "alt-<": edits((buffer) => buffer.first()),
  "ctrl-end": edits((buffer) => buffer.last()),
  "alt->": edits((buffer) => buffer.last()),
  "alt-b": edits((buffer) => buffer.wordLeft()),
  "ctrl-left": edits((buffer) => buffer.wordLeft()),
  "alt-left": edits((buffer) => buffer.wordLeft()),
  "alt-f": edits((buffer) => buffer.wordRight()),
  "ctrl-right": edits((buffer) => buffer.wordRight()),
  "alt-right": edits((buffer) => buffer.wordRight()),
  "ctrl-k": edits((buffer) => buffer.killToEnd()),
  "ctrl-u": edits((buffer) => buffer.killToStart()),
  "ctrl-w": edits((buffer) => buffer.killBlankWord()),
  "alt-backspace": edits((buffer) => buffer.killWordLeft()),
  "alt-d": edits((buffer) => buffer.killWordRight()),
  "ctrl-y": edits((buffer) => buffer.yank()),
  "alt-y": edits((buffer) => buffer.yankPrevious()),
  "ctrl-t": edits((buffer) => buffer.transpose()),
  "ctrl-_": edits((buffer) => buffer.undo()),
};
