/** Display: what code shows beside its output. Images are drawn where the terminal can, and kept as files where not; the rest is text. */
import { Buffer } from "node:buffer";
import { mkdir, readdir, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { messageOf } from "../base/errors.ts";
import { makePrivateDirectory } from "../host/files.ts";
import type { DisplayData } from "../base/result.ts";
import { printable, writeReport } from "./failure.ts";
import type { Output } from "./output.ts";
import { drawingOf, type ImageProtocol } from "./repl_images.ts";

/** The images that are kept: those of so many sessions, the newest. */
const SESSIONS_KEPT = 20;
/** Of one session; an endless loop must not fill the disk. */
const IMAGES_MAX = 1_000;
const BYTES_MAX = 268_435_456;

/** Types of images in the order they are preferred, with the extension of their file and whether they are text. */
const IMAGE_TYPES: ReadonlyArray<readonly [type: string, extension: string, isText: boolean]> = [
  ["image/png", "png", false],
  ["image/jpeg", "jpg", false],
  ["image/gif", "gif", false],
  ["image/webp", "webp", false],
  ["image/svg+xml", "svg", true],
];
/** Types of text in the order they are preferred. */
const TEXT_TYPES: readonly string[] = ["text/plain", "text/markdown", "text/latex", "application/json", "text/html"];

/** Where things are shown. */
export interface DisplayPlace {
  readonly stdout: Output;
  readonly stderr: Output;
  /** Below it each session that keeps an image has a directory of its own. */
  readonly directory: string;
  /** How the terminal draws; undefined where it does not, or where there is none. */
  protocol(): Promise<ImageProtocol | undefined>;
}

/** Shows display data. */
export class Display {
  readonly #place: DisplayPlace;
  #own: string | undefined;
  #count = 0;
  #byteCount = 0;

  constructor(place: DisplayPlace) {
    this.#place = place;
  }

  /** Shows one object; returns the text that stands for it. Never rejects: what cannot be shown is said. */
  async show(data: DisplayData): Promise<string | undefined> {
    const { stdout } = this.#place;
    const image = IMAGE_TYPES.find(([type]) => Object.hasOwn(data, type));
    if (image !== undefined) {
      const [type, extension, isText] = image;
      await this.#showImage(Buffer.from(data[type] ?? "", isText ? "utf8" : "base64"), extension);
      return data["text/plain"];
    }
    stdout.startLine();
    const type = TEXT_TYPES.find((candidate) => Object.hasOwn(data, candidate));
    const text = type === undefined ? `[${Object.keys(data).join(", ") || "nothing"}]` : textOf(type, data[type] ?? "");
    stdout.write(`${printable(text).replace(/\n$/, "")}\n`);
    return text;
  }

  async #showImage(image: Uint8Array, extension: string): Promise<void> {
    const { stdout, stderr } = this.#place;
    const protocol = await this.#place.protocol();
    const drawing = protocol && extension !== "svg" ? drawingOf(image, protocol, stdout.columns) : undefined;
    stdout.startLine();
    if (drawing !== undefined) return stdout.write(`${drawing}\n`);
    try {
      const file = await this.#keep(image, extension);
      stderr.startLine();
      stderr.write(file === undefined ? "" : `image: ${printable(file)}\n`);
    } catch (error) {
      writeReport(stderr, { message: `Cannot keep an image: ${messageOf(error)}` });
    }
  }

  /** Undefined once there are too many. */
  async #keep(image: Uint8Array, extension: string): Promise<string | undefined> {
    if (this.#count >= IMAGES_MAX || this.#byteCount + image.length > BYTES_MAX) {
      if (this.#count === Infinity) return undefined;
      this.#count = Infinity;
      throw new Error(`a session keeps at most ${IMAGES_MAX} images of ${BYTES_MAX >> 20} MB in all; this and later ones are not kept`);
    }
    this.#own ??= await this.#makeDirectory();
    this.#count += 1;
    this.#byteCount += image.length;
    const file = path.join(this.#own, `${this.#count}.${extension}`);
    await writeFile(file, image, { mode: 0o600, flag: "wx" });
    return file;
  }

  async #makeDirectory(): Promise<string> {
    const { directory } = this.#place;
    await makePrivateDirectory(directory);
    const older = (await readdir(directory)).filter((name) => /^\d{8}-\d{6}-\d+$/.test(name)).sort();
    for (const name of older.slice(0, Math.max(0, older.length - SESSIONS_KEPT + 1))) {
      await rm(path.join(directory, name), { recursive: true, force: true });
    }
    const stamp = new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-");
    const own = path.join(directory, `${stamp}-${process.pid}`);
    await mkdir(own, { mode: 0o700 });
    return own;
  }
}

function textOf(type: string, text: string): string {
  if (type !== "text/html") return text;
  return text.replace(/<(style|script)\b[^]*?<\/\1>/gi, "").replace(/<[^>]*>/g, "").replace(/&lt;/g, "<").replace(/&gt;/g, ">")
    .replace(/&quot;/g, '"').replace(/&amp;/g, "&").trim();
}
