/** Modes: what programs of the guest switch on in the user's terminal, and the sequences that switch it off again. */

/** Marks pastes, so that they are told from typing. */
export const PASTE_ON = "\x1b[?2004h";
/** As it is where no program asked for marks. */
export const PASTE_OFF = "\x1b[?2004l";

/** Private modes that are off by themselves: cursor keys, reverse video, origin, mouse, focus, alternate screens, paste, synchronised output. */
const OFF: ReadonlySet<string> = new Set(
  "1 5 6 9 47 66 1000 1001 1002 1003 1004 1005 1006 1015 1016 1047 1049 2004 2026".split(" "),
);
/** Private modes that are on by themselves: wrapping. The cursor is always shown again. */
const ON: ReadonlySet<string> = new Set(["7"]);
/** The end of a control string that was left open, colours off, cursor shown, keypad as numbers, letters as letters. */
const PLAIN = "\x1b\\\x1b[0m\x1b[?25h\x1b>\x1b(B\x0f";
/** Other things by what sets them; a scroll region takes the cursor with it. */
const OTHERS: ReadonlyArray<readonly [set: RegExp, undo: string]> = [
  // deno-lint-ignore no-control-regex
  [/(?:\x1b\[|\x9b)[\d;]*r/, "\x1b7\x1b[r\x1b8"],
  // deno-lint-ignore no-control-regex
  [/(?:\x1b\[|\x9b)[\d;]*h/, "\x1b[2l\x1b[4l\x1b[20l"],
  // deno-lint-ignore no-control-regex
  [/(?:\x1b\[|\x9b)[>=][\d;]*u/, "\x1b[=0u"],
  // deno-lint-ignore no-control-regex
  [/(?:\x1b\[|\x9b)>[\d;]*m/, "\x1b[>4m"],
  // deno-lint-ignore no-control-regex
  [/(?:\x1b\[|\x9b)\d* q/, "\x1b[0 q"],
];
// deno-lint-ignore no-control-regex
const PRIVATE = /(?:\x1b\[|\x9b)\?([\d;]+)([hl])/g;
// deno-lint-ignore no-control-regex
const CONTROL = /[\x1b\x0e\x80-\x9f]/;
/** A sequence may come in pieces; a longer one is none of those that matter. */
const SEQUENCE_MAX_CHARS = 32;

/** What a terminal was told. */
export class Modes {
  readonly #changed = new Map<string, string>();
  readonly #others = new Set<string>();
  #tail = "";
  #isTouched = false;

  /** Takes in what is written to the terminal. */
  take(text: string): void {
    if (!CONTROL.test(text) && this.#tail === "") return;
    this.#isTouched = true;
    const seen = this.#tail + text;
    for (const [, parameters = "", state = ""] of seen.matchAll(PRIVATE)) {
      for (const mode of parameters.split(";")) {
        const isUsual = (state === "h" && ON.has(mode)) || (state === "l" && OFF.has(mode));
        if (isUsual) this.#changed.delete(mode);
        else if (ON.has(mode) || OFF.has(mode)) this.#changed.set(mode, state);
      }
    }
    for (const [set, undo] of OTHERS) if (set.test(seen)) this.#others.add(undo);
    const last = Math.max(seen.lastIndexOf("\x1b"), seen.lastIndexOf("\x9b"));
    this.#tail = last >= 0 && seen.length - last <= SEQUENCE_MAX_CHARS ? seen.slice(last) : "";
  }

  /** The sequences after which the terminal is as it was; empty when nothing was done to it. Forgets what was done. */
  undo(): string {
    if (!this.#isTouched) return "";
    const modes = [...this.#changed].map(([mode, state]) => `\x1b[?${mode}${state === "h" ? "l" : "h"}`);
    const undone = PLAIN + [...this.#others, ...modes].join("");
    this.#changed.clear();
    this.#others.clear();
    this.#tail = "";
    this.#isTouched = false;
    return undone;
  }
}
