/** Menu: what may stand at the cursor, and the choice among it with Tab. */
import { type Size, styled, tabulate } from "./repl_screen.ts";
import { fitText } from "./repl_width.ts";

const MENU_ROWS_MAX = 8;

/** What may stand in place of the text from `start` to the cursor. */
export interface Completion {
  readonly start: number;
  readonly candidates: readonly string[];
}

/** The candidates of one completion, and which of them is chosen. */
export class Menu {
  /** Where the chosen text begins. */
  readonly start: number;
  /** What stood there before. */
  readonly original: string;
  readonly #candidates: readonly string[];
  #chosen: number | undefined;

  /** There must be at least one candidate. */
  constructor(completion: Completion, original: string) {
    this.start = completion.start;
    this.original = original;
    this.#candidates = completion.candidates;
  }

  /** The text that now stands at `start`. */
  get text(): string {
    return this.#chosen === undefined ? this.original : this.#candidates[this.#chosen] ?? this.original;
  }

  /** Chooses the next candidate, or with -1 the one before. */
  choose(step: 1 | -1): void {
    const count = this.#candidates.length;
    this.#chosen = this.#chosen === undefined ? (step === 1 ? 0 : count - 1) : (this.#chosen + step + count) % count;
  }

  /** The rows to show, the chosen one among them. Of names with a common path or owner only the last part is shown. */
  rows(size: Size, hasColor: boolean): string[] {
    const cut = commonOwner(this.#candidates);
    const table = tabulate(this.#candidates.map((candidate) => fitText(candidate.slice(cut), size.columns - 2)), size.columns - 1);
    const height = Math.min(MENU_ROWS_MAX, Math.max(1, size.rows >> 1));
    const at = table.findIndex((row) => row.some(({ index }) => index === this.#chosen));
    const top = Math.min(Math.max(0, at - (height >> 1)), Math.max(0, table.length - height));
    const rows = table.slice(top, top + height).map((row) =>
      row.map(({ text, index }) => {
        if (index !== this.#chosen) return text;
        return hasColor ? `\x1b[7m${text.trimEnd()}\x1b[0m${" ".repeat(text.length - text.trimEnd().length)}` : `>${text.slice(0, -1)}`;
      }).join("").trimEnd()
    );
    const hidden = table.length - rows.length;
    return hidden > 0 ? [...rows, styled(fitText(`… ${this.#candidates.length} in all`, size.columns - 1), hasColor ? "90" : "")] : rows;
  }
}

/** The longest beginning that all of `texts` share. */
export function commonPrefix(texts: readonly string[]): string {
  let prefix = texts[0] ?? "";
  for (const text of texts) {
    while (!text.startsWith(prefix)) prefix = prefix.slice(0, -1);
  }
  // Half of a surrogate pair is no text.
  return prefix.isWellFormed() ? prefix : prefix.slice(0, -1);
}

/** How much of the beginning of all `texts` is a path or an owner: `os.path.` of `os.path.join` and `os.path.exists`. */
function commonOwner(texts: readonly string[]): number {
  const prefix = commonPrefix(texts);
  const cut = Math.max(prefix.lastIndexOf("/"), prefix.lastIndexOf("."), prefix.lastIndexOf(" ")) + 1;
  return texts.every((text) => text.length > cut) ? cut : 0;
}
