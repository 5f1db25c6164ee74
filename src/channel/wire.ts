/** Wire: frames of the control channel and the net port to bytes and back (ARCHITECTURE, "Control channel"). */
import { FRAME_MAX_BYTES } from "../base/limits.ts";

/** Bytes before each payload. */
export const HEADER_BYTES = 12;

/** What a frame is; `accept` comes on the net port alone, `result` and `cancel` never there. */
export const KIND = { hello: 1, open: 2, data: 3, credit: 4, end: 5, result: 6, error: 7, cancel: 8, accept: 9 } as const;
/** One of `KIND`. */
export type Kind = typeof KIND[keyof typeof KIND];

/** What the bytes of a DATA frame are. */
export const DATA_FLAG = { body: 0, stdout: 1, stderr: 2, display: 3, event: 4 } as const;

/** One frame. `payload` of a decoded frame is a view that is valid as long as the caller keeps it. */
export interface Frame {
  readonly stream: number;
  readonly kind: Kind;
  readonly flags: number;
  readonly payload: Uint8Array;
}

/** Which rule a peer broke; the first seven are the header's, checked in this order (`tests/fixtures/README.md`). */
export type Violation = "truncated" | "too_long" | "unknown_kind" | "reserved" | "flags" | "stream" | "length" | "credit" | "content";

/** The peer sent something that is no frame, or no frame that may come here; the channel cannot be used any more. */
export class WireError extends Error {
  override readonly name = "WireError";
  readonly violation: Violation;
  /** `message` says what was wanted and what came. */
  constructor(violation: Violation, message: string) {
    super(message);
    this.violation = violation;
  }
}

const NOTHING = new Uint8Array(0);

/** The bytes of one frame. `payload` is copied; at most 65,536 bytes. */
export function encodeFrame(frame: { stream: number; kind: Kind; flags?: number; payload?: Uint8Array }): Uint8Array {
  const payload = frame.payload ?? NOTHING;
  if (payload.length > FRAME_MAX_BYTES) {
    throw new RangeError(`Cannot encode a frame: its payload must be at most ${FRAME_MAX_BYTES} bytes, got ${payload.length}`);
  }
  const bytes = new Uint8Array(HEADER_BYTES + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, payload.length, true);
  view.setUint32(4, frame.stream, true);
  view.setUint8(8, frame.kind);
  view.setUint8(9, frame.flags ?? 0);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

/** The payload of a CREDIT frame. */
export function encodeCredit(byteCount: number): Uint8Array {
  const payload = new Uint8Array(4);
  new DataView(payload.buffer).setUint32(0, byteCount, true);
  return payload;
}

/** The grant of a CREDIT frame, in bytes. */
export function decodeCredit(payload: Uint8Array): number {
  return viewOf(payload).getUint32(0, true);
}

/** Turns chunks of any size into frames. Holds at most one unfinished frame. */
export class FrameDecoder {
  /** A header that is not all there. */
  #headPart: Uint8Array = NOTHING;
  /** A frame whose header came, in a buffer of its own, filled so far. */
  #unfinished: { readonly head: Head; readonly payload: Uint8Array; filledBytes: number } | undefined;

  /** Every frame that is complete now. Throws `WireError` at the first malformed header, before its payload has arrived. */
  push(chunk: Uint8Array): Frame[] {
    const frames: Frame[] = [];
    let bytes = this.#unfinished ? this.#fill(chunk, frames) : chunk;
    if (this.#headPart.length > 0) {
      // Some bytes and not the whole chunk: a large payload is copied once, from where it came to where it stays.
      const missingBytes = HEADER_BYTES - this.#headPart.length;
      const head = concat(this.#headPart, bytes.subarray(0, missingBytes));
      this.#headPart = head;
      if (head.length < HEADER_BYTES) return frames;
      this.#headPart = NOTHING;
      bytes = this.#begin(decodeHeader(head), bytes.subarray(missingBytes), frames);
    }
    while (bytes.length >= HEADER_BYTES) {
      const head = decodeHeader(bytes), end = HEADER_BYTES + head.payloadBytes;
      if (bytes.length >= end) {
        frames.push(frameOf(head, bytes.subarray(HEADER_BYTES, end)));
        bytes = bytes.subarray(end);
      } else {
        bytes = this.#begin(head, bytes.subarray(HEADER_BYTES), frames);
      }
    }
    // A copy, so that a small rest does not keep a large chunk alive.
    if (bytes.length > 0) this.#headPart = new Uint8Array(bytes);
    return frames;
  }

  /** Bytes of an unfinished frame: more than 0 at the end of the stream means that it was cut off. */
  get pendingBytes(): number {
    return this.#unfinished ? HEADER_BYTES + this.#unfinished.filledBytes : this.#headPart.length;
  }

  #begin(head: Head, bytes: Uint8Array, frames: Frame[]): Uint8Array {
    this.#unfinished = { head, payload: new Uint8Array(head.payloadBytes), filledBytes: 0 };
    return this.#fill(bytes, frames);
  }

  /** Adds to the unfinished frame; returns what is left over. */
  #fill(bytes: Uint8Array, frames: Frame[]): Uint8Array {
    if (!this.#unfinished) return bytes;
    const { head, payload, filledBytes } = this.#unfinished;
    const part = bytes.subarray(0, payload.length - filledBytes);
    payload.set(part, filledBytes);
    this.#unfinished.filledBytes += part.length;
    if (this.#unfinished.filledBytes === payload.length) {
      frames.push(frameOf(head, payload));
      this.#unfinished = undefined;
    }
    return bytes.subarray(part.length);
  }
}

/** The same bytes in a buffer that is theirs alone: large payloads mostly came in one. */
export function owned(bytes: Uint8Array): Uint8Array {
  // Not slice(): a Buffer's is a view.
  return bytes.buffer.byteLength === bytes.length ? bytes : new Uint8Array(bytes);
}

interface Head extends Omit<Frame, "payload"> {
  readonly payloadBytes: number;
}

function frameOf({ stream, kind, flags }: Head, payload: Uint8Array): Frame {
  return { stream, kind, flags, payload };
}

function decodeHeader(bytes: Uint8Array): Head {
  const view = viewOf(bytes);
  const payloadBytes = view.getUint32(0, true), stream = view.getUint32(4, true);
  const kind = view.getUint8(8), flags = view.getUint8(9), reserved = view.getUint16(10, true);
  if (payloadBytes > FRAME_MAX_BYTES) {
    throw new WireError("too_long", `a payload has at most ${FRAME_MAX_BYTES} bytes, got ${payloadBytes}`);
  }
  if (!isKind(kind)) throw new WireError("unknown_kind", `a kind is between ${KIND.hello} and ${KIND.accept}, got ${kind}`);
  if (reserved !== 0) throw new WireError("reserved", `the reserved field is 0, got ${reserved}`);
  if (flags > (kind === KIND.data ? DATA_FLAG.event : 0)) throw new WireError("flags", `kind ${kind} does not have the flags ${flags}`);
  if ((kind === KIND.hello) !== (stream === 0)) throw new WireError("stream", `kind ${kind} does not belong to stream ${stream}`);
  const exactBytes = kind === KIND.credit ? 4 : kind === KIND.end || kind === KIND.accept ? 0 : payloadBytes;
  if (payloadBytes !== exactBytes) throw new WireError("length", `kind ${kind} has ${exactBytes} bytes of payload, got ${payloadBytes}`);
  return { stream, kind, flags, payloadBytes };
}

function isKind(value: number): value is Kind {
  return value >= KIND.hello && value <= KIND.accept;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** All parts in one array. */
export function concat(...parts: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
