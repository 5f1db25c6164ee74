/** Console: the last of what the kernel, the agent and QEMU itself said, for error messages and for those who asked. */
import type { Readable } from "node:stream";
import { CONSOLE_TAIL_MAX_BYTES } from "../base/limits.ts";

/** Reads both logs from the start; keeps a bounded tail. */
export class Console {
  readonly #decoder = new TextDecoder();
  #tail = "";
  #errors = "";

  /** `guest` is the machine's console, `errors` QEMU's standard error. */
  constructor(guest: Readable | undefined, errors: Readable | null, onConsole?: (bytes: Uint8Array) => void) {
    guest?.on("data", (chunk: Uint8Array) => {
      this.#tail = (this.#tail + this.#decoder.decode(chunk, { stream: true })).slice(-CONSOLE_TAIL_MAX_BYTES);
      onConsole?.(chunk);
    });
    errors?.setEncoding("utf8").on("data", (chunk: string) => {
      this.#errors = (this.#errors + chunk).slice(-CONSOLE_TAIL_MAX_BYTES);
    });
  }

  /** The last kernel and agent lines. */
  get tail(): string {
    return this.#tail;
  }

  /** What QEMU or its launcher complained about, on one line. */
  get complaint(): string {
    return this.#errors.trim().split(/\s*\n\s*/).join("; ").slice(-1000);
  }
}
