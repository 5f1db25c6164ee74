/** Output: guest bytes → bounded text, and pieces of it for callbacks. */
import { CALLBACK_CHUNK_MAX_BYTES } from "../base/limits.ts";
import type { Logger } from "../base/log.ts";

/** Each byte becomes at most one U+FFFD, which is three bytes: a piece of this size never grows past the callback's limit. */
const PIECE_BYTES = Math.floor(CALLBACK_CHUNK_MAX_BYTES / 3) - 3;

/** One stream of one execution. */
export class OutputText {
  readonly #maxBytes: number;
  readonly #deliver: ((text: string) => void) | undefined;
  // A byte-order mark in a program's output is the program's: it stays.
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #parts: string[] = [];
  #byteCount = 0;

  /** Keeps at most `maxBytes` of what arrives. */
  constructor(maxBytes: number, deliver?: (text: string) => void) {
    this.#maxBytes = maxBytes;
    this.#deliver = deliver;
  }

  /** Takes bytes as they come; false when they went past the limit and the rest was dropped. */
  push(bytes: Uint8Array): boolean {
    const fitting = bytes.subarray(0, this.#maxBytes - this.#byteCount);
    this.#byteCount += fitting.length;
    for (let at = 0; at < fitting.length; at += PIECE_BYTES) {
      this.#keep(this.#decoder.decode(fitting.subarray(at, at + PIECE_BYTES), { stream: true }));
    }
    return fitting.length === bytes.length;
  }

  /** Adds a line of ours after what is there, on a line of its own; a text that is full stays as it is. */
  pushLine(line: string): void {
    const isFresh = this.#parts.at(-1)?.endsWith("\n") ?? true;
    this.push(new TextEncoder().encode(`${isFresh ? "" : "\n"}${line}\n`));
  }

  /** The whole text; an unfinished character at its end becomes U+FFFD. */
  finish(): string {
    this.#keep(this.#decoder.decode());
    return this.#parts.join("");
  }

  #keep(text: string): void {
    if (text === "") return;
    this.#parts.push(text);
    this.#deliver?.(text);
  }
}

/** `callback` made safe: the first throw, or rejection of what it returns, is logged, and it is called no more. */
export function guarded<T>(callback: ((value: T) => void) | undefined, name: string, log: Logger): ((value: T) => void) | undefined {
  let current: ((value: T) => unknown) | undefined = callback;
  const drop = (error: unknown) => {
    if (current) log.error(`${name} threw and is called no more`, { reason: error instanceof Error ? error.name : typeof error });
    current = undefined;
  };
  return callback && ((value) => {
    try {
      // Nobody waits for an asynchronous callback, but its failure must not end the process as an unhandled rejection.
      const returned = current?.(value);
      if (returned instanceof Promise) returned.catch(drop);
    } catch (error) {
      drop(error);
    }
  });
}
