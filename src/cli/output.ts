/** Output and input: the streams of the process as commands see them. */

/** One output of the process. */
export interface Output {
  readonly isTty: boolean;
  /** Width of the terminal in columns; 80 where there is none. */
  readonly columns: number;
  /** May escape sequences for colour be written? */
  readonly hasColor: boolean;
  /** Writes at once or in order later; never throws. */
  write(text: string): void;
  /** Writes bytes as they are, after all text so far; resolves when they have left the process or never will. */
  writeBytes(bytes: Uint8Array): Promise<void>;
  /** Begins a new line unless what was written last ended one: here, or on the other output where both lead to the same place. */
  startLine(): void;
  /** Resolves when everything written so far has left the process or never will. */
  flush(): Promise<void>;
}

/** Sequences that put nothing on the screen and leave the cursor where it is: modes, colours off, a question, the bell. */
// deno-lint-ignore no-control-regex
const INVISIBLE = /^(?:\x1b\[[?=>]?\d*[chlru]|\x1b\[0m|\x1b\[>4m|\x1b\[0 q|\x1b\(B|\x1b[78>\\]|[\x07\x0f])+$/;

/** How a line of progress or a prompt is taken away. */
// deno-lint-ignore no-control-regex
const TAKEN_AWAY = /\r(?:\x1b\[\d+A)?\x1b\[[JK]$/;

/** Where the next character comes to stand, as far as we know: only in what we wrote. */
export class Line {
  /** Nothing stands before the next character. */
  isEmpty = true;

  /** Takes in what is written. */
  take(text: string): void {
    if (text !== "" && !INVISIBLE.test(text)) this.isEmpty = text.endsWith("\n") || TAKEN_AWAY.test(text);
  }
}

/** Standard input. */
export interface InputStream {
  readonly isTty: boolean;
  /** All bytes up to the end of the stream, or the first `maxBytes + 1` of them. */
  read(maxBytes: number, signal: AbortSignal): Promise<Uint8Array>;
}
