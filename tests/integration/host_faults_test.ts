/** Faults of the host: damaged files, dying processes, full disks, two processes at once. Each ends in a typed error or a right result. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import {
  AssetError,
  OutcomeUnknownError,
  SandboxDependencyError,
  SandboxError,
  Scheduler,
  type SchedulerConfig,
  SessionClosedError,
  VmConfigError,
} from "../../src/mod.ts";
import { withEnv } from "../support/environment.ts";
import { noLeftovers, processesWith, temporaryDirectory } from "../support/leftovers.ts";
import { imagesDirectory } from "../support/scheduler.ts";
import { descendants, openTestScheduler } from "../support/vm.ts";
import { eventually } from "../support/waiting.ts";

const raw = (code: string) => ({ language: "raw", code }) as const;
const silent = { debug() {}, info() {}, warning() {}, error() {} };
const qemuPids = () => descendants().filter((line) => line.includes("qemu")).map((line) => Number.parseInt(line));

/** Found before any test moves the cache directory. */
const IMAGES = imagesDirectory();

/** A scheduler with caches of its own. */
function isolated(t: TestContext, config: SchedulerConfig = {}): Promise<Scheduler> {
  return Scheduler.open({ snapshotCacheDir: temporaryDirectory(t), imagesDir: IMAGES, ...config }, { log: silent });
}

/** The images of this machine by link, so that a test can replace one file. */
function copyOfImages(t: TestContext): string {
  const directory = temporaryDirectory(t);
  for (const name of readdirSync(IMAGES)) symlinkSync(path.join(IMAGES, name), path.join(directory, name));
  return directory;
}

/** Puts a private copy in place of a link. */
function ownCopy(directory: string, name: string): string {
  const file = path.join(directory, name);
  rmSync(file);
  copyFileSync(path.join(IMAGES, name), file);
  return file;
}

test("a QEMU that is killed while code runs gives OutcomeUnknownError", async () => {
  const { scheduler, close } = await openTestScheduler();
  const started = Promise.withResolvers<void>();
  const running = scheduler.run({ ...raw("echo on; sleep 60"), onStdout: () => started.resolve() });
  running.catch(() => {});
  await started.promise;
  for (const pid of qemuPids()) process.kill(pid, "SIGKILL");
  await assert.rejects(running, (error) => error instanceof OutcomeUnknownError && error.retry === "unknown");
  await close();
});

test("an abort rejects with its reason, at once and at any moment, and the VM is gone", async () => {
  const { scheduler, close } = await openTestScheduler();
  await scheduler.prepare("raw");
  for (const waitMs of [0, 1, 5, 20, 50, 100, 200, 400]) {
    const controller = new AbortController(), reason = new Error(`after ${waitMs} ms`);
    const running = scheduler.run({ ...raw("sleep 60"), signal: controller.signal });
    setTimeout(() => controller.abort(reason), waitMs);
    await assert.rejects(running, (error) => error === reason);
  }
  await assert.rejects(scheduler.run({ ...raw("sleep 60"), signal: AbortSignal.abort(new Error("before")) }), /before/);
  await close();
});

test("closing a scheduler ends what runs, twice is once, and afterwards nothing starts", async () => {
  const { scheduler, close } = await openTestScheduler();
  const running = [1, 2, 3].map(() => scheduler.run(raw("sleep 60")));
  for (const each of running) each.catch(() => {});
  await new Promise((resolve) => setTimeout(resolve, 300));
  await Promise.all([scheduler.close(), scheduler.close(), scheduler[Symbol.asyncDispose]()]);
  for (const each of running) await assert.rejects(each, SessionClosedError);
  await assert.rejects(scheduler.run(raw("echo")), SessionClosedError);
  await close();
});

test("two schedulers in one process do not see each other", async () => {
  const [one, two] = await Promise.all([openTestScheduler(), openTestScheduler()]);
  const running = two.scheduler.run(raw("sleep 1; echo two"));
  await one.scheduler.run(raw("echo one"));
  await one.scheduler.close();
  assert.equal((await running).stdout, "two\n");
  await two.close();
});

test("a template that is cut off or overwritten is made anew", async (t) => {
  const directory = temporaryDirectory(t);
  const damages: Array<(template: string) => void> = [
    (template) => truncateSync(path.join(template, "ram"), 4096),
    (template) => truncateSync(path.join(template, "state"), 100),
    (template) => rmSync(path.join(template, "ram")),
    (template) => writeFileSync(path.join(template, "meta.json"), "{"),
    (template) => {
      const handle = openSync(path.join(template, "state"), "r+");
      writeSync(handle, new Uint8Array(4096).fill(0xa5), 0, 4096, 0);
    },
  ];
  for (const damage of damages) {
    await using scheduler = await isolated(t, { snapshotCacheDir: directory });
    assert.equal((await scheduler.run(raw("echo before"))).stdout, "before\n");
    const [template = ""] = readdirSync(directory).filter((name) => name.startsWith("raw-"));
    for (const file of ["ram", "state", "meta.json"]) chmodSync(path.join(directory, template, file), 0o600);
    damage(path.join(directory, template));
    const result = await scheduler.run(raw("echo after"));
    assert.deepEqual([result.stdout, result.start], ["after\n", "template"], damage.toString());
  }
});

test("assets that are missing, cut off or of another machine are an AssetError that names the file", async (t) => {
  await assert.rejects(isolated(t, { imagesDir: "/no/such/directory" }), { code: "SBX_ASSET", message: /manifest\.json/ });
  const missing = copyOfImages(t);
  rmSync(path.join(missing, "vmlinux-sbx"));
  await assert.rejects(isolated(t, { imagesDir: missing }), { code: "SBX_ASSET", message: /vmlinux-sbx/ });
  const cut = copyOfImages(t);
  truncateSync(ownCopy(cut, "qboot.rom"), 1000);
  await assert.rejects(isolated(t, { imagesDir: cut }), { code: "SBX_ASSET", message: /qboot\.rom.*65536.*1000/ });
  const garbage = copyOfImages(t);
  rmSync(path.join(garbage, "manifest.json"));
  writeFileSync(path.join(garbage, "manifest.json"), "\0\0");
  await assert.rejects(isolated(t, { imagesDir: garbage }), AssetError);
  const endless = copyOfImages(t);
  rmSync(path.join(endless, "manifest.json"));
  symlinkSync("/dev/zero", path.join(endless, "manifest.json"));
  await assert.rejects(isolated(t, { imagesDir: endless }), { code: "SBX_ASSET", message: /manifest\.json: it must be a file/ });
});

test("one wrong byte in a file is found before a template is made of it, with both hashes", async (t) => {
  for (const name of ["vmlinux-sbx", "initrd-sbx.cpio", "raw-base.erofs"]) {
    const images = copyOfImages(t);
    const file = ownCopy(images, name), bytes = readFileSync(file);
    const at = bytes.length - 9;
    bytes[at] = bytes[at]! ^ 1;
    chmodSync(file, 0o644);
    writeFileSync(file, bytes);
    await using scheduler = await isolated(t, { imagesDir: images });
    await assert.rejects(
      scheduler.run(raw("echo hi")),
      (error) => error instanceof AssetError && error.message.includes(name) && (error.message.match(/[0-9a-f]{64}/g) ?? []).length === 2,
      name,
    );
  }
});

test("a QEMU that is missing, too old, no QEMU or crashing is a SandboxDependencyError", async (t) => {
  const directory = temporaryDirectory(t);
  const script = (name: string, body: string) => {
    const file = path.join(directory, name);
    writeFileSync(file, `#!/bin/sh\n${body}\n`, { mode: 0o755 });
    return file;
  };
  const version = (number: string) => `case "$1" in --version) echo "QEMU emulator version ${number}"; exit 0;; esac`;
  const cases: Array<[string, RegExp]> = [
    ["/no/such/qemu", /does not run/],
    [script("old", version("7.2.22")), /8\.2 or newer, got 7\.2\.22/],
    [script("none", "echo I am a teapot"), /teapot/],
    [script("silent", "exec sleep 300"), /must answer --version within 10000 ms/],
    [script("crash", `${version("10.0.2")}; echo 'machine is on fire' >&2; exit 1`), /on fire/],
  ];
  for (const [program, message] of cases) {
    await withEnv({ EXEC_SANDBOX_QEMU: program }, async () => {
      await using scheduler = await isolated(t);
      await assert.rejects(
        scheduler.run(raw("echo hi")),
        (error) => error instanceof SandboxDependencyError && message.test(error.message),
        program,
      );
    });
  }
});

test("a launcher that cannot be started or says nothing useful is a SandboxDependencyError, and the next run tries again", async (t) => {
  const images = copyOfImages(t), file = ownCopy(images, "sbx-jail"), { size } = statSync(file);
  await withEnv({ EXEC_SANDBOX_CACHE_DIR: temporaryDirectory(t) }, async () => {
    await using scheduler = await isolated(t, { imagesDir: images });
    const refused = (message: RegExp) =>
      assert.rejects(scheduler.run(raw("echo hi")), (error) => error instanceof SandboxDependencyError && message.test(error.message));
    chmodSync(file, 0o644);
    await refused(/sbx-jail does not run/);
    writeFileSync(file, "#!/bin/sh\necho 'I am a teapot'\n");
    truncateSync(file, size);
    chmodSync(file, 0o755);
    await refused(/teapot/);
    copyFileSync(path.join(IMAGES, "sbx-jail"), file);
    assert.equal((await scheduler.run(raw("echo hi"))).stdout, "hi\n");
  });
});

test("a cache that cannot be written does not stop runs: the VM boots", async (t) => {
  const file = path.join(temporaryDirectory(t), "a-file");
  writeFileSync(file, "");
  await using scheduler = await isolated(t, { snapshotCacheDir: path.join(file, "below") });
  const result = await scheduler.run(raw("echo hi"));
  assert.deepEqual([result.stdout, result.start], ["hi\n", "cold"]);
});

test("two processes that need the same template: one makes it, both use it", async (t) => {
  const cache = temporaryDirectory(t);
  const program = `
    import { Scheduler } from ${JSON.stringify(new URL("../../src/mod.ts", import.meta.url).href)};
    let phases = "";
    const silent = { debug() {}, info() {}, warning() {}, error() {} };
    const scheduler = await Scheduler.open({ snapshotCacheDir: ${
    JSON.stringify(cache)
  } }, { log: silent, onProgress: (p) => phases += p.phase + " " });
    const result = await scheduler.run({ language: "raw", code: "echo hi" });
    console.log(JSON.stringify({ phases, out: result.stdout, start: result.start }));
    await scheduler.close();`;
  const outputs = await Promise.all([1, 2, 3].map(() => runProgram(t, program)));
  const reports = outputs.map(({ stdout }) => JSON.parse(stdout));
  assert.deepEqual(reports.map(({ out, start }) => [out, start]), Array(3).fill(["hi\n", "template"]));
  assert.equal(reports.filter(({ phases }) => phases.includes("booting")).length, 1, JSON.stringify(reports));
  assert.deepEqual(readdirSync(cache).filter((name) => !name.startsWith("raw-")), [], "no lock and no temporary is left");
});

test("no QEMU survives its process, killed at any moment", async (t) => {
  const cache = temporaryDirectory(t), home = temporaryDirectory(t);
  mkdirSync(path.join(home, "run"));
  const program = `
    import { Scheduler } from ${JSON.stringify(new URL("../../src/mod.ts", import.meta.url).href)};
    const silent = { debug() {}, info() {}, warning() {}, error() {} };
    const scheduler = await Scheduler.open({ snapshotCacheDir: ${JSON.stringify(cache)} }, { log: silent });
    console.log("open");
    await Promise.all([1, 2, 3].map(() => scheduler.run({ language: "raw", code: "sleep 60" })));`;
  for (const waitMs of [0, 100, 400, 1500, 4000]) {
    const child = startProgram(program, { EXEC_SANDBOX_CACHE_DIR: home });
    await new Promise<void>((resolve) => child.stdout.once("data", () => resolve()));
    await new Promise((resolve) => setTimeout(resolve, waitMs));
    child.kill("SIGKILL");
    await new Promise((resolve) => child.once("exit", resolve));
    const tokens = readdirSync(path.join(home, "run"), { withFileTypes: true }).map(({ name }) => `vm-${name}-`);
    await eventually(`no QEMU lives after ${waitMs} ms`, () => tokens.every((token) => processesWith(token).length === 0));
  }
  // The next process cleans up what the dead ones left in files.
  await withEnv({ EXEC_SANDBOX_CACHE_DIR: home }, async () => {
    await using scheduler = await Scheduler.open({ snapshotCacheDir: cache, imagesDir: IMAGES }, { log: silent });
    assert.equal((await scheduler.run(raw("echo hi"))).stdout, "hi\n");
    await eventually("the journal of the dead is gone", () => readdirSync(path.join(home, "run")).length === 1);
  });
  assert.deepEqual(readdirSync(cache).filter((name) => name.startsWith(".tmp-")), []);
});

test("wrong requests are refused by type, and nothing starts", async () => {
  const { scheduler, close } = await openTestScheduler();
  // deno-lint-ignore no-explicit-any -- callers in plain JavaScript pass anything.
  const refused = async (request: any, code: string, message: RegExp) => {
    await assert.rejects(
      scheduler.run(request),
      (error) => SandboxError.is(error) && error.code === code && message.test(error.message),
      JSON.stringify(request),
    );
  };
  await refused({ ...raw("echo"), memoryMb: 127 }, "SBX_VM_CONFIG", /at least 128, got 127/);
  await refused({ ...raw("echo"), memoryMb: 1e12 }, "SBX_VM_CAPACITY", /budget of this host/);
  await refused({ ...raw("echo"), timeoutSeconds: 0 }, "SBX_INPUT_VALIDATION", /between 1 and 300, got 0/);
  await refused({ ...raw("echo"), timeoutSeconds: 301 }, "SBX_INPUT_VALIDATION", /got 301/);
  await refused({ ...raw("echo"), language: "perl" }, "SBX_INPUT_VALIDATION", /python, javascript, raw, got "perl"/);
  await refused({ ...raw("") }, "SBX_INPUT_VALIDATION", /white space/);
  await refused({ ...raw("echo \0") }, "SBX_INPUT_VALIDATION", /NUL/);
  await refused({ ...raw("echo"), env: { LD_PRELOAD: "x" } }, "SBX_ENV_VAR_VALIDATION", /LD_PRELOAD/);
  await refused({ ...raw("echo"), colour: "red" }, "SBX_VM_CONFIG", /unknown field "colour"/);
  await assert.rejects(Scheduler.open({ defaultMemoryMb: 1 }), VmConfigError);
  assert.deepEqual(qemuPids(), []);
  await close();
});

function startProgram(program: string, env: Record<string, string> = {}) {
  const isDeno = "Deno" in globalThis, isBun = "Bun" in globalThis;
  const directory = new URL("../../", import.meta.url).pathname;
  const file = path.join(directory, `.test-${process.pid}-${Math.random().toString(36).slice(2)}.ts`);
  writeFileSync(file, program);
  const child = spawn(process.execPath, isDeno ? ["run", "-A", "--no-check", file] : [file], {
    cwd: directory,
    env: { ...process.env, EXEC_SANDBOX_IMAGES_DIR: IMAGES, ...env, ...(isBun ? { BUN_BE_BUN: "1" } : {}) },
    stdio: ["ignore", "pipe", "inherit"],
  });
  child.once("exit", () => rmSync(file, { force: true }));
  return child;
}

async function runProgram(_t: TestContext, program: string): Promise<{ stdout: string }> {
  const child = startProgram(program);
  let stdout = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => stdout += text);
  const code = await new Promise((resolve) => child.once("close", resolve));
  assert.equal(code, 0, stdout);
  return { stdout };
}

noLeftovers();
