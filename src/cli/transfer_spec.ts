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
  return checkUpload({ local, guest }, { action: "set --upload", text });
}

/** Reads `GUEST[:LOCAL]`. Throws `UsageError`, and `InputValidationError` for a bad path in the guest. */
export function parseDownload(text: string): DownloadSpec {
  const [guest, local] = splitSpec(text);
  return checkDownload({ guest, local }, { action: "set --download", text });
}

/** What is to be done with a spec, and what the user wrote: for messages. */
export interface SpecOrigin {
  readonly action: string;
  readonly text: string;
}

/** Returns `spec` when it can be one. Throws as `parseUpload` does. */
export function checkUpload(spec: UploadSpec, origin: SpecOrigin): UploadSpec {
  checkLocal(spec.local, origin);
  if (spec.local === STANDARD_OUTPUT) throw refusal("be a file or a directory", origin);
  checkGuestPath("upload", spec.guest, { isHomeAllowed: true });
  return spec;
}

/** Returns `spec` when it can be one. Throws as `parseDownload` does. */
export function checkDownload(spec: DownloadSpec, origin: SpecOrigin): DownloadSpec {
  const { action, text } = origin;
  if (spec.local !== undefined) checkLocal(spec.local, origin);
  if (spec.guest === "") throw new UsageError(`Cannot ${action}: must name a file or directory of the guest, got ${JSON.stringify(text)}`);
  checkGuestPath("download", spec.guest, { isHomeAllowed: true });
  return spec;
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

function checkLocal(local: string, origin: SpecOrigin): void {
  if (local === "") throw refusal("not be empty", origin);
  if (local.includes("\0")) throw refusal("have no NUL character in it", origin);
  if (Buffer.byteLength(local) > PATH_MAX_BYTES) throw refusal(`be at most ${PATH_MAX_BYTES} bytes`, origin);
}

function refusal(wanted: string, { action, text }: SpecOrigin): UsageError {
  return new UsageError(`Cannot ${action}: the local path must ${wanted}, got ${JSON.stringify(text)}`);
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
