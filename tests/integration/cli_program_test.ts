/** The program as a process: streams, statuses and a terminal; everything that needs no VM. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { after, test } from "node:test";
import { noLeftovers, processesWith } from "../support/leftovers.ts";
import { eventually } from "../support/waiting.ts";
import { commandLine, hasProgram, ROOT, sbx, shell, start, Terminal } from "./cli_terminal.ts";

const { version } = JSON.parse(await fs.readFile(path.join(ROOT, "deno.json"), "utf8"));
const skipWithoutTmux = hasProgram("tmux") ? false : "tmux is not installed";
/** No images anywhere, and none to be fetched. */
const EMPTY = await fs.mkdtemp(path.join(os.tmpdir(), "sbx-empty-"));
const WITHOUT_IMAGES = {
  EXEC_SANDBOX_CACHE_DIR: EMPTY,
  EXEC_SANDBOX_IMAGES_DIR: path.join(EMPTY, "images"),
  EXEC_SANDBOX_OFFLINE: "1",
};
// deno-lint-ignore no-control-regex
const ESCAPE = /\x1b/;

after(async () => {
  await eventually("no process is left that knows the directory", () => processesWith(EMPTY).length === 0);
  await fs.rm(EMPTY, { recursive: true });
});

/** Resolves when the process has the file, one of its arguments, open. */
async function isReading(pid: number, file: string): Promise<void> {
  const until = performance.now() + 20_000;
  while (performance.now() < until) {
    const names = await fs.readdir(`/proc/${pid}/fd`).catch(() => []); // It has just started, or already ended.
    // Before its exec a child has its parent's descriptors, and its parent's command line too.
    const isStarted = (await fs.readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).includes(file);
    const targets = await Promise.all(names.map((name) => fs.readlink(`/proc/${pid}/fd/${name}`).catch(() => "")));
    if (isStarted && targets.includes(file)) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`process ${pid} never opened ${file}`);
}

test("the version is the manifest's, alone on standard output", async () => {
  for (const args of [["-V"], ["--version"], ["run", "--version"], ["doctor", "-V"]]) {
    assert.deepEqual(await sbx(args), { code: 0, signal: null, stdout: `${version}\n`, stderr: "" });
  }
});

test("help goes to standard output, usage errors to standard error", async () => {
  const help = await sbx(["--help"]);
  assert.deepEqual([help.code, help.stderr], [0, ""]);
  assert.match(help.stdout, /^Usage: sbx \[command\]/);
  const wrong = await sbx(["run", "--bogus"]);
  assert.deepEqual([wrong.code, wrong.stdout], [2, ""]);
  assert.match(wrong.stderr, /^sbx: Cannot read the command line: unknown option '--bogus'\n/);
  assert.equal((await sbx([])).code, 2);
});

test("missing images are status 125 with a hint, and the same as JSON", async () => {
  const plain = await sbx(["run", "print(1)"], { env: WITHOUT_IMAGES });
  assert.deepEqual([plain.code, plain.stdout], [125, ""]);
  assert.match(plain.stderr, /^sbx: .+\n.+\n$/);
  const json = await sbx(["run", "--json", "print(1)"], { env: WITHOUT_IMAGES });
  assert.deepEqual([json.code, json.stderr], [125, ""]);
  const { error } = JSON.parse(json.stdout);
  assert.deepEqual([error.code, error.type], ["SBX_ASSET", "AssetError"]);
  assert.ok(error.hint.includes("sbx "), error.hint);
});

test("--debug shows where a failure came from, otherwise nothing does", async () => {
  assert.match((await sbx(["run", "--debug", "1"], { env: WITHOUT_IMAGES })).stderr, /\n\s+at /);
  assert.doesNotMatch((await sbx(["run", "1"], { env: WITHOUT_IMAGES })).stderr, /\n\s+at /);
});

test("a bad configuration in the environment is named and is a usage error", async () => {
  const { code, stderr } = await sbx(["run", "1"], { env: { ...WITHOUT_IMAGES, EXEC_SANDBOX_DEFAULT_MEMORY_MB: "64" } });
  assert.equal(code, 2);
  assert.match(stderr, /EXEC_SANDBOX_DEFAULT_MEMORY_MB: must be at least 128, got "?64/);
});

test("whole output arrives through a slow pipe", async () => {
  const { stdout } = await sbx(["completions", "zsh"]);
  assert.equal(shell(`${commandLine(["completions", "zsh"])} | { sleep 1; cat; }`).stdout, stdout);
});

test("a reader that has gone ends the program quietly", {
  skip: hasProgram("mkfifo") ? false : "mkfifo is not installed",
}, () => {
  const fifo = path.join(EMPTY, "unread");
  // A pipe that had a reader once.
  const pipe = `mkfifo ${fifo}; exec 3<> ${fifo} 4> ${fifo} 3<&-; rm ${fifo}`;
  for (const args of [["completions", "zsh"], ["--version"], ["--help"], ["help", "run"], ["run", "-V"], ["doctor", "--json"]]) {
    const line = `${pipe}; ${commandLine(args)} >&4; echo "status $?" >&2`;
    assert.equal(shell(line, WITHOUT_IMAGES).stderr, "status 141\n", args.join(" "));
  }
});

test(
  "output that a full disk does not take is a failure that says so",
  { skip: existsSync("/dev/full") ? false : "no /dev/full here" },
  () => {
    const quick = [["--version"], ["-V"], ["--help"], ["help"], ["help", "images", "build"], ["run", "-V"], ["images", "list", "-h"]];
    for (const args of [...quick, ["completions", "zsh"], ["doctor", "--json"]]) {
      const line = `${commandLine(args)} > /dev/full; echo "status $?" >&2`;
      assert.equal(shell(line, WITHOUT_IMAGES).stderr, "sbx: Cannot write to standard output: no space left on device\nstatus 125\n");
    }
  },
);

test("an interrupt while a source is awaited ends with the signal's status", {
  skip: hasProgram("mkfifo") ? false : "mkfifo is not installed",
}, async () => {
  const fifo = path.join(EMPTY, "never.py");
  execFileSync("mkfifo", [fifo]);
  // Somebody must hold the other end, or opening would wait instead of reading.
  await using _writer = await fs.open(fifo, "r+");
  for (const [signal, status] of [["SIGINT", 130], ["SIGTERM", 143], ["SIGHUP", 129]] as const) {
    const running = start(["run", fifo], { env: WITHOUT_IMAGES });
    await isReading(running.pid, fifo);
    running.kill(signal);
    assert.deepEqual(await running.ended, { code: status, signal: null, stdout: "", stderr: `sbx: Interrupted by ${signal}\n` });
  }
});

test("doctor tells people and programs the same", async () => {
  const env = WITHOUT_IMAGES;
  const table = await sbx(["doctor"], { env });
  const { ok, checks } = JSON.parse((await sbx(["doctor", "--json"], { env })).stdout);
  assert.deepEqual([ok, table.code], [false, 1], "nothing runs without images");
  for (const { name, status, required } of checks) {
    const row = table.stdout.split("\n").find((line) => line.includes(`  ${name}  `)) ?? "";
    assert.ok(row.startsWith(status) && row.includes(required ? "required" : "optional"), `${name}: ${row}`);
  }
  const broken = checks.filter((check: { status: string; required: boolean }) => check.required && check.status !== "ok");
  assert.deepEqual(broken.map((check: { name: string }) => check.name), ["images", "qemu", "canary"]);
  assert.ok(broken[0].hint.includes("sbx images build"), "the first says what mends it");
});

test("colour is for a terminal without NO_COLOR", { skip: skipWithoutTmux }, async () => {
  const args = ["run", "--bogus"];
  for (const [setting, isColored] of [["", true], ["NO_COLOR=1 ", false], ["TERM=dumb ", false]] as const) {
    await using terminal = await Terminal.open(`env -u NO_COLOR ${setting}${commandLine(args)}`);
    assert.equal(await terminal.exitCode(), 2);
    const styled = await terminal.screen(true);
    assert.match(styled, /sbx:/);
    assert.equal(ESCAPE.test(styled.split("\n").find((line) => line.includes("sbx:")) ?? ""), isColored, setting);
  }
  assert.doesNotMatch((await sbx(args)).stderr, ESCAPE);
});

test("help fits the terminal", { skip: skipWithoutTmux }, async () => {
  await using terminal = await Terminal.open(commandLine(["run", "--help"]), { columns: 60, rows: 150 });
  await terminal.exitCode();
  const lines = (await terminal.screen()).split("\n");
  assert.ok(lines.some((line) => line.includes("Usage: sbx run")));
  const options = lines.slice(lines.indexOf("Options:") + 1, lines.indexOf("Examples:")).filter((line) => line !== "");
  assert.ok(options.length > 20);
  // What the terminal had to break begins at its edge.
  for (const line of options) assert.match(line, /^ {2}/, line);
});

test("Ctrl-C while code is typed at the terminal is status 130", { skip: skipWithoutTmux }, async () => {
  await using terminal = await Terminal.open(commandLine(["run", "-"]));
  await terminal.shows(/end it with Ctrl-D/);
  await terminal.press("C-c");
  assert.equal(await terminal.exitCode(), 130);
  assert.match(await terminal.screen(), /sbx: Interrupted by SIGINT/);
});

test("code typed at the terminal ends with Ctrl-D", { skip: skipWithoutTmux }, async () => {
  const env = Object.entries(WITHOUT_IMAGES).map(([name, value]) => `${name}=${value}`).join(" ");
  await using terminal = await Terminal.open(`env ${env} ${commandLine(["run", "-"])}`);
  await terminal.shows(/end it with Ctrl-D/);
  await terminal.type("print(1)");
  await terminal.press("Enter");
  await terminal.press("C-d");
  assert.equal(await terminal.exitCode(), 125, "the code was read; there are no images to run it");
});

noLeftovers();
