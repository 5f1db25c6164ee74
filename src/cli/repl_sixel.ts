/** Sixel: pixels as the DEC VT340 and many terminals of today take them. */
import type { Pixels } from "./repl_png.ts";

/** Steps of red, green and blue: 252 colours of the 256 that terminals have at least. */
const LEVELS = [6, 7, 6] as const;
const BAND_ROWS = 6;

/** The sequence that draws `image`, made narrower than `maxWidth` pixels, on white where it is transparent. */
export function sixelImage(image: Pixels, maxWidth: number): string {
  const { width, height, indices } = indexed(shrunk(image, Math.max(1, maxWidth)));
  const used = [...new Set(indices)].sort((a, b) => a - b);
  const colors = used.map((index) => `#${index};2;${percentsOf(index).join(";")}`).join("");
  const bands: string[] = [];
  for (let top = 0; top < height; top += BAND_ROWS) bands.push(band(indices, { width, top, rows: Math.min(BAND_ROWS, height - top) }));
  // Pixels as wide as high, and the whole size, so that the terminal can make room first.
  return `\x1bPq"1;1;${width};${height}${colors}${bands.join("-")}\x1b\\`;
}

/** Six rows: each of their colours in one pass over the width. */
function band(indices: Uint8Array, { width, top, rows }: { width: number; top: number; rows: number }): string {
  const passes = new Map<number, Uint8Array>();
  for (let row = 0; row < rows; row += 1) {
    for (let x = 0; x < width; x += 1) {
      const index = indices[(top + row) * width + x] ?? 0;
      let pass = passes.get(index);
      if (pass === undefined) passes.set(index, pass = new Uint8Array(width));
      pass[x] = (pass[x] ?? 0) | 1 << row;
    }
  }
  return [...passes].map(([index, pass]) => `#${index}${runLengths(pass)}`).join("$");
}

/** Sixels from `?` on; the same one more than three times as `!COUNT`. */
function runLengths(pass: Uint8Array): string {
  let text = "", end = pass.length;
  while (end > 0 && pass[end - 1] === 0) end -= 1;
  for (let at = 0; at < end;) {
    let next = at + 1;
    while (next < end && pass[next] === pass[at]) next += 1;
    const sixel = String.fromCharCode(63 + (pass[at] ?? 0)), count = next - at;
    text += count > 3 ? `!${count}${sixel}` : sixel.repeat(count);
    at = next;
  }
  return text;
}

function percentsOf(index: number): number[] {
  const [, greens, blues] = LEVELS;
  const steps = [Math.floor(index / (greens * blues)), Math.floor(index / blues) % greens, index % blues];
  return steps.map((step, at) => Math.round(step * 100 / ((LEVELS[at] ?? 2) - 1)));
}

function indexed({ width, height, rgba }: Pixels): { width: number; height: number; indices: Uint8Array } {
  const indices = new Uint8Array(width * height);
  for (let at = 0; at < indices.length; at += 1) {
    const alpha = (rgba[at * 4 + 3] ?? 0) / 255;
    let index = 0;
    for (const [color, levels] of LEVELS.entries()) {
      const value = (rgba[at * 4 + color] ?? 0) * alpha + 255 * (1 - alpha);
      index = index * levels + Math.round(value * (levels - 1) / 255);
    }
    indices[at] = index;
  }
  return { width, height, indices };
}

/** `image`, where it is too wide with each pixel the mean of those that it stands for. */
function shrunk(image: Pixels, maxWidth: number): Pixels {
  if (image.width <= maxWidth) return image;
  const width = maxWidth, height = Math.max(1, Math.round(image.height * maxWidth / image.width));
  const rgba = new Uint8Array(width * height * 4);
  const range = (at: number, size: number, whole: number) => {
    const from = Math.floor(at * whole / size);
    return [from, Math.max(from + 1, Math.floor((at + 1) * whole / size))] as const;
  };
  for (let y = 0; y < height; y += 1) {
    const [top, bottom] = range(y, height, image.height);
    for (let x = 0; x < width; x += 1) {
      const [left, right] = range(x, width, image.width);
      for (let color = 0; color < 4; color += 1) {
        let sum = 0;
        for (let row = top; row < bottom; row += 1) {
          for (let column = left; column < right; column += 1) sum += image.rgba[(row * image.width + column) * 4 + color] ?? 0;
        }
        rgba[(y * width + x) * 4 + color] = Math.round(sum / ((bottom - top) * (right - left)));
      }
    }
  }
  return { width, height, rgba };
}
