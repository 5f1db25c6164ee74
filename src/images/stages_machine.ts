/** Stages of the machine: kernel, QEMU with its firmware, and the two Rust programs. */
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { AssetError, SandboxDependencyError } from "../base/errors.ts";
import type { Arch } from "../host/platform.ts";
import type { Apt } from "./apt.ts";
import { MODE, packCpio } from "./cpio.ts";
import { requirements, type VersionsLock } from "./lock.ts";
import { fingerprint } from "./sources.ts";
import type { Stage, StageContext } from "./stage.ts";

/** Steps of a kernel build as make prints them; only for the percentage. */
const KERNEL_STEPS = 1_480;
/** Changes with how `buildCrate` builds: what was built otherwise before is built again. */
const CRATE_RECIPE = "paths of the build left out";
const RUST_MIN_VERSION = [1, 85] as const;

/** What every stage of a build is made with. */
export interface Workshop {
  /** Directory of the sources. */
  readonly root: string;
  readonly buildDir: string;
  readonly arch: Arch;
  readonly lock: VersionsLock;
  /** The build's own apt; opened by the first stage that needs it. */
  apt(): Promise<Apt>;
}

/** The guest kernel: Debian's source, our configuration and patches. */
export async function kernelStage(shop: Workshop): Promise<Stage> {
  const { root, arch, lock } = shop;
  return {
    name: "kernel",
    inputs: [arch, JSON.stringify(lock.kernel), await fingerprint(root, ["images/kernel"])],
    async build(context) {
      context.step("downloading the source");
      const apt = await shop.apt();
      const archive = await apt.download(lock.kernel.package, lock.kernel.suite, context.work);
      await context.exec(["dpkg-deb", "-x", archive, "package"]);
      await fs.rm(archive);
      const source = path.join(context.work, "package/usr/src", `${lock.kernel.package}.tar.xz`);
      await fs.mkdir(path.join(context.work, "build"));
      context.step("unpacking and configuring", 0);
      let steps = 0;
      await context.exec(["sh", path.join(await takeRecipe(shop, context, "kernel"), "build.sh"), source, arch, context.out], {
        cwd: path.join(context.work, "build"),
        onLine(line) {
          if (!/^ {2}[A-Z][A-Z0-9_]* /.test(line)) return;
          steps += 1;
          if (steps % 10 === 0) context.step("compiling", Math.min(99, steps / KERNEL_STEPS * 100));
        },
      });
      const linux = await takeText(context, "version.txt");
      return { versions: { linux, [lock.kernel.package]: debianVersion(archive) } };
    },
  };
}

/** QEMU: Debian's source, one machine, six devices, static. */
export async function qemuStage(shop: Workshop): Promise<Stage> {
  const { root, arch, lock } = shop;
  return {
    name: "qemu",
    inputs: [arch, JSON.stringify(lock.qemu), await fingerprint(root, ["images/qemu"])],
    async build(context) {
      context.step("downloading the source");
      const source = await (await shop.apt()).source(lock.qemu.package, path.join(context.work, "source"));
      context.step("preparing meson", 0);
      const python = await makeVenv(context);
      await fs.writeFile(path.join(context.work, "requirements.txt"), requirements(lock.qemu.python));
      await context.exec([python, "-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", "requirements.txt"]);
      context.step("configuring", 0);
      await context.exec([
        "sh",
        path.join(await takeRecipe(shop, context, "qemu"), "build.sh"),
        source.directory,
        python,
        arch,
        context.out,
      ], {
        onLine(line) {
          const progress = /^\[(\d+)\/(\d+)\]/.exec(line);
          if (progress) context.step("compiling", Number(progress[1]) / Number(progress[2]) * 100);
        },
      });
      return { versions: { qemu: await takeText(context, "version.txt"), "qemu (Debian source)": source.version } };
    },
  };
}

/** The firmware that QEMU's microvm starts. */
export function firmwareStage(shop: Workshop): Stage {
  const { firmware } = shop.lock;
  return {
    name: "firmware",
    inputs: [JSON.stringify(firmware)],
    async build(context) {
      context.step("downloading");
      const archive = await (await shop.apt()).download(firmware.package, firmware.suite, context.work);
      await context.exec(["dpkg-deb", "-x", archive, "package"]);
      await fs.copyFile(path.join(context.work, "package", firmware.file), path.join(context.out, path.basename(firmware.file)));
      return { versions: { [firmware.package]: debianVersion(archive) } };
    },
  };
}

/** The guest agent, packed as the initial RAM disk. */
export async function initrdStage(shop: Workshop): Promise<Stage> {
  return {
    name: "agent",
    inputs: [shop.arch, CRATE_RECIPE, await fingerprint(shop.root, ["guest"])],
    async build(context) {
      const program = await buildCrate(shop, context, "guest", "sbx-agent");
      const archive = packCpio([
        { name: "dev", mode: MODE.directory },
        // The kernel opens it for /init's first three descriptors, before anything is mounted.
        { name: "dev/console", mode: MODE.characterDevice, device: [5, 1] },
        { name: "init", mode: MODE.program, data: await fs.readFile(program) },
      ]);
      await fs.writeFile(path.join(context.out, "initrd-sbx.cpio"), archive);
      return { versions: { "sbx-agent": await crateVersion(shop.root, "guest") } };
    },
  };
}

/** The launcher that confines QEMU. */
export async function jailStage(shop: Workshop): Promise<Stage> {
  return {
    name: "jail",
    inputs: [shop.arch, CRATE_RECIPE, await fingerprint(shop.root, ["jail"])],
    async build(context) {
      const program = await buildCrate(shop, context, "jail", "sbx-jail");
      await fs.copyFile(program, path.join(context.out, "sbx-jail"));
      return { versions: { "sbx-jail": await crateVersion(shop.root, "jail") } };
    },
  };
}

/** Copies a recipe's directory and returns the copy: a shell reads its script while it runs, and a checkout may be edited meanwhile. */
export async function takeRecipe(shop: Workshop, context: StageContext, name: string): Promise<string> {
  const copy = path.join(context.work, "recipe");
  await fs.cp(path.join(shop.root, "images", name), copy, { recursive: true });
  return copy;
}

/** A virtual environment of the host's Python in the stage's work directory; returns its interpreter. */
export async function makeVenv(context: StageContext): Promise<string> {
  await context.exec(["python3", "-m", "venv", "venv"]);
  return path.join(context.work, "venv/bin/python3");
}

/** Builds crate `directory` statically and returns the program's path. */
async function buildCrate(shop: Workshop, context: StageContext, directory: string, program: string): Promise<string> {
  const cargo = await findCargo(context);
  const target = `${shop.arch}-unknown-linux-gnu`;
  // Kept between builds: a changed line then costs seconds.
  const targetDir = path.join(shop.buildDir, "cargo", directory);
  context.step("compiling");
  await context.exec([cargo, "build", "--release", "--locked", "--target", target, "--config", rustFlags(shop, target)], {
    cwd: path.join(shop.root, directory),
    env: { CARGO_TARGET_DIR: targetDir, CARGO_TERM_PROGRESS_WHEN: "never" },
    onLine(line) {
      const crate = /^\s*Compiling (\S+)/.exec(line)?.[1];
      if (crate) context.step(`compiling ${crate}`);
    },
  });
  return path.join(targetDir, target, "release", program);
}

/** Keeps paths of the build out of the program; cargo adds these flags to those of the crate's own configuration. */
function rustFlags(shop: Workshop, target: string): string {
  const home = process.env["CARGO_HOME"] ?? path.join(process.env["HOME"] ?? "/", ".cargo");
  const flags = [[shop.root, "."], [home, "cargo"]].map(([from, to]) => `--remap-path-prefix=${from}=${to}`);
  return `target.${target}.rustflags=${JSON.stringify(flags)}`;
}

/** A cargo that is new enough: the one on PATH, else rustup's own place. */
async function findCargo(context: StageContext): Promise<string> {
  const wanted = RUST_MIN_VERSION.join(".");
  const found: string[] = [];
  for (const candidate of ["cargo", path.join(process.env["CARGO_HOME"] ?? path.join(process.env["HOME"] ?? "/", ".cargo"), "bin/cargo")]) {
    const text = await context.exec([candidate, "--version"]).catch((error) => {
      if (error instanceof AssetError) return ""; // Not installed there, or it does not run: the next candidate.
      throw error;
    });
    const match = /^cargo (\d+)\.(\d+)/.exec(text);
    if (!match) continue;
    const [major, minor] = [Number(match[1]), Number(match[2])];
    if (major > RUST_MIN_VERSION[0] || (major === RUST_MIN_VERSION[0] && minor >= RUST_MIN_VERSION[1])) return candidate;
    found.push(`${major}.${minor}`);
  }
  throw new SandboxDependencyError(`Cannot build the agent: cargo must be at least ${wanted}, got ${found.join(" and ") || "none"}`, {
    hint: "Debian 12 has it as `cargo-web`, later releases as `cargo`; install.sh installs it.",
  });
}

async function crateVersion(root: string, directory: string): Promise<string> {
  const text = await fs.readFile(path.join(root, directory, "Cargo.toml"), "utf8");
  return /^version = "([^"]+)"/m.exec(text)?.[1] ?? "";
}

/** Reads a small file that a script left among the results, and takes it away from them. */
export async function takeText(context: StageContext, name: string): Promise<string> {
  const file = path.join(context.out, name);
  const text = (await fs.readFile(file, "utf8")).trim();
  await fs.rm(file);
  return text;
}

/** The version in a package's file name: `name_version_arch.deb`, with `%3a` for the epoch's colon. */
export function debianVersion(archive: string): string {
  return decodeURIComponent(path.basename(archive).split("_")[1] ?? "");
}
