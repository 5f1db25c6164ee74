/** Platform: what this host is, and where sbx keeps its files. */
import { readFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import { SandboxDependencyError } from "../base/errors.ts";

/** Architecture as QEMU and the kernel name it. */
export type Arch = "x86_64" | "aarch64";

/** Facts about the host that do not change while the process runs. */
export interface Platform {
  readonly os: "linux" | "macos";
  readonly arch: Arch;
  /** Kernel release, such as `6.1.0-18-amd64`. */
  readonly kernelRelease: string;
  /** Changes with every boot of the host; empty where the host has none. */
  readonly bootId: string;
  /** Are we root? */
  readonly isRoot: boolean;
  readonly cpus: number;
  readonly memoryBytes: number;
}

/** Reads the facts. Throws `SandboxDependencyError` on a host sbx does not support. */
export function readPlatform(): Platform {
  const system = process.platform === "linux" ? "linux" : process.platform === "darwin" ? "macos" : undefined;
  const arch = process.arch === "x64" ? "x86_64" : process.arch === "arm64" ? "aarch64" : undefined;
  if (system === undefined || arch === undefined) {
    throw new SandboxDependencyError(
      `Cannot run on this host: sbx needs Linux or macOS on x86-64 or arm64, got ${process.platform} on ${process.arch}`,
    );
  }
  return {
    os: system,
    arch,
    kernelRelease: os.release(),
    bootId: readText("/proc/sys/kernel/random/boot_id").trim(),
    isRoot: process.getuid?.() === 0,
    cpus: os.availableParallelism(),
    memoryBytes: os.totalmem(),
  };
}

/** The cache directory: `EXEC_SANDBOX_CACHE_DIR`, else the platform's own place. Always absolute; it need not exist. */
export function cacheDirectory(env: Readonly<Record<string, string | undefined>> = process.env): string {
  const own = env["EXEC_SANDBOX_CACHE_DIR"];
  if (own) return path.resolve(own);
  if (process.platform === "darwin") return path.join(os.homedir(), "Library", "Caches", "exec-sandbox");
  // The XDG specification tells programs to ignore a relative path here.
  const xdg = env["XDG_CACHE_HOME"];
  return path.join(xdg && path.isAbsolute(xdg) ? xdg : path.join(os.homedir(), ".cache"), "exec-sandbox");
}

/** The text of a small file, or "" when it cannot be read. */
function readText(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return ""; // Hosts without /proc have no such facts; callers treat "" as unknown.
  }
}
