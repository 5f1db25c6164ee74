/** Search: walking through the history, by what the line begins with or by what an entry contains. */

/** Up and Down: entries that begin with what was typed before the first Up. */
export class HistoryWalk {
  readonly #entries: readonly string[];
  readonly #typed: string;
  #at: number;

  /** `typed` is what to come back to, below the newest entry. */
  constructor(entries: readonly string[], typed: string) {
    this.#entries = entries;
    this.#typed = typed;
    this.#at = entries.length;
  }

  /** The next older (-1) or newer (1) entry; undefined where there is none. */
  step(direction: -1 | 1): string | undefined {
    for (let at = this.#at + direction; at >= 0 && at < this.#entries.length; at += direction) {
      const entry = this.#entries[at] ?? "";
      if (!entry.startsWith(this.#typed) || entry === this.#typed) continue;
      this.#at = at;
      return entry;
    }
    if (direction === -1 || this.#at === this.#entries.length) return undefined;
    this.#at = this.#entries.length;
    return this.#typed;
  }
}

/** Ctrl-R: entries that contain the query, newest first. */
export class HistorySearch {
  /** What the buffer held before. */
  readonly before: string;
  readonly #entries: readonly string[];
  #query = "";
  #at: number;
  #isFailed = false;

  constructor(entries: readonly string[], before: string) {
    this.#entries = entries;
    this.before = before;
    this.#at = entries.length;
  }

  /** What is looked for. */
  get query(): string {
    return this.#query;
  }

  /** The entry found; undefined before the first one is. */
  get found(): string | undefined {
    return this.#entries[this.#at];
  }

  /** Was there nothing (more) that contains the query? The entry found before stays. */
  get isFailed(): boolean {
    return this.#isFailed;
  }

  /** Looks for `query`, from the entry found so far on backwards, or from the newest when it became shorter. */
  look(query: string): void {
    const from = query.startsWith(this.#query) ? Math.min(this.#at, this.#entries.length - 1) : this.#entries.length - 1;
    this.#query = query;
    if (query === "") this.#at = this.#entries.length;
    this.#isFailed = false;
    if (query !== "") this.#find(from, -1);
  }

  /** The next older (-1) or newer (1) entry that contains the query and differs. */
  next(direction: -1 | 1): void {
    if (this.#query !== "") this.#find(this.#at + direction, direction);
  }

  #find(from: number, direction: -1 | 1): void {
    const current = this.found;
    const isFit = (entry: string, at: number) => entry.includes(this.#query) && (entry !== current || at === this.#at);
    for (let at = from; at >= 0 && at < this.#entries.length; at += direction) {
      if (!isFit(this.#entries[at] ?? "", at)) continue;
      this.#at = at;
      this.#isFailed = false;
      return;
    }
    this.#isFailed = true;
  }
}
