/** Stage of the catalogs: names of the packages that requests may ask for, most used first. */
import { createHash } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { AssetError, messageOf } from "../base/errors.ts";
import { fetchNpmPackage } from "./npm.ts";
import type { Stage, StageContext } from "./stage.ts";
import type { Workshop } from "./stages_machine.ts";

/** File name of each language's catalog. */
export const CATALOG_NAMES = { python: "packages-python.txt", javascript: "packages-javascript.txt" } as const;
/** Where a list of Python's packages may lie: beside the checkout. */
const PYTHON_LIST = "../shared/data/pypi-top-10000.txt";
/** As many of each language, of those used most. */
const NAMES_MAX = 10_000;
/** A catalog with less is a mistake: requests for everyday packages would be refused. */
const NAMES_MIN = 1_000;
const DOWNLOAD_TIMEOUT_MS = 60_000;
/** In Debian's package of its Python tools: which distribution each package holds. */
const DEBIAN_MAPPING = "usr/share/dh-python/dist/cpython3_fallback";

/** Names of one language, and where they come from. */
interface NameList {
  readonly names: readonly string[];
  readonly source: string;
}

/**
 * The catalogs of both languages. Python's names come from `list`, a file or a URL with one name a line, most used first; else from the list
 * beside the checkout; else from what Debian packages, unordered.
 */
export async function catalogsStage(shop: Workshop, list?: string): Promise<Stage> {
  const given = await readPythonList(shop, list);
  const { catalogs } = shop.lock;
  return {
    name: "catalogs",
    inputs: [
      JSON.stringify(catalogs),
      String(NAMES_MAX),
      given ? createHash("sha256").update(given.names.join("\n")).digest("hex") : "Debian",
    ],
    async build(context) {
      context.step("collecting names of packages");
      const found = { python: given ?? await readDebianNames(shop, context), javascript: await readNpmNames(shop, context) };
      for (const language of ["python", "javascript"] as const) await writeCatalog(context, CATALOG_NAMES[language], found[language]);
      return { versions: { python: found.python.source, javascript: found.javascript.source } };
    },
  };
}

/** The names in a list of one a line; lines that begin with `#` are none. Throws `AssetError` for a line that no package can be named by. */
export function parseNames(text: string, source: string): readonly string[] {
  const names = text.split("\n").map((line) => line.trim()).filter((line) => line !== "" && !line.startsWith("#"));
  const strange = names.find((name) => !/^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$/.test(name));
  if (strange === undefined) return names;
  throw new AssetError(
    `Cannot use ${source} as a catalog: each line must be the name of a package, got ${JSON.stringify(strange.slice(0, 80))}`,
  );
}

async function readPythonList(shop: Workshop, list: string | undefined): Promise<NameList | undefined> {
  if (list !== undefined && /^https?:\/\//.test(list)) {
    return { names: parseNames(await download(list), list), source: "a list from a URL" };
  }
  const file = list ?? path.join(shop.root, PYTHON_LIST);
  try {
    return { names: parseNames(await fs.readFile(file, "utf8"), file), source: path.basename(file) };
  } catch (error) {
    if (list === undefined && (error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error instanceof AssetError ? error : new AssetError(`Cannot read the catalog ${file}: ${messageOf(error)}`);
  }
}

async function download(url: string): Promise<string> {
  const response = await fetch(url, { signal: AbortSignal.timeout(DOWNLOAD_TIMEOUT_MS) }).catch((error) => {
    throw new AssetError(`Cannot get the catalog ${url}: ${messageOf(error)}`);
  });
  if (!response.ok) throw new AssetError(`Cannot get the catalog ${url}: the server answered ${response.status}`);
  return await response.text();
}

async function readDebianNames(shop: Workshop, context: StageContext): Promise<NameList> {
  const { package: name, suite } = shop.lock.catalogs.python;
  const archive = await (await shop.apt()).download(name, suite, context.work);
  await context.exec(["dpkg-deb", "-x", archive, "debian"]);
  const text = await fs.readFile(path.join(context.work, "debian", DEBIAN_MAPPING), "utf8");
  const names = text.split("\n").map((line) => line.split(/\s/)[0] ?? "").filter((word) => /^[A-Za-z0-9]/.test(word));
  return { names: parseNames([...new Set(names)].join("\n"), name), source: path.basename(archive) };
}

async function readNpmNames(shop: Workshop, context: StageContext): Promise<NameList> {
  const pinned = shop.lock.catalogs.javascript;
  const content = await fetchNpmPackage(context, pinned);
  // A module of one array; its text is read, not run.
  const text = await fs.readFile(path.join(content, "lib/top.js"), "utf8");
  return {
    names: [...text.matchAll(/^ {2}'([^'\s]+)',?$/gm)].map(([, name]) => name ?? ""),
    source: `${pinned.package} ${pinned.version}`,
  };
}

async function writeCatalog(context: StageContext, file: string, { names, source }: NameList): Promise<void> {
  if (names.length < NAMES_MIN) {
    throw new AssetError(`Cannot make ${file}: ${source} must have at least ${NAMES_MIN} names, got ${names.length}`);
  }
  await fs.writeFile(path.join(context.out, file), `${names.slice(0, NAMES_MAX).join("\n")}\n`);
}
