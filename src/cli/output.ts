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
  /** Resolves when everything written so far has left the process or never will. */
  flush(): Promise<void>;
}

/** Standard input. */
export interface InputStream {
  readonly isTty: boolean;
  /** All bytes up to the end of the stream, or the first `maxBytes + 1` of them. */
  read(maxBytes: number, signal: AbortSignal): Promise<Uint8Array>;
}
