/** Wheels: libraries of Python for the guest, fetched once by this host's pip from wherever that is configured to fetch from. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { cacheDirectory } from "../../src/host/platform.ts";

/** Changes with what is fetched. */
const NAME = "test-wheels-1";
const PACKAGES = ["requests==2.32.5", "httpx[http2]==0.28.1", "paramiko==4.0.0"];
const PLATFORMS = ["manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014"];

/** The files of requests, httpx with HTTP/2, and paramiko with all they need; or why they are not to be had. */
export function wheels(): { readonly files: readonly string[] } | { readonly reason: string } {
  const directory = path.join(cacheDirectory(), "tools", NAME);
  if (!existsSync(directory)) {
    const partial = `${directory}.${process.pid}`, machine = process.arch === "arm64" ? "aarch64" : "x86_64";
    mkdirSync(partial, { recursive: true });
    const target = ["--python-version", "3.14", "--implementation", "cp", "--abi", "cp314", "--abi", "abi3", "--abi", "none"];
    const platforms = PLATFORMS.flatMap((platform) => ["--platform", `${platform}_${machine}`]);
    const args = ["-m", "pip", "download", "-q", "--only-binary=:all:", "-d", partial, ...target, ...platforms, ...PACKAGES];
    const { status, stderr, error } = spawnSync("python3", args, { encoding: "utf8", timeout: 240_000 });
    if (status !== 0) {
      rmSync(partial, { recursive: true, force: true });
      return { reason: `needs wheels, and pip has none: ${(error?.message ?? stderr ?? "").trim().split("\n").at(-1) ?? ""}` };
    }
    try {
      renameSync(partial, directory);
    } catch {
      rmSync(partial, { recursive: true, force: true }); // Somebody else was first.
    }
  }
  return { files: readdirSync(directory).map((name) => path.join(directory, name)) };
}
