/** Screen: draws the block being edited where it stands, in place of what was drawn before. */
import { graphemes, graphemeWidth, textWidth } from "./repl_width.ts";

const TAB_COLUMNS = 4;

/** A range of the text and the parameters of its colour (`SGR`), such as `32` or `1;34`. */
export interface Span {
  readonly start: number;
  readonly end: number;
  readonly style: string;
}

/** Text in one colour. */
export interface Styled {
  readonly text: string;
  /** Parameters of SGR; empty for none. */
  readonly style: string;
}

/** What is to be seen. */
export interface View {
  /** In front of the first line. */
  readonly prompt: Styled;
  /** In front of every other line. */
  readonly continuation: Styled;
  readonly text: string;
  readonly cursor: number;
  /** Colours of the text, in order, without overlap. */
  readonly spans: readonly Span[];
  /** Rows under the text, none wider than the terminal. */
  readonly below: readonly string[];
}

/** Size of a terminal. */
export interface Size {
  readonly columns: number;
  readonly rows: number;
}

interface Row {
  readonly text: string;
  readonly width: number;
}

interface Drawing {
  readonly rows: readonly Row[];
  readonly cursorRow: number;
  readonly cursorColumn: number;
}

/** Knows what it has drawn last, and where the cursor stands in it. */
export class Screen {
  readonly #write: (text: string) => void;
  #drawn: Drawing | undefined;
  #columns = 0;

  /** `write` takes what goes to the terminal. */
  constructor(write: (text: string) => void) {
    this.#write = write;
  }

  /** Draws `view`, as much of it as fits; with `isFinal` all of it, and the next output comes below. */
  draw(view: View, size: Size, isFinal = false): void {
    const clear = this.#clearing(size.columns);
    const whole = layout(isFinal ? view : nearCursor(view, size.rows), size.columns);
    const drawing = isFinal ? whole : fit(whole, size.rows, view.below.length);
    const last = drawing.rows.length - 1;
    const text = drawing.rows.map((row) => row.text).join("\r\n");
    this.#write(clear + text + (isFinal ? "\r\n" : move(last - drawing.cursorRow, drawing.cursorColumn)));
    this.#drawn = isFinal ? undefined : drawing;
    this.#columns = size.columns;
  }

  /** Takes the block off the screen, so that other output can stand in its place. */
  erase(columns: number): void {
    this.#write(this.#clearing(columns));
    this.#drawn = undefined;
  }

  /** What was drawn stays where it is; the next drawing begins at the cursor. */
  forget(): void {
    this.#drawn = undefined;
  }

  /** To the first row drawn, and clear from there. A terminal that became narrower has broken long rows in two. */
  #clearing(columns: number): string {
    if (this.#drawn === undefined) return "\r\x1b[J";
    const { rows, cursorRow, cursorColumn } = this.#drawn;
    const height = (width: number) => columns >= this.#columns ? 1 : Math.max(1, Math.ceil(width / columns));
    const above = rows.slice(0, cursorRow).reduce((sum, row) => sum + height(row.width), 0) + height(cursorColumn + 1) - 1;
    return `\r${above > 0 ? `\x1b[${above}A` : ""}\x1b[J`;
  }
}

/** `text` in the colour `style`. */
export function styled(text: string, style: string): string {
  return style === "" || text === "" ? text : `\x1b[${style}m${text}\x1b[0m`;
}

function move(up: number, column: number): string {
  return `${up > 0 ? `\x1b[${up}A` : ""}\r${column > 0 ? `\x1b[${column}C` : ""}`;
}

/** The lines that can possibly be seen, so that a long block costs no more than a short one. */
function nearCursor(view: View, rows: number): View {
  const { text, cursor } = view;
  let start = cursor, end = cursor;
  for (let count = 0; count <= rows && start > 0; count += 1) start = text.lastIndexOf("\n", start - 1);
  for (let count = 0; count <= rows && end < text.length; count += 1) {
    end = (text.indexOf("\n", end + 1) + text.length + 1) % (text.length + 1);
  }
  if (start <= 0 && end >= text.length) return view;
  const from = start <= 0 ? 0 : start + 1;
  return {
    ...view,
    ...(from > 0 ? { prompt: view.continuation } : {}),
    text: text.slice(from, end),
    cursor: cursor - from,
    spans: view.spans.map((span) => ({ ...span, start: span.start - from, end: span.end - from })).filter((span) => span.end > 0),
  };
}

/** As many rows as the terminal has, those around the cursor; what stands below the text always stays. */
function fit(drawing: Drawing, height: number, belowCount: number): Drawing {
  const count = drawing.rows.length - belowCount;
  const room = Math.max(1, height - belowCount);
  if (count <= room) return drawing;
  const top = Math.min(Math.max(0, drawing.cursorRow - (room >> 1)), count - room);
  const rows = [...drawing.rows.slice(top, top + room), ...drawing.rows.slice(count).slice(0, Math.max(0, height - room))];
  return { rows, cursorRow: drawing.cursorRow - top, cursorColumn: drawing.cursorColumn };
}

/** Breaks everything into rows and finds the cursor. */
function layout(view: View, columns: number): Drawing {
  const builder = new RowBuilder(columns);
  let at = 0, spanAt = 0, cursorRow = 0, cursorColumn = 0;
  for (const [index, line] of view.text.split("\n").entries()) {
    if (index > 0) builder.breakLine();
    const prefix = index === 0 ? view.prompt : view.continuation;
    for (const grapheme of graphemes(prefix.text)) builder.put(grapheme, prefix.style);
    const indent = builder.column;
    for (const grapheme of graphemes(line)) {
      if (at === view.cursor) [cursorRow, cursorColumn] = builder.position();
      while ((view.spans[spanAt]?.end ?? Infinity) <= at) spanAt += 1;
      const span = view.spans[spanAt];
      builder.put(grapheme, span !== undefined && span.start <= at ? span.style : "", indent);
      at += grapheme.length;
    }
    if (at === view.cursor) [cursorRow, cursorColumn] = builder.position();
    at += 1;
  }
  const rows = [...builder.finish(), ...view.below.map((text) => ({ text, width: columns }))];
  return { rows, cursorRow, cursorColumn };
}

/** Rows of at most so many columns, filled character by character. */
class RowBuilder {
  readonly #columns: number;
  readonly #rows: Row[] = [];
  #text = "";
  #width = 0;
  #style = "";

  constructor(columns: number) {
    this.#columns = Math.max(columns, 2);
  }

  get column(): number {
    return this.#width;
  }

  /** Where the next character will stand: behind a full row, at the start of the next. */
  position(): [row: number, column: number] {
    if (this.#width >= this.#columns) this.breakLine();
    return [this.#rows.length, this.#width];
  }

  put(grapheme: string, style: string, indent = 0): void {
    const isTab = grapheme === "\t";
    const width = isTab ? TAB_COLUMNS - (this.#width - indent + TAB_COLUMNS) % TAB_COLUMNS : graphemeWidth(grapheme);
    if (this.#width + width > this.#columns) this.breakLine();
    if (style !== this.#style) {
      this.#text += style === "" ? "\x1b[0m" : `\x1b[0;${style}m`;
      this.#style = style;
    }
    this.#text += isTab ? " ".repeat(width) : grapheme;
    this.#width += width;
  }

  breakLine(): void {
    this.#rows.push({ text: this.#style === "" ? this.#text : `${this.#text}\x1b[0m`, width: this.#width });
    this.#text = "";
    this.#width = 0;
    this.#style = "";
  }

  finish(): Row[] {
    this.breakLine();
    return this.#rows;
  }
}

/** Lays `items` out in columns of one width, filled downwards, as `ls` does. Returns rows of cells; `index` tells which item a cell is. */
export function tabulate(items: readonly string[], columns: number): Array<Array<{ readonly text: string; readonly index: number }>> {
  const cell = Math.min(Math.max(...items.map(textWidth), 1) + 2, columns);
  const perRow = Math.max(1, Math.floor(columns / cell)), rowCount = Math.ceil(items.length / perRow);
  return Array.from(
    { length: rowCount },
    (_, row) =>
      Array.from({ length: perRow }, (_, column) => column * rowCount + row).filter((index) => index < items.length).map((index) => {
        const text = items[index] ?? "";
        return { text: text + " ".repeat(Math.max(0, cell - textWidth(text))), index };
      }),
  );
}
