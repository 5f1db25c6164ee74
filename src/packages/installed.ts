/** Installed: what an installation says of itself. All of it comes from a guest that has run foreign code, so nothing is believed but its form. */
import { GuestAgentError } from "../base/errors.ts";
import type { PackageLanguage } from "./spec.ts";

/** One package of a layer, asked for or needed by another. */
export interface InstalledPackage {
  readonly name: string;
  readonly version: string;
  /** Of what the registry sent, as its tools write them: `sha256:…`, `sha512-…`. */
  readonly hashes: readonly string[];
}

const NAME = /^[A-Za-z0-9@_~][A-Za-z0-9._~/-]{0,213}$/, VERSION = /^[A-Za-z0-9][A-Za-z0-9.+!_-]{0,127}$/;
const HASH = /^sha\d{1,3}[:-][A-Za-z0-9+/=]{16,128}$/;
const MODULE = /^[A-Za-z][A-Za-z0-9_]{0,99}$/;
/** Names that packages carry along and that nobody imports. */
const NO_MODULES: ReadonlySet<string> = new Set(["tests", "test", "docs", "examples", "benchmarks", "bin", "scripts", "setup", "conftest"]);
/** More than anybody imports; each takes time when a template is made. */
const MODULES_MAX = 100;

/** The packages of the installer's lock, sorted by name. Throws `GuestAgentError` for a text that is none. */
export function parseLock(language: PackageLanguage, text: string): readonly InstalledPackage[] {
  const found = language === "python" ? parsePythonLock(text) : parseBunLock(text);
  const isSound = found.length > 0 &&
    found.every(({ name, version, hashes }) => NAME.test(name) && VERSION.test(version) && hashes.every((hash) => HASH.test(hash)));
  if (!isSound) throw new GuestAgentError(`Cannot install packages: what the installer says of them cannot be read`);
  return [...found].sort((a, b) => a.name < b.name ? -1 : 1);
}

/** uv's: `name==version \` and lines of `--hash=sha256:…`. */
function parsePythonLock(text: string): InstalledPackage[] {
  const found: Array<{ name: string; version: string; hashes: string[] }> = [];
  for (const line of text.split("\n")) {
    const [, name, version] = /^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s\\;]+)/.exec(line) ?? [];
    const hash = /--hash=(sha\d+:[0-9a-f]+)/.exec(line)?.[1];
    if (name !== undefined && version !== undefined) found.push({ name, version, hashes: [] });
    if (hash !== undefined) found.at(-1)?.hashes.push(hash);
  }
  return found;
}

/** Bun's: JSON with commas at ends; `packages` has `path: ["name@version", registry, facts, hash]`. */
function parseBunLock(text: string): InstalledPackage[] {
  let packages: unknown;
  try {
    packages = (JSON.parse(text.replace(/,(\s*[}\]])/g, "$1")) as { packages?: unknown }).packages;
  } catch {
    return []; // Not JSON: refused as what it is.
  }
  if (typeof packages !== "object" || packages === null) return [];
  const found = new Map<string, InstalledPackage>();
  for (const entry of Object.values(packages)) {
    const [id, , , hash] = Array.isArray(entry) ? entry as unknown[] : [];
    if (typeof id !== "string") return [];
    const at = id.indexOf("@", 1);
    found.set(id, { name: id.slice(0, at), version: id.slice(at + 1), hashes: typeof hash === "string" && hash !== "" ? [hash] : [] });
  }
  return [...found.values()];
}

/** The modules that a request's packages have, of those that somebody imports: in the order of the packages, each once. */
export function parseModules(text: string): readonly string[] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return []; // Nothing is imported ahead.
  }
  if (typeof value !== "object" || value === null) return [];
  const names = Object.values(value).flatMap((modules) => Array.isArray(modules) ? modules as unknown[] : []);
  const modules = names.filter((name): name is string => typeof name === "string" && MODULE.test(name) && !NO_MODULES.has(name));
  return [...new Set(modules)].slice(0, MODULES_MAX);
}

/** Hosts, with their ports where these are not the usual ones, of the addresses in `text`, a line each. */
export function parseHosts(text: string): readonly string[] {
  const hosts = text.split("\n").map((line) => line.trim()).filter((line) => /^https?:\/\//.test(line) && URL.canParse(line)).map(ruleOf);
  return [...new Set(hosts)].slice(0, HOSTS_MAX);
}

/** Registries use one or two hosts for their files. */
const HOSTS_MAX = 16;

/** What an allowlist says of an address: its host, and its port where it has one of its own. */
export function ruleOf(address: string): string {
  const { hostname, port } = new URL(address);
  return port === "" ? hostname : `${hostname}:${port}`;
}
