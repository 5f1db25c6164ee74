/** Cache cases: what the list of a full cache costs. */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { run as runProgram } from "../../src/host/process.ts";
import { environment } from "./cases.ts";
import { measure, type Measurement, timed } from "./measure.ts";

const TEMPLATES = 400, LAYERS = 500, CHECKPOINTS = 100;
/** As many as a set of usual packages has with all that it needs. */
const PACKAGES_IN_LAYER = 30;

/** `sbx cache ls` of a thousand entries as a whole process, and the same of an empty cache. */
export async function cacheList(count: number): Promise<Measurement[]> {
  const program = "dist/sbx";
  if (!existsSync(program)) return [];
  const root = mkdtempSync(path.join(os.tmpdir(), "sbx-bench-cache-"));
  try {
    fill(path.join(root, "full"));
    const list = (directory: string, ...options: readonly string[]) => () =>
      timed(async () => {
        const env = { ...environment(), EXEC_SANDBOX_CACHE_DIR: path.join(root, directory) };
        const { code, stderr } = await runProgram([program, "cache", "ls", ...options], { env });
        if (code !== 0) throw new Error(`sbx cache ls failed: ${stderr}`);
      });
    return [
      await measure("sbx cache ls of nothing, wall", { count, warmUps: 3 }, list("empty")),
      await measure("sbx cache ls of 1,000 entries, wall", { count, warmUps: 3 }, list("full")),
      await measure("sbx cache ls --packages --json of 1,000 entries, wall", { count, warmUps: 3 }, list("full", "--packages", "--json")),
    ];
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

function fill(root: string): void {
  const put = (directory: string, files: Readonly<Record<string, string>>) => {
    mkdirSync(path.join(root, directory), { recursive: true });
    for (const [name, text] of Object.entries(files)) writeFileSync(path.join(root, directory, name), text);
  };
  const digits = (index: number, length: number) => index.toString(16).padStart(length, "0");
  for (let index = 0; index < TEMPLATES; index++) {
    put(`snapshots/python-256-${digits(index, 32)}`, { ram: "x", state: "x", translations: "x", "console.log": "x", "meta.json": "{}" });
  }
  const packages = Array.from({ length: PACKAGES_IN_LAYER }, (_, index) => ({
    name: `package-${index}`,
    version: "1.2.3",
    hashes: [`sha256:${digits(index, 64)}`],
  }));
  for (let index = 0; index < LAYERS; index++) {
    const inputs = { language: "python", packages: ["requests==2.32.5", `package==1.0.${index}`] };
    put(`layers/${digits(index, 64)}`, {
      "layer.erofs": "x",
      "packages.json": JSON.stringify({ packages, details: {} }),
      "manifest.json": JSON.stringify({ format: 1, inputs }),
      "verified.json": "{}",
    });
  }
  for (let index = 0; index < CHECKPOINTS; index++) {
    put(`checkpoints/name-${index}`, { ram: "x", state: "x", "meta.json": JSON.stringify({ language: "raw", memoryMiB: 256 }) });
  }
}
