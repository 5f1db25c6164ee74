/** `sbx run` as a process with real VMs: streams, statuses, signals, a terminal. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { childrenOf, noLeftovers, runs, temporaryDirectory } from "../support/leftovers.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { eventually } from "../support/waiting.ts";
import { commandLine, hasProgram, sbx, shell, start, type StartOptions, Terminal } from "./cli_terminal.ts";

const ENV = { EXEC_SANDBOX_IMAGES_DIR: imagesDirectory(), EXEC_SANDBOX_LOG_LEVEL: "error" };
const skip = reasonToSkip() ?? false;
const skipTerminal = skip || (hasProgram("tmux") ? false : "tmux is not installed");
/** Baking under emulation on a loaded machine takes its time. */
const TIMEOUT_MS = 300_000;
const ANSWER_MS = 120_000;

const run = (args: readonly string[], options: StartOptions = {}) => sbx(args, { ...options, env: { ...ENV, ...options.env } });
const testVm = (name: string, body: (t: TestContext) => Promise<void>) => test(name, { skip, timeout: TIMEOUT_MS }, body);

/** Everything below process `pid`. */
function descendantsOf(pid: number): number[] {
  return childrenOf(pid).flatMap((child) => [child, ...descendantsOf(child)]);
}

function isQemu(pid: number): boolean {
  return statOf(pid).name.startsWith("qemu");
}

/** CPU time that the processes have taken so far. */
function cpuSecondsOf(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + statOf(pid).cpuSeconds, 0);
}

function statOf(pid: number): { readonly name: string; readonly cpuSeconds: number } {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const end = stat.lastIndexOf(")"), fields = stat.slice(end + 2).split(" ");
    return { name: stat.slice(stat.indexOf("(") + 1, end), cpuSeconds: (Number(fields[11]) + Number(fields[12])) / 100 };
  } catch {
    return { name: "", cpuSeconds: 0 }; // Ended while we looked.
  }
}

async function allEnd(pids: readonly number[]): Promise<void> {
  await eventually("every QEMU has ended", () => pids.filter(runs).length === 0);
}

testVm("each language runs, with output, error output and exit status apart", async () => {
  // One after the other first: each may have to bake its template.
  for (
    const [language, code] of [
      ["python", "import sys; print('out é🎈'); print('err', file=sys.stderr); sys.exit(3)"],
      ["javascript", "console.log('out é🎈'); console.error('err'); process.exit(3)"],
      ["raw", "echo 'out é🎈'; echo err >&2; exit 3"],
    ]
  ) {
    const { code: status, stdout, stderr } = await run(["run", "-q", "-l", language ?? "", code ?? ""]);
    assert.deepEqual([status, stdout, stderr], [3, "out é🎈\n", "err\n"], language);
  }
});

testVm("a first argument that is no command is code", async () => {
  assert.deepEqual(await run(['print("Hello from sandbox")', "-q"]), { code: 0, signal: null, stdout: "Hello from sandbox\n", stderr: "" });
});

testVm("files by extension, inline code and standard input run side by side and print in their order", async (t) => {
  const directory = temporaryDirectory(t);
  const python = path.join(directory, "slow.py"), shell = path.join(directory, "fast.sh");
  await fs.writeFile(python, "\uFEFFimport time; time.sleep(1); print('python')");
  await fs.writeFile(shell, "#!/bin/sh\necho shell; exit 9\n");
  const args = ["run", "-q", python, shell, "-", "-c", "print('first')"];
  const plain = await run(args, { stdin: "print('stdin')" });
  assert.deepEqual([plain.code, plain.stdout, plain.stderr], [9, "first\npython\nshell\nstdin\n", ""]);
  const json = await run([...args, "--json"], { stdin: "print('stdin')" });
  const entries = JSON.parse(json.stdout);
  assert.deepEqual(
    entries.map((entry: Record<string, unknown>) => [entry["index"], entry["source"], entry["stdout"], entry["exit_code"]]),
    [
      [0, "print('first')", "first\n", 0],
      [1, python, "python\n", 0],
      [2, shell, "shell\n", 9],
      [3, "-", "stdin\n", 0],
    ],
  );
  assert.equal(json.code, 9);
});

testVm("--json has every promised field with plausible values", async () => {
  const { stdout, stderr, code } = await run(["run", "-q", "--json", "print(1)"]);
  assert.deepEqual([code, stderr], [0, ""]);
  const result = JSON.parse(stdout);
  assert.deepEqual(Object.keys(result), [
    "stdout",
    "stderr",
    "exit_code",
    "timed_out",
    "execution_time_ms",
    "external_cpu_time_ms",
    "external_memory_peak_mb",
    "timing",
    "warm_pool_hit",
    "start",
    "exposed_ports",
  ]);
  assert.deepEqual(Object.keys(result.timing), ["setup_ms", "boot_ms", "execute_ms", "total_ms"]);
  for (const value of [result.execution_time_ms, ...Object.values(result.timing)]) assert.ok(Number.isInteger(value) && Number(value) > 0);
  assert.ok(result.timing.total_ms >= result.timing.execute_ms);
  assert.deepEqual([result.timed_out, result.warm_pool_hit, result.exposed_ports], [false, false, []]);
});

testVm("output arrives while the code runs", async () => {
  const running = start(["run", "-q", "import time; print('early', flush=True); time.sleep(60)"], { env: ENV });
  await running.says("early");
  running.kill("SIGTERM");
  assert.equal((await running.ended).code, 143);
});

testVm("all of a long output arrives through a pipe that is full and non-blocking", async () => {
  const slow = `${commandLine(["run", "-q", "print('x' * 899_999)"])} | { sleep 1; wc -c; }`;
  assert.deepEqual(shell(slow, ENV), { stdout: "900000\n", stderr: "" });
  // The shell's own descriptor is made non-blocking, as programs before us in a script do.
  const nonBlocking = `python3 -c 'import fcntl, os; fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)'`;
  if (hasProgram("python3")) {
    assert.deepEqual(shell(`{ ${nonBlocking}; ${slow.split(" | ")[0]}; } | { sleep 1; wc -c; }`, ENV).stdout, "900000\n");
  }
});

testVm("an interrupt ends a run whose reader has paused", async () => {
  const running = start(["run", "-q", "print('x' * 899_999, flush=True)\nwhile True: pass"], { env: ENV });
  await running.says("xxx");
  running.pauseStdout();
  running.kill("SIGINT");
  assert.equal((await running.exited).code, 130);
});

testVm("options reach the VM", async () => {
  const code = "import os; print(os.environ['GREETING'], round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**20) < 200)";
  const { stdout } = await run(["run", "-q", "-m", "128", "-e", "GREETING=a=b c", code]);
  assert.equal(stdout, "a=b c True\n");
});

testVm("code that runs out of time is 124", async () => {
  const { code, stdout, stderr } = await run(["run", "-q", "-t", "1", "print('before', flush=True)\nwhile True: pass"]);
  assert.deepEqual([code, stdout], [124, "before\n"]);
  assert.match(stderr, /sbx: The code ran out of time/);
});

testVm("output past the cap is 125, with all that fitted", async () => {
  const { code, stdout, stderr } = await run(["run", "-q", "print('x' * 3_000_000)"]);
  assert.deepEqual([code, stdout.length], [125, 1_000_000]);
  assert.match(stderr, /^sbx: .*1000000 bytes/);
});

testVm("a message begins on a fresh line where the output of the code leads to the same place", async () => {
  const args = ["run", "-q", "print('x' * 3_000_000)"];
  const { stdout, stderr } = shell(`${commandLine(args)} 2>&1`, ENV);
  assert.deepEqual([stdout.slice(999_998, 1_000_006), stderr], ["xx\nsbx: ", ""]);
  const several = await run(["run", "-q", "-l", "sh", "printf out; printf err >&2; while :; do :; done", "exit 3", "-t", "1"]);
  assert.deepEqual([several.code, several.stdout], [124, "out"]);
  assert.match(several.stderr, /^err\nsbx: printf out; .*: The code ran out of time and was ended\n/);
});

test(
  "output of a run that a full disk does not take is a failure that says so",
  { skip: skip || (existsSync("/dev/full") ? false : "no /dev/full here"), timeout: TIMEOUT_MS },
  () => {
    for (const args of [["run", "-q", "print(1)"], ["run", "-q", "--json", "print(1)"], ["images", "list"], ["images", "list", "--json"]]) {
      const { stderr } = shell(`${commandLine(args)} > /dev/full; echo "status $?" >&2`, ENV);
      assert.equal(stderr, "sbx: Cannot write to standard output: no space left on device\nstatus 125\n", args.join(" "));
    }
  },
);

testVm("code of white space alone is a usage error", async () => {
  for (const source of ["", " \n"]) assert.equal((await run(["run", "-q", source])).code, 2);
  const { code, stdout } = await run(["run", "-q", "--json", ""]);
  assert.deepEqual([code, JSON.parse(stdout).error.code], [2, "SBX_INPUT_VALIDATION"]);
});

testVm("a megabyte of code runs from a file", async (t) => {
  const file = path.join(temporaryDirectory(t), "long.py");
  const line = "# a comment that fills the file with bytes\n";
  await fs.writeFile(file, line.repeat(Math.floor(1_040_000 / line.length)) + "print('end')\n");
  assert.equal((await run(["run", "-q", file])).stdout, "end\n");
});

testVm("--debug shows the host's log on standard error", async () => {
  const { code, stdout, stderr } = await run(["run", "-q", "--debug", "print(1)"]);
  assert.deepEqual([code, stdout], [0, "1\n"]);
  assert.match(
    stderr,
    /^sbx debug: run finished index=0 start=template exitCode=0 setupMs=\d+ bootMs=\d+ executeMs=\d+ totalMs=\d+$/m,
  );
});

testVm("an interrupt ends everything, and no QEMU is left", async () => {
  for (const [signal, status] of [["SIGINT", 130], ["SIGTERM", 143], ["SIGHUP", 129]] as const) {
    const endless = "print('up', flush=True)\nwhile True: pass";
    const running = start(["run", "-q", endless], { env: ENV });
    await running.says("up");
    const below = descendantsOf(running.pid);
    assert.ok(below.length > 0, "there is a QEMU");
    running.kill(signal);
    const { code, stderr } = await running.ended;
    assert.deepEqual([code, stderr], [status, `sbx: Interrupted by ${signal}\n`]);
    await allEnd(below);
  }
});

testVm("an interrupt of --json prints an error object, and no QEMU is left", async () => {
  const endless = "while True: pass";
  for (const [signal, status] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
    for (const moment of ["starting", "running"] as const) {
      const running = start(["run", "-q", "--json", endless], { env: ENV });
      await eventually("there is a QEMU", () => descendantsOf(running.pid).some(isQemu));
      const below = descendantsOf(running.pid);
      // A clone is up within a fraction of this; what takes the time is the code.
      if (moment === "running") await eventually("the code runs", () => cpuSecondsOf(below) > 1);
      running.kill(signal);
      const { code, stdout, stderr } = await running.ended;
      assert.deepEqual([code, stderr], [status, `sbx: Interrupted by ${signal}\n`]);
      const { error } = JSON.parse(stdout);
      assert.deepEqual(error, {
        code: "SBX_INTERRUPTED",
        type: "InterruptedError",
        message: `Interrupted by ${signal}`,
        hint: null,
        retry: "unknown",
      });
      await allEnd(below);
    }
  }
  const several = start(["run", "-q", "--json", endless, endless], { env: ENV });
  await eventually("there are two QEMUs", () => descendantsOf(several.pid).filter(isQemu).length === 2);
  several.kill("SIGINT");
  const { code, stdout } = await several.ended;
  const entries: Array<{ index: number; error: { code: string } }> = JSON.parse(stdout);
  assert.deepEqual([code, entries.map(({ index, error }) => [index, error.code])], [130, [[0, "SBX_INTERRUPTED"], [1, "SBX_INTERRUPTED"]]]);
});

testVm("no QEMU survives sbx, even when that is killed", async () => {
  const running = start(["run", "-q", "print('up', flush=True)\nwhile True: pass"], { env: ENV });
  await running.says("up");
  const below = descendantsOf(running.pid);
  assert.ok(below.length > 0, "there is a QEMU");
  running.kill("SIGKILL");
  await running.ended;
  await allEnd(below);
});

testVm("a reader that goes away ends the run quietly", async () => {
  const line = `{ ${commandLine(["run", "-q", "while True: print(1)"])}; echo "status $?" >&2; } | head -n 1`;
  const { stdout, stderr } = shell(line, ENV);
  assert.deepEqual([stdout, stderr], ["1\n", "status 141\n"]);
});

test(
  "a terminal shows progress while a template is baked, then the output alone",
  { skip: skipTerminal, timeout: TIMEOUT_MS },
  async (t) => {
    const env = { ...ENV, EXEC_SANDBOX_CACHE_DIR: temporaryDirectory(t) };
    const words = Object.entries(env).map(([name, value]) => `${name}=${value}`).join(" ");
    await using terminal = await Terminal.open(`env ${words} ${commandLine(["run", "-l", "sh", "echo baked"])}`);
    await terminal.shows(/start template for raw: \w[^\n]*\(\d+\.\d s\)/, ANSWER_MS);
    assert.equal(await terminal.exitCode(ANSWER_MS), 0);
    assert.match(await terminal.screen(), /^start template for raw: ready \(\d+\.\d s\)\nbaked\n\[status 0\]$/);
  },
);

test("-q bakes without a word", { skip, timeout: TIMEOUT_MS }, async (t) => {
  // A fresh cache: accelerators are judged anew, which ends in a warning where there is none.
  const env = { EXEC_SANDBOX_CACHE_DIR: temporaryDirectory(t), EXEC_SANDBOX_LOG_LEVEL: "" };
  const { code, stdout, stderr } = await run(["run", "-q", "-l", "sh", "echo baked"], { env });
  assert.deepEqual([code, stdout, stderr], [0, "baked\n", ""]);
});

test("a terminal tells several sources apart", { skip: skipTerminal, timeout: TIMEOUT_MS }, async () => {
  const words = Object.entries(ENV).map(([name, value]) => `${name}=${value}`).join(" ");
  await using terminal = await Terminal.open(`env ${words} ${commandLine(["run", "-j", "1", "print(1)", "print(2)"])}`);
  assert.equal(await terminal.exitCode(ANSWER_MS), 0);
  assert.match(await terminal.screen(), /── 1\/2 print\(1\)\n1\n── 2\/2 print\(2\)\n2\n\[status 0\]$/);
});

test("Ctrl-C at a terminal ends the run with 130", { skip: skipTerminal, timeout: TIMEOUT_MS }, async () => {
  const words = Object.entries(ENV).map(([name, value]) => `${name}=${value}`).join(" ");
  await using terminal = await Terminal.open(`env ${words} ${commandLine(["run", "print('up', flush=True)\nwhile True: pass"])}`);
  await terminal.shows(/^up$/m, ANSWER_MS);
  await terminal.press("C-c");
  assert.equal(await terminal.exitCode(ANSWER_MS), 130);
});

noLeftovers();
