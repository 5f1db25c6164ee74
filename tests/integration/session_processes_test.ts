/** Session processes in real VMs: how they start and end, their input and output, what outlives what. */
import assert from "node:assert/strict";
import process from "node:process";
import test, { after, before } from "node:test";
import { InputValidationError, SandboxError, SandboxFileError, SessionClosedError, VmCapacityError } from "../../src/base/errors.ts";
import type { Session, SessionProcess, SpawnOptions } from "../../src/mod.ts";
import { bytes, countIn, outcomeOf, Reading, textOf } from "../support/processes.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";
import { openTestScheduler, qemuOf, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
let session: Session;
before(async () => {
  vms = await openTestScheduler();
  session = await vms.scheduler.session({ language: "python", env: { SESSION: "s" } });
});
after(async () => {
  await session.close();
  await vms.close();
});

const sh = (code: string, options: SpawnOptions = {}, on: Session = session) => on.spawn("sh", ["-c", code], options);

const countOf = (text: string) => countIn(session, text);

test("processes: exit codes and signals are told as a shell tells them", async () => {
  for (const [code, wanted] of [["exit 0", 0], ["exit 7", 7], ["exit 255", 255], ["kill -9 $$", 137], ["kill -TERM $$", 143]] as const) {
    assert.deepEqual(await outcomeOf(await sh(code)), ["", "", wanted], code);
  }
  assert.deepEqual(await outcomeOf(await sh("echo out; echo err >&2; exit 3")), ["out\n", "err\n", 3]);
});

test("processes: arguments arrive as they are, without a shell", async () => {
  const hostile = ["a b", "$HOME", "*", "", "ü🙂", "'\"\\", "x\ny"];
  const [out] = await outcomeOf(await session.spawn("printf", ["<%s>", ...hostile]));
  assert.equal(out, hostile.map((word) => `<${word}>`).join(""));
});

test("processes: what cannot be started is told by its reason", async () => {
  await session.writeFile("plain.txt", "text");
  await session.writeFile("no-program", "echo hi\n", { executable: true });
  await session.writeFile("script", "#!/bin/sh\necho ran $1\n", { executable: true });
  await session.exec("import os; os.mkdir('closed', 0)");
  const cases: ReadonlyArray<readonly [string, SpawnOptions, string]> = [
    ["no-such-program", {}, "not-found"],
    ["./no-such", {}, "not-found"],
    ["./plain.txt", {}, "permission"],
    ["/usr", {}, "permission"],
    ["ls", { cwd: "no/such" }, "not-directory"],
    ["ls", { cwd: "plain.txt" }, "not-directory"],
    ["ls", { cwd: "closed" }, "permission"],
  ];
  for (const [command, options, reason] of cases) {
    const error = await session.spawn(command, [], options).catch((caught) => caught);
    assert.ok(error instanceof SandboxFileError, `${command}: ${error}`);
    assert.deepEqual([error.side, error.reason], ["guest", reason], command);
  }
  await assert.rejects(session.spawn("./no-program"), /it is no program/);
  assert.deepEqual(await outcomeOf(await session.spawn("./script", ["it"])), ["ran it\n", "", 0]);
  assert.deepEqual(await session.processes(), []);
});

test("processes: they run as the user, confined as everything the user runs", async () => {
  const [out] = await outcomeOf(
    await sh(
      "id -u; awk '/^Max processes/ {print $3, $4}' /proc/self/limits; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'; ls /proc | grep -c '^1$'",
    ),
  );
  assert.equal(out, "1000\n1024 1024\nCapEff:0000000000000000\nCapBnd:0000000000000000\nNoNewPrivs:1\nSeccomp:2\n0\n");
  const [refused, , code] = await outcomeOf(await sh("unshare -r true 2>/dev/null || mount -t tmpfs x /tmp 2>/dev/null || echo refused"));
  assert.deepEqual([refused, code], ["refused\n", 0]);
});

test("processes: env and cwd are theirs alone, over the session's", async () => {
  const read = "echo $SESSION-$OWN-$PATH-$TERM; pwd";
  const path =
    "/home/user/.local/bin:/opt/packages/bin:/opt/packages/node_modules/.bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  assert.equal((await outcomeOf(await sh(read)))[0], `s--${path}-dumb\n/home/user\n`);
  assert.equal((await outcomeOf(await sh(read, { env: { OWN: "o", SESSION: "x" }, cwd: "/tmp" })))[0], `x-o-${path}-dumb\n/tmp\n`);
  assert.equal((await outcomeOf(await sh(read)))[0], `s--${path}-dumb\n/home/user\n`);
  const seen = await session.exec("import os; print(os.environ.get('OWN'), os.getcwd())");
  assert.equal(seen.stdout, "None /home/user\n");
});

test("processes: standard input is text, bytes, a stream, a pipe, or at its end", async () => {
  for (const stdin of ["text", bytes("text"), ReadableStream.from([bytes("te"), bytes("xt")])]) {
    assert.deepEqual(await outcomeOf(await session.spawn("cat", [], { stdin })), ["text", "", 0]);
  }
  assert.deepEqual(await outcomeOf(await session.spawn("cat")), ["", "", 0]);
  const large = new Uint8Array(3_000_000).fill(120);
  assert.equal((await outcomeOf(await session.spawn("wc", ["-c"], { stdin: large })))[0].trim(), "3000000");
  const cat = await session.spawn("cat", [], { stdin: true });
  const writer = cat.stdin.getWriter(), reading = new Reading(cat.stdout);
  for (const line of ["one\n", "two\n"]) {
    await writer.write(bytes(line));
    await reading.until(line);
  }
  await writer.close();
  assert.deepEqual(await cat.wait(), { exitCode: 0 });
  // A program that does not read its input does not hold up whoever writes it.
  const deaf = await session.spawn("true", [], { stdin: large });
  assert.deepEqual(await deaf.wait(), { exitCode: 0 });
});

/** Writes megabytes to both outputs, and how many bytes are out to a file. */
const FLOOD = `import os
written = 0
tally = os.open("written", os.O_CREAT | os.O_WRONLY)
for fd in (1, 2):
    for _ in range(1000):
        left = b"x" * 60_000
        while left:
            sent = os.write(fd, left)
            left, written = left[sent:], written + sent
            os.pwrite(tally, b"%012d" % written, 0)`;

test("processes: output that nobody reads holds the process: what is on the way is bounded, whatever it has to say", async () => {
  const flood = await session.spawn("python3", ["-c", FLOOD]);
  const written = async () => Number(await session.readFile("written", { encoding: "utf-8" }).catch(() => "0"));
  let seen = -1;
  await eventually("it is held", async () => {
    const before = seen;
    await sleep(200);
    seen = await written();
    return seen === before && seen > 0;
  });
  // The credit of a stream, the pipe, and what the agent holds.
  assert.ok(seen < 2_000_000, `${seen} bytes are on the way`);
  const [info] = await session.processes();
  assert.equal(info?.exitCode, null);
  // Both an execution and another process get through.
  assert.equal((await session.exec("print('beside')")).stdout, "beside\n");
  assert.equal((await outcomeOf(await session.spawn("echo", ["too"])))[0], "too\n");
  const counts = { stdout: 0, stderr: 0 };
  const count = async (name: "stdout" | "stderr") => {
    for await (const part of flood[name]) counts[name] += part.length;
  };
  await Promise.all([count("stdout"), count("stderr"), flood.wait()]);
  assert.deepEqual([counts, await flood.wait()], [{ stdout: 60_000_000, stderr: 60_000_000 }, { exitCode: 0 }]);
  assert.equal(await written(), 120_000_000);
});

test("processes: a flood and an execution that prints much both get through", async () => {
  const flood = await session.spawn("yes");
  let floodedBytes = 0;
  const reading = (async () => {
    for await (const part of flood.stdout) floodedBytes += part.length;
  })();
  await eventually("the flood runs", () => floodedBytes > 0);
  const before = floodedBytes;
  const result = await session.exec("for _ in range(900): print('x' * 999)");
  assert.deepEqual([result.stdout.length, result.exitCode], [900_000, 0]);
  assert.ok(floodedBytes > before, "the flood stood still");
  assert.equal(await flood.kill("SIGKILL"), true);
  assert.deepEqual(await flood.wait(), { exitCode: 137 });
  await reading;
});

test("processes: one that closes its output may go on", async () => {
  const started = await sh("exec >&- 2>&-; sleep 0.3; exit 5");
  assert.deepEqual(await outcomeOf(started), ["", "", 5]);
});

test("processes: signals reach the group by name and number, and what has ended takes none", async () => {
  const trapping = await sh("trap 'echo got USR1' USR1; echo ready; while :; do sleep 0.05; done");
  const reading = new Reading(trapping.stdout);
  await reading.until("ready");
  assert.equal(await trapping.kill("SIGUSR1"), true);
  await reading.until("got USR1");
  assert.equal(await trapping.kill(9), true);
  assert.deepEqual(await trapping.wait(), { exitCode: 137 });
  assert.equal(await trapping.kill(), false);
  const stopped = await session.spawn("sleep", ["1001"]);
  for (const signal of ["SIGSTOP", "SIGCONT", "SIGTERM"]) assert.equal(await stopped.kill(signal), true);
  assert.deepEqual(await stopped.wait(), { exitCode: 143 });
  const realtime = await session.spawn("sleep", ["1001"]);
  assert.equal(await realtime.kill(34), true);
  assert.deepEqual(await realtime.wait(), { exitCode: 162 });
});

test("processes: an abort ends one with its descendants, whatever they make of SIGTERM", async () => {
  const controller = new AbortController(), reason = new Error("enough");
  const code = "trap '' TERM; (trap '' TERM; exec sleep 7001) & echo ready; while :; do sleep 0.1; done";
  const started = await sh(code, { signal: controller.signal });
  await new Reading(started.stdout).until("ready");
  controller.abort(reason);
  await assert.rejects(settled(started.wait(), "the end"), (error) => error === reason);
  await eventually("nothing is left", async () => await countOf("sleep 7001") === 0);
  await assert.rejects(sh("true", { signal: controller.signal }), (error) => error === reason);
  const early = new AbortController();
  const starting = session.spawn("sleep", ["7002"], { signal: early.signal });
  early.abort(reason);
  await assert.rejects(starting, (error) => error === reason);
  await eventually("nothing is left", async () => await countOf("sleep 7002") === 0);
  assert.deepEqual(await session.processes(), []);
});

test("processes: what one leaves running is killed, also what has left its session", async () => {
  const started = await sh("sleep 7003 & setsid sleep 7003 & (setsid sh -c 'sleep 7003 & sleep 7003' &) ; echo started");
  assert.deepEqual(await outcomeOf(started), ["started\n", "", 0]);
  await eventually("nothing is left", async () => await countOf("sleep 7003") === 0);
});

test("processes: what a background process leaves running goes on, and may go on printing", async () => {
  const code = "(for i in 1 2 3 4 5 6; do sleep 0.1; echo $i; done; exec sleep 7004) & echo started";
  assert.deepEqual(await outcomeOf(await sh(code, { background: true })), ["started\n", "", 0]);
  await eventually("it goes on", async () => await countOf("sleep 7004") === 1);
  assert.equal((await session.exec("import os; os.system('pkill -f \"sleep 700[4]\"')")).exitCode, 0);
});

test("processes: a background process is let go of, listed, and taken up with its last output", async () => {
  const code = "echo first; read x; yes | head -c 200000; echo last; echo warned >&2; touch all-said; read x; echo $x; exit 6";
  const started = await sh(code, { background: true, stdin: true });
  await new Reading(started.stdout).until("first");
  await started.stdin.getWriter().write(bytes("go\n"));
  await started.detach();
  assert.deepEqual(await started.wait(), { exitCode: -1 });
  const info = {
    id: started.id,
    pid: started.pid,
    argv: ["sh", "-c", code],
    background: true,
    attached: false,
    pty: false,
    exitCode: null,
  };
  assert.deepEqual(await session.processes(), [info]);
  await eventually("it has said all", () => session.exists("all-said"));
  await sleep(1_000); // What is in its pipes then is taken, as the agent looks at them all the time.
  const again = await session.attach(started.id);
  assert.deepEqual([again.id, again.pid], [started.id, started.pid]);
  await assert.rejects(session.attach(started.id), /another stream has the process/);
  assert.deepEqual(await session.processes(), [{ ...info, attached: true }]);
  const writer = again.stdin.getWriter();
  await writer.write(bytes("more\n"));
  const [out, err, exitCode] = await outcomeOf(again);
  assert.ok(out.endsWith("y\nlast\nmore\n"), out.slice(-40));
  assert.deepEqual([out.length, err, exitCode], [65_536 + 5, "warned\n", 6]);
  assert.deepEqual(await session.processes(), []);
});

test("processes: one that ended unattended can be taken up once", async () => {
  const started = await sh("read x; until [ -e alone ]; do sleep 0.05; done; echo $x; exit 9", { background: true, stdin: true });
  await started.stdin.getWriter().write(bytes("done\n"));
  await started.detach();
  await session.writeFile("alone", ""); // It must not end before: whoever is attached then has been told.
  await eventually("it has ended", async () => (await session.processes())[0]?.exitCode === 9);
  assert.equal(await started.kill(), false);
  assert.deepEqual(await outcomeOf(await session.attach(started.id)), ["done\n", "", 9]);
  await assert.rejects(session.attach(started.id), InputValidationError);
  await assert.rejects(session.attach(1_000_000), InputValidationError);
});

test("processes: at most 32 run at once, and one that ends makes room", async () => {
  const all: SessionProcess[] = [];
  for (let count = 0; count < 32; count++) all.push(await session.spawn("sleep", ["7005"], { background: count < 2 }));
  await assert.rejects(session.spawn("true"), VmCapacityError);
  // Those that nobody is attached to count in the guest.
  await all[0]!.detach();
  await all[1]!.detach();
  await assert.rejects(session.spawn("true"), VmCapacityError);
  assert.equal((await session.processes()).length, 32);
  assert.equal((await session.exec("print('fine')")).stdout, "fine\n");
  await all[31]!.kill();
  await all[31]!.wait();
  assert.deepEqual(await outcomeOf(await session.spawn("true")), ["", "", 0]);
  await Promise.all(all.slice(2).map((started) => started.detach()));
  for (const { id } of await session.processes()) await (await session.attach(id)).kill("SIGKILL");
  await eventually("all have ended", async () => (await session.processes()).length === 0);
});

test("processes: a reset of the interpreter leaves them alone", async () => {
  const cat = await session.spawn("cat", [], { stdin: true });
  const writer = cat.stdin.getWriter(), reading = new Reading(cat.stdout);
  await session.exec("left = 1; import subprocess; subprocess.Popen(['sleep', '7006'])");
  assert.equal((await session.exec("import os; os._exit(3)")).exitCode, 3);
  assert.equal((await session.exec("print('left' in globals())")).stdout, "False\n");
  await writer.write(bytes("alive\n"));
  await reading.until("alive\n");
  assert.equal(await countOf("sleep 7006"), 0, "what the interpreter started went with it");
  await writer.close();
  assert.deepEqual(await cat.wait(), { exitCode: 0 });
});

const CRASH: Readonly<Record<"javascript" | "raw", string>> = { javascript: "process.kill(process.pid, 'SIGKILL')", raw: "kill -9 $$" };
for (const [language, code] of Object.entries(CRASH) as ["javascript" | "raw", string][]) {
  test(`processes: a crash of ${language} leaves them alone`, async () => {
    await using own = await vms.scheduler.session({ language });
    const cat = await own.spawn("cat", [], { stdin: true });
    assert.equal((await own.exec(code)).exitCode, 137);
    assert.equal((await own.exec(language === "raw" ? "echo new" : "console.log('new')")).stdout, "new\n");
    const writer = cat.stdin.getWriter();
    await writer.write(bytes("alive"));
    await writer.close();
    assert.deepEqual(await outcomeOf(cat), ["alive", "", 0]);
  });
}

test("processes: a fork bomb is bounded and killed, and the session goes on", async () => {
  await using bomb = await sh("bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done");
  const peak = async () => Number((await session.exec("print(open('/sys/fs/cgroup/user/pids.peak').read())")).stdout);
  // Executions run meanwhile: the bomb has half of the processor at most.
  await eventually("it has spread", async () => await peak() > 200);
  await sleep(2_000);
  assert.ok(await peak() <= 1_024);
  assert.equal(await bomb.kill("SIGKILL"), true);
  for (const stream of [bomb.stdout, bomb.stderr]) await stream.cancel();
  assert.deepEqual(await bomb.wait(), { exitCode: 137 });
  const [out] = await outcomeOf(await sh("cat /sys/fs/cgroup/user/pids.max; ls -d /sys/fs/cgroup/user/p[0-9]* | wc -l"));
  assert.equal(out, "1024\n1\n");
});

test("processes: one that takes all memory is ended, and the session goes on", async () => {
  const hungry = await session.spawn("python3", ["-c", "x = []\nwhile True: x.append(bytearray(b'x') * 1_000_000)"]);
  const [, , exitCode] = await outcomeOf(hungry);
  // Python's own MemoryError where the kernel refuses, else the kernel or the agent.
  assert.ok([1, 137].includes(exitCode), String(exitCode));
  assert.equal((await session.exec("print('fine')")).stdout, "fine\n");
});

test("processes: a closed session and a killed VM end them, each with its error", async () => {
  const own = await vms.scheduler.session({ language: "raw" });
  const started = await own.spawn("sleep", ["1000"]);
  const reading = textOf(started.stdout);
  reading.catch(() => {});
  await own.close();
  await assert.rejects(settled(started.wait(), "the end"), SessionClosedError);
  await assert.rejects(reading, SessionClosedError);
  const lost = await vms.scheduler.session({ language: "raw" });
  const flood = await lost.spawn("yes");
  await new Reading(flood.stdout).until("y\n");
  process.kill(qemuOf(lost), "SIGKILL");
  await assert.rejects(settled(flood.wait(), "the end"), SandboxError);
  await assert.rejects(lost.spawn("true"), SessionClosedError);
  await lost.close();
});
