/** Specifications: what a request may name as a package, which is one exact version from a registry and nothing else. */
import { InputValidationError, PackageNotAllowedError, shown } from "../base/errors.ts";
import { PACKAGES_MAX } from "../base/limits.ts";

/** Languages that packages can be installed for. */
export type PackageLanguage = "python" | "javascript";

/** A package by its name alone, or one version of it. */
export interface PackageName {
  /** As the registry writes it: for Python in lower case, with `-` for every run of `-`, `_` and `.`. */
  readonly name: string;
  /** Undefined for a bare name, which only the command line resolves. */
  readonly version: string | undefined;
  /** Optional features (`requests[socks]`), sorted; Python only. */
  readonly extras: readonly string[];
}

/** One version of a package. */
export interface PackageSpec extends PackageName {
  readonly version: string;
}

/** Longest specification of one package. */
const SPEC_MAX_CHARACTERS = 512;
/** npm's own limit, and far more than any name on PyPI has. */
const NAME_MAX_CHARACTERS = 214;
const EXTRAS_MAX = 32;

const PYTHON_NAME = /^[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?$/i;
/** A version by PEP 440, in any of its spellings. */
const PYTHON_VERSION =
  /^v?(?:\d+!)?\d+(?:\.\d+)*(?:[._-]?(?:a|b|c|rc|alpha|beta|pre|preview)[._-]?\d*)?(?:-\d+|[._-]?(?:post|rev|r)[._-]?\d*)?(?:[._-]?dev[._-]?\d*)?(?:\+[a-z0-9]+(?:[._-][a-z0-9]+)*)?$/i;
const JAVASCRIPT_NAME = /^(?:@[a-z0-9~][a-z0-9._~-]*\/)?[a-z0-9~][a-z0-9._~-]*$/i;
/** A version by semver.org. */
const JAVASCRIPT_VERSION =
  /^(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){2}(?:-(?:0|[1-9]\d*|\d*[a-z-][0-9a-z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-z-][0-9a-z-]*))*)?(?:\+[0-9a-z-]+(?:\.[0-9a-z-]+)*)?$/i;

const WANTED: Readonly<Record<PackageLanguage, string>> = {
  python: "name==version, as in requests==2.32.5 or requests[socks]==2.32.5",
  javascript: "name@version, as in lodash@4.17.21 or @types/node@24.0.0",
};

/** The packages of a request for `language`, each once, sorted by name. Throws `PackageNotAllowedError`, for what is no list of texts `InputValidationError`. */
export function parsePackages(language: string, packages: unknown): readonly PackageSpec[] {
  return mergePackages(checkList(packages).map((text) => pinned(parsePackage(language, text), text)));
}

/** One package for `language`, with or without a version. */
export function parsePackage(language: string, text: string): PackageName {
  if (language !== "python" && language !== "javascript") {
    throw new PackageNotAllowedError(`Cannot install ${shown(text)}: packages are for python and javascript, got language "${language}"`);
  }
  if (text.length > SPEC_MAX_CHARACTERS) refuse(text, `it must have at most ${SPEC_MAX_CHARACTERS} characters, got ${text.length}`);
  const found = language === "python" ? parsePython(text) : parseJavaScript(text);
  return found ?? refuse(text, `it must be ${WANTED[language]}`, adviceFor(text));
}

/** Each package once, sorted by name; extras of the same version are put together. Throws `PackageNotAllowedError` for two versions of one. */
export function mergePackages(packages: readonly PackageSpec[]): readonly PackageSpec[] {
  const merged = new Map<string, PackageSpec>();
  for (const each of packages) {
    const known = merged.get(each.name);
    if (known && known.version !== each.version) {
      throw new PackageNotAllowedError(
        `Cannot install ${each.name}: one version of it must be asked for, got ${known.version} and ${each.version}`,
      );
    }
    merged.set(each.name, { ...each, extras: sorted([...known?.extras ?? [], ...each.extras]) });
  }
  return [...merged.values()].sort((a, b) => a.name < b.name ? -1 : 1);
}

/** As the installer of the language takes it: `requests[socks]==2.32.5`, `@types/node@24.0.0`. */
export function packageText(language: PackageLanguage, { name, version, extras }: PackageSpec): string {
  if (language === "javascript") return `${name}@${version}`;
  return `${name}${extras.length === 0 ? "" : `[${extras.join(",")}]`}==${version}`;
}

/** PEP 503: the one spelling of a name that has many. */
export function normalizePythonName(name: string): string {
  return name.replace(/[-_.]+/g, "-").toLowerCase();
}

function checkList(packages: unknown): readonly string[] {
  if (!Array.isArray(packages)) {
    throw new InputValidationError(`Cannot install packages: packages must be an array of texts, got ${shown(packages)}`);
  }
  if (packages.length > PACKAGES_MAX) {
    throw new PackageNotAllowedError(`Cannot install packages: there must be at most ${PACKAGES_MAX} of them, got ${packages.length}`);
  }
  return packages.map((text) => {
    if (typeof text === "string") return text;
    throw new InputValidationError(`Cannot install packages: each must be a text, got ${shown(text)}`);
  });
}

function pinned(found: PackageName, text: string): PackageSpec {
  const { version } = found;
  if (version !== undefined) return { ...found, version };
  return refuse(text, "its version must be given", {
    hint: "Pin it, as name==version (Python) or name@version (JavaScript); `sbx run -p` resolves a bare name.",
  });
}

function parsePython(text: string): PackageName | undefined {
  const [, name, extrasText, version] = /^([^[\]=]+)(?:\[([^[\]=]*)\])?(?:==([^=]+))?$/.exec(text) ?? [];
  if (name === undefined || name.length > NAME_MAX_CHARACTERS || !PYTHON_NAME.test(name)) return undefined;
  if (version !== undefined && !PYTHON_VERSION.test(version)) return undefined;
  const extras = extrasText?.split(",") ?? [];
  if (extras.length > EXTRAS_MAX || extras.some((extra) => extra.length > NAME_MAX_CHARACTERS || !PYTHON_NAME.test(extra))) {
    return undefined;
  }
  return { name: normalizePythonName(name), version: version?.toLowerCase(), extras: sorted(extras.map(normalizePythonName)) };
}

function parseJavaScript(text: string): PackageName | undefined {
  const at = text.indexOf("@", 1), name = at < 0 ? text : text.slice(0, at), version = at < 0 ? undefined : text.slice(at + 1);
  if (name.length > NAME_MAX_CHARACTERS || !JAVASCRIPT_NAME.test(name)) return undefined;
  if (version !== undefined && !JAVASCRIPT_VERSION.test(version)) return undefined;
  return { name, version, extras: [] };
}

function adviceFor(text: string): { readonly hint: string } | undefined {
  if (text.startsWith("-")) return { hint: "Options of the installer cannot be given." };
  if (/:|\//.test(text.replace(/^@[^/]*\//, ""))) return { hint: "Packages come from the registry: no URL, no path, no repository." };
  if (/[<>~^*]|@latest$|[.@=]x$/.test(text)) return { hint: "A range or a tag changes by itself; give one exact version." };
  return undefined;
}

function refuse(text: string, reason: string, more?: { readonly hint: string }): never {
  throw new PackageNotAllowedError(`Cannot install ${shown(text)}: ${reason}`, more);
}

function sorted(names: readonly string[]): readonly string[] {
  return [...new Set(names)].sort();
}
