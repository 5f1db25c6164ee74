/** The compiled program, `dist/sbx`: what compiling could break. Everything else is tested from source. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import test from "node:test";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { ROOT } from "./cli_terminal.ts";

const PROGRAM = path.join(ROOT, "dist", "sbx");
const skip = existsSync(PROGRAM) ? false : "there is no dist/sbx: compile it with `deno task compile:bun`";
const { version } = JSON.parse(await fs.readFile(path.join(ROOT, "deno.json"), "utf8"));

/** Runs the program in an empty directory, as far from the checkout as an installed one is. */
function compiled(args: readonly string[], cwd: string, env: Readonly<Record<string, string>> = {}) {
  return runFile(PROGRAM, args, cwd, env);
}

function runFile(file: string, args: readonly string[], cwd: string, env: Readonly<Record<string, string>>) {
  return new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
    execFile(file, args, { cwd, env: { ...process.env, ...env } }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

test("it knows its version and every command", { skip }, async (t) => {
  const cwd = temporaryDirectory(t);
  assert.deepEqual(await compiled(["--version"], cwd), { code: 0, stdout: `${version}\n`, stderr: "" });
  const { code, stdout } = await compiled(["--help"], cwd);
  assert.equal(code, 0);
  for (const name of ["run", "prefetch", "images", "doctor", "completions"]) assert.match(stdout, new RegExp(`^  ${name} `, "m"));
  assert.equal((await compiled(["run", "--bogus"], cwd)).code, 2);
});

test("it loads what a command needs only then", { skip }, async (t) => {
  const cwd = temporaryDirectory(t);
  const env = { EXEC_SANDBOX_CACHE_DIR: cwd, EXEC_SANDBOX_IMAGES_DIR: path.join(cwd, "none"), EXEC_SANDBOX_OFFLINE: "1" };
  for (const args of [["run", "--json", "print(1)"], ["images", "verify", "--json"]]) {
    const { code, stdout } = await compiled(args, cwd, env);
    assert.deepEqual([code, JSON.parse(stdout).error.code], [125, "SBX_ASSET"], args.join(" "));
  }
  const { code, stdout } = await compiled(["doctor", "--json"], cwd, env);
  assert.deepEqual([code, JSON.parse(stdout).ok], [1, false]);
  assert.equal((await compiled(["completions", "bash"], cwd)).code, 0);
});

test("names of errors are those of the source: programs read them", { skip }, async (t) => {
  const { stdout } = await compiled(["run", "--json", "--bogus"], temporaryDirectory(t));
  const { code, type } = JSON.parse(stdout).error;
  assert.deepEqual([code, type], ["SBX_USAGE", "UsageError"]);
});

test(
  "too few descriptors are an error of the host, however few there are",
  { skip: skip || (reasonToSkip() ?? false), timeout: 300_000 },
  async (t) => {
    const cwd = temporaryDirectory(t), env = { EXEC_SANDBOX_IMAGES_DIR: imagesDirectory(), EXEC_SANDBOX_LOG_LEVEL: "error" };
    const codes = new Set<unknown>();
    for (const limit of [8, 9, 10, 11, 12, 14, 16, 18]) {
      const script = `ulimit -n ${limit}; exec "$0" run -q --json -l sh 'echo fine'`;
      const { code, stdout } = await runFile("/bin/sh", ["-c", script, PROGRAM], cwd, env);
      const { error } = JSON.parse(stdout || "{}");
      assert.ok(code === 0 || code === 125, `${limit}: ${code} ${stdout}`);
      assert.notEqual(error?.code, "SBX_INTERNAL", `${limit}: ${stdout}`);
      codes.add(error?.code);
    }
    assert.ok(codes.has("SBX_VM_CAPACITY"), [...codes].join());
  },
);

test("it runs code", { skip: skip || (reasonToSkip() ?? false), timeout: 300_000 }, async (t) => {
  const env = { EXEC_SANDBOX_IMAGES_DIR: imagesDirectory(), EXEC_SANDBOX_LOG_LEVEL: "error" };
  const result = await compiled(["run", "-q", 'print("Hello from sandbox"); raise SystemExit(7)'], temporaryDirectory(t), env);
  assert.deepEqual(result, { code: 7, stdout: "Hello from sandbox\n", stderr: "" });
});

noLeftovers();
