/** Stages of the root file systems: Debian testing made small, with uv or Bun on top, as EROFS. */
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { AssetError, messageOf } from "../base/errors.ts";
import { type ImageLanguage, ROOT_IMAGE_NAMES } from "./assets.ts";
import { RELEASE_EXPIRED, sourceLine } from "./apt.ts";
import { requirements, uvWheel } from "./lock.ts";
import { fetchNpmPackage } from "./npm.ts";
import { defaultRegistry } from "./registry.ts";
import { fingerprint } from "./sources.ts";
import type { Stage, StageContext } from "./stage.ts";
import { makeVenv, takeRecipe, type Workshop } from "./stages_machine.ts";

/** One identity for all builds: the image's bytes depend on its content alone. */
const FILESYSTEM_UUID = "5b9e2d1c-0000-4000-8000-000000000000";
/**
 * Clusters of 16 KiB: 9 % smaller than 4 KiB (119 against 131 MB for Python), and no slower to boot from; 64 KiB saves another 6 % but
 * reads more than is asked for.
 */
const EROFS_OPTIONS = ["-zlz4hc,12", "-C16384", "-x-1", "-T0", "--all-root", `-U${FILESYSTEM_UUID}`, "--quiet"];
const LEFT_OUT = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"];

/** Who takes the room in a root image, by path; the first match counts. */
const CONTENTS: ReadonlyArray<readonly [string, RegExp]> = [
  ["Bun", /^usr\/bin\/bun$/],
  ["uv", /^usr\/bin\/uvx?$/],
  ["CPython", /python/],
  ["time zones", /^usr\/share\/zoneinfo/],
  [
    "C compiler",
    /gcc|^usr\/include|cc1|binutils|ldscripts|lib(bfd|opcodes|isl|mpfr|mpc|ctf|sframe)|bin\/x86_64-linux|bin\/(as|ld)|\.a$|crt.*\.o$/,
  ],
  ["git", /git/],
  ["file", /magic|usr\/lib\/file/],
  [
    "TLS and curl",
    /lib(ssl|crypto|gnutls|curl|krb5|nettle|hogweed|p11|unistring|ldap|sasl|ngtcp2|nghttp)|ssl|ca-certificates|bin\/(curl|openssl)/,
  ],
];

/** The root image of `language`. */
export async function rootfsStage(shop: Workshop, language: ImageLanguage): Promise<Stage> {
  const { root, arch, lock } = shop;
  const extras = { python: lock.uv, javascript: lock.bun, raw: {} }[language];
  const packages = [...lock.rootfs.common, ...lock.rootfs[language]];
  return {
    name: `image ${language}`,
    inputs: [
      arch,
      lock.rootfs.suite,
      packages.join(","),
      JSON.stringify(extras),
      EROFS_OPTIONS.join(" "),
      await fingerprint(root, ["images/rootfs"]),
    ],
    async build(context) {
      const recipe = await takeRecipe(shop, context, "rootfs");
      const tree = path.join(context.work, "tree");
      await fs.mkdir(tree);
      context.step("fetching extras", 0);
      const versions = language === "python"
        ? await fetchUv(shop, context)
        : language === "javascript"
        ? await fetchBun(shop, context)
        : {};
      context.step("installing packages", 10);
      await bootstrap(shop, context, { packages, hook: await fs.readFile(path.join(recipe, "compile.sh"), "utf8") });
      context.step("unpacking", 55);
      // Device nodes need privilege, and the guest's /dev is a devtmpfs.
      await context.exec(["tar", "-C", tree, "--exclude=./dev/*", "-xf", "root.tar"]);
      await fs.rm(path.join(context.work, "root.tar"));
      const installed = await installedPackages(tree);
      await installExtras(context, tree);
      context.step("leaving out what is not needed", 60);
      await context.exec(["sh", path.join(recipe, "prune.sh"), tree, language]);
      await context.exec(["sh", path.join(recipe, "check.sh"), tree]);
      const contents = await measure(tree), registry = await registryOf(language, tree);
      context.step("compressing", 70);
      await context.exec(["mkfs.erofs", ...EROFS_OPTIONS, path.join(context.out, ROOT_IMAGE_NAMES[language]), tree], { isSilent: true });
      const facts = { versions: { ...versions, ...named(installed) }, packages: { ...installed, ...versions }, contents };
      return registry === undefined ? facts : { ...facts, registry };
    },
  };
}

/** Makes `root.tar`: a minimal Debian with `packages`. */
async function bootstrap(
  shop: Workshop,
  context: StageContext,
  { packages, hook }: { readonly packages: readonly string[]; readonly hook: string },
): Promise<void> {
  const apt = await shop.apt();
  const { suite } = shop.lock.rootfs;
  // Without root the work is done by subordinate users, who cannot enter our private directory (nor read a hook's file in it).
  const temporary = process.getuid?.() === 0 ? context.work : "/var/tmp";
  const make = (options: readonly string[]) =>
    context.exec([
      "mmdebstrap",
      "--variant=essential",
      `--architectures=${shop.arch === "x86_64" ? "amd64" : "arm64"}`,
      `--include=${packages.join(",")}`,
      ...LEFT_OUT.map((pattern) => `--dpkgopt=path-exclude=${pattern}`),
      ...['APT::Install-Recommends "false"', ...options].map((option) => `--aptopt=${option}`),
      `--customize-hook=${hook}`,
      suite,
      "root.tar",
      sourceLine("deb", apt.mirrors, suite),
    ], { env: { SOURCE_DATE_EPOCH: "0", PYTHONHASHSEED: "0", TMPDIR: temporary } });
  const options = await apt.proxyOptions();
  const undated = [...options, 'Acquire::Check-Valid-Until "false"'];
  if (apt.isLenient) return void await make(undated);
  try {
    await make(options);
  } catch (error) {
    if (!RELEASE_EXPIRED.test(messageOf(error))) throw error;
    // A mirror that stands still: the suite's signature is checked again, its date is not.
    for (const expired of await apt.expiredSuites()) apt.warnExpired(expired);
    await fs.rm(path.join(context.work, "root.tar"), { force: true });
    await make(undated);
  }
}

/** Packages that `versions` names, by the name a user knows. */
const NAMED: ReadonlyArray<readonly [string, RegExp]> = [
  ["python", /^python3\.\d+$/],
  ["gcc", /^gcc-\d+$/],
  ["cloudpickle", /^python3-cloudpickle$/],
  ["bash", /^bash$/],
  ["git", /^git$/],
  ["glibc", /^libc6$/],
];

function named(packages: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(NAMED.flatMap(([name, pattern]) => {
    const found = Object.keys(packages).find((candidate) => pattern.test(candidate));
    return found === undefined ? [] : [[name, packages[found] ?? ""]];
  }));
}

/** Name and version of every package in the tree: the image's bill of materials. */
async function installedPackages(tree: string): Promise<Record<string, string>> {
  const status = await fs.readFile(path.join(tree, "var/lib/dpkg/status"), "utf8");
  const versions: Record<string, string> = {};
  for (const paragraph of status.split("\n\n")) {
    const name = /^Package: (\S+)$/m.exec(paragraph)?.[1], version = /^Version: (\S+)$/m.exec(paragraph)?.[1];
    if (name && version) versions[name] = version;
  }
  return versions;
}

async function fetchUv(shop: Workshop, context: StageContext): Promise<Record<string, string>> {
  const wheel = uvWheel(shop.lock, shop.arch);
  const python = await makeVenv(context);
  await fs.writeFile(path.join(context.work, "uv.txt"), requirements([wheel]));
  const options = ["--no-deps", "--require-hashes", "--only-binary=:all:", `--platform=${wheel.platform}`, "--dest=wheel"];
  await context.exec([python, "-m", "pip", "download", "-q", ...options, "-r", "uv.txt"]);
  const [file] = await fs.readdir(path.join(context.work, "wheel"));
  if (file === undefined) throw new AssetError("Cannot fetch uv: pip left no wheel");
  await context.exec(["unzip", "-q", path.join("wheel", file), "-d", "uv"]);
  const scripts = path.join(context.work, "uv", `uv-${wheel.version}.data`, "scripts");
  await stash(context, ["uv", "uvx"].map((name) => path.join(scripts, name)));
  return { uv: wheel.version };
}

async function fetchBun(shop: Workshop, context: StageContext): Promise<Record<string, string>> {
  const { version } = shop.lock.bun;
  const content = await fetchNpmPackage(context, { version, ...shop.lock.bun[shop.arch] });
  await stash(context, [path.join(content, "bin/bun")]);
  return { bun: version };
}

/** Puts programs aside until there is a tree to install them in. */
async function stash(context: StageContext, files: readonly string[]): Promise<void> {
  const target = path.join(context.work, "extras");
  await fs.mkdir(target, { recursive: true });
  for (const file of files) await fs.rename(file, path.join(target, path.basename(file)));
}

async function installExtras(context: StageContext, tree: string): Promise<void> {
  const extras = path.join(context.work, "extras");
  for (const name of await fs.readdir(extras).catch(() => [])) { // A language without any.
    const target = path.join(tree, "usr/bin", name);
    await fs.rename(path.join(extras, name), target);
    await fs.chmod(target, 0o755);
  }
}

/** The registry of the image's package manager, as its own program has it. */
async function registryOf(language: ImageLanguage, tree: string): Promise<string | undefined> {
  const program = ({ python: "uv", javascript: "bun", raw: undefined } as const)[language];
  return program === undefined ? undefined : defaultRegistry(program, await fs.readFile(path.join(tree, "usr/bin", program)));
}

/** Bytes by what takes them. */
async function measure(tree: string): Promise<Record<string, number>> {
  const sums: Record<string, number> = {};
  for (const entry of await fs.readdir(tree, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const full = path.join(entry.parentPath, entry.name);
    const relative = path.relative(tree, full);
    const group = CONTENTS.find(([, pattern]) => pattern.test(relative))?.[0] ?? "C library, shell and tools";
    sums[group] = (sums[group] ?? 0) + (await fs.stat(full)).size;
  }
  return Object.fromEntries(Object.entries(sums).sort((a, b) => b[1] - a[1]));
}
