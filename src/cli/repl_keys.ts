/** Keys: the bytes a terminal sends, as what was pressed, pasted or answered. */

/** Something that came from the terminal. */
export type Key =
  /** Printable characters. */
  | { readonly type: "text"; readonly text: string }
  /** A named key: `enter`, `up`, `ctrl-a`, `alt-b`, `shift-tab`, `ctrl-left` … */
  | { readonly type: "key"; readonly name: string }
  /** A block between the marks of bracketed paste, its line breaks `\n`, without control characters. */
  | { readonly type: "paste"; readonly text: string }
  /** The terminal's answer to a question of ours; never text to the user. */
  | { readonly type: "answer"; readonly text: string };

/** Of one paste, so much is kept: more than code may have. */
const PASTE_MAX_CHARS = 2_097_152;
/** A control string longer than this is no answer of a terminal; what follows is dropped with it until its end. */
const STRING_MAX_CHARS = 65_536;
const PASTE_BEGIN = "\x1b[200~", PASTE_END = "\x1b[201~";

const CURSOR_KEYS: Readonly<Record<string, string>> = {
  A: "up",
  B: "down",
  C: "right",
  D: "left",
  H: "home",
  F: "end",
  Z: "shift-tab",
};
const TILDE_KEYS: Readonly<Record<string, string>> = {
  "1": "home",
  "2": "insert",
  "3": "delete",
  "4": "end",
  "5": "page-up",
  "6": "page-down",
  "7": "home",
  "8": "end",
};
/** Keys by code point in the `CSI … u` form. */
const CODE_KEYS: Readonly<Record<string, string>> = { "9": "tab", "13": "enter", "27": "escape", "127": "backspace" };
const CONTROL_KEYS: Readonly<Record<string, string>> = {
  "\r": "enter",
  "\t": "tab",
  "\b": "backspace",
  "\x7f": "backspace",
  "\0": "ctrl-space",
  "\x1c": "ctrl-\\",
  "\x1d": "ctrl-]",
  "\x1e": "ctrl-^",
  "\x1f": "ctrl-_",
};

// deno-lint-ignore no-control-regex
const SEQUENCE = /^\x1b\[([0-?]*)([ -/]*)([@-~])/;
// deno-lint-ignore no-control-regex
const UNFINISHED = /^\x1b(?:\[[0-?]*[ -/]*|O)?$/;
// deno-lint-ignore no-control-regex
const STRING_START = /^\x1b[\]P_^X]/;
// deno-lint-ignore no-control-regex
const STRING_END = /\x07|\x1b\\/;
// deno-lint-ignore no-control-regex
const PRINTABLE = /^[^\x00-\x1f\x7f-\x9f]+/;

/** Decodes what arrives, in pieces of any size. */
export class KeyDecoder {
  readonly #decoder = new TextDecoder();
  #rest = "";
  #paste: string | undefined;

  /** Is the beginning of a sequence held back? Then `flush` decides after a short while that nothing more comes. */
  get isPending(): boolean {
    return this.#rest !== "" && this.#paste === undefined;
  }

  /** Takes `bytes` in and returns the keys they complete. */
  push(bytes: Uint8Array): Key[] {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    const keys: Key[] = [];
    for (;;) {
      const before = this.#rest.length;
      const key = this.#paste === undefined ? this.#next() : this.#pasted();
      if (key !== undefined) keys.push(key);
      else if (this.#rest.length === before || this.#rest === "") return keys;
    }
  }

  /** What is held back is all there is: the Escape key, or Alt with a key. */
  flush(): Key[] {
    const rest = this.#rest;
    if (!this.isPending) return [];
    this.#rest = "";
    if (rest === "\x1b") return [{ type: "key", name: "escape" }];
    const letter = rest[1] ?? "";
    return rest.length === 2 ? [{ type: "key", name: `alt-${letter}` }] : []; // Longer ones are torsos of answers.
  }

  /** The next whole key; undefined where there is none, or where something that means nothing was taken off. */
  #next(): Key | undefined {
    const rest = this.#rest, first = rest[0];
    if (first === undefined) return undefined;
    const text = PRINTABLE.exec(rest)?.[0];
    if (text !== undefined) return this.#take(text.length, { type: "text", text });
    if (first !== "\x1b") return this.#take(1, controlKey(first));
    if (UNFINISHED.test(rest)) return undefined;
    if (rest.startsWith(PASTE_BEGIN)) {
      this.#paste = "";
      return this.#take(PASTE_BEGIN.length, undefined);
    }
    if (STRING_START.test(rest)) return this.#controlString();
    const sequence = SEQUENCE.exec(rest);
    if (sequence) return this.#take(sequence[0].length, sequenceKey(sequence[0], sequence[1] ?? "", sequence[3] ?? ""));
    if (rest[1] === "[") return this.#take(2, undefined); // No sequence after all.
    if (rest[1] === "O") return this.#take(3, cursorKey(rest[2] ?? "", ""));
    if (rest[1] === "\x1b") return this.#take(1, { type: "key", name: "escape" });
    return this.#altKey();
  }

  #altKey(): Key | undefined {
    const [letter = ""] = this.#rest.slice(1);
    const control = controlKey(letter);
    const name = control?.type === "key" ? control.name : letter;
    return this.#take(
      1 + letter.length,
      control !== undefined || PRINTABLE.test(letter) ? { type: "key", name: `alt-${name}` } : undefined,
    );
  }

  /** OSC, DCS, APC, PM and SOS run up to their terminator. */
  #controlString(): Key | undefined {
    const end = STRING_END.exec(this.#rest);
    if (end === null) {
      // Only what its beginning says is kept of an endless one.
      if (this.#rest.length > STRING_MAX_CHARS) this.#rest = this.#rest.slice(0, 3) + this.#rest.slice(-1);
      return undefined;
    }
    const text = this.#rest.slice(0, end.index + end[0].length);
    return this.#take(text.length, { type: "answer", text });
  }

  #pasted(): Key | undefined {
    const end = this.#rest.indexOf(PASTE_END);
    // The end mark may come in two pieces.
    const keep = end >= 0 ? end : Math.max(0, this.#rest.length - PASTE_END.length + 1);
    const text = (this.#paste ?? "") + this.#rest.slice(0, keep);
    this.#paste = text.slice(0, PASTE_MAX_CHARS);
    this.#rest = this.#rest.slice(end >= 0 ? end + PASTE_END.length : keep);
    if (end < 0) return undefined;
    const pasted = this.#paste;
    this.#paste = undefined;
    return { type: "paste", text: pastedText(pasted) };
  }

  #take(count: number, key: Key | undefined): Key | undefined {
    this.#rest = this.#rest.slice(count);
    return key;
  }
}

/** `text` with `\n` as line break and without control characters but that and tab. */
export function pastedText(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/\r\n?/g, "\n").replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, "");
}

function controlKey(character: string): Key | undefined {
  const named = CONTROL_KEYS[character];
  if (named !== undefined) return { type: "key", name: named };
  const code = character.charCodeAt(0);
  return code >= 1 && code <= 26 ? { type: "key", name: `ctrl-${String.fromCharCode(code + 96)}` } : undefined;
}

function sequenceKey(sequence: string, parameters: string, final: string): Key | undefined {
  if (/^[<-?]/.test(parameters)) return { type: "answer", text: sequence };
  const [first = "", modifiers = ""] = parameters.split(";");
  if (final === "~") return namedKey(TILDE_KEYS[first], modifiers);
  if (final === "u") return namedKey(CODE_KEYS[first], modifiers);
  return cursorKey(final, modifiers);
}

function cursorKey(final: string, modifiers: string): Key | undefined {
  return namedKey(CURSOR_KEYS[final], modifiers);
}

/** xterm's modifiers: 1 + shift 1, alt 2, control 4. */
function namedKey(name: string | undefined, modifiers: string): Key | undefined {
  if (name === undefined) return undefined;
  const bits = modifiers === "" ? 0 : Number(modifiers) - 1;
  return { type: "key", name: `${bits & 4 ? "ctrl-" : ""}${bits & 2 ? "alt-" : ""}${bits & 1 ? "shift-" : ""}${name}` };
}
