/** Process output: standard output and standard error of the real process. */
import { isatty } from "node:tty";
import process from "node:process";
import type { Output } from "./output.ts";

const COLUMNS_WITHOUT_TERMINAL = 80;

/** Standard output or standard error. The stream is built when it is first written to: that takes Bun 9 ms. */
export class ProcessOutput implements Output {
  readonly isTty: boolean;
  readonly hasColor: boolean;
  readonly #name: "stdout" | "stderr";
  readonly #onBroken: () => void;
  #stream: NodeJS.WriteStream | undefined;
  #isBroken = false;
  #pending = 0;
  #onFlushed: Array<() => void> = [];

  /** `onBroken` is called once when the reader has gone. */
  constructor(name: "stdout" | "stderr", env: Readonly<Record<string, string | undefined>>, onBroken: () => void) {
    this.#name = name;
    this.#onBroken = onBroken;
    this.isTty = isatty(name === "stdout" ? 1 : 2) && env["TERM"] !== "dumb";
    this.hasColor = this.isTty && !env["NO_COLOR"];
  }

  get columns(): number {
    return (this.isTty ? this.#open().columns : undefined) || COLUMNS_WITHOUT_TERMINAL;
  }

  write(text: string): void {
    if (text === "" || this.#isBroken) return;
    this.#pending += 1;
    this.#open().write(text, () => this.#settle());
  }

  flush(): Promise<void> {
    if (this.#pending === 0 || this.#isBroken) return Promise.resolve();
    return new Promise((resolve) => this.#onFlushed.push(resolve));
  }

  #settle(): void {
    this.#pending -= 1;
    if (this.#pending > 0 && !this.#isBroken) return;
    for (const resolve of this.#onFlushed.splice(0)) resolve();
  }

  #open(): NodeJS.WriteStream {
    if (this.#stream !== undefined) return this.#stream;
    const stream = process[this.#name];
    stream.on("error", () => {
      if (this.#isBroken) return;
      this.#isBroken = true;
      this.#settle();
      this.#onBroken();
    });
    return this.#stream = stream;
  }
}
