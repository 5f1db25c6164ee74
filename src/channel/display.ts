/** Display: objects of display data out of the bytes of an execution's stream (ARCHITECTURE, "Methods", `exec`). */
import type { DisplayData } from "../base/result.ts";
import { DISPLAY_MAX_BYTES, DISPLAY_TOTAL_MAX_BYTES } from "../base/limits.ts";
import { parseObject } from "./answer.ts";
import { concat, WireError } from "./wire.ts";

const LENGTH_BYTES = 4;

/** Puts the objects of one execution together. Holds at most one unfinished object. */
export class DisplayReader {
  #parts: Uint8Array[] = [];
  #partBytes = 0;
  /** Bytes of the object that comes, with its length; undefined while the length itself is not there. */
  #wantedBytes: number | undefined;
  #totalBytes = 0;
  #isMalformed = false;

  /** Something that was no JSON object came; it was left out. */
  get isMalformed(): boolean {
    return this.#isMalformed;
  }

  /** The objects that are complete now. Throws `WireError` when one, or all together, are longer than the agent lets pass. */
  push(bytes: Uint8Array): DisplayData[] {
    this.#totalBytes += bytes.length;
    if (this.#totalBytes > DISPLAY_TOTAL_MAX_BYTES + FRAMING_MAX_BYTES) {
      throw new WireError("content", `display data of one execution is at most ${DISPLAY_TOTAL_MAX_BYTES} bytes, got more`);
    }
    const found: DisplayData[] = [];
    // A copy: the view is valid during the call only.
    this.#parts.push(bytes.slice());
    this.#partBytes += bytes.length;
    for (let whole = this.#take(); whole !== undefined; whole = this.#take()) {
      const data = displayData(whole);
      if (data === undefined) this.#isMalformed = true;
      else found.push(data);
    }
    return found;
  }

  /** The next object's JSON, or undefined when it is not there yet. */
  #take(): Uint8Array | undefined {
    if (this.#wantedBytes === undefined) {
      if (this.#partBytes < LENGTH_BYTES) return undefined;
      const head = this.#join();
      const length = new DataView(head.buffer, head.byteOffset).getUint32(0, true);
      if (length > DISPLAY_MAX_BYTES) {
        throw new WireError("content", `display data of one object is at most ${DISPLAY_MAX_BYTES} bytes, got ${length}`);
      }
      this.#wantedBytes = LENGTH_BYTES + length;
    }
    if (this.#partBytes < this.#wantedBytes) return undefined;
    const all = this.#join(), end = this.#wantedBytes;
    this.#parts = [all.subarray(end)];
    this.#partBytes = all.length - end;
    this.#wantedBytes = undefined;
    return all.subarray(LENGTH_BYTES, end);
  }

  #join(): Uint8Array {
    const [only] = this.#parts;
    const all = only !== undefined && this.#parts.length === 1 ? only : concat(...this.#parts);
    this.#parts = [all];
    return all;
  }
}

/** Lengths that stand before the objects come on top of the limit for their contents; no execution has a million of them. */
const FRAMING_MAX_BYTES = LENGTH_BYTES * 1_048_576;

/** An object of texts; other values, such as those of `application/json`, become their JSON. */
function displayData(json: Uint8Array): DisplayData | undefined {
  const object = parseObject(json);
  return object && Object.fromEntries(
    Object.entries(object).map(([type, value]) => [type, typeof value === "string" ? value : JSON.stringify(value)]),
  );
}
