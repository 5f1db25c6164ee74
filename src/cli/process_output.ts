/** Process output: standard output and standard error of the real process. */
import { Buffer } from "node:buffer";
import { fstatSync, write } from "node:fs";
import type { Socket } from "node:net";
import { isatty } from "node:tty";
import process from "node:process";
import { Line, type Output } from "./output.ts";

const COLUMNS_WITHOUT_TERMINAL = 80;
/** A pipe that somebody made non-blocking is full; it is tried again after this time. */
const FULL_PIPE_RETRY_MS = 5;
const LINE_FEED = 10;

/**
 * What is still to be written, to both streams in one order: on a terminal they meet. Descriptors are written to directly, because building
 * `process.stdout` takes Bun 9 ms; asynchronously, because a reader that pauses must not keep an interrupt from being handled.
 */
export class OutputQueue {
  readonly #pipes = new Map<number, Promise<Socket>>();
  #last: Promise<void> = Promise.resolve();

  /** Appends text or bytes for `descriptor`. Resolves with an error code when they cannot be written. */
  push(descriptor: 1 | 2, data: string | Uint8Array): Promise<string | undefined> {
    const written = this.#last.then(() => this.#write(descriptor, typeof data === "string" ? Buffer.from(data) : data));
    this.#last = written.then(() => {});
    return written;
  }

  /** Resolves when all that was appended is written, or cannot be. */
  flush(): Promise<void> {
    return this.#last;
  }

  async #write(descriptor: number, bytes: Uint8Array): Promise<string | undefined> {
    let pipe = this.#pipes.get(descriptor);
    if (pipe === undefined) {
      if (!isBlockedByPipe(descriptor)) return await writeWhole(descriptor, bytes);
      pipe = openPipe(descriptor);
      this.#pipes.set(descriptor, pipe);
    }
    const socket = await pipe;
    return await new Promise((resolve) => socket.write(bytes, (error) => resolve(error ? codeOf(error) : undefined)));
  }
}

/** Deno's `fs.write` stands still on a full pipe, and all of the program with it; its sockets do not. */
function isBlockedByPipe(descriptor: number): boolean {
  return "deno" in process.versions && fstatSync(descriptor).isFIFO();
}

async function openPipe(descriptor: number): Promise<Socket> {
  const { Socket } = await import("node:net");
  const socket = new Socket({ fd: descriptor, readable: false, writable: true });
  socket.on("error", () => {}); // Each write tells its own failure.
  return socket;
}

/** Standard output or standard error. */
export class ProcessOutput implements Output {
  readonly isTty: boolean;
  readonly hasColor: boolean;
  readonly #queue: OutputQueue;
  readonly #descriptor: 1 | 2;
  readonly #onBroken: (code: string) => void;
  readonly #line: Line;
  #isBroken = false;

  /** `onBroken` is called once, with the system's code, when nothing can be written any more: the reader has gone, or the disk is full. */
  constructor(
    queue: OutputQueue,
    options: {
      readonly descriptor: 1 | 2;
      readonly env: Readonly<Record<string, string | undefined>>;
      readonly onBroken: (code: string) => void;
      /** Shared by outputs that lead to the same place. */
      readonly line?: Line;
    },
  ) {
    this.#queue = queue;
    this.#descriptor = options.descriptor;
    this.#onBroken = options.onBroken;
    this.#line = options.line ?? new Line();
    this.isTty = isatty(options.descriptor) && options.env["TERM"] !== "dumb";
    this.hasColor = this.isTty && !options.env["NO_COLOR"];
  }

  get columns(): number {
    if (!this.isTty) return COLUMNS_WITHOUT_TERMINAL;
    return (this.#descriptor === 1 ? process.stdout : process.stderr).columns || COLUMNS_WITHOUT_TERMINAL;
  }

  write(text: string): void {
    if (text === "" || this.#isBroken) return;
    this.#line.take(text);
    void this.#push(text);
  }

  async writeBytes(bytes: Uint8Array): Promise<void> {
    if (bytes.length === 0 || this.#isBroken) return;
    this.#line.isEmpty = bytes.at(-1) === LINE_FEED;
    await this.#push(bytes);
  }

  startLine(): void {
    if (!this.#line.isEmpty) this.write("\n");
  }

  flush(): Promise<void> {
    return this.#queue.flush();
  }

  async #push(data: string | Uint8Array): Promise<void> {
    const code = await this.#queue.push(this.#descriptor, data);
    if (code === undefined || this.#isBroken) return;
    this.#isBroken = true;
    this.#onBroken(code);
  }
}

/** Do standard output and standard error lead to one terminal, one pipe or one file? */
export function areOutputsOne(): boolean {
  if (isatty(1) && isatty(2)) return true;
  try {
    const [out, error] = [fstatSync(1), fstatSync(2)];
    return out.dev === error.dev && out.ino === error.ino;
  } catch {
    return false; // One of them is closed.
  }
}

/** Writes all of `bytes`; resolves with the error's code when that is not possible. */
function writeWhole(descriptor: number, bytes: Uint8Array): Promise<string | undefined> {
  return new Promise((resolve) => {
    const next = (rest: Uint8Array) => {
      write(descriptor, rest, 0, rest.length, null, (error, count) => {
        if (error?.code === "EAGAIN") setTimeout(() => next(rest), FULL_PIPE_RETRY_MS);
        else if (error) resolve(codeOf(error));
        else if (count < rest.length) next(rest.subarray(count));
        else resolve(undefined);
      });
    };
    next(bytes);
  });
}

function codeOf(error: Error): string {
  return (error as NodeJS.ErrnoException).code ?? "unknown";
}
