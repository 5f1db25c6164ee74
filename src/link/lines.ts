/** Lines: one JSON object on each, over a socket; bounded, and given up for raw bytes where a connection becomes a channel. */
import { Buffer } from "node:buffer";
import type { Socket } from "node:net";
import { messageOf } from "../base/errors.ts";

/** Of one line. Text of a boot log is the longest that comes, and is cut far below. */
export const LINE_MAX_BYTES = 262_144;

const NEWLINE = 0x0a;

/** The peer broke a rule of the protocol. Never reaches users as it is. */
export class LineError extends Error {
  /** The class, also in minified programs. */
  override readonly name = "LineError";
}

/** Reads the lines of a socket until told otherwise. */
export class LineReader {
  readonly #socket: Socket;
  readonly #onLine: (value: unknown) => void;
  readonly #onBroken: (error: LineError) => void;
  readonly #onData = (chunk: Uint8Array) => this.#take(chunk);
  /** What came behind the last line. */
  #parts: Uint8Array[] = [];
  #byteCount = 0;
  #isOver = false;

  /** `onLine` gets each line's value and may throw `LineError`; `onBroken` is called once, and nothing is read after it. */
  constructor(socket: Socket, onLine: (value: unknown) => void, onBroken: (error: LineError) => void) {
    this.#socket = socket;
    this.#onLine = onLine;
    this.#onBroken = onBroken;
    socket.on("data", this.#onData);
  }

  /** Stops reading, within `onLine`; returns what has come behind that line. */
  stop(): Uint8Array {
    this.#leave();
    return Buffer.concat(this.#parts);
  }

  #take(chunk: Uint8Array): void {
    let bytes = chunk;
    try {
      for (let at = bytes.indexOf(NEWLINE); at >= 0; at = bytes.indexOf(NEWLINE)) {
        this.#check(at);
        const line = Buffer.concat([...this.#parts, bytes.subarray(0, at)]).toString("utf8");
        bytes = bytes.subarray(at + 1);
        this.#keep(bytes); // In its place before the line is acted on: that may end the reading of lines.
        this.#onLine(parse(line));
        if (this.#isOver) return;
        this.#keep();
      }
      this.#check(bytes.length);
      if (bytes.length > 0) this.#parts.push(bytes);
      this.#byteCount += bytes.length;
    } catch (error) {
      if (!(error instanceof LineError)) throw error;
      this.#leave();
      this.#onBroken(error);
    }
  }

  #keep(...parts: Uint8Array[]): void {
    this.#parts = parts;
    this.#byteCount = 0;
  }

  #leave(): void {
    this.#isOver = true;
    this.#socket.pause();
    this.#socket.off("data", this.#onData);
  }

  #check(moreBytes: number): void {
    if (this.#byteCount + moreBytes > LINE_MAX_BYTES) throw new LineError(`a line has at most ${LINE_MAX_BYTES} bytes`);
  }
}

/** Writes `value` as a line. */
export function writeLine(socket: Socket, value: unknown): void {
  if (!socket.destroyed && socket.writable) socket.write(`${JSON.stringify(value)}\n`);
}

function parse(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch (error) {
    throw new LineError(`a line is JSON (${messageOf(error)})`);
  }
}
