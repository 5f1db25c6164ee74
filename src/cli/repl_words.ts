/** Words: the arguments of a `:command`, quoted as in a shell. */

/** One word as it stands in a line. */
export interface Word {
  /** Without quotes and backslashes. */
  readonly text: string;
  /** Where it begins in the line. */
  readonly start: number;
  /** A quote that is not closed, or a backslash at the very end. */
  readonly isOpen: boolean;
}

/** The words of `line`; the last one is empty where the line ends in white space. */
export function wordsOf(line: string): Word[] {
  const words: Word[] = [];
  let at = 0;
  for (;;) {
    while (/\s/.test(line[at] ?? "")) at += 1;
    const start = at;
    let text = "", quote = "", isOpen = false;
    for (; at < line.length && (quote !== "" || !/\s/.test(line[at] ?? "")); at += 1) {
      const character = line[at] ?? "";
      if (character === "\\" && quote !== "'") {
        at += 1;
        isOpen = at >= line.length;
        text += line[at] ?? "";
      } else if (character === quote) quote = "";
      else if (quote === "" && (character === "'" || character === '"')) quote = character;
      else text += character;
    }
    words.push({ text, start, isOpen: isOpen || quote !== "" });
    if (at >= line.length) return words;
  }
}

/** `text` so that it is one word of a line. */
export function quotedWord(text: string): string {
  return text === "" ? "''" : text.replace(/[\s'"\\]/g, "\\$&");
}

/** That of `names` which `typed` may be a slip of: one that it begins, or at most two changes away. */
export function nearest(typed: string, names: readonly string[]): string | undefined {
  const begun = typed === "" ? undefined : names.find((name) => name.startsWith(typed));
  if (begun !== undefined) return begun;
  const distances = names.map((name) => ({ name, distance: editDistance(typed, name) }));
  const [best] = distances.sort((a, b) => a.distance - b.distance);
  return best !== undefined && best.distance <= Math.min(2, best.name.length - 1) ? best.name : undefined;
}

/** How many characters have to be put in, taken out or replaced, or swapped with their neighbour. */
function editDistance(from: string, to: string): number {
  if (Math.abs(from.length - to.length) > 2) return Infinity;
  let older: number[] = [], row = Array.from({ length: to.length + 1 }, (_, at) => at);
  for (let y = 1; y <= from.length; y += 1) {
    const next = [y];
    for (let x = 1; x <= to.length; x += 1) {
      const replaced = (row[x - 1] ?? 0) + (from[y - 1] === to[x - 1] ? 0 : 1);
      const isSwap = from[y - 1] === to[x - 2] && from[y - 2] === to[x - 1];
      next.push(Math.min(replaced, (row[x] ?? 0) + 1, (next[x - 1] ?? 0) + 1, isSwap ? (older[x - 2] ?? Infinity) + 1 : Infinity));
    }
    older = row;
    row = next;
  }
  return row[to.length] ?? Infinity;
}
