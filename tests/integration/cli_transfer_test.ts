/** `sbx run --upload --download` as a process with real VMs: whole trees in and out, hostile guests, full disks, interrupts. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { FILE_MAX_BYTES } from "../../src/base/limits.ts";
import { childrenOf, noLeftovers, runs, temporaryDirectory } from "../support/leftovers.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { eventually } from "../support/waiting.ts";
import { commandLine, hasProgram, sbx, start, Terminal } from "./cli_terminal.ts";

const ENV = { EXEC_SANDBOX_IMAGES_DIR: imagesDirectory(), EXEC_SANDBOX_LOG_LEVEL: "error" };
const skip = reasonToSkip() ?? false;
const TIMEOUT_MS = 300_000;
const ANSWER_MS = 120_000;

const run = (args: readonly string[]) => sbx(["run", "-q", ...args], { env: ENV });
const testVm = (name: string, body: (t: TestContext) => Promise<void>) => test(name, { skip, timeout: TIMEOUT_MS }, body);
const all = (directory: string) => (fs.readdirSync(directory, { recursive: true }) as string[]).sort();
const inside = (directory: string) => (name: string) => path.join(directory, name);

/** Runs shell code, downloads `out` and asserts that it was refused and that nothing came. */
async function refuses(t: TestContext, code: string, says: RegExp, language = "sh"): Promise<void> {
  const directory = temporaryDirectory(t);
  const { code: status, stderr } = await run(["-l", language, "--download", `out:${directory}/out`, code]);
  assert.equal(status, 125, stderr);
  assert.match(stderr, says);
  // deno-lint-ignore no-control-regex
  assert.ok(!/[\x00-\x09\x0b-\x1f]/.test(stderr), "nothing that a terminal acts on");
  assert.deepEqual(fs.readdirSync(directory), []);
}

testVm("a tree goes in and comes out as it was: 300 files, modes, empty directories, unicode names, links inside", async (t) => {
  const directory = temporaryDirectory(t), at = inside(directory);
  fs.mkdirSync(at("tree/deep/er"), { recursive: true });
  fs.mkdirSync(at("tree/empty/too"), { recursive: true });
  for (let number = 0; number < 300; number++) {
    fs.writeFileSync(at(`tree/deep/${number % 5 ? "er/" : ""}${number} ü🙂`), Buffer.alloc(number * 37, number));
  }
  fs.writeFileSync(at("tree/run.sh"), "#!/bin/sh\necho ran\n", { mode: 0o755 });
  fs.writeFileSync(at("tree/large"), Buffer.alloc(3_000_001, "abc"));
  fs.symlinkSync("deep/er", at("tree/link"));
  const code = "./app/run.sh; find app -type f | wc -l; ls -A app/empty/too | wc -l; stat -c '%U %a' app/run.sh app/large";
  const { code: status, stdout, stderr } = await run([
    "-l",
    "sh",
    "--upload",
    `${at("tree")}:app`,
    "--download",
    `app:${at("back")}`,
    code,
  ]);
  assert.deepEqual([status, stdout, stderr], [0, "ran\n542\n0\nuser 755\nuser 644\n", ""]);
  // The link's own content is there twice when it comes back; some runtimes look behind links, others do not.
  const withoutLink = (name: string) => all(at(name)).filter((each) => !each.startsWith("link/"));
  const names = withoutLink("tree");
  assert.deepEqual(withoutLink("back"), names);
  for (const name of names.filter((each) => fs.lstatSync(at(`tree/${each}`)).isFile())) {
    assert.ok(fs.readFileSync(at(`tree/${name}`)).equals(fs.readFileSync(at(`back/${name}`))), name);
    assert.equal(fs.statSync(at(`tree/${name}`)).mode & 0o111, fs.statSync(at(`back/${name}`)).mode & 0o111, name);
  }
  assert.equal(fs.lstatSync(at("back/link")).isDirectory(), true, "a copy, no link");
});

testVm("timers that outlive the code of a run have written what is downloaded", async (t) => {
  const directory = temporaryDirectory(t);
  const code = "setTimeout(() => require('fs').writeFileSync('late', 'late'), 300)";
  assert.equal((await run(["-l", "js", "--download", `late:${directory}/late`, code])).code, 0);
  assert.equal(fs.readFileSync(`${directory}/late`, "utf8"), "late");
});

testVm("a file comes to standard output byte for byte, after the program's own", async (t) => {
  const directory = temporaryDirectory(t), content = Buffer.alloc(1_000_000, "content\n");
  fs.writeFileSync(`${directory}/f`, content);
  const { code, stdout } = await run(["-l", "sh", "--upload", `${directory}/f`, "--download", "f:-", "echo first"]);
  assert.equal(code, 0);
  assert.ok(stdout === `first\n${content}`, "all of it");
});

testVm("downloads are tried whatever the program's end, and its failure is the exit code", async (t) => {
  const directory = temporaryDirectory(t), at = inside(directory);
  const downloads = ["--download", `here:${at("here")}`, "--download", `missing:${at("missing")}`];
  const ends: Array<[string, number, readonly string[]]> = [
    ["echo x > here; exit 3", 3, []],
    ["echo x > here; kill -9 $$", 137, []],
    ["echo x > here; while :; do :; done", 124, ["-t", "1"]],
    ["echo x > here", 125, []],
  ];
  for (const [code, wanted, more] of ends) {
    fs.rmSync(at("here"), { force: true });
    const { code: status, stderr } = await run(["-l", "sh", ...more, ...downloads, code]);
    assert.equal(status, wanted, stderr);
    assert.match(stderr, /Cannot download "missing" from the guest: it does not exist/);
    assert.deepEqual([fs.readdirSync(directory), fs.readFileSync(at("here"), "utf8")], [["here"], "x\n"]);
  }
});

testVm("names that would not be what they look like are refused, and nothing comes", async (t) => {
  await refuses(t, "mkdir out; echo x > $'out/a\\nb'", /its name has a control character/);
  await refuses(t, "mkdir out; echo x > $'out/a\\e[2J'", /its name has a control character/);
  await refuses(t, "mkdir -p $'out/sub/a\\x7f'", /its name has a control character/);
  await refuses(t, "mkdir out; echo x > $'out/a\\xff'", /its name is no valid UTF-8/);
  await refuses(t, "import os; os.mkdir('out'); open('out/\\u202egpj.exe', 'w')", /control character/, "py");
});

testVm("special files, links that lead out and files that are too large are refused, and nothing comes", async (t) => {
  await refuses(t, "mkdir out; echo x > out/good; mkfifo out/fifo", /"out\/fifo" from the guest: it is neither a file nor a directory/);
  await refuses(t, "mkfifo out", /neither a file nor a directory/);
  await refuses(t, "mkdir out; ln -s /etc/passwd out/passwd", /out\/passwd" in the guest: it may not be accessed, or its path leads out/);
  await refuses(t, "ln -s /etc out", /leads out/);
  await refuses(t, "mkdir out; ln -s . out/round", /below another such link/);
  await refuses(t, "mkdir out; ln -s none out/gone", /out\/gone" in the guest: it does not exist/);
  await refuses(t, `mkdir out; truncate -s ${FILE_MAX_BYTES + 1} out/large`, /at most 524288000 bytes, got 524288001/);
});

testVm("links of the guest to its own files are downloaded as these", async (t) => {
  const directory = temporaryDirectory(t), at = inside(directory);
  const code = "mkdir -p out/lib; echo x > out/lib/f; ln -s lib out/lib64; ln -s lib/f out/f";
  assert.equal((await run(["-l", "sh", "--download", `out:${at("out")}`, code])).code, 0);
  assert.deepEqual(all(at("out")), ["f", "lib", "lib/f", "lib64", "lib64/f"]);
  assert.equal(all(at("out")).some((name) => fs.lstatSync(at(`out/${name}`)).isSymbolicLink()), false);
});

testVm("nothing is written through a link that was planted on the host", async (t) => {
  const directory = temporaryDirectory(t), at = inside(directory);
  fs.writeFileSync(at("mine"), "mine");
  fs.mkdirSync(at("safe"));
  fs.symlinkSync("mine", at("link"));
  fs.mkdirSync(at("out"));
  fs.symlinkSync("../safe", at("out/sub"));
  const code = "mkdir -p out/sub; echo theirs > out/sub/f; echo theirs > f; echo theirs > out/g";
  for (const download of [`f:${at("link")}`, `out:${at("out")}`, `out/sub/f:${at("link")}`]) {
    const { code: status, stderr } = await run(["-l", "sh", "--download", download, code]);
    assert.equal(status, 125, download);
    assert.match(stderr, /a symbolic link is there/);
    assert.deepEqual(all(directory), ["link", "mine", "out", "out/sub", "safe"]);
  }
  assert.equal(fs.readFileSync(at("mine"), "utf8"), "mine");
});

testVm("a guest that is full says so, and what to do; so do files and directories in each other's place", async (t) => {
  const directory = temporaryDirectory(t), at = inside(directory);
  fs.writeFileSync(at("large"), "");
  fs.truncateSync(at("large"), 150_000_000);
  const full = await run(["-l", "sh", "--upload", at("large"), "echo ran"]);
  assert.deepEqual([full.code, full.stdout], [125, ""]);
  assert.match(full.stderr, /Cannot write "large" in the guest: no space is left in the guest\n.*--memory/);
  const enough = await run(["-l", "sh", "-m", "512", "--upload", at("large"), "stat -c %s large"]);
  assert.deepEqual([enough.code, enough.stdout], [0, "150000000\n"]);
  fs.mkdirSync(at("d"));
  fs.writeFileSync(at("d/x"), "x");
  fs.writeFileSync(at("f"), "f");
  const under = await run(["-l", "sh", "--upload", `${at("f")}:a`, "--upload", `${at("d")}:a`, "echo ran"]);
  assert.deepEqual([under.code, under.stdout], [125, ""]);
  assert.match(under.stderr, /"a\/x" in the guest: .*no directory/);
  for (const [download, says] of [[`d:${at("f")}`, /no directory is there/], [`f:${at("d")}/x/y`, /no directory/]] as const) {
    const { code, stderr } = await run(["-l", "sh", "--download", download, "mkdir d; echo x > f"]);
    assert.equal(code, 125);
    assert.match(stderr, says);
  }
  assert.deepEqual(all(directory), ["d", "d/x", "f", "large"]);
});

testVm("what cannot be uploaded ends the run before a VM is there", async (t) => {
  const directory = temporaryDirectory(t), at = inside(directory);
  execFileSync("mkfifo", [at("fifo")]);
  fs.mkdirSync(at("d"));
  fs.symlinkSync("/etc/passwd", at("d/passwd"));
  fs.writeFileSync(at("large"), "");
  fs.truncateSync(at("large"), FILE_MAX_BYTES + 1);
  for (
    const [name, says] of [["fifo", /neither a file/], ["d", /leads out/], ["large", /524288001/], ["none", /does not exist/]] as const
  ) {
    const { code, stdout, stderr } = await run(["-l", "sh", "--upload", at(name), "echo ran"]);
    assert.deepEqual([code, stdout], [125, ""], name);
    assert.match(stderr, says);
  }
});

test("a full disk of the host ends a download, which leaves nothing", {
  skip: skip || (process.getuid?.() === 0 ? false : "mounting a small file system needs root"),
  timeout: TIMEOUT_MS,
}, async (t) => {
  const directory = temporaryDirectory(t), at = inside(directory), small = at("small");
  fs.mkdirSync(small);
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "sbx-test", small], { stdio: "ignore" });
  } catch {
    return t.skip("mounting is not allowed here");
  }
  try {
    const make = "mkdir out; head -c 3000000 /dev/zero > out/large; for i in 1 2 3; do head -c 400000 /dev/zero > out/$i; done";
    for (const source of ["out/large", "out"]) {
      const { code, stderr } = await run(["-l", "sh", "--download", `${source}:${small}/x`, make]);
      assert.equal(code, 125, source);
      assert.match(stderr, /on the host: no space is left/);
      assert.deepEqual(fs.readdirSync(small), []);
    }
  } finally {
    execFileSync("umount", [small]);
  }
});

testVm("an interrupt in the middle of a download leaves no file and no QEMU", async (t) => {
  for (const source of ["out/large", "out"]) {
    const directory = temporaryDirectory(t);
    const code = "mkdir out; head -c 100000000 /dev/zero > out/large; for i in $(seq 200); do echo $i > out/$i; done";
    const running = start(["run", "-q", "-l", "sh", "-m", "512", "--download", `${source}:${directory}/x`, code], { env: ENV });
    await eventually("it has begun", () => fs.readdirSync(directory).some((name) => name.startsWith(".tmp-")));
    const below = childrenOf(running.pid).flatMap((child) => [child, ...childrenOf(child)]);
    assert.ok(below.length > 0, "there is a QEMU");
    running.kill("SIGINT");
    const { code: status, stderr } = await running.ended;
    assert.deepEqual([status, stderr], [130, "sbx: Interrupted by SIGINT\n"]);
    assert.deepEqual(fs.readdirSync(directory), []);
    await eventually("every QEMU has ended", () => !below.some(runs));
  }
});

test("progress of an upload is on the terminal, and Ctrl-C ends it", {
  skip: skip || (hasProgram("tmux") ? false : "tmux is not installed"),
  timeout: TIMEOUT_MS,
}, async (t) => {
  const directory = temporaryDirectory(t), large = path.join(directory, "large");
  fs.writeFileSync(large, "");
  fs.truncateSync(large, 450_000_000);
  const words = Object.entries(ENV).map(([name, value]) => `${name}=${value}`).join(" ");
  const line = commandLine(["run", "-l", "sh", "-m", "1024", "--upload", large, "echo ran"]);
  await using terminal = await Terminal.open(`env ${words} ${line}`, { columns: 200, rows: 30 });
  await terminal.shows(/upload .*large: [\d.]+ MB of 450\.0 MB, \d+ % \(\d+\.\d s\)/, ANSWER_MS);
  await terminal.press("C-c");
  assert.equal(await terminal.exitCode(ANSWER_MS), 130);
  assert.ok(!(await terminal.screen()).includes("\nran"));
  assert.deepEqual(fs.readdirSync(directory), ["large"]);
});

testVm("each transfer is told with its size when it is over, as plain lines where there is no terminal", async (t) => {
  const directory = temporaryDirectory(t), at = inside(directory);
  fs.writeFileSync(at("in"), Buffer.alloc(1_500_000));
  const code = "mkdir out; head -c 2500000 /dev/zero > out/large; echo x > out/small; echo ran";
  const transfers = ["--upload", at("in"), "--download", `out:${at("got")}`, "--download", `out/small:${at("small")}`];
  const told = await sbx(["run", "-l", "sh", ...transfers, code], { env: ENV });
  assert.deepEqual([told.code, told.stdout], [0, "ran\n"]);
  const lines = [
    `upload ${at("in")}: 1.5 MB → in (N s)`,
    `download out: 2 files, 2.5 MB → ${at("got")} (N s)`,
    `download out/small: 2 B → ${at("small")} (N s)`,
  ];
  assert.deepEqual(told.stderr.replaceAll(/\(\d+\.\d s\)/g, "(N s)").trimEnd().split("\n"), lines);
  const quiet = await run(["-l", "sh", "--download", `out/small:${at("small")}`, code]);
  assert.deepEqual([quiet.code, quiet.stderr], [0, ""]);
});

test("progress of a download is on the terminal, and at its end its size", {
  skip: skip || (hasProgram("tmux") ? false : "tmux is not installed"),
  timeout: TIMEOUT_MS,
}, async (t) => {
  const directory = temporaryDirectory(t), words = Object.entries(ENV).map(([name, value]) => `${name}=${value}`).join(" ");
  const line = commandLine(["run", "-l", "sh", "--download", `large:${directory}/large`, "truncate -s 450000000 large; echo ran"]);
  await using terminal = await Terminal.open(`env ${words} ${line}`, { columns: 200, rows: 30 });
  await terminal.shows(/^download large: [\d.]+ MB of 450\.0 MB, \d+ % \(\d+\.\d s\)$/m, ANSWER_MS);
  assert.equal(await terminal.exitCode(ANSWER_MS), 0);
  assert.match(await terminal.screen(), /^ran\ndownload large: 450\.0 MB → \S+\/large \(\d+\.\d s\)\n\[status 0\]$/);
  assert.equal(fs.statSync(path.join(directory, "large")).size, 450_000_000);
});

testVm("several sources get the same uploads and downloads of their own", async (t) => {
  const directory = temporaryDirectory(t), at = inside(directory);
  fs.writeFileSync(at("f"), "f");
  const sources = ["cat f > r.txt; echo one >> r.txt", "cat f > r.txt; echo two >> r.txt"];
  assert.equal((await run(["-l", "sh", "--upload", at("f"), "--download", `r.txt:${at("r.txt")}`, ...sources])).code, 0);
  assert.deepEqual(["r-1.txt", "r-2.txt"].map((name) => fs.readFileSync(at(name), "utf8")), ["fone\n", "ftwo\n"]);
});

noLeftovers();
