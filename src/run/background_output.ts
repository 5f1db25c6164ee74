/** Background output: what programs print while the guest is asked about code. It belongs to the execution that comes next. */
import type { OutputName } from "../channel/guest.ts";

/** Of each output, as much as the guest keeps by itself between executions; the oldest bytes go first. */
const KEPT_MAX_BYTES = 65_536;

/** Output that no execution has had yet. */
export class BackgroundOutput {
  readonly #kept: Record<OutputName, Uint8Array[]> = { stdout: [], stderr: [] };

  /** Keeps a copy of `bytes`. */
  push(name: OutputName, bytes: Uint8Array): void {
    const kept = this.#kept[name];
    kept.push(bytes.slice(-KEPT_MAX_BYTES));
    let excess = kept.reduce((sum, { length }) => sum + length, 0) - KEPT_MAX_BYTES;
    while (excess > 0) {
      const oldest = kept.shift() ?? new Uint8Array();
      if (oldest.length > excess) kept.unshift(oldest.subarray(excess));
      excess -= oldest.length;
    }
  }

  /** Takes everything out, in order. */
  take(onOutput: (name: OutputName, bytes: Uint8Array) => void): void {
    for (const name of ["stdout", "stderr"] as const) {
      for (const bytes of this.#kept[name].splice(0)) onOutput(name, bytes);
    }
  }
}
