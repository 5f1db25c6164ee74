/** Package options: which packages a VM gets, and the versions of those that were named without one. */
import { type PackageSpec, packageText, parsePackage } from "../packages/spec.ts";
import type { PackageFields } from "../run/package_request.ts";
import type { Language } from "../run/request.ts";
import type { Input, OptionSpec } from "./command.ts";
import type { CliScheduler } from "./context.ts";
import { printable } from "./failure.ts";
import type { Output } from "./output.ts";

/** The options. */
export const PACKAGE_OPTIONS: readonly OptionSpec[] = [
  {
    long: "package",
    short: "p",
    value: "PACKAGE",
    isRepeatable: true,
    help: "package to install, repeatable: name==version (Python), name@version (JavaScript), or a name alone",
  },
  { long: "upgrade", help: "look the newest versions of packages without one up again" },
  { long: "no-validation", help: "install packages that are not in the catalog too" },
  { long: "no-preload", help: "do not import the packages ahead of time" },
];

/** What they say. */
export interface PackageOptions {
  readonly texts: readonly string[];
  readonly isUpgrade: boolean;
  readonly isValidated: boolean;
  readonly isPreloaded: boolean;
}

/** Reads the options; the packages themselves are checked when the language is known. */
export function parsePackageOptions(input: Input): PackageOptions {
  return {
    texts: input.values("package"),
    isUpgrade: input.has("upgrade"),
    isValidated: !input.has("no-validation"),
    isPreloaded: !input.has("no-preload"),
  };
}

/** What pins names, and who is told. */
export interface PackageWorld {
  readonly scheduler: Pick<CliScheduler, "pinPackages">;
  readonly stderr: Output;
  /** Its line makes way for what is told. */
  readonly progress: { clear(): void };
  readonly isQuiet: boolean;
  readonly signal: AbortSignal;
}

/**
 * Says what the packages are as fields of a request for a language. A name without a version gets its newest, which is told on standard error and
 * kept for later runs. Names are looked up once however often it is asked. Rejects with `PackageNotAllowedError`.
 */
export function packageFinder(options: PackageOptions, world: PackageWorld): (language: Language) => Promise<PackageFields> {
  const found = new Map<Language, Promise<PackageFields>>();
  return (language) => {
    const fields = found.get(language) ?? packageFields(options, language, world);
    found.set(language, fields);
    return fields;
  };
}

async function packageFields(
  { texts, isUpgrade, isPreloaded }: PackageOptions,
  language: Language,
  { scheduler, stderr, progress, isQuiet, signal }: PackageWorld,
): Promise<PackageFields> {
  if (texts.length === 0) return {};
  const preload = isPreloaded ? {} : { preload: false };
  const named = texts.map((text) => parsePackage(language, text));
  const bare = named.filter(({ version }) => version === undefined).map(({ name }) => name);
  // `parsePackage` refuses any for a shell.
  if (bare.length === 0 || language === "raw") return { packages: texts, ...preload };
  const pins = await scheduler.pinPackages(language, bare, { isFresh: isUpgrade, signal });
  const pinned = named.map((each): PackageSpec => ({ ...each, version: each.version ?? pins.get(each.name)?.version ?? "" }));
  for (const spec of pinned.filter(({ name }) => !isQuiet && pins.get(name)?.isNew)) {
    progress.clear();
    stderr.startLine();
    stderr.write(`${printable(`${spec.name} → ${spec.version}; pin it with -p ${packageText(language, spec)}`)}\n`);
  }
  return { packages: pinned.map((spec) => packageText(language, spec)), ...preload };
}
