/** `sbx cache`: what is kept on this host, and how to be rid of it. */
import type { CacheEntry, CacheKind } from "../run/inventory.ts";
import type { Command, Input } from "./command.ts";
import type { CliContext } from "./context.ts";
import { EXIT, printable, UsageError } from "./failure.ts";
import { writeJson } from "./result_json.ts";
import { megabytes, table } from "./table.ts";

const JSON_OPTION = { long: "json", help: "print a machine-readable list" } as const;
const DRY_RUN_OPTION = { long: "dry-run", short: "n", help: "say what would be removed, and remove nothing" } as const;
const DAY_MS = 86_400_000;
const UNUSED_DAYS = 30, UNUSED_DAYS_MAX = 36_500;
/** What is made anew when it is next wanted. */
const RENEWABLE: readonly CacheKind[] = ["template", "layer"];
/** Words of the command line for the kinds that may be cleared. */
const KINDS: Readonly<Record<string, CacheKind>> = { templates: "template", layers: "layer", checkpoints: "checkpoint", images: "image" };
const NAME_SHOWN_CHARACTERS = 40, DIGEST_SHOWN_DIGITS = 12;

const ls: Command = {
  name: "ls",
  summary: "list start templates, package layers, named checkpoints and images with their sizes",
  options: [{ long: "packages", help: "show every package that a layer has, with its version" }, JSON_OPTION],
  examples: [["sbx cache ls --packages --json", "what is installed, with the hashes that the registry gave"]],
  run: list,
};

const prune: Command = {
  name: "prune",
  summary: "remove what dead processes left, what is damaged, and templates and layers that were not used lately",
  options: [
    { long: "unused-for", value: "DAYS", help: `what counts as lately; default: ${UNUSED_DAYS}` },
    DRY_RUN_OPTION,
    JSON_OPTION,
  ],
  run: pruneCache,
};

const clear: Command = {
  name: "clear",
  summary: "remove all of a kind: templates and layers, which are made anew when they are wanted, unless KIND says otherwise",
  argument: {
    name: "kind",
    isVariadic: true,
    help: "templates, layers, checkpoints or images; default: templates and layers",
    completion: Object.keys(KINDS),
  },
  options: [DRY_RUN_OPTION, JSON_OPTION],
  run: clearCache,
};

/** The command. */
export const cache: Command = {
  name: "cache",
  summary: "list or remove what is kept: start templates, installed packages, checkpoints and images",
  commands: [ls, prune, clear],
};

async function list(context: CliContext, input: Input): Promise<number> {
  const { directory, entries } = await (await context.openCache()).list({ withInstalled: input.has("packages") });
  if (input.has("json")) {
    writeJson(context.stdout, { directory, size_bytes: sizeOf(entries), entries: entries.map(entryJson) });
    return EXIT.ok;
  }
  const nowMs = Date.now();
  const lines = table(entries.map((entry) => rowOf(entry, nowMs))).split("\n");
  const shown = entries.flatMap((entry, at) => [`${lines[at]}\n`, ...installedLines(entry)]);
  const count = entries.length === 1 ? "1 entry" : `${entries.length} entries`;
  context.stdout.write(`${shown.join("")}${count}, ${megabytes(sizeOf(entries))} in ${directory}\n`);
  return EXIT.ok;
}

async function pruneCache(context: CliContext, input: Input): Promise<number> {
  const days = parseDays(input.value("unused-for"));
  const since = Date.now() - days * DAY_MS;
  return await remove(context, input, (entry) => {
    if (entry.kind === "leftover") return true;
    return RENEWABLE.includes(entry.kind) && (entry.isDamaged || (entry.usedAtMs ?? 0) < since);
  });
}

async function clearCache(context: CliContext, input: Input): Promise<number> {
  const kinds = input.positionals.map((word) => {
    const kind = Object.hasOwn(KINDS, word) ? KINDS[word] : undefined;
    if (kind === undefined) {
      throw new UsageError(`Cannot clear ${JSON.stringify(word)}: it must be one of ${Object.keys(KINDS).join(", ")}`);
    }
    return kind;
  });
  const chosen: readonly CacheKind[] = kinds.length === 0 ? RENEWABLE : kinds;
  return await remove(context, input, ({ kind }) => kind === "leftover" || chosen.includes(kind));
}

async function remove(context: CliContext, input: Input, isChosen: (entry: CacheEntry) => boolean): Promise<number> {
  const cache = await context.openCache(), { directory, entries } = await cache.list({});
  const chosen = entries.filter(isChosen), isDry = input.has("dry-run");
  if (!isDry) {
    for (const entry of chosen) {
      context.signal.throwIfAborted();
      await cache.remove(entry);
    }
    await cache.sweep();
  }
  if (input.has("json")) {
    writeJson(context.stdout, { directory, dry_run: isDry, size_bytes: sizeOf(chosen), removed: chosen.map(entryJson) });
    return EXIT.ok;
  }
  const nowMs = Date.now();
  context.stdout.write(table(chosen.map((entry) => rowOf(entry, nowMs))));
  const verb = isDry ? "Would remove" : "Removed";
  context.stderr.write(
    chosen.length === 0
      ? `Nothing to remove in ${directory}.\n`
      : `${verb} ${chosen.length} of ${entries.length}: ${megabytes(sizeOf(chosen))}.\n`,
  );
  return EXIT.ok;
}

function parseDays(text: string | undefined): number {
  if (text === undefined) return UNUSED_DAYS;
  const days = /^\d+(?:\.\d+)?$/.test(text) ? Number(text) : NaN;
  if (days >= 0 && days <= UNUSED_DAYS_MAX) return days;
  throw new UsageError(`Cannot read --unused-for: it must be a number of days from 0 to ${UNUSED_DAYS_MAX}, got ${JSON.stringify(text)}`);
}

function sizeOf(entries: readonly CacheEntry[]): number {
  return entries.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
}

function rowOf(entry: CacheEntry, nowMs: number): string[] {
  const name = entry.kind === "leftover"
    ? entry.name
    : entry.name.replace(/[0-9a-f]{32,}$/, (digits) => digits.slice(0, DIGEST_SHOWN_DIGITS));
  const used = entry.usedAtMs === undefined ? "" : ageOf(nowMs - entry.usedAtMs);
  return [entry.kind, printable(name).slice(0, NAME_SHOWN_CHARACTERS), megabytes(entry.sizeBytes), used, printable(aboutOf(entry))];
}

function aboutOf({ kind, isDamaged, language = "", memoryMb, packages = [], version = "" }: CacheEntry): string {
  if (isDamaged) return "damaged";
  if (kind === "layer") return `${language}: ${packages.join(" ")}`;
  if (kind === "image") return `version ${version}`;
  return memoryMb === undefined ? "" : `${language}, ${memoryMb} MB`;
}

function installedLines({ language, installed = [] }: CacheEntry): string[] {
  const mark = language === "javascript" ? "@" : "==";
  return installed.map(({ name, version }) => `  ${printable(`${name}${mark}${version}`)}\n`);
}

function ageOf(ms: number): string {
  const minutes = Math.max(0, Math.floor(ms / 60_000));
  if (minutes < 60) return `${minutes} min ago`;
  return minutes < 48 * 60 ? `${Math.floor(minutes / 60)} h ago` : `${Math.floor(minutes / 1440)} d ago`;
}

function entryJson(entry: CacheEntry): Record<string, unknown> {
  return {
    kind: entry.kind,
    name: entry.name,
    directory: entry.directory,
    size_bytes: entry.sizeBytes,
    used_at: entry.usedAtMs === undefined ? null : new Date(entry.usedAtMs).toISOString(),
    damaged: entry.isDamaged,
    ...(entry.language === undefined ? {} : { language: entry.language }),
    ...(entry.memoryMb === undefined ? {} : { memory_mb: entry.memoryMb }),
    ...(entry.packages === undefined ? {} : { packages: entry.packages }),
    ...(entry.installed === undefined ? {} : { installed: entry.installed }),
    ...(entry.version === undefined ? {} : { version: entry.version }),
  };
}
