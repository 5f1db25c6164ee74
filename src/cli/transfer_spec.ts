/** Transfer specs: `LOCAL:GUEST` and `GUEST[:LOCAL]`, and which path they mean. */
import { Buffer } from "node:buffer";
import path from "node:path";
import { PATH_MAX_BYTES } from "../base/limits.ts";
import { checkGuestPath } from "../run/check.ts";
import { UsageError } from "./failure.ts";

/** What goes into the guest. */
export interface UploadSpec {
  /** A file or a directory of this host. */
  readonly local: string;
  /**
   * Where it goes, relative to the home directory. With a slash at its end, or as "" or ".", it is the directory that a file goes into; so it
   * does into any directory that exists. A directory's own content goes to the very path, and with a slash at its end below it.
   */
  readonly guest: string;
}

/** What comes out of the guest. */
export interface DownloadSpec {
  /** A file or a directory below the home directory. */
  readonly guest: string;
  /** Where it goes, by the rules of `UploadSpec.guest`; `-` is standard output; default: its own name in the current directory. */
  readonly local: string | undefined;
}

/** `-` as the local side of a download. */
export const STANDARD_OUTPUT = "-";

/** Reads `LOCAL[:GUEST]`. Throws `UsageError`, and `InputValidationError` for a bad path in the guest. */
export function parseUpload(text: string): UploadSpec {
  const [local, guest = ""] = splitSpec(text);
  checkLocal("upload", local, text);
  checkGuestPath("upload", guest, { isHomeAllowed: true });
  return { local, guest };
}

/** Reads `GUEST[:LOCAL]`. Throws `UsageError`, and `InputValidationError` for a bad path in the guest. */
export function parseDownload(text: string): DownloadSpec {
  const [guest, local] = splitSpec(text);
  if (local !== undefined) checkLocal("download", local, text);
  if (guest === "") throw new UsageError(`Cannot set --download: must name a file or directory of the guest, got ${JSON.stringify(text)}`);
  checkGuestPath("download", guest, { isHomeAllowed: true });
  return { guest, local };
}

/** The two sides: the last colon splits, and `\:` is a colon of a name (`\\` a backslash before one). */
export function splitSpec(text: string): [first: string, second: string | undefined] {
  let at = -1;
  for (let position = 0; position < text.length; position += 1) {
    if (isEscape(text, position)) position += 1;
    else if (text[position] === ":") at = position;
  }
  const plain = (part: string) => part.replace(/\\([\\:])/g, "$1");
  return at < 0 ? [plain(text), undefined] : [plain(text.slice(0, at)), plain(text.slice(at + 1))];
}

function isEscape(text: string, position: number): boolean {
  return text[position] === "\\" && (text[position + 1] === ":" || text[position + 1] === "\\");
}

function checkLocal(option: "upload" | "download", local: string, text: string): void {
  const fail = (wanted: string) => new UsageError(`Cannot set --${option}: the local path must ${wanted}, got ${JSON.stringify(text)}`);
  if (local === "") throw fail("not be empty");
  if (local.includes("\0")) throw fail("have no NUL character in it");
  if (Buffer.byteLength(local) > PATH_MAX_BYTES) throw fail(`be at most ${PATH_MAX_BYTES} bytes`);
  if (option === "upload" && local === STANDARD_OUTPUT) throw fail("be a file or a directory");
}

/** The last name of a local path; "" where it has none: `.`, `..`, `/`. */
export function localName(local: string): string {
  const name = path.basename(local);
  return name === "." || name === ".." ? "" : name;
}

/** A guest path without empty names and dots: "" is the home itself. */
export function plainGuestPath(guest: string): string {
  return guest.split("/").filter((name) => name !== "" && name !== ".").join("/");
}

/** Does the path say by its form that it is a directory? */
export function isDirectoryPath(text: string): boolean {
  return text === "" || text === "." || text === ".." || /\/\.{0,2}$/.test(text);
}

/** `name` below `directory`, which may be "". */
export function below(directory: string, name: string): string {
  return directory === "" || name === "" ? directory + name : `${directory}/${name}`;
}

/** `report.csv` as `report-2.csv`, `.` as `./2`: each of several sources has its own. */
export function numbered(target: string, number: number | undefined): string {
  if (number === undefined) return target;
  if (localName(target) === "") return path.join(target, String(number));
  const { dir, name, ext } = path.parse(target);
  return path.join(dir, `${name}-${number}${ext}`);
}
