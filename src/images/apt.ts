/** Debian packages: an apt of our own beside the host's, with the host's mirror and keyring and nothing else of its configuration. */
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { AssetError, SandboxDependencyError } from "../base/errors.ts";
import { exists, makePrivateDirectory } from "../host/files.ts";
import { describeExit, run } from "../host/process.ts";

const KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg";
/** What apt says when the date of a suite has passed. */
export const RELEASE_EXPIRED = /Release file for .* is expired/;

/** One source of packages, as a host's apt is configured with. */
export interface AptSource {
  readonly types: readonly string[];
  readonly uris: readonly string[];
  readonly suites: readonly string[];
  readonly components: readonly string[];
}

/** Where a host gets Debian and its security updates from. */
export interface Mirrors {
  readonly main: string;
  readonly security: string;
}

/** Parses one-line sources (`deb [options] uri suite components`). Lines that are none are skipped. */
export function parseOneLineSources(text: string): AptSource[] {
  const sources: AptSource[] = [];
  for (const raw of text.split("\n")) {
    const line = raw.replace(/#.*/, "").trim();
    const match = /^(deb|deb-src)\s+(?:\[[^\]]*\]\s*)?(\S+)\s+(\S+)\s*(.*)$/.exec(line);
    if (!match) continue;
    const [, type = "", uri = "", suite = "", components = ""] = match;
    sources.push({ types: [type], uris: [uri], suites: [suite], components: words(components) });
  }
  return sources;
}

/** Parses deb822 sources (paragraphs of `Field: value` lines). Disabled and incomplete paragraphs are skipped. */
export function parseDeb822Sources(text: string): AptSource[] {
  const sources: AptSource[] = [];
  const lines = text.split("\n").filter((line) => !line.startsWith("#"));
  for (const paragraph of lines.join("\n").split(/\n\s*\n/)) {
    const fields = new Map<string, string>();
    let current = "";
    for (const line of paragraph.split("\n")) {
      const field = /^([A-Za-z][A-Za-z0-9-]*):\s*(.*)$/.exec(line);
      if (field) fields.set(current = (field[1] ?? "").toLowerCase(), field[2] ?? "");
      else if (current && /^\s/.test(line)) fields.set(current, `${fields.get(current)} ${line.trim()}`);
    }
    const list = (name: string) => words(fields.get(name) ?? "");
    if (/^(no|false|off|0)$/i.test(fields.get("enabled") ?? "")) continue;
    if (list("uris").length === 0 || list("suites").length === 0) continue;
    sources.push({ types: list("types"), uris: list("uris"), suites: list("suites"), components: list("components") });
  }
  return sources;
}

/** The mirrors among `sources` of a host that runs `codename`. Throws `SandboxDependencyError` when it has none for Debian. */
export function findMirrors(sources: readonly AptSource[], codename: string): Mirrors {
  const binary = sources.filter((source) =>
    source.types.includes("deb") && (source.components.length === 0 || source.components.includes("main"))
  );
  const withSuite = (matches: (suite: string) => boolean) =>
    binary.find((source) => source.suites.some(matches))?.uris[0]?.replace(/\/+$/, "");
  const main = withSuite((suite) => suite === codename || suite === "stable" || suite === "testing" || suite === "oldstable");
  if (main === undefined) {
    throw new SandboxDependencyError(
      `Cannot find a Debian mirror: apt must be configured with a source for ${codename} main, got ${binary.length} sources without`,
      { hint: "Images are built on a Debian host; on another one use `sbx prefetch`." },
    );
  }
  // Mirrors keep the security archive beside the main one, under the same name with `-security`.
  const security = withSuite((suite) => suite.endsWith("-security")) ?? `${main}-security`;
  return { main, security };
}

/** Reads the host's sources and finds its mirrors. */
export async function hostMirrors(root = "/"): Promise<Mirrors> {
  const release = await fs.readFile(path.join(root, "etc/os-release"), "utf8").catch(() => ""); // No Linux distribution: refused below.
  const field = (name: string) => new RegExp(`^${name}="?([^"\n]*)"?$`, "m").exec(release)?.[1] ?? "";
  if (field("ID") !== "debian") {
    throw new SandboxDependencyError(
      `Cannot build the images: the host must be Debian, got "${field("PRETTY_NAME") || "no /etc/os-release"}"`,
      {
        hint: "Use `sbx prefetch`, or build on a Debian machine and copy the images directory.",
      },
    );
  }
  const sources: AptSource[] = [];
  const directory = path.join(root, "etc/apt/sources.list.d");
  const names = (await fs.readdir(directory).catch(() => [])).sort(); // A host with one sources.list alone.
  for (const file of [path.join(root, "etc/apt/sources.list"), ...names.map((name) => path.join(directory, name))]) {
    const text = await fs.readFile(file, "utf8").catch(() => ""); // Not every host has sources.list.
    sources.push(...(file.endsWith(".sources") ? parseDeb822Sources(text) : parseOneLineSources(text)));
  }
  return findMirrors(sources, field("VERSION_CODENAME"));
}

/** How an apt of our own is opened. */
export interface AptOptions {
  readonly mirrors: Mirrors;
  /** Suites with binary packages, such as `trixie` and `bookworm-security`. */
  readonly suites: readonly string[];
  /** Suites with source packages. */
  readonly sourceSuites: readonly string[];
  readonly signal: AbortSignal;
  /** Told when a suite's signature is good but its date has passed. */
  readonly onWarning: (message: string) => void;
}

/** An apt with its own lists, cache and sources, in a directory of ours. */
export class Apt {
  /** A suite's date has passed: later apt calls must not check it. Signatures are always checked. */
  readonly isLenient: boolean;
  readonly mirrors: Mirrors;
  readonly #directory: string;
  readonly #options: AptOptions;
  readonly #warned = new Set<string>();

  private constructor(directory: string, options: AptOptions, isLenient: boolean) {
    this.#directory = directory;
    this.#options = options;
    this.isLenient = isLenient;
    this.mirrors = options.mirrors;
  }

  /** Sets it up in `directory` and reads the suites' lists. */
  static async open(directory: string, options: AptOptions): Promise<Apt> {
    if (!await exists(KEYRING)) {
      throw new SandboxDependencyError(`Cannot check Debian's signatures: ${KEYRING} must exist (package debian-archive-keyring)`);
    }
    for (const part of ["lists/partial", "cache/archives/partial", "state"]) await makePrivateDirectory(path.join(directory, part));
    const line = (type: string) => (suite: string) => `${sourceLine(type, options.mirrors, suite)}\n`;
    const lines = [...options.suites.map(line("deb")), ...options.sourceSuites.map(line("deb-src"))];
    await fs.writeFile(path.join(directory, "sources.list"), lines.join(""));
    await fs.writeFile(path.join(directory, "state/status"), "");
    const strict = new Apt(directory, options, false);
    const first = await strict.#run(["apt-get", "update"]);
    if (first.code === 0) return strict;
    if (!RELEASE_EXPIRED.test(first.output)) throw strict.#failure("apt-get update", first);
    const lenient = new Apt(directory, options, true);
    const second = await lenient.#run(["apt-get", "update"]);
    if (second.code !== 0) throw lenient.#failure("apt-get update", second);
    for (const suite of await lenient.expiredSuites()) lenient.warnExpired(suite);
    return lenient;
  }

  /** Downloads `name` (of `suite`) into `target` and returns its file. */
  async download(name: string, suite: string, target: string): Promise<string> {
    await fs.mkdir(target, { recursive: true });
    const result = await this.#run(["apt-get", "download", `${name}/${suite}`], target);
    if (result.code !== 0) throw this.#failure(`apt-get download ${name}/${suite}`, result);
    const file = (await fs.readdir(target)).find((entry) => entry.startsWith(`${name}_`) && entry.endsWith(".deb"));
    if (file === undefined) throw new AssetError(`Cannot download ${name}: apt-get left no package in ${target}`);
    return path.join(target, file);
  }

  /** Downloads and unpacks the newest source package `name` below `target`; returns its directory and Debian version. */
  async source(name: string, target: string): Promise<{ readonly directory: string; readonly version: string }> {
    await fs.mkdir(target, { recursive: true });
    const result = await this.#run(["apt-get", "source", name], target);
    if (result.code !== 0) throw this.#failure(`apt-get source ${name}`, result);
    const entries = await fs.readdir(target, { withFileTypes: true });
    const directory = entries.find((entry) => entry.isDirectory() && entry.name.startsWith(`${name}-`));
    const description = entries.find((entry) => entry.name.endsWith(".dsc"));
    if (!directory || !description) throw new AssetError(`Cannot unpack the source of ${name}: apt-get left none in ${target}`);
    const text = await fs.readFile(path.join(target, description.name), "utf8");
    return { directory: path.join(target, directory.name), version: /^Version:\s*(\S+)/m.exec(text)?.[1] ?? "" };
  }

  /** Suites whose date has passed, and that date. Their signatures were good, or they would not be here. */
  async expiredSuites(): Promise<Array<{ readonly suite: string; readonly validUntil: string }>> {
    const lists = path.join(this.#directory, "lists");
    const found: Array<{ suite: string; validUntil: string }> = [];
    for (const name of await fs.readdir(lists)) {
      if (!name.endsWith("InRelease")) continue;
      const text = await fs.readFile(path.join(lists, name), "utf8");
      const validUntil = /^Valid-Until:\s*(.+)$/m.exec(text)?.[1];
      const suite = /^Codename:\s*(.+)$/m.exec(text)?.[1] ?? name;
      if (validUntil !== undefined && Date.parse(validUntil) < Date.now()) found.push({ suite, validUntil });
    }
    return found;
  }

  /** Tells the user, once per suite, that it is used although its date has passed. */
  warnExpired({ suite, validUntil }: { readonly suite: string; readonly validUntil: string }): void {
    if (this.#warned.has(suite)) return;
    this.#warned.add(suite);
    this.#options.onWarning(`the mirror's ${suite} was valid until ${validUntil}; its signature is good, so it is used as it is`);
  }

  /** The host's proxies, as options for an apt that does not read the host's configuration. */
  async proxyOptions(): Promise<string[]> {
    const { stdout } = await run(["apt-config", "dump", "--format", '%f "%v"%n', "Acquire"], { signal: this.#options.signal });
    return stdout.split("\n").filter((line) => /^Acquire::(https?|ftp)::Proxy(::\S+)? ".+"$/.test(line));
  }

  async #run([program, ...args]: readonly [string, ...string[]], cwd = this.#directory) {
    const directory = this.#directory;
    const settings: Record<string, string> = {
      "Dir::Etc::sourcelist": path.join(directory, "sources.list"),
      "Dir::Etc::sourceparts": "/dev/null",
      "Dir::Etc::preferences": "/dev/null",
      "Dir::Etc::preferencesparts": "/dev/null",
      "Dir::State": path.join(directory, "state"),
      "Dir::State::lists": path.join(directory, "lists"),
      "Dir::State::status": path.join(directory, "state/status"),
      "Dir::Cache": path.join(directory, "cache"),
      // apt would drop to a user that cannot enter this private directory.
      "APT::Sandbox::User": "",
      "APT::Update::Post-Invoke": "",
      "Acquire::Languages": "none",
      "Acquire::Retries": "3",
      ...(this.isLenient ? { "Acquire::Check-Valid-Until": "false" } : {}),
    };
    const options = Object.entries(settings).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
    const env = { ...process.env, LC_ALL: "C.UTF-8" } as Record<string, string>;
    const ended = await run([program, "-q", ...options, ...args], { cwd, env, signal: this.#options.signal });
    // A suite that could not be fetched is only a warning to apt when older lists exist.
    const output = ended.stdout + ended.stderr;
    return { ...ended, code: ended.code === 0 && RELEASE_EXPIRED.test(output) ? 100 : ended.code, output };
  }

  #failure(what: string, ended: { readonly code: number | null; readonly signal: string | null; readonly output: string }): AssetError {
    return new AssetError(`Cannot get packages: "${what}" ${describeExit(ended)}\n${ended.output.trim().split("\n").slice(-8).join("\n")}`);
  }
}

/** A line of `sources.list` for `suite`, from the mirror it lies on. */
export function sourceLine(type: string, mirrors: Mirrors, suite: string): string {
  return `${type} [signed-by=${KEYRING}] ${suite.endsWith("-security") ? mirrors.security : mirrors.main} ${suite} main`;
}

function words(text: string): string[] {
  return text.split(/\s+/).filter((word) => word !== "");
}
