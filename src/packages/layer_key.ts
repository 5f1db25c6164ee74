/** Layer key: everything that decides what an installation of packages leaves, and nothing of the host that does not. */
import { createHash } from "node:crypto";
import { type PackageLanguage, type PackageSpec, packageText } from "./spec.ts";

/** Raised when an installation of the same inputs leaves something else: other steps of it, another layout of the layer. */
export const LAYER_FORMAT = 1;

/** What a layer is made from. */
export interface LayerInputs {
  readonly language: PackageLanguage;
  /** Of the guest: `x86_64` or `aarch64`. Wheels and native parts are for one. */
  readonly arch: string;
  /** SHA-256 of the root image that the packages are installed on: it has the installer, the compiler, the libraries. */
  readonly image: string;
  /** What runs them, by name: `{"python": "3.14.2"}`, `{"bun": "1.4.5"}`. The image's hash says it too; this says it to people. */
  readonly runtime: Readonly<Record<string, string>>;
  /** As the installer takes them, normalised, each once, sorted: `requests[socks]==2.32.5`. */
  readonly packages: readonly string[];
  /** Where they come from, without credentials, when that is not what the image has for its default; else "". */
  readonly index: string;
  /** Choices of the installation, by name: `{"scripts": false}`. One that is left at its default may be named or not, but always the same way. */
  readonly options: Readonly<Record<string, string | number | boolean>>;
}

/** What `layerInputs` needs to be told. */
export interface LayerRequest extends Omit<LayerInputs, "packages" | "index" | "options"> {
  /** As `parsePackages` gives them. */
  readonly packages: readonly PackageSpec[];
  /** URL of an index that the user has set; undefined for the image's default. */
  readonly index?: string | undefined;
  readonly options?: LayerInputs["options"];
}

/** The inputs of a request's layer, in the one form that is hashed. */
export function layerInputs({ language, arch, image, runtime, packages, index, options = {} }: LayerRequest): LayerInputs {
  return {
    language,
    arch,
    image,
    runtime: sortedRecord(runtime),
    packages: [...new Set(packages.map((each) => packageText(language, each)))].sort(),
    index: index === undefined ? "" : withoutCredentials(index),
    options: sortedRecord(options),
  };
}

/** SHA-256 over the inputs and `LAYER_FORMAT`, in lower-case hex. Equal keys mean layers that may stand in for each other, on any host. */
export function layerKey({ language, arch, image, runtime, packages, index, options }: LayerInputs): string {
  const inputs = {
    format: LAYER_FORMAT,
    language,
    arch,
    image,
    runtime: sortedRecord(runtime),
    packages: [...packages].sort(),
    index,
    options: sortedRecord(options),
  };
  return createHash("sha256").update(JSON.stringify(inputs)).digest("hex");
}

/** A password decides who may read an index, not what is in it; and keys and manifests are not the place for one. */
function withoutCredentials(index: string): string {
  if (!URL.canParse(index)) return index;
  const url = new URL(index);
  url.username =
    url.password =
    url.search =
    url.hash =
      "";
  return url.href.replace(/\/+$/, "");
}

function sortedRecord<T>(record: Readonly<Record<string, T>>): Readonly<Record<string, T>> {
  return Object.fromEntries(Object.entries(record).sort(([a], [b]) => a < b ? -1 : 1));
}
