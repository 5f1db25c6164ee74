/** Pins: the newest versions of packages that were named without one, looked up once and kept. */
import fs from "node:fs/promises";
import path from "node:path";
import { PackageInstallError } from "../base/errors.ts";
import { makePrivateDirectory, writeFileAtomic } from "../host/files.ts";
import type { InstallStep } from "../packages/install.ts";
import { type PackageLanguage, parsePackage } from "../packages/spec.ts";

/** The version of a package that was named without one. */
export interface PinnedVersion {
  /** As requests name it. */
  readonly version: string;
  /** It was looked up now. */
  readonly isNew: boolean;
}

/** The versions that are kept of one language and registry. */
export class PinFile {
  readonly #file: string;
  readonly #registry: string;

  /** Read and written below `directory`. */
  constructor(directory: string, { language, registry }: { readonly language: PackageLanguage; readonly registry: string }) {
    this.#file = path.join(directory, `versions-${language}.json`);
    this.#registry = registry;
  }

  /** Name to version. */
  async read(): Promise<ReadonlyMap<string, string>> {
    try {
      const { registry, versions } = JSON.parse(await fs.readFile(this.#file, "utf8")) as { registry: unknown; versions: unknown };
      if (registry !== this.#registry || typeof versions !== "object" || versions === null) return new Map();
      return new Map(Object.entries(versions).filter((entry): entry is [string, string] => typeof entry[1] === "string"));
    } catch {
      return new Map(); // None yet, or damaged: they are looked up.
    }
  }

  /** Keeps more of them. */
  async add(found: ReadonlyMap<string, string>): Promise<void> {
    const versions = Object.fromEntries([...await this.read(), ...found]);
    await makePrivateDirectory(path.dirname(this.#file));
    await writeFileAtomic(this.#file, JSON.stringify({ registry: this.#registry, versions }), 0o600);
  }
}

/** Prints the newest stable versions of the packages, as `parsePins` reads them. */
export function pinStep(language: PackageLanguage, names: readonly string[], registry: string): InstallStep {
  const env = { UV_NO_CONFIG: "1", UV_CACHE_DIR: "/opt/packages/.cache", UV_DEFAULT_INDEX: registry, UV_PYTHON_DOWNLOADS: "never" };
  const script = language === "python"
    ? `printf '%s\\n' "$@" | uv pip compile --python /usr/bin/python3.14 --no-deps --no-header --no-annotate --quiet -`
    : `for name; do printf '%s@%s\\n' "$name" "$(curl -sSfL --retry 2 --max-time 120 --header 'Accept: application/vnd.npm.install-v1+json' ` +
      `-- "${registry.replace(/\/+$/, "")}/\${name/\\//%2f}" | jq -r '."dist-tags".latest')"; done`;
  return { phase: "resolve", argv: ["/bin/bash", "-euo", "pipefail", "-c", script, "sbx", ...names], env, isOnline: true };
}

/** Name to version. Throws `PackageInstallError` where one is missing. */
export function parsePins(language: PackageLanguage, text: string, names: readonly string[]): ReadonlyMap<string, string> {
  const found = new Map<string, string>();
  for (const line of text.split("\n").map((each) => each.trim()).filter((each) => each !== "" && !each.startsWith("#"))) {
    try {
      const { name, version } = parsePackage(language, line);
      if (version !== undefined && names.includes(name)) found.set(name, version);
    } catch {
      continue; // Not a pin: what is missing is told below.
    }
  }
  const missing = names.find((name) => !found.has(name));
  if (missing === undefined) return found;
  throw new PackageInstallError(`Cannot find a version of ${missing}: the registry must have a stable one for this image, and has none`);
}
