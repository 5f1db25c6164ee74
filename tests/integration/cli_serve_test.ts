/** `sbx serve` as a process with real VMs: who uses it and who does not, its end in order and by force, and what its clients make of that. */
import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { cacheDirectory } from "../../src/host/platform.ts";
import { VERSION } from "../../src/config/version.ts";
import { placeOf } from "../../src/link/place.ts";
import { makeSecret, newNonce } from "../../src/link/secret.ts";
import { Scheduler, type Session } from "../../src/mod.ts";
import { noLeftovers, runs, temporaryDirectory } from "../support/leftovers.ts";
import { fakeServer } from "../support/link_peer.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { qemuOf } from "../support/vm.ts";
import { eventually, settled } from "../support/waiting.ts";
import { sbx, start, type Started } from "./cli_terminal.ts";

const skip = reasonToSkip() ?? false;
const TIMEOUT_MS = 300_000;
const testVm = (name: string, body: (t: TestContext) => Promise<void>) => test(name, { skip, timeout: TIMEOUT_MS }, body);

/** A cache directory of the test's own, with the images and templates that are there. */
function home(t: TestContext) {
  const cacheDir = path.join(temporaryDirectory(t), "c");
  mkdirSync(cacheDir, { mode: 0o700 });
  const env = {
    EXEC_SANDBOX_CACHE_DIR: cacheDir,
    EXEC_SANDBOX_IMAGES_DIR: imagesDirectory(),
    EXEC_SANDBOX_SNAPSHOT_CACHE_DIR: path.join(cacheDirectory(), "snapshots"),
    EXEC_SANDBOX_SERVE: "",
  };
  return {
    place: placeOf(cacheDir),
    cacheDir,
    sbx: (args: readonly string[], { stdin, ...more }: Record<string, string> = {}) =>
      sbx(args, { env: { ...env, ...more }, ...(stdin === undefined ? {} : { stdin }) }),
    start: (args: readonly string[]) => start(args, { env }),
    /** A server that has said that it serves; ended with the test. */
    async serve(...args: readonly string[]): Promise<Started> {
      const server = start(["serve", ...args], { env });
      t.after(async () => {
        if (runs(server.pid)) server.kill("SIGKILL");
        await server.ended;
      });
      await settled(server.says("serving"), "the server serves");
      return server;
    },
  };
}
const USES = "using the server's VMs";

testVm("runs and sessions use a server that answers, say so in --debug, and leave it alone when told to", async (t) => {
  const own = home(t), alone = await own.sbx(["run", "--debug", "-l", "raw", "echo hi"]);
  assert.deepEqual([alone.code, alone.stdout, alone.stderr.includes("server")], [0, "hi\n", false]);
  const server = await own.serve("--warm", "1");
  await server.says("every warm VM is ready");
  const warm = JSON.parse((await own.sbx(["run", "--json", "-l", "raw", "echo hi"])).stdout);
  assert.deepEqual([warm.stdout, warm.start, warm.timing.boot_ms], ["hi\n", "warm", 0]);
  const code = "import os; print(sorted(os.listdir('/sys/class/net')))";
  const networked = JSON.parse((await own.sbx(["run", "--json", "--network", "--expose", "80", "-c", code])).stdout);
  assert.deepEqual([networked.stdout, networked.start, networked.exposed_ports[0].internal], ["['lo', 'sbx0']\n", "warm", 80]);
  for (const args of [["run", "--debug", "-l", "raw", "echo hi"], ["session", "--debug", "-l", "raw"]]) {
    const used = await own.sbx(args);
    assert.equal(used.code, 0, used.stderr);
    assert.ok(used.stderr.includes(USES), used.stderr);
  }
  const not = [await own.sbx(["run", "--no-serve", "--debug", "-l", "raw", "echo hi"])];
  not.push(await own.sbx(["run", "--debug", "-l", "raw", "echo hi"], { EXEC_SANDBOX_SERVE: "0" }));
  for (const { code, stdout, stderr } of not) assert.deepEqual([code, stdout, stderr.includes("server")], [0, "hi\n", false]);
  const other = await own.sbx(["run", "--debug", "-l", "raw", "echo hi"], { EXEC_SANDBOX_HOST_MEMORY_RESERVE_RATIO: "0.2" });
  assert.match(other.stderr, /not using the server: its configuration is another.*its hostMemoryReserveRatio is 0\.1, ours 0\.2/);
  const statusOf = async () => JSON.parse((await own.sbx(["serve", "--status", "--json"])).stdout);
  await eventually("what commands had has ended", async () => (await statusOf()).vms === 0);
  const { running, pid, clients, socket } = await statusOf();
  assert.deepEqual([running, pid, clients, socket], [true, server.pid, 0, own.place.socket]);
  assert.match((await own.sbx(["serve", "--status"])).stdout, new RegExp(`^server   version \\S+, process ${server.pid}, up `));
  const second = await own.sbx(["serve"]);
  assert.deepEqual([second.code, second.stdout], [125, ""]);
  assert.ok(second.stderr.includes(`a server runs already, as process ${server.pid}`), second.stderr);
  const stopped = await own.sbx(["serve", "--stop"]);
  assert.deepEqual([stopped.code, stopped.stderr], [0, `The server, process ${server.pid}, has ended.\n`]);
  assert.equal((await server.ended).code, 0);
  assert.deepEqual(readdirSync(own.place.directory), []);
  assert.equal((await own.sbx(["serve", "--status"])).code, 1);
  assert.equal((await own.sbx(["serve", "--stop"])).stderr, "No server runs.\n");
});

testVm("a server that is told to end does so in order, with status 0", async (t) => {
  const own = home(t);
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
    const loud = await own.serve("--warm", "0");
    loud.kill(signal);
    const { code, stdout, stderr } = await loud.ended;
    assert.deepEqual([code, stdout, readdirSync(own.place.directory)], [0, "", []], `${signal}: ${stderr}`);
  }
});

testVm("a server that is killed with ten VMs leaves none, and its place can be taken", async (t) => {
  const own = home(t), server = await own.serve("--warm", "0");
  await using scheduler = await Scheduler.connect({ socketPath: own.place.socket });
  const sessions: Session[] = [];
  for (let n = 0; n < 10; n++) sessions.push(await scheduler.session({ language: "raw", memoryMb: 128 }));
  const qemus = sessions.map(qemuOf);
  for (const session of sessions.slice(0, 3)) session.exec("while :; do :; done").catch(() => {});
  await sessions[0]?.ping();
  assert.ok(qemus.every(runs));
  server.kill("SIGKILL");
  await server.exited;
  await eventually("no QEMU is left", () => !qemus.some(runs));
  await eventually("every session knows", () => sessions.every(({ closed }) => closed));
  assert.ok(existsSync(own.place.socket), "a killed server cannot tidy up");
  const run = await own.sbx(["run", "--debug", "-l", "raw", "echo hi"]);
  assert.deepEqual([run.code, run.stdout], [0, "hi\n"]);
  assert.match(run.stderr, /not using the server .*none runs there/);
  const next = await own.serve("--warm", "0");
  assert.ok((await own.sbx(["run", "--debug", "-l", "raw", "echo hi"])).stderr.includes(USES));
  next.kill("SIGTERM");
  await next.ended;
  assert.deepEqual([readdirSync(own.place.directory), readdirSync(path.join(own.cacheDir, "run"))], [[], []]);
});

testVm("a server that dies under a command ends what runs on it, and the command goes on by itself", async (t) => {
  const own = home(t), server = await own.serve("--warm", "0");
  const command = own.start(["run", "--json", "-j", "1", "-l", "raw", "-c", "echo on; sleep 1000", "-c", "echo second"]);
  await eventually("the first source runs", async () => JSON.parse((await own.sbx(["serve", "--status", "--json"])).stdout).vms === 1);
  server.kill("SIGKILL");
  const { code, stdout } = await settled(command.ended, "the command");
  const [first, second] = JSON.parse(stdout);
  assert.deepEqual([code, first.error.code, second.stdout], [125, "SBX_OUTCOME_UNKNOWN", "second\n"]);
});

testVm(
  "what answers in a server's place, and is none of ours or of another version, is not used: the command runs by itself",
  async (t) => {
    const welcome = { version: "0.0.1", pid: 1, nonce: newNonce(), proof: "0".repeat(64), config: {} };
    const answers: ReadonlyArray<readonly [string, RegExp]> = [
      [`${JSON.stringify(welcome)}\n`, /not using the server .*must be of version \S+, got 0\.0\.1/],
      [`${JSON.stringify({ ...welcome, version: VERSION })}\n`, /not using the server .*does not know the secret/],
      ["\0\n", /not using the server .*a line is JSON/],
    ];
    for (const [answer, says] of answers) {
      const own = home(t);
      await fakeServer(t, own.place, () => answer);
      await makeSecret(own.place.secret);
      const run = await own.sbx(["run", "--debug", "-l", "raw", "echo hi"]);
      assert.deepEqual([run.code, run.stdout], [0, "hi\n"], run.stderr);
      assert.match(run.stderr, says);
    }
  },
);

/** A prompt's program in each language: what a checkpoint, a rollback and a fork show of a variable. */
const PROMPTS = {
  python: ["n = 1", "n = 2", "print(n)", "n += 40; print(n)"],
  javascript: ["let n = 1", "void (n = 2)", "console.log(n)", "n += 40; console.log(n)"],
  raw: ["n=1", "n=2", "echo $n", "n=$((n + 40)); echo $n"],
} as const;

testVm("commands of a prompt save, copy and roll back VMs, of a server too, in each language", async (t) => {
  const own = home(t), server = await own.serve("--warm", "0");
  for (const [language, [one, two, show, add]] of Object.entries(PROMPTS)) {
    const lines = [
      one,
      ":checkpoint",
      two,
      ":fork",
      add,
      ":checkpoint kept",
      ":quit",
      show,
      ":rollback 1",
      show,
      ":rollback kept",
      show,
      ":forget kept",
    ];
    for (const args of language === "javascript" ? [[], ["--no-serve"]] : [[]]) {
      const stdin = lines.map((line) => `${line}\n`).join("");
      const { code, stdout, stderr } = await own.sbx(["session", "--debug", "-l", language, ...args], { stdin });
      assert.deepEqual([code, stdout, stderr.includes(USES)], [0, "42\n2\n1\n42\n", args.length === 0], `${language} ${args}: ${stderr}`);
    }
  }
  await eventually("nothing of them is left", async () => {
    const { vms } = JSON.parse((await own.sbx(["serve", "--status", "--json"])).stdout);
    return vms === 0 && readdirSync(path.join(own.cacheDir, "checkpoints")).length === 0;
  });
  server.kill("SIGTERM");
  await server.ended;
  assert.deepEqual(readdirSync(path.join(own.cacheDir, "run")), []);
});

testVm("a server that hangs is not waited for", async (t) => {
  const own = home(t), server = await own.serve("--warm", "0");
  server.kill("SIGSTOP");
  const run = await own.sbx(["run", "--debug", "-l", "raw", "echo hi"]);
  server.kill("SIGCONT");
  assert.deepEqual([run.code, run.stdout], [0, "hi\n"]);
  assert.match(run.stderr, /not using the server .*no answer within \d+ ms/);
  assert.ok((await own.sbx(["run", "--debug", "-l", "raw", "echo hi"])).stderr.includes(USES));
});

testVm("a command that is killed takes its VM along", async (t) => {
  const own = home(t), server = await own.serve("--warm", "0");
  const command = own.start(["run", "-l", "raw", "echo on; sleep 1000"]);
  await settled(command.says("on"), "the code runs");
  const isServed = async () => JSON.parse((await own.sbx(["serve", "--status", "--json"])).stdout).vms;
  assert.equal(await isServed(), 1);
  command.kill("SIGKILL");
  await command.ended;
  await eventually("its VM has ended", async () => await isServed() === 0);
  assert.ok(runs(server.pid));
});

testVm("a place that others can enter is told, and not used", async (t) => {
  const own = home(t), server = await own.serve("--warm", "0");
  chmodSync(own.place.directory, 0o755);
  const run = await own.sbx(["run", "-l", "raw", "echo hi"]);
  assert.deepEqual([run.code, run.stdout], [0, "hi\n"]);
  assert.match(run.stderr, /not using the server.*its mode must be 0700, got 0755/);
  assert.equal((await own.sbx(["serve", "--stop"])).code, 125, "nor is it asked who to stop");
  chmodSync(own.place.directory, 0o700);
  server.kill("SIGTERM");
  assert.equal((await server.ended).code, 0);
});

test("--install writes a unit that starts this very program, and says what is left to do; --uninstall undoes it", {
  skip: process.platform === "linux" ? false : "systemd is of Linux",
}, async (t) => {
  const directory = temporaryDirectory(t), unit = path.join(directory, "systemd/user/exec-sandbox.service");
  // No service manager is to be found, whichever the host has.
  const env = { XDG_CONFIG_HOME: directory, PATH: directory, EXEC_SANDBOX_DEFAULT_MEMORY_MB: "300", AWS_SECRET_ACCESS_KEY: "precious" };
  const installed = await sbx(["serve", "--install", "--warm", "3"], { env });
  assert.deepEqual([installed.code, installed.stdout], [0, `${unit}\n`]);
  assert.match(
    installed.stderr,
    /Run next:\n {2}systemctl --user daemon-reload\n {2}systemctl --user enable --now exec-sandbox\.service\n$/,
  );
  const text = readFileSync(unit, "utf8");
  assert.match(text, /^ExecStart="\/.*" "serve" "--warm" "3"$/m);
  assert.ok(text.includes('Environment="EXEC_SANDBOX_DEFAULT_MEMORY_MB=300"\n') && !text.includes("precious"), text);
  const undone = await sbx(["serve", "--uninstall"], { env });
  assert.deepEqual([undone.code, existsSync(unit)], [0, false]);
  assert.equal((await sbx(["serve", "--uninstall"], { env })).stderr, "No unit of sbx is installed.\n");
});

noLeftovers();
