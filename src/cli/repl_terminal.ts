/** Terminal: the user's own, read key by key. It is given back as it was, however the process ends or stops. */
import { writeSync } from "node:fs";
import process from "node:process";
import { exitCodeOf, reportError } from "./failure.ts";
import type { Output } from "./output.ts";
import type { EditorTerminal, TerminalEvent } from "./repl_editor.ts";
import { EventQueue } from "./repl_events.ts";
import { isGroupOrphaned } from "./repl_jobs.ts";
import { KeyDecoder } from "./repl_keys.ts";
import { PASTE_OFF, PASTE_ON } from "./repl_modes.ts";

/** An Escape that nothing follows for so long is the key itself. */
const ESCAPE_MS = 50;
/** Colours off, cursor shown: whatever stood on the screen when the process ends must not go on. */
const PLAIN = "\x1b[0m\x1b[?25h";

/** What comes first, or so soon, was typed before, when the terminal made line feeds of Enter. */
const BEFORE_RAW_MS = 100;
const LINE_FEED = 10, CARRIAGE_RETURN = 13;

/** Has the terminal to itself. */
export interface TerminalTaker {
  /** What was typed, as the terminal sends it. */
  onBytes(bytes: Uint8Array): void;
  /** The terminal has another size. */
  onResize(): void;
  /** The terminal is gone; nothing more will come. */
  onEnd(): void;
}

/** Sees what comes before anybody else; `true` keeps it. */
export type Interceptor = (event: TerminalEvent) => boolean;

/** The terminal on standard input and standard error. There can be one in a process. */
export class ProcessTerminal implements EditorTerminal, Disposable {
  readonly hasColor: boolean;
  readonly #output: Output;
  readonly #decoder = new KeyDecoder();
  readonly #events = new EventQueue();
  readonly #listeners: ReadonlyArray<readonly [NodeJS.EventEmitter, string, (...args: never[]) => void]>;
  #wake: (() => void) | undefined;
  #interceptor: Interceptor | undefined;
  #taker: TerminalTaker | undefined;
  #escape: ReturnType<typeof setTimeout> | undefined;
  #isRaw = false;
  #rawSinceMs = 0;
  #isFirst = true;
  #isEnded = false;

  /** Takes the terminal over until disposed. `output` must be the terminal that standard input is. */
  constructor(output: Output) {
    this.#output = output;
    this.hasColor = output.hasColor;
    const { stdin, stderr } = process;
    this.#listeners = [
      [stdin, "data", (bytes: Uint8Array) => this.#take(bytes)],
      [stdin, "end", () => this.#end()],
      [stdin, "error", () => this.#end()],
      [stderr, "resize", () => this.#taker === undefined ? this.#push({ type: "resize" }) : this.#taker.onResize()],
      [process, "SIGTSTP", () => this.#stop()],
      [process, "SIGCONT", () => this.#resume()],
      [process, "exit", () => this.#restoreNow()],
      // Without it Deno would end without telling anybody.
      [process, "uncaughtException", (error: unknown) => {
        this.#restoreNow();
        reportError(this.#output, error, { isDebug: true });
        void this.#output.flush().then(() => process.exit(exitCodeOf(error)));
      }],
    ];
    for (const [emitter, event, listener] of this.#listeners) emitter.on(event, listener as (...args: unknown[]) => void);
    this.#raw();
    stdin.resume();
  }

  get columns(): number {
    return process.stderr.columns || 80;
  }

  get rows(): number {
    return process.stderr.rows || 24;
  }

  get hasInput(): boolean {
    return !this.#events.isEmpty;
  }

  get isNextIndented(): boolean {
    return this.#events.isNextIndented;
  }

  discardTyped(): void {
    this.#events.discardTyped();
  }

  write(text: string): void {
    this.#output.write(text);
  }

  async next(): Promise<TerminalEvent> {
    for (;;) {
      const event = this.#events.shift();
      if (event !== undefined) return event;
      if (this.#isEnded) return { type: "closed" };
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }

  /** While not disposed, `interceptor` sees every event as it comes. What it does not keep waits for `next`. */
  intercept(interceptor: Interceptor): Disposable {
    const before = this.#interceptor;
    this.#interceptor = interceptor;
    return { [Symbol.dispose]: () => void (this.#interceptor = before) };
  }

  /** While not disposed, everything typed goes to `onBytes` as it is: Ctrl-C and Ctrl-Z are bytes like any other. */
  takeOver(taker: TerminalTaker): Disposable {
    this.#output.write(PASTE_OFF);
    this.#taker = taker;
    if (this.#isEnded) taker.onEnd();
    return {
      [Symbol.dispose]: () => {
        this.#taker = undefined;
        this.#output.write(PASTE_ON);
      },
    };
  }

  suspend(): void {
    if (isGroupOrphaned()) return this.#output.write("\x07");
    void this.#output.flush().then(() => {
      try {
        process.kill(0, "SIGTSTP"); // All of the pipeline that we may be part of, as the kernel does for Ctrl-Z.
      } catch {
        this.#stop(); // Somebody in the group is not ours to signal.
      }
    });
  }

  [Symbol.dispose](): void {
    for (const [emitter, event, listener] of this.#listeners) emitter.off(event, listener as (...args: unknown[]) => void);
    clearTimeout(this.#escape);
    this.#cook();
    process.stdin.pause();
    this.#end();
  }

  #take(bytes: Uint8Array): void {
    // A busy host may come to it late: what the terminal kept until then is one piece.
    const isEarly = this.#isFirst || performance.now() - this.#rawSinceMs < BEFORE_RAW_MS;
    this.#isFirst = false;
    if (this.#taker !== undefined) return this.#taker.onBytes(bytes);
    clearTimeout(this.#escape);
    for (const key of this.#decoder.push(isEarly ? bytes.map((byte) => byte === LINE_FEED ? CARRIAGE_RETURN : byte) : bytes)) {
      this.#push(key);
    }
    if (!this.#decoder.isPending) return;
    this.#escape = setTimeout(() => {
      for (const key of this.#decoder.flush()) this.#push(key);
    }, ESCAPE_MS);
  }

  #push(event: TerminalEvent): void {
    if (this.#interceptor?.(event)) return;
    this.#events.push(event, performance.now());
    this.#wake?.();
  }

  #end(): void {
    this.#isEnded = true;
    this.#taker?.onEnd();
    this.#interceptor?.({ type: "closed" });
    this.#wake?.();
  }

  #raw(): void {
    process.stdin.setRawMode(true);
    this.#isRaw = true;
    this.#rawSinceMs = performance.now();
    this.#isFirst = true;
    this.#output.write(PASTE_ON);
  }

  #cook(): void {
    if (!this.#isRaw) return;
    this.#isRaw = false;
    this.#output.write(PASTE_OFF + PLAIN);
    setCooked();
  }

  #stop(): void {
    if (isGroupOrphaned()) return;
    this.#cook();
    void this.#output.flush().then(() => process.kill(process.pid, "SIGSTOP"));
  }

  #resume(): void {
    this.#raw();
    if (this.#taker === undefined) this.#push({ type: "resume" });
    else this.#taker.onResize();
  }

  /** For a process that ends at once: nothing waits for its turn any more. */
  #restoreNow(): void {
    if (!this.#isRaw) return;
    this.#isRaw = false;
    setCooked();
    try {
      writeSync(2, `${PASTE_OFF}${PLAIN}`);
    } catch { // The terminal has gone, and with it what was to be restored.
    }
  }
}

function setCooked(): void {
  try {
    process.stdin.setRawMode(false);
  } catch { // The terminal has gone.
  }
}
