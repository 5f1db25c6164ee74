/** Sources: what `sbx run` was given, as code with a language. */
import { open, stat } from "node:fs/promises";
import path from "node:path";
import { Buffer } from "node:buffer";
import { abortable } from "../base/async.ts";
import { CODE_MAX_BYTES, PATH_MAX_BYTES } from "../base/limits.ts";
import type { Language } from "../run/request.ts";
import type { CliContext } from "./context.ts";
import { UsageError } from "./failure.ts";

const LANGUAGE_NAMES: Readonly<Record<string, Language>> = {
  python: "python",
  py: "python",
  javascript: "javascript",
  js: "javascript",
  ts: "javascript",
  raw: "raw",
  sh: "raw",
  bash: "raw",
};

const LANGUAGE_OF_EXTENSION: Readonly<Record<string, Language>> = {
  ".py": "python",
  ".js": "javascript",
  ".mjs": "javascript",
  ".cjs": "javascript",
  ".ts": "javascript",
  ".mts": "javascript",
  ".cts": "javascript",
  ".jsx": "javascript",
  ".tsx": "javascript",
  ".sh": "raw",
  ".bash": "raw",
};

/** What `--language` accepts, the full names first. */
export const LANGUAGE_CHOICES: readonly string[] = ["python", "javascript", "raw", "py", "js", "ts", "sh", "bash"];

/** One piece of code to run. */
export interface Source {
  /** As the user gave it: `-`, a path or the code itself. */
  readonly source: string;
  /** A short name for people. */
  readonly label: string;
  readonly code: string;
  readonly language: Language;
}

/** The language of `--language NAME`. Throws `UsageError`. */
export function parseLanguage(name: string): Language {
  const language = Object.hasOwn(LANGUAGE_NAMES, name) ? LANGUAGE_NAMES[name] : undefined;
  if (language === undefined) {
    throw new UsageError(`Cannot set --language: must be one of ${LANGUAGE_CHOICES.join(", ")}, got ${JSON.stringify(name)}`);
  }
  return language;
}

/** The language that the extension of `file` names, if any. */
export function languageOfFile(file: string): Language | undefined {
  return LANGUAGE_OF_EXTENSION[path.extname(file).toLowerCase()];
}

/** Does `text` look like a path to code: a known extension, no white space? */
export function looksLikePath(text: string): boolean {
  return !/\s/.test(text) && languageOfFile(text) !== undefined;
}

/** What the user gave. */
export interface GivenSources {
  /** Values of `--code`; they come first. */
  readonly codes: readonly string[];
  readonly positionals: readonly string[];
  /** `--language`, which beats every extension. */
  readonly language: Language | undefined;
}

/** Reads every source, in order. Throws `UsageError` for a missing file, standard input given twice, or no source at all. */
export async function readSources(given: GivenSources, context: Pick<CliContext, "stdin" | "stderr" | "signal">): Promise<Source[]> {
  if (given.codes.length + given.positionals.length === 0) {
    throw new UsageError("Nothing to run: give code, a file, or - for standard input", {
      hint: `Try: sbx run 'print("Hello from sandbox")'`,
    });
  }
  if (given.positionals.filter((source) => source === "-").length > 1) {
    throw new UsageError("Cannot read standard input twice: - may be given once");
  }
  const sources = given.codes.map((code) => inlineSource(code, given.language));
  for (const positional of given.positionals) sources.push(await readSource(positional, given.language, context));
  return sources;
}

async function readSource(
  source: string,
  language: Language | undefined,
  context: Pick<CliContext, "stdin" | "stderr" | "signal">,
): Promise<Source> {
  if (source === "-") {
    if (context.stdin.isTty) context.stderr.write("Reading code from the terminal; end it with Ctrl-D.\n");
    const bytes = await context.stdin.read(CODE_MAX_BYTES, context.signal);
    return { source, label: "standard input", code: decode(bytes, "standard input"), language: language ?? "python" };
  }
  if (!await isExisting(source)) {
    if (!looksLikePath(source)) return inlineSource(source, language);
    throw new UsageError(`Cannot read ${JSON.stringify(source)}: no such file`, {
      hint: "To run it as code instead, give it with --code.",
    });
  }
  // Reading a pipe takes as long as its writer likes.
  const code = decode(await abortable(readFileCapped(source), context.signal), JSON.stringify(source));
  return { source, label: source, code, language: language ?? languageOfFile(source) ?? "python" };
}

function inlineSource(code: string, language: Language | undefined): Source {
  const line = code.trim().split("\n")[0] ?? "";
  return { source: code, label: line.length > 40 ? `${line.slice(0, 39)}…` : line, code, language: language ?? "python" };
}

/** Is there anything at `source`? What cannot be a path is none. */
async function isExisting(source: string): Promise<boolean> {
  if (source === "" || source.includes("\0") || Buffer.byteLength(source) > PATH_MAX_BYTES) return false;
  try {
    await stat(source);
    return true;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "unknown error";
    // ENOTDIR: "a/b" where a is a file; ENAMETOOLONG: a component over 255 bytes, as one-line programs with a slash have.
    if (["ENOENT", "ENOTDIR", "ENAMETOOLONG", "EINVAL"].includes(code)) return false;
    if (!looksLikePath(source) && (code === "EACCES" || code === "ELOOP")) return false;
    throw new UsageError(`Cannot read ${JSON.stringify(source)}: ${reasonOf(code)}`, { cause: error });
  }
}

/** The file's bytes, but at most one more than code may have: pipes and devices have no size to look at first. */
async function readFileCapped(file: string): Promise<Uint8Array> {
  try {
    await using handle = await open(file, "r");
    const chunks: Uint8Array[] = [];
    let total = 0;
    while (total <= CODE_MAX_BYTES) {
      const { bytesRead, buffer } = await handle.read(new Uint8Array(65_536), 0, 65_536, null);
      if (bytesRead === 0) break;
      chunks.push(buffer.subarray(0, bytesRead));
      total += bytesRead;
    }
    return Buffer.concat(chunks);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "unknown error";
    throw new UsageError(`Cannot read ${JSON.stringify(file)}: ${reasonOf(code)}`, { cause: error });
  }
}

function reasonOf(code: string): string {
  if (code === "EISDIR") return "it is a directory";
  if (code === "EACCES" || code === "EPERM") return "permission denied";
  if (code === "ELOOP") return "its symbolic links lead in a circle";
  return code;
}

/** `bytes` as text. Throws `UsageError` when they are no UTF-8 or more than code may have. */
function decode(bytes: Uint8Array, name: string): string {
  if (bytes.length > CODE_MAX_BYTES) {
    throw new UsageError(`Cannot run ${name}: code must be at most ${CODE_MAX_BYTES} bytes of UTF-8, got more`);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new UsageError(`Cannot run ${name}: code must be UTF-8`, { cause });
  }
}
