/** Catalog: the names of the packages that may be installed, most used first, and which of them somebody may have meant. */
import { PackageNotAllowedError } from "../base/errors.ts";
import { normalizePythonName, type PackageLanguage, type PackageName } from "./spec.ts";

/** Names that differ in more places are no misspelling of each other. */
const DISTANCE_MAX = 2;
const SUGGESTIONS_MAX = 3;

/** The packages of one language. */
export class Catalog {
  readonly #language: PackageLanguage;
  readonly #text: string;
  #names: ReadonlySet<string> | undefined;

  /** `text` has a name a line, most used first. */
  constructor(language: PackageLanguage, text: string) {
    this.#language = language;
    this.#text = text;
  }

  /** How many names it has. */
  get size(): number {
    return this.#all().size;
  }

  /** Whether `name`, as `parsePackage` gives it, is in it. */
  has(name: string): boolean {
    if (this.#names) return this.#names.has(name);
    // Most runs ask for names that are there: finding a few takes a tenth of the time of reading them all.
    const escaped = name.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
    const line = this.#language === "python"
      ? new RegExp(`^${escaped.replace(/-/g, "[-_.]+")}\\s*$`, "im")
      : new RegExp(`^${escaped}\\s*$`, "m");
    return line.test(this.#text) || this.#all().has(name);
  }

  /** Throws `PackageNotAllowedError` for the first package that is not in it, with names that were perhaps meant. */
  check(packages: readonly PackageName[]): void {
    const unknown = packages.find(({ name }) => !this.has(name));
    if (!unknown) return;
    const likely = this.similar(unknown.name);
    const meant = likely.length === 0 ? "" : `Did you mean ${likely.join(" or ")}? `;
    throw new PackageNotAllowedError(
      `Cannot install "${unknown.name}": it must be one of the ${this.size} ${this.#language} packages of the catalog, and is not`,
      { hint: `${meant}Packages outside of the catalog are installed with --no-validation (enablePackageValidation: false).` },
    );
  }

  /** Names that `name` may be a misspelling of, the nearest first, of the equally near the most used first. */
  similar(name: string): readonly string[] {
    const most = Math.min(DISTANCE_MAX, Math.floor(name.length / 3));
    const near: Array<{ readonly name: string; readonly distance: number }> = [];
    for (const candidate of this.#all()) {
      const distance = editDistance(name, candidate, most);
      if (distance <= most) near.push({ name: candidate, distance });
    }
    return near.sort((a, b) => a.distance - b.distance).slice(0, SUGGESTIONS_MAX).map((each) => each.name);
  }

  #all(): ReadonlySet<string> {
    const isPython = this.#language === "python";
    return this.#names ??= new Set(
      this.#text.split("\n").map((line) => line.trim()).filter((line) => line !== "").map((name) =>
        isPython ? normalizePythonName(name) : name
      ),
    );
  }
}

/** Insertions, deletions, substitutions and swaps of neighbours from `a` to `b`; anything above `most` where there are more. */
export function editDistance(a: string, b: string, most: number): number {
  if (Math.abs(a.length - b.length) > most) return most + 1;
  let before: number[] = [], last = Array.from({ length: b.length + 1 }, (_, at) => at);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const isSame = a[i - 1] === b[j - 1], isSwap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      const changed = (last[j - 1] ?? 0) + (isSame ? 0 : 1);
      row[j] = Math.min(changed, (last[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, isSwap ? (before[j - 2] ?? 0) + 1 : Infinity);
    }
    if (Math.min(...row) > most) return most + 1;
    before = last;
    last = row;
  }
  return last[b.length] ?? 0;
}
