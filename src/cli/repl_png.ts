/** PNG: its pixels, for terminals that take nothing but pixels. The bytes come from a guest: everything is checked and bounded. */
import { inflateSync } from "node:zlib";
import { Buffer } from "node:buffer";

const SIGNATURE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
const HEADER_BYTES = 13;
/** More pixels than a terminal can show. */
const PIXELS_MAX = 8_000_000;
const SIDE_MAX = 16_384;
/** Samples of one pixel, by colour type (PNG specification, 11.2.2). */
const CHANNELS: Readonly<Record<number, number>> = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
const DEPTHS: Readonly<Record<number, readonly number[]>> = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };

/** Rows of pixels, each red, green, blue and alpha, 0-255. */
export interface Pixels {
  readonly width: number;
  readonly height: number;
  readonly rgba: Uint8Array;
}

interface Header {
  readonly width: number;
  readonly height: number;
  readonly depth: number;
  readonly colorType: number;
  readonly isInterlaced: boolean;
}

/** Does `bytes` begin as a PNG does? */
export function isPng(bytes: Uint8Array): boolean {
  return SIGNATURE.equals(bytes.subarray(0, SIGNATURE.length));
}

/** The pixels; undefined for what is damaged, interlaced, or larger than 8 million of them. */
export function decodePng(bytes: Uint8Array): Pixels | undefined {
  if (!isPng(bytes)) return undefined;
  const data: Uint8Array[] = [];
  let header: Header | undefined, palette: Uint8Array = new Uint8Array(), alphas: Uint8Array = new Uint8Array();
  for (const { type, body } of chunksOf(bytes)) {
    if (type === "IHDR") header = parseHeader(body);
    else if (type === "PLTE") palette = body;
    else if (type === "tRNS") alphas = body;
    else if (type === "IDAT") data.push(body);
  }
  if (header === undefined || header.isInterlaced) return undefined;
  const samples = unpack(header, data);
  return samples && { width: header.width, height: header.height, rgba: colored(header, { samples, palette, alphas }) };
}

function* chunksOf(bytes: Uint8Array): Generator<{ readonly type: string; readonly body: Uint8Array }> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = SIGNATURE.length; at + 12 <= bytes.length;) {
    const length = view.getUint32(at), end = at + 8 + length;
    if (end + 4 > bytes.length) return;
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (type === "IEND") return;
    yield { type, body: bytes.subarray(at + 8, end) };
    at = end + 4;
  }
}

function parseHeader(body: Uint8Array): Header | undefined {
  if (body.length !== HEADER_BYTES) return undefined;
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const width = view.getUint32(0), height = view.getUint32(4), depth = view.getUint8(8), colorType = view.getUint8(9);
  const isSizeFit = width > 0 && height > 0 && width <= SIDE_MAX && height <= SIDE_MAX && width * height <= PIXELS_MAX;
  if (!isSizeFit || !DEPTHS[colorType]?.includes(depth)) return undefined;
  return { width, height, depth, colorType, isInterlaced: view.getUint8(12) !== 0 };
}

/** The samples, a byte each: of deeper ones the upper byte, of shallower ones the number as it is. */
function unpack({ width, height, depth, colorType }: Header, data: readonly Uint8Array[]): Uint8Array | undefined {
  const channels = CHANNELS[colorType] ?? 1, rowBytes = Math.ceil(width * channels * depth / 8);
  const rows = inflated(data, (rowBytes + 1) * height);
  if (rows === undefined) return undefined;
  const pixelBytes = Math.max(1, channels * depth >> 3);
  const samples = new Uint8Array(width * height * channels);
  let before: Uint8Array = new Uint8Array(rowBytes);
  for (let y = 0; y < height; y += 1) {
    const start = y * (rowBytes + 1), row = rows.subarray(start + 1, start + 1 + rowBytes);
    if (!unfilter(rows[start] ?? 0, row, { before, pixelBytes })) return undefined;
    const out = samples.subarray(y * width * channels, (y + 1) * width * channels);
    for (let at = 0; at < out.length; at += 1) out[at] = sampleOf(row, at, depth);
    before = row;
  }
  return samples;
}

function inflated(data: readonly Uint8Array[], length: number): Uint8Array | undefined {
  try {
    const bytes = inflateSync(Buffer.concat(data), { maxOutputLength: length });
    return bytes.length === length ? bytes : undefined;
  } catch {
    return undefined; // Damaged, or more than the header promised.
  }
}

/** Undoes the filter of a row in place (PNG specification, 9.2); false for a filter that does not exist. */
function unfilter(filter: number, row: Uint8Array, { before, pixelBytes }: { before: Uint8Array; pixelBytes: number }): boolean {
  if (filter > 4) return false;
  for (let at = 0; filter > 0 && at < row.length; at += 1) {
    const left = at >= pixelBytes ? row[at - pixelBytes] ?? 0 : 0, up = before[at] ?? 0;
    const corner = at >= pixelBytes ? before[at - pixelBytes] ?? 0 : 0;
    const guess = filter === 1 ? left : filter === 2 ? up : filter === 3 ? (left + up) >> 1 : paeth(left, up, corner);
    row[at] = (row[at] ?? 0) + guess;
  }
  return true;
}

function paeth(left: number, up: number, corner: number): number {
  const guess = left + up - corner;
  const toLeft = Math.abs(guess - left), toUp = Math.abs(guess - up), toCorner = Math.abs(guess - corner);
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}

function sampleOf(row: Uint8Array, at: number, depth: number): number {
  if (depth === 8) return row[at] ?? 0;
  if (depth === 16) return row[at * 2] ?? 0;
  const bit = at * depth;
  return ((row[bit >> 3] ?? 0) >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}

interface Parts {
  readonly samples: Uint8Array;
  readonly palette: Uint8Array;
  readonly alphas: Uint8Array;
}

function colored({ width, height, depth, colorType }: Header, { samples, palette, alphas }: Parts): Uint8Array {
  const rgba = new Uint8Array(width * height * 4), channels = CHANNELS[colorType] ?? 1;
  const scale = colorType === 3 || depth >= 8 ? 1 : 255 / ((1 << depth) - 1);
  for (let at = 0; at < width * height; at += 1) {
    const from = at * channels, to = at * 4;
    const first = (samples[from] ?? 0) * scale;
    if (colorType === 3) {
      for (let color = 0; color < 3; color += 1) rgba[to + color] = palette[first * 3 + color] ?? 0;
      rgba[to + 3] = alphas[first] ?? 255;
    } else if (channels <= 2) {
      rgba.fill(first, to, to + 3);
      rgba[to + 3] = channels === 2 ? samples[from + 1] ?? 255 : 255;
    } else {
      for (let color = 0; color < 3; color += 1) rgba[to + color] = samples[from + color] ?? 0;
      rgba[to + 3] = channels === 4 ? samples[from + 3] ?? 255 : 255;
    }
  }
  return rgba;
}
