/** Child processes: real programs that ignore signals, leave stragglers, close pipes, flood them, or are not there. */
import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { Buffer } from "node:buffer";
import path from "node:path";
import process from "node:process";
import type { Duplex } from "node:stream";
import test from "node:test";
import { Child, describeExit, run } from "../../src/host/process.ts";
import { childrenOf, noLeftovers, openDescriptors, processesWith, runs, temporaryDirectory } from "../support/leftovers.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";

const PIPE_BYTES = 10 * 1_048_576;

/** Everything that comes out of `pipe` until its end. */
async function readAll(pipe: Duplex): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  pipe.on("data", (chunk: Uint8Array) => chunks.push(chunk));
  await new Promise((resolve) => pipe.once("end", resolve).once("close", resolve));
  return Buffer.concat(chunks);
}

async function writeAll(pipe: Duplex, bytes: Uint8Array): Promise<void> {
  await new Promise<void>((resolve, reject) => pipe.write(bytes, (error) => error ? reject(error) : resolve()));
}

test("Child ends a process that ignores SIGTERM", async (t) => {
  const ready = path.join(temporaryDirectory(t), "ready");
  const child = await Child.spawn(["sh", "-c", `trap '' TERM; : > ${ready}; while :; do sleep 1; done`]);
  await eventually("the trap is set", () => existsSync(ready));
  await child[Symbol.asyncDispose]();
  assert.equal(runs(child.pid), false);
  assert.deepEqual(await child.exited, { code: null, signal: "SIGKILL" });
});

test("Child lets a process that heeds SIGTERM finish by itself", async (t) => {
  const directory = temporaryDirectory(t), ready = path.join(directory, "ready"), saved = path.join(directory, "saved");
  const child = await Child.spawn(["sh", "-c", `trap ': > ${saved}; exit 7' TERM; : > ${ready}; while :; do sleep 0.05; done`]);
  await eventually("the trap is set", () => existsSync(ready));
  await child[Symbol.asyncDispose]();
  assert.deepEqual([existsSync(saved), await child.exited], [true, { code: 7, signal: null }]);
});

test("Child sends no SIGTERM when there is nothing to save", async (t) => {
  const directory = temporaryDirectory(t), ready = path.join(directory, "ready"), saved = path.join(directory, "saved");
  const child = await Child.spawn(["sh", "-c", `trap ': > ${saved}; exit 7' TERM; : > ${ready}; while :; do sleep 0.05; done`], {
    isTermFirst: false,
  });
  await eventually("the trap is set", () => existsSync(ready));
  await child[Symbol.asyncDispose]();
  assert.deepEqual([existsSync(saved), await child.exited], [false, { code: null, signal: "SIGKILL" }]);
});

test("Child sweeps its group when the leader dies first", async (t) => {
  const file = path.join(temporaryDirectory(t), "pid");
  await using child = await Child.spawn(["sh", "-c", `sleep 60 & echo $! > ${file}`]);
  await child.exited;
  const straggler = Number(readFileSync(file, "utf8"));
  assert.ok(straggler > 1);
  await eventually("the straggler is dead", () => !runs(straggler));
});

test("Child ends the whole group when it is released", async (t) => {
  const file = path.join(temporaryDirectory(t), "pids");
  const child = await Child.spawn(["sh", "-c", `(trap '' TERM; sleep 60; sleep 60) & (sleep 60) & echo $! > ${file}; wait`]);
  await eventually("the group is there", () => existsSync(file) && readFileSync(file, "utf8") !== "");
  await child[Symbol.asyncDispose]();
  const groupIsEmpty = () => {
    try {
      process.kill(-child.pid, 0);
      return false;
    } catch {
      return true; // No process has this group any more.
    }
  };
  await eventually("the group is empty", groupIsEmpty);
});

for (
  const [name, argv, options, code] of [
    ["is missing", ["/no/such/program"], {}, "ENOENT"],
    ["is missing from PATH", ["no-such-program-at-all"], { pipes: 1 }, "ENOENT"],
    ["is no program", ["/etc/passwd"], { pipes: 2 }, "EACCES"],
    ["has a working directory that is missing", ["/bin/true"], { cwd: "/no/such/directory" }, "ENOENT"],
    ["has an argument with a NUL", ["/bin/echo", "a\0b"], {}, "ERR_INVALID_ARG_VALUE"],
  ] as const
) {
  test(`Child.spawn rejects when the program ${name}`, async () => {
    await assert.rejects(async () => await Child.spawn([...argv], options), { code });
    assert.equal(await Child.spawn([...argv], options).then(() => "started", () => "rejected"), "rejected");
  });
}

test("Child.spawn leaves no descriptor behind when the program is missing", async () => {
  const before = openDescriptors();
  if (before === undefined) return;
  for (let count = 0; count < 20; count++) await Child.spawn(["/no/such/program"], { pipes: 3, stderr: "pipe" }).catch(() => {}); // Tested above.
  await eventually("the descriptors are closed", () => (openDescriptors() ?? 0) <= before + 2);
});

test("Child has the environment and the directory it was given, and nothing of ours on stdin", async (t) => {
  const directory = temporaryDirectory(t);
  const output = await run(["/bin/sh", "-c", 'echo "$A|$SBX_TEST_SECRET|$(pwd)"; cat; echo end'], { env: { A: "b c" }, cwd: directory });
  assert.deepEqual([output.stdout, output.code], [`b c||${directory}\nend\n`, 0]);
});

test("Child does not pass our ends of other children's pipes on: it would keep them open when we have gone", async () => {
  await using other = await Child.spawn(["sleep", "60"], { pipes: 2, isTermFirst: false });
  await using child = await Child.spawn(["/bin/sh", "-c", "ls -l /proc/self/fd >&3"], { pipes: 1 });
  const [pipe] = child.pipes;
  assert.ok(pipe && runs(other.pid));
  const listing = new TextDecoder().decode(await settled(readAll(pipe), "the list"));
  const sockets = listing.split("\n").filter((line) => line.includes("socket:"));
  assert.deepEqual(sockets.map((line) => / (\d+) -> /.exec(line)?.[1]).sort(), ["1", "3"], listing);
});

test("Child: a pipe carries 10 MB both ways at once, whole and in order", async () => {
  await using child = await Child.spawn(["sh", "-c", "exec cat <&3 >&3"], { pipes: 1 });
  const [pipe] = child.pipes;
  assert.ok(pipe);
  const bytes = new Uint8Array(PIPE_BYTES);
  for (let at = 0; at < bytes.length; at++) bytes[at] = (at * 31 + (at >> 13)) & 0xff;
  const reading = readAll(pipe);
  await writeAll(pipe, bytes);
  pipe.end();
  const got = await settled(reading, "the pipe's end");
  assert.ok(Buffer.from(got).equals(bytes), `${got.length} of ${bytes.length} bytes, all equal`);
  assert.deepEqual(await child.exited, { code: 0, signal: null });
});

test("Child: several pipes are independent of each other", async () => {
  await using child = await Child.spawn(["sh", "-c", "cat <&3 >&3 3>&- 5>&- & cat <&5 >&5 3>&- 5>&- & exec 3>&- 5>&-; wait"], { pipes: 3 });
  const [first, silent, third] = child.pipes;
  assert.ok(first && silent && third);
  const big = new Uint8Array(1_000_000).fill(1), small = new Uint8Array([9]);
  const reading = [readAll(third), readAll(first)] as const;
  await writeAll(third, small);
  third.end();
  assert.deepEqual([...await settled(reading[0], "the third pipe")], [9], "while the first one still waits");
  await writeAll(first, big);
  first.end();
  assert.equal((await settled(reading[1], "the first pipe")).length, big.length);
});

test("Child: the program sees the end of a pipe that we end, and we what it says after", async () => {
  await using child = await Child.spawn(["sh", "-c", "cat <&3 > /dev/null; echo done >&3"], { pipes: 1 });
  const [pipe] = child.pipes;
  assert.ok(pipe);
  const reading = readAll(pipe);
  pipe.end("question");
  assert.equal(new TextDecoder().decode(await settled(reading, "the answer")), "done\n");
});

test("Child: we see the end of a pipe that the program closes while it lives on", async () => {
  await using child = await Child.spawn(["sh", "-c", "echo last >&3; exec 3>&-; exec sleep 60"], { pipes: 1 });
  const [pipe] = child.pipes;
  assert.ok(pipe);
  assert.equal(new TextDecoder().decode(await settled(readAll(pipe), "the end")), "last\n");
  assert.deepEqual([child.gone.aborted, runs(child.pid)], [false, true]);
});

test("Child: writing to a pipe that nobody reads any more is no uncaught exception", async () => {
  await using child = await Child.spawn(["sh", "-c", "exec 3>&-; exec sleep 60"], { pipes: 1 });
  const [pipe] = child.pipes;
  assert.ok(pipe);
  await settled(readAll(pipe), "the end");
  for (let count = 0; count < 10; count++) pipe.write(new Uint8Array(100_000));
  await sleep(20);
});

test("Child: a program that dies with a full pipe is no uncaught exception", async () => {
  const child = await Child.spawn(["sleep", "60"], { pipes: 1, isTermFirst: false });
  for (let count = 0; count < 50; count++) child.pipes[0]?.write(new Uint8Array(100_000));
  await sleep(20);
  child.kill();
  await settled(child.exited, "its death");
  child.pipes[0]?.write("late");
  await child[Symbol.asyncDispose]();
  await sleep(20);
});

test("Child aborts gone with how it ended, before exited resolves for anybody", async () => {
  await using child = await Child.spawn(["sh", "-c", "exit 3"]);
  const isAborted = await child.exited.then(() => child.gone.aborted);
  assert.deepEqual([isAborted, await child.exited], [true, { code: 3, signal: null }]);
  assert.equal(child.gone.reason.message, `Process ${child.pid} exited with status 3`);
  await using killed = await Child.spawn(["sleep", "60"]);
  killed.kill();
  await killed.exited;
  assert.equal(killed.gone.reason.message, `Process ${killed.pid} was ended by SIGKILL`);
});

test("Child: gone is not aborted while the program runs", async () => {
  await using child = await Child.spawn(["sleep", "60"]);
  await sleep(30);
  assert.deepEqual([child.gone.aborted, runs(child.pid)], [false, true]);
});

test("Child may be disposed twice, at once and again, and killed in between", async () => {
  const child = await Child.spawn(["sleep", "60"]);
  await Promise.all([child[Symbol.asyncDispose](), child[Symbol.asyncDispose]()]);
  child.kill();
  await child[Symbol.asyncDispose]();
  assert.equal(runs(child.pid), false);
});

test("Child: kill and then dispose confirms the death", async () => {
  const child = await Child.spawn(["sh", "-c", "trap '' TERM; sleep 60"]);
  child.kill();
  child.kill();
  await child[Symbol.asyncDispose]();
  assert.deepEqual([runs(child.pid), (await child.exited).signal], [false, "SIGKILL"]);
});

test("Child that has ended long ago is disposed without a signal to whoever has its number now", async () => {
  const child = await Child.spawn(["true"]);
  await child.exited;
  const real = process.kill;
  const signalled: number[] = [];
  process.kill = (pid: number) => (signalled.push(pid), true);
  try {
    child.kill();
    await child[Symbol.asyncDispose]();
  } finally {
    process.kill = real;
  }
  assert.deepEqual(signalled, []);
});

test("Child: many at once start, speak and end, and leave neither process nor descriptor", async () => {
  const before = openDescriptors();
  await Promise.all(Array.from({ length: 100 }, async (_, id) => {
    await using child = await Child.spawn(["sh", "-c", "exec cat <&3 >&4"], { pipes: 2, stdout: "pipe", stderr: "pipe" });
    const [input, output] = child.pipes;
    assert.ok(input && output);
    const reading = readAll(output);
    input.end(`hello ${id}`);
    assert.equal(new TextDecoder().decode(await settled(reading, `echo ${id}`)), `hello ${id}`);
  }));
  if (before !== undefined) await eventually("the descriptors are closed", () => (openDescriptors() ?? 0) <= before + 2);
});

test("Child: descriptors of one that is killed while it floods every pipe are closed", async () => {
  const before = openDescriptors();
  for (let count = 0; count < 10; count++) {
    await using child = await Child.spawn(["sh", "-c", "yes >&3 & yes >&4 & yes & yes >&2"], {
      pipes: 2,
      stdout: "pipe",
      stderr: "pipe",
      isTermFirst: false,
    });
    await new Promise((resolve) => child.stdout?.once("data", resolve));
  }
  if (before !== undefined) await eventually("the descriptors are closed", () => (openDescriptors() ?? 0) <= before + 2);
});

test("run gives status, signal and both streams", async () => {
  assert.deepEqual(await run(["sh", "-c", "echo out; echo err >&2; exit 4"]), { code: 4, signal: null, stdout: "out\n", stderr: "err\n" });
  assert.deepEqual(await run(["sh", "-c", "kill -9 $$"]), { code: null, signal: "SIGKILL", stdout: "", stderr: "" });
  await assert.rejects(async () => await run(["/no/such/program"]), { code: "ENOENT" });
});

test("run decodes characters that are split over writes", async () => {
  const { stdout } = await run(["sh", "-c", String.raw`for byte in 360 237 216 223; do printf "\\$byte"; sleep 0.02; done`]);
  assert.equal(stdout, "🎓");
});

test("run hands on every line as it comes, whatever its break and wherever it is cut", async () => {
  const lines: string[] = [];
  const script = String
    .raw`printf 'a\nb\r\nc\rd\r'; sleep 0.05; printf '\n\ne'; sleep 0.05; printf 'f'; echo g >&2; sleep 0.05; printf '\n\nlast'`;
  const { stdout } = await run(["sh", "-c", script], { onLine: (line) => lines.push(line) });
  assert.deepEqual(lines.filter((line) => line !== "g"), ["a", "b", "c", "d", "", "ef", "", "last"]);
  assert.ok(lines.includes("g"));
  assert.equal(stdout, "a\nb\r\nc\rd\r\n\nef\n\nlast");
});

test("run cuts a line that never ends, and keeps the text", async () => {
  const lines: string[] = [];
  const { stdout } = await run(["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo short"], {
    onLine: (line) => lines.push(line),
  });
  assert.deepEqual([lines.map((line) => line.length), stdout.length], [[65_536, 5], 3_000_007]);
});

test("run keeps the last of a huge output", async () => {
  const { stdout, code } = await settled(run(["sh", "-c", "head -c 100000000 /dev/zero | tr '\\0' x; echo end"]), "100 MB of output");
  assert.deepEqual([code, stdout.length, stdout.slice(-5)], [0, 16 * 1_048_576, "xend\n"]);
});

test("run rejects with the signal's reason and its program is dead then", async (t) => {
  const reason = new Error("enough"), file = path.join(temporaryDirectory(t), "pid");
  const controller = new AbortController();
  const running = run(["sh", "-c", `echo $$ > ${file}; trap '' TERM; while :; do sleep 0.1; done`], { signal: controller.signal });
  await eventually("it runs", () => existsSync(file) && readFileSync(file, "utf8") !== "");
  controller.abort(reason);
  await assert.rejects(running, (error) => error === reason);
  assert.equal(runs(Number(readFileSync(file, "utf8"))), false);
  await assert.rejects(run(["sh", "-c", `: > ${file}2`], { signal: controller.signal }), (error) => error === reason);
  assert.equal(existsSync(`${file}2`), false, "nothing is started for an aborted call");
});

test("run notices an abort that comes while its program starts", async () => {
  const controller = new AbortController(), reason = new Error("at once");
  const running = run(["sleep", "60"], { signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(settled(running, "the abort"), (error) => error === reason);
});

test("run does not wait for a straggler that left the group and holds the pipes", async (t) => {
  const file = path.join(temporaryDirectory(t), "pid");
  const script = `setsid sh -c 'echo $$ > ${file}; exec sleep 60' & while [ ! -s ${file} ]; do sleep 0.01; done; echo said; exit 5`;
  const output = await settled(run(["sh", "-c", script]), "the program's end");
  process.kill(Number(readFileSync(file, "utf8")), "SIGKILL");
  assert.deepEqual([output.code, output.stdout], [5, "said\n"]);
});

test("run rejects with what onLine throws, and its program is dead then", async (t) => {
  const file = path.join(temporaryDirectory(t), "pid"), failure = new Error("reader failed");
  const running = run(["sh", "-c", `echo $$ > ${file}; echo line; while :; do sleep 0.1; done`], {
    onLine: () => {
      throw failure;
    },
  });
  await assert.rejects(settled(running, "the failure"), (error) => error === failure);
  assert.equal(runs(Number(readFileSync(file, "utf8"))), false);
});

test("run takes arguments as they are, whatever is in them", async () => {
  const words = ["a b", "", "$HOME", "'", '"', "\n", "*", "é🎓", "-n", "x".repeat(100_000)];
  const { stdout } = await run(["sh", "-c", 'for word in "$@"; do printf "%s\\036" "$word"; done', "sh", ...words]);
  assert.deepEqual(stdout.split("\x1e").slice(0, -1), words);
});

test("describeExit says status or signal", () => {
  assert.deepEqual([describeExit({ code: 0, signal: null }), describeExit({ code: null, signal: "SIGSEGV" })], [
    "exited with status 0",
    "was ended by SIGSEGV",
  ]);
});

test("the helpers of these tests see what is there", async (t) => {
  const directory = temporaryDirectory(t);
  writeFileSync(path.join(directory, "script"), "sleep 60");
  await using child = await Child.spawn(["sh", path.join(directory, "script")]);
  await eventually("it is found by its arguments", () => processesWith(directory).includes(child.pid));
  assert.deepEqual([childrenOf(process.pid).includes(child.pid), runs(child.pid)], [true, true]);
});

noLeftovers();
