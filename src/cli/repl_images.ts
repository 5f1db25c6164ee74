/** Images: how a terminal shows them, and the sequences that draw them. */
import { Buffer } from "node:buffer";
import { settlesWithin } from "../base/async.ts";
import { decodePng, isPng } from "./repl_png.ts";
import { sixelImage } from "./repl_sixel.ts";
import { UsageError } from "./failure.ts";

/** A way to draw in a terminal. */
export type ImageProtocol = "kitty" | "iterm2" | "sixel";

const PROTOCOLS: readonly ImageProtocol[] = ["kitty", "iterm2", "sixel"];
/** Says which protocol is used, whatever the terminal looks like; `none` for files alone. */
export const IMAGES_VARIABLE = "EXEC_SANDBOX_TERMINAL_IMAGES";
/** DA1: what can you do? */
const ATTRIBUTES_QUESTION = "\x1b[c";
const SIXEL_ATTRIBUTE = "4";
const KITTY_CHUNK_CHARS = 4096;
/** A cell is about so wide; no terminal is asked how wide its cells are. */
const CELL_PIXELS = 10;

/** What the environment says: a protocol, that there is none, or nothing at all; then the terminal has to be asked. */
export function protocolOfEnv(env: Readonly<Record<string, string | undefined>>): ImageProtocol | "none" | undefined {
  const wanted = env[IMAGES_VARIABLE];
  if (wanted) {
    if (wanted === "none") return "none";
    const known = PROTOCOLS.find((protocol) => protocol === wanted);
    if (known) return known;
    throw new UsageError(`Cannot read ${IMAGES_VARIABLE}: must be ${PROTOCOLS.join(", ")} or none, got ${JSON.stringify(wanted)}`);
  }
  const { TERM: term = "", TERM_PROGRAM: program = "" } = env;
  // A multiplexer hands on none of what follows unless it is told to, but answers for itself whether it can do sixel.
  if (env["TMUX"] || env["STY"] || /^(tmux|screen)/.test(term)) return undefined;
  if (env["KITTY_WINDOW_ID"] || term === "xterm-kitty" || term === "xterm-ghostty" || program === "ghostty") return "kitty";
  return ["iTerm.app", "WezTerm", "mintty"].includes(program) ? "iterm2" : undefined;
}

/** What an answer to `ATTRIBUTES_QUESTION` says; undefined for any other answer. */
export function protocolOfAnswer(answer: string): "sixel" | "none" | undefined {
  // deno-lint-ignore no-control-regex
  const attributes = /^\x1b\[\?([\d;]*)c$/.exec(answer)?.[1];
  if (attributes === undefined) return undefined;
  return attributes.split(";").slice(1).includes(SIXEL_ATTRIBUTE) ? "sixel" : "none";
}

/** A terminal that says nothing for so long will not answer. */
const ANSWER_MS = 1_000;

/** What the terminal that images go to can do: found out when the first one is shown. */
export class ImageSupport {
  readonly #env: Readonly<Record<string, string | undefined>>;
  readonly #ask: ((question: string) => void) | undefined;
  readonly #answered = Promise.withResolvers<ImageProtocol | "none">();
  #found: Promise<ImageProtocol | "none"> | undefined;

  /** Throws `UsageError` for a bad value of `IMAGES_VARIABLE`. `ask` writes to a terminal whose answers come to `take`. */
  constructor(env: Readonly<Record<string, string | undefined>>, ask?: (question: string) => void) {
    protocolOfEnv(env);
    this.#env = env;
    this.#ask = ask;
  }

  /** Takes an answer of the terminal in. */
  take(answer: string): void {
    const protocol = protocolOfAnswer(answer);
    if (protocol !== undefined) this.#answered.resolve(protocol);
  }

  /** The protocol; undefined where there is none. */
  async protocol(): Promise<ImageProtocol | undefined> {
    this.#found ??= this.#find();
    const found = await this.#found;
    return found === "none" ? undefined : found;
  }

  async #find(): Promise<ImageProtocol | "none"> {
    const known = protocolOfEnv(this.#env);
    if (known !== undefined || this.#ask === undefined) return known ?? "none";
    this.#ask(ATTRIBUTES_QUESTION);
    return await settlesWithin(this.#answered.promise, ANSWER_MS) ? await this.#answered.promise : "none";
  }
}

/** The sequence that draws `image` in a terminal of so many columns; undefined where the protocol cannot show it. */
export function drawingOf(image: Uint8Array, protocol: ImageProtocol, columns: number): string | undefined {
  // Encoded anew: nothing that a guest wrote may end the sequence early.
  const base64 = Buffer.from(image).toString("base64");
  switch (protocol) {
    case "kitty":
      return isPng(image) ? kittyImage(base64) : undefined;
    case "iterm2":
      return `\x1b]1337;File=inline=1;size=${image.length};preserveAspectRatio=1:${base64}\x07`;
    case "sixel": {
      const pixels = decodePng(image);
      return pixels && sixelImage(pixels, columns * CELL_PIXELS);
    }
  }
}

/** Sent in pieces, and without answers (`q=2`), which would look like typing. */
function kittyImage(base64: string): string {
  const chunks: string[] = [];
  for (let at = 0; at < base64.length || at === 0; at += KITTY_CHUNK_CHARS) {
    const isLast = at + KITTY_CHUNK_CHARS >= base64.length;
    const control = `${at === 0 ? "a=T,f=100,q=2," : ""}m=${isLast ? 0 : 1}`;
    chunks.push(`\x1b_G${control};${base64.slice(at, at + KITTY_CHUNK_CHARS)}\x1b\\`);
  }
  return chunks.join("");
}
