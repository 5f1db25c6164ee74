/** Images: which protocol, which sequences, which pixels; and what becomes of images that lie. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { existsSync } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import test from "node:test";
import { crc32, deflateSync } from "node:zlib";
import fc from "fast-check";
import { Display } from "../../../src/cli/repl_display.ts";
import { drawingOf, type ImageProtocol, ImageSupport, protocolOfAnswer, protocolOfEnv } from "../../../src/cli/repl_images.ts";
import { decodePng } from "../../../src/cli/repl_png.ts";
import { sixelImage } from "../../../src/cli/repl_sixel.ts";
import { temporaryDirectory } from "../../support/leftovers.ts";
import { FakeOutput } from "./fake_context.ts";

function chunk(type: string, body: Uint8Array): Buffer {
  const named = Buffer.concat([Buffer.from(type, "latin1"), body]), frame = Buffer.alloc(8);
  frame.writeUInt32BE(body.length, 0);
  frame.writeUInt32BE(crc32(named), 4);
  return Buffer.concat([frame.subarray(0, 4), named, frame.subarray(4)]);
}

interface Png {
  readonly width: number;
  readonly height: number;
  readonly depth?: number;
  readonly colorType?: number;
  readonly interlace?: number;
  /** Rows with their filter bytes. */
  readonly rows: readonly number[];
  readonly extra?: readonly Buffer[];
}

function png({ width, height, depth = 8, colorType = 2, interlace = 0, rows, extra = [] }: Png): Buffer {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([depth, colorType, 0, 0, interlace], 8);
  const parts = [chunk("IHDR", header), ...extra, chunk("IDAT", deflateSync(Buffer.from(rows))), chunk("IEND", Buffer.alloc(0))];
  return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), ...parts]);
}

const RED = png({ width: 2, height: 1, rows: [0, 255, 0, 0, 255, 0, 0] });

test("the environment names the protocol, unless a multiplexer stands between", () => {
  const cases: ReadonlyArray<readonly [Record<string, string>, ImageProtocol | "none" | undefined]> = [
    [{ KITTY_WINDOW_ID: "1" }, "kitty"],
    [{ TERM: "xterm-kitty" }, "kitty"],
    [{ TERM: "xterm-ghostty" }, "kitty"],
    [{ TERM_PROGRAM: "iTerm.app" }, "iterm2"],
    [{ TERM_PROGRAM: "WezTerm" }, "iterm2"],
    [{ TERM: "xterm-256color" }, undefined],
    [{ TERM_PROGRAM: "iTerm.app", TMUX: "/tmp/x" }, undefined],
    [{ KITTY_WINDOW_ID: "1", TERM: "screen" }, undefined],
    [{ EXEC_SANDBOX_TERMINAL_IMAGES: "sixel", KITTY_WINDOW_ID: "1", TMUX: "x" }, "sixel"],
    [{ EXEC_SANDBOX_TERMINAL_IMAGES: "none", KITTY_WINDOW_ID: "1" }, "none"],
  ];
  for (const [env, protocol] of cases) assert.equal(protocolOfEnv(env), protocol, JSON.stringify(env));
  assert.throws(() => protocolOfEnv({ EXEC_SANDBOX_TERMINAL_IMAGES: "ascii" }), /must be kitty, iterm2, sixel or none, got "ascii"/);
});

test("a terminal that is not known is asked, once; one that is silent has no images", async () => {
  for (const [answer, protocol] of [["\x1b[?62;4;22c", "sixel"], ["\x1b[?64;1;22c", undefined], ["\x1b[?4c", undefined]] as const) {
    const asked: string[] = [];
    const support = new ImageSupport({}, (question) => {
      asked.push(question);
      queueMicrotask(() => {
        support.take("\x1b[?1;2$y"); // Not an answer to this.
        support.take(answer);
      });
    });
    assert.equal(await support.protocol(), protocol);
    assert.equal(await support.protocol(), protocol);
    assert.deepEqual(asked, ["\x1b[c"]);
  }
  assert.equal(await new ImageSupport({}, () => {}).protocol(), undefined);
  assert.equal(await new ImageSupport({}).protocol(), undefined);
  assert.equal(protocolOfAnswer("\x1b[?64;14c"), "none");
});

test("kitty gets PNG in pieces of 4096 characters, and nothing else", () => {
  const large = png({
    width: 64,
    height: 64,
    rows: Array.from({ length: 64 * 193 }, (_, at) => at % 193 === 0 ? 0 : (at * at * 7919 >> 3) % 251),
  });
  const drawing = drawingOf(large, "kitty", 80) ?? "";
  const pieces = drawing.split("\x1b\\").slice(0, -1);
  assert.ok(pieces.length > 1);
  assert.match(pieces[0]?.slice(1) ?? "", /^_Ga=T,f=100,q=2,m=1;[\w+/]{4096}$/);
  assert.ok(pieces.at(-1)?.startsWith("\x1b_Gm=0;"));
  const base64 = pieces.map((piece) => piece.slice(piece.indexOf(";") + 1)).join("");
  assert.deepEqual(Buffer.from(base64, "base64"), large);
  assert.equal(drawingOf(Buffer.from("GIF89a"), "kitty", 80), undefined);
});

test("iTerm2 gets any image, with its size", () => {
  const image = Buffer.from("GIF89a");
  assert.equal(drawingOf(image, "iterm2", 80), `\x1b]1337;File=inline=1;size=6;preserveAspectRatio=1:${image.toString("base64")}\x07`);
});

test("PNG of every kind has its pixels", () => {
  const rgba = (bytes: Buffer) => [...decodePng(bytes)?.rgba ?? []];
  assert.deepEqual(rgba(RED), [255, 0, 0, 255, 255, 0, 0, 255]);
  const one = { width: 1, height: 1 };
  assert.deepEqual(rgba(png({ ...one, colorType: 0, rows: [0, 9] })), [9, 9, 9, 255]);
  assert.deepEqual(rgba(png({ ...one, colorType: 4, rows: [0, 9, 8] })), [9, 9, 9, 8]);
  assert.deepEqual(rgba(png({ ...one, colorType: 6, rows: [0, 1, 2, 3, 4] })), [1, 2, 3, 4]);
  assert.deepEqual(rgba(png({ ...one, colorType: 2, depth: 16, rows: [0, 1, 99, 2, 99, 3, 99] })), [1, 2, 3, 255]);
  assert.deepEqual(rgba(png({ width: 2, height: 1, colorType: 0, depth: 1, rows: [0, 0x40] })), [0, 0, 0, 255, 255, 255, 255, 255]);
  const palette = [chunk("PLTE", Buffer.from([1, 2, 3, 4, 5, 6])), chunk("tRNS", Buffer.from([7]))];
  assert.deepEqual(rgba(png({ width: 3, height: 1, colorType: 3, depth: 2, rows: [0, 0b00_01_10_00], extra: palette })), [
    ...[1, 2, 3, 7],
    ...[4, 5, 6, 255],
    ...[0, 0, 0, 255],
  ]);
});

test("every filter is undone", () => {
  const grey = (rows: readonly number[]) =>
    [...decodePng(png({ width: 2, height: rows.length / 3, colorType: 0, rows }))?.rgba ?? []].filter((_, at) => at % 4 === 0);
  assert.deepEqual(grey([1, 5, 3]), [5, 8]);
  assert.deepEqual(grey([0, 5, 8, 2, 1, 255]), [5, 8, 6, 7]);
  assert.deepEqual(grey([0, 5, 8, 3, 1, 2]), [5, 8, 3, 7]);
  assert.deepEqual(grey([0, 5, 8, 4, 1, 2]), [5, 8, 6, 10]);
  assert.equal(decodePng(png({ width: 2, height: 1, colorType: 0, rows: [5, 1, 1] })), undefined);
});

test("images that lie, or are too large, are refused without unpacking them", () => {
  const rows = [0, 255, 0, 0, 255, 0, 0];
  const bad: ReadonlyArray<readonly [string, Uint8Array]> = [
    ["nothing", Buffer.alloc(0)],
    ["no PNG", Buffer.from("GIF89a")],
    ["cut off", RED.subarray(0, 40)],
    ["too few rows", png({ width: 2, height: 2, rows })],
    ["too many rows: a bomb", png({ width: 1, height: 1, rows: new Array(1_000_000).fill(0) })],
    ["too large", png({ width: 16_000, height: 16_000, rows })],
    ["no width", png({ width: 0, height: 1, rows })],
    ["no such depth", png({ width: 2, height: 1, depth: 3, rows })],
    ["no such colour", png({ width: 2, height: 1, colorType: 5, rows })],
    ["interlaced", png({ width: 2, height: 1, interlace: 1, rows })],
  ];
  for (const [what, bytes] of bad) {
    assert.equal(decodePng(bytes), undefined, what);
    assert.equal(drawingOf(bytes, "sixel", 80), undefined, what);
  }
});

test("damaged PNG never throws", () => {
  fc.assert(fc.property(fc.nat(RED.length - 1), fc.nat(255), (at, value) => {
    const bytes = Buffer.from(RED);
    bytes[at] = value;
    decodePng(bytes);
  }));
});

/** The pixels of a sixel sequence, row by row, as colour numbers. */
function paint(sequence: string): { readonly colors: Map<number, string>; readonly rows: number[][] } {
  const colors = new Map<number, string>(), rows: number[][] = [];
  let color = 0, x = 0, band = 0;
  for (const [token] of sequence.slice(sequence.indexOf('"'), -2).matchAll(/"[\d;]+|#\d+(?:;2;[\d;]+)?|!\d+[?-~]|[?-~]|[$-]/g)) {
    const [, repeat, sixel] = /^!(\d+)(.)$/.exec(token) ?? [undefined, "1", token];
    if (token.startsWith('"')) continue;
    if (token.startsWith("#")) {
      const [number, value] = token.slice(1).split(";2;");
      color = Number(number);
      if (value) colors.set(color, value);
    } else if (token === "$" || token === "-") {
      x = 0;
      if (token === "-") band += 6;
    } else {
      for (let count = Number(repeat); count > 0; count -= 1, x += 1) {
        for (let bit = 0; bit < 6; bit += 1) {
          if (((sixel?.charCodeAt(0) ?? 63) - 63) & 1 << bit) (rows[band + bit] ??= [])[x] = color;
        }
      }
    }
  }
  return { colors, rows };
}

test("sixel paints every pixel, in its colour, once", () => {
  const width = 10, height = 8, rgba = new Uint8Array(width * height * 4).fill(255);
  for (let at = 0; at < width * height; at += 1) if (at % 3 === 0) rgba.set([255, 0, 0, 255], at * 4);
  const sequence = sixelImage({ width, height, rgba }, 800);
  assert.ok(sequence.startsWith(`\x1bPq"1;1;10;8#`) && sequence.endsWith("\x1b\\"));
  const { colors, rows } = paint(sequence);
  assert.deepEqual([rows.length, rows.every((row) => row.length === width)], [height, true]);
  for (let at = 0; at < width * height; at += 1) {
    assert.equal(colors.get(rows[Math.floor(at / width)]?.[at % width] ?? -1), at % 3 === 0 ? "100;0;0" : "100;100;100", String(at));
  }
});

test("what is transparent is white, and what is too wide is made narrower", () => {
  const clear = paint(sixelImage({ width: 1, height: 1, rgba: new Uint8Array(4) }, 10));
  assert.deepEqual([...clear.colors.values()], ["100;100;100"]);
  const wide = sixelImage({ width: 100, height: 50, rgba: new Uint8Array(100 * 50 * 4).fill(255) }, 20);
  assert.ok(wide.startsWith(`\x1bPq"1;1;20;10#`));
});

function place(directory: string, protocol?: ImageProtocol) {
  const stdout = new FakeOutput(), stderr = new FakeOutput();
  return { stdout, stderr, display: new Display({ stdout, stderr, directory, protocol: () => Promise.resolve(protocol) }) };
}

test("images are kept as private files where they cannot be drawn, and their path is told", async (t) => {
  const directory = path.join(temporaryDirectory(t), "figures");
  const { display, stdout, stderr } = place(directory);
  await display.show({ "image/png": RED.toString("base64"), "text/plain": "<Figure>" });
  await display.show({ "image/svg+xml": "<svg/>" });
  const files = [...stderr.text.matchAll(/^image: (.+)$/gm)].map((match) => match[1] ?? "");
  assert.deepEqual([stdout.text, files.map((file) => path.basename(file))], ["", ["1.png", "2.svg"]]);
  assert.deepEqual(await fs.readFile(files[0] ?? ""), RED);
  assert.equal(await fs.readFile(files[1] ?? "", "utf8"), "<svg/>");
  assert.deepEqual([(await fs.stat(files[0] ?? "")).mode & 0o777, (await fs.stat(path.dirname(files[0] ?? ""))).mode & 0o777], [
    0o600,
    0o700,
  ]);
});

test("images that the terminal draws leave no file; those that it cannot draw do", async (t) => {
  const directory = path.join(temporaryDirectory(t), "figures");
  const { display, stdout, stderr } = place(directory, "kitty");
  await display.show({ "image/png": RED.toString("base64") });
  assert.ok(stdout.text.startsWith("\x1b_Ga=T") && stdout.text.endsWith("\x1b\\\n"));
  assert.deepEqual([stderr.text, existsSync(directory)], ["", false]);
  await display.show({ "image/jpeg": "/9j/" });
  assert.match(stderr.text, /1\.jpg\n$/);
});

test("the images of the newest 20 sessions are kept", async (t) => {
  const directory = temporaryDirectory(t);
  for (let at = 10; at < 40; at += 1) await fs.mkdir(path.join(directory, `202501${at}-000000-1`));
  await fs.mkdir(path.join(directory, "mine"));
  await place(directory).display.show({ "image/png": "AA==" });
  const names = (await fs.readdir(directory)).sort();
  assert.deepEqual([names.length, names.includes("mine"), names.includes("20250120-000000-1"), names.includes("20250121-000000-1")], [
    21,
    true,
    false,
    true,
  ]);
});

test("a directory that cannot be written is told of, and the session goes on", async (t) => {
  const file = path.join(temporaryDirectory(t), "file");
  await fs.writeFile(file, "");
  const { display, stderr } = place(path.join(file, "figures"));
  await display.show({ "image/png": "AA==" });
  assert.match(stderr.text, /^sbx: Cannot keep an image: /);
});

test("other data is text, the plainest first, without control characters", async (t) => {
  const shown = async (data: Record<string, string>) => {
    const { display, stdout } = place(temporaryDirectory(t));
    await display.show(data);
    return stdout.text;
  };
  assert.equal(await shown({ "text/html": "<b>x</b>", "text/plain": "plain" }), "plain\n");
  assert.equal(await shown({ "text/html": "<style>b {}</style><b>1 &lt; 2</b><script>x</script> &amp;lt;" }), "1 < 2 &lt;\n");
  assert.equal(await shown({ "application/json": '{"a":1}' }), '{"a":1}\n');
  assert.equal(await shown({ "application/x-\x1bunknown": "x" }), "[application/x-\uFFFDunknown]\n");
  assert.equal(await shown({ "text/plain": "a\x1b[31mb\x07" }), "a\uFFFD[31mb\uFFFD\n");
});
