/** Checkpoints of real sessions: what they keep, what goes on from them, and that nothing of them is left. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readdirSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { after, before } from "node:test";
import { CommunicationError, InputValidationError, type Language, Scheduler, type Session, SnapshotError } from "../../src/mod.ts";
import { silentLogger } from "../../src/base/log.ts";
import { cacheDirectory } from "../../src/host/platform.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { outcomeOf, Reading } from "../support/processes.ts";
import { startScript } from "../support/subprocess.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";
import { eventually, settled } from "../support/waiting.ts";

const LANGUAGES = ["python", "javascript", "raw"] as const satisfies readonly Language[];
const NAMED = path.join(cacheDirectory(), "checkpoints");
/** Names of one run of this file. */
const nameOf = (text: string) => `test-${process.pid}-${text}`;

let vms: TestScheduler;
before(async () => {
  vms = await openTestScheduler();
});
after(async () => {
  await vms.close();
});

const open = (language: Language) => vms.scheduler.session({ language });

/** A variable, a function that uses it, and what they give; what draws at random, and what tells the time in ms. */
interface Words {
  readonly set: (value: number) => string;
  readonly show: string;
  readonly draw: string;
  readonly now: string;
}
const WORDS: Readonly<Record<Language, Words>> = {
  python: {
    set: (value) => `n = ${value}\ndef f(): return n * 10`,
    show: "print(f())",
    draw: "import os, random, uuid; print(random.random(), uuid.uuid4(), os.urandom(8).hex())",
    now: "import time; print(round(time.time() * 1000))",
  },
  javascript: {
    set: (value) => `let n = ${value}; function f() { return n * 10 }`,
    show: "console.log(f())",
    draw: "console.log(Math.random(), crypto.randomUUID(), require('crypto').randomBytes(8).toString('hex'))",
    now: "console.log(Date.now())",
  },
  raw: {
    set: (value) => `n=${value}; f() { echo $((n * 10)); }`,
    show: "f",
    draw: "echo $RANDOM$RANDOM$SRANDOM $(od -An -N8 -tx8 /dev/urandom) $(cat /proc/sys/kernel/random/uuid)",
    now: "date +%s%3N",
  },
};

/** What code prints. */
async function said(session: Session, code: string): Promise<string> {
  const { stdout, stderr, exitCode } = await session.exec(code);
  assert.deepEqual([exitCode, stderr], [0, ""], code);
  return stdout.trim();
}

/** Tells a file again and again how often it has; the file is there whole at any moment. */
const COUNTER = ["-c", "i=0; while :; do i=$((i + 1)); echo $i > next; mv next count; sleep 0.02; done"];
const counted = async (session: Session) => Number(await session.readFile("count", { encoding: "utf-8" }));

for (const language of LANGUAGES) {
  const { set, show, draw, now } = WORDS[language];

  test(`${language}: variables, functions, files and running processes go on from a checkpoint, each copy for itself`, async (t) => {
    await using session = await open(language);
    await said(session, set(1));
    await session.writeFile("file", "one");
    await using counter = await session.spawn("bash", COUNTER, { background: true });
    await eventually("it counts", () => session.exists("count"));
    const checkpoint = await session.checkpoint();
    await said(session, set(2));
    await session.writeFile("file", "two");
    const copies = await Promise.all([checkpoint.restore(), checkpoint.restore()]);
    t.after(() => Promise.all(copies.map((copy) => copy.close())));
    const seen = await Promise.all(copies.map(async (copy, at) => {
      const before = [await said(copy, show), await copy.readFile("file", { encoding: "utf-8" })];
      await said(copy, set(3 + at));
      await copy.writeFile("file", `copy ${at}`);
      return before;
    }));
    assert.deepEqual(seen, [["10", "one"], ["10", "one"]]);
    assert.deepEqual(await Promise.all([session, ...copies].map((each) => said(each, show))), ["20", "30", "40"]);
    const files = await Promise.all([session, ...copies].map((each) => each.readFile("file", { encoding: "utf-8" })));
    assert.deepEqual(files, ["two", "copy 0", "copy 1"]);

    // The processes go on, and one that is ended goes on elsewhere.
    const lists = await Promise.all([session, ...copies].map((each) => each.processes()));
    assert.deepEqual(lists.map((list) => list.map(({ id, exitCode }) => [id, exitCode])), Array(3).fill([[counter.id, null]]));
    const [first, second] = copies as [Session, Session];
    await using taken = await first.attach(counter.id);
    await taken.kill("SIGKILL");
    assert.equal((await taken.wait()).exitCode, 137);
    for (const each of [session, second]) {
      const before = await counted(each);
      await eventually("it goes on counting", async () => (await counted(each)) > before);
    }

    const draws = (await Promise.all([session, ...copies].map((each) => said(each, draw)))).flatMap((line) => line.split(/\s+/));
    assert.equal(new Set(draws).size, draws.length, `no draw is drawn twice: ${draws}`);
    for (const each of [session, ...copies]) {
      const before = Date.now(), told = Number(await said(each, now)), afterwards = Date.now();
      assert.ok(told >= before - 1000 && told <= afterwards + 1000, `the clock is the host's: ${told} in ${before} to ${afterwards}`);
    }
    await Promise.all(copies.map((copy) => copy.close()));
    await checkpoint.remove();
    assert.equal(await said(session, show), "20", "the original does not need them");
  });

  test(`${language}: a rollback takes back everything since, and may be repeated`, async () => {
    await using session = await open(language);
    await said(session, set(1));
    await using checkpoint = await session.checkpoint();
    for (const value of [2, 3]) {
      await said(session, set(value));
      await session.writeFile("later", "x");
      const later = await session.spawn("sleep", ["1000"]);
      await session.rollback(checkpoint);
      await assert.rejects(settled(later.wait(), "the process of before"), CommunicationError);
      assert.deepEqual([await said(session, show), await session.exists("later"), await session.processes()], ["10", false, []]);
    }
    const draws = new Set<string>();
    for (let count = 0; count < 2; count += 1) {
      await session.rollback(checkpoint);
      draws.add(await said(session, draw));
    }
    assert.equal(draws.size, 2);
  });
}

test("python: a generator that a library keeps for itself, as NumPy does, is renewed in each copy", async () => {
  await using session = await open("python");
  await session.writeFile("numpy/__init__.py", "");
  const standIn =
    "import random\n_own = random.Random(7)\ndef seed(words): _own.seed(str(list(words)))\ndef draw(): return _own.getrandbits(64)\n";
  await session.writeFile("numpy/random.py", standIn);
  await said(session, "import sys; sys.path.insert(0, '/home/user'); import numpy.random");
  const [first, second] = await session.fork(2);
  assert.ok(first && second);
  const draws = await Promise.all([session, first, second].map((each) => said(each, "print(numpy.random.draw())")));
  assert.equal(new Set(draws).size, 3, String(draws));
  await Promise.all([first.close(), second.close()]);
});

test("a checkpoint with a name is found by other processes and schedulers, until it is removed", async (t) => {
  const name = nameOf("kept");
  await using session = await open("python");
  await session.exec("n = 42; open('f', 'w').write('kept')");
  {
    await using checkpoint = await session.checkpoint({ name });
    assert.deepEqual([checkpoint.name, checkpoint.language, checkpoint.memoryMb], [name, "python", 256]);
    assert.ok(checkpoint.sizeBytes > 0 && checkpoint.sizeBytes < 2 ** 28, String(checkpoint.sizeBytes));
  }
  await assert.rejects(session.checkpoint({ name }), /there is one of that name/);
  const { code, stdout, stderr } = await startScript(t, "restore.ts", [name, "print(n, open('f').read())"]).ended;
  assert.deepEqual([code, stdout, stderr], [0, "42 kept\n", ""]);
  {
    await using other = await Scheduler.open({}, { log: silentLogger() });
    const found = (await other.checkpoints()).filter((each) => each.name === name);
    assert.equal(found.length, 1);
    await using restored = await other.restore(name, { env: { GREETING: "hi" } });
    assert.equal((await restored.exec("import os; print(n, os.environ['GREETING'])")).stdout, "42 hi\n");
    await other.removeCheckpoint(name);
    assert.equal((await restored.exec("n")).value, "42", "what was restored does not need it");
  }
  await assert.rejects(vms.scheduler.restore(name), /there is none of that name/);
  await assert.rejects(session.rollback(name), SnapshotError);
  assert.equal((await session.exec("n")).value, "42", "a rollback that cannot be leaves the session as it is");
  assert.equal(readdirSync(NAMED).includes(name), false);
});

test("a checkpoint waits for the execution that runs, and holds up nothing but itself", async () => {
  await using session = await open("python");
  const started = Promise.withResolvers<void>();
  const running = session.exec(
    "import os, time\nprint('on', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nn = 1",
    { onStdout: () => started.resolve() },
  );
  await started.promise;
  let isMade = false;
  const making = session.checkpoint().finally(() => isMade = true);
  const next = session.exec("n = 2");
  const stop = new AbortController();
  const given = session.checkpoint({ signal: stop.signal });
  stop.abort(new Error("given up"));
  await assert.rejects(given, /given up/);
  await session.ping();
  assert.equal(isMade, false);
  await session.writeFile("go", ""); // Files are written beside executions.
  await running;
  await using checkpoint = await making;
  await next;
  assert.equal((await session.exec("n")).value, "2");
  await using copy = await checkpoint.restore();
  assert.equal((await copy.exec("n")).value, "1", "in its turn: after what was asked for before it, before what came later");
});

test("processes that are attached and transfers lose nothing while checkpoints are made", async () => {
  await using session = await open("raw");
  const content = randomBytes(20_000_000);
  await using counting = await session.spawn("bash", ["-c", "for ((i = 1; i <= 20000; i++)); do echo $i; done"]);
  const all = new Response(counting.stdout).text();
  const writing = session.writeFile("large", content);
  for (let count = 0; count < 3; count += 1) {
    await using checkpoint = await session.checkpoint();
    await using copy = await checkpoint.restore();
    assert.equal((await copy.exec("echo alive")).stdout, "alive\n");
  }
  await writing;
  assert.equal((await counting.wait()).exitCode, 0);
  assert.equal(await all, Array.from({ length: 20_000 }, (_, at) => `${at + 1}\n`).join(""));
  assert.ok(content.equals(await session.readFile("large")));
});

test("a machine whose memory never comes to rest is saved all the same, and every copy has a whole of it", async () => {
  await using session = await open("python");
  // Two halves that are equal whenever they are looked at under the lock, and never for long.
  const code = `
import threading, os, time
size, lock, state = 12_000_000, threading.Lock(), {}
def write():
    while True:
        with lock:
            piece = os.urandom(1 << 16)
            state["a"] = bytearray(piece * (size >> 16)); state["b"] = bytearray(state["a"]); state["n"] = state.get("n", 0) + 1
        time.sleep(0.001)
threading.Thread(target=write, daemon=True).start()
def look():
    with lock: return state.get("a") == state.get("b"), state.get("n", 0)`;
  await session.exec(code);
  const look = async (each: Session): Promise<number> => {
    const [, isWhole, count] = /^\((True|False), (\d+)\)$/.exec((await each.exec("look()")).value ?? "") ?? [];
    assert.equal(isWhole, "True");
    return Number(count);
  };
  await eventually("it writes", async () => await look(session) > 1);
  await using checkpoint = await session.checkpoint();
  await using copy = await checkpoint.restore();
  for (const each of [session, copy]) {
    const before = await look(each);
    await eventually("it goes on writing", async () => await look(each) > before);
  }
});

test("what a process writes while it is copied comes once in the original and once in the copy", async () => {
  await using session = await open("python");
  await using echo = await session.spawn("cat", [], { stdin: true, background: true });
  const writer = echo.stdin.getWriter(), here = new Reading(echo.stdout);
  await writer.write(new TextEncoder().encode("before\n"));
  await here.until("before\n");
  await using checkpoint = await session.checkpoint();
  await writer.write(new TextEncoder().encode("here\n"));
  assert.equal(await here.until("here\n"), "before\nhere\n");
  await using copy = await checkpoint.restore();
  await using taken = await copy.attach(echo.id);
  const there = new Reading(taken.stdout);
  await taken.stdin.getWriter().write(new TextEncoder().encode("there\n"));
  assert.equal(await there.until("there\n"), "there\n");
});

test("a copy can be saved and forked itself, and servers, timers and shells of it go on", async () => {
  await using session = await open("javascript");
  await session.exec(
    "let ticks = 0; setInterval(() => ticks++, 5); const server = Bun.serve({ port: 8123, fetch: () => new Response('n' + ticks) })",
  );
  await using first = await session.checkpoint();
  await using copy = await first.restore();
  await copy.exec("let mine = 'copy'");
  await using second = await copy.checkpoint();
  await using third = await second.restore();
  assert.equal((await third.exec("mine")).value, '"copy"');
  const before = Number((await third.exec("ticks")).value);
  await eventually("the timer goes on", async () => Number((await third.exec("ticks")).value) > before);
  assert.match((await outcomeOf(await third.spawn("curl", ["-s", "http://127.0.0.1:8123/"])))[0], /^n\d+$/);
});

test("sessions of VMs that were started ahead can be saved as well", async () => {
  await using own = await Scheduler.open({ warmPoolSize: 1, spareVms: 1 }, { log: silentLogger() });
  await own.ready();
  for (let count = 0; count < 4; count += 1) {
    await using session = await own.session({ language: "raw" });
    await session.exec(`n=${count}`);
    await using checkpoint = await session.checkpoint();
    await session.exec("n=x");
    await using copy = await checkpoint.restore();
    await session.rollback(checkpoint);
    assert.deepEqual(await Promise.all([session, copy].map((each) => said(each, "echo $n"))), [`${count}`, `${count}`]);
  }
});

test("what is asked for wrongly is refused and changes nothing", async () => {
  await using session = await open("raw");
  for (const name of ["", ".hidden", "a/b", "x".repeat(65), "ü", 7 as unknown as string]) {
    await assert.rejects(session.checkpoint({ name }), InputValidationError, String(name));
  }
  await assert.rejects(session.checkpoint({ nme: "x" } as never), /nme/);
  await assert.rejects(session.rollback("never-made"), /Cannot find the checkpoint "never-made"/);
  await using other = await open("python");
  await using checkpoint = await other.checkpoint();
  await assert.rejects(session.rollback(checkpoint), /must be of a raw session with 256 MB, got one of a python session/);
  await assert.rejects(checkpoint.restore({ language: "raw" } as never), /language/);
  await checkpoint.remove();
  await assert.rejects(checkpoint.restore(), /it was removed/);
  await session.close();
  await assert.rejects(session.checkpoint(), /Cannot use the session: it was closed/);
  assert.equal((await other.exec("1 + 1")).value, "2");
});

test("a scheduler that closes removes its checkpoints without a name, whoever forgot them", async () => {
  const own = await openTestScheduler();
  const run = path.join(cacheDirectory(), "run"), before = new Set(readdirSync(run));
  const session = await own.scheduler.session({ language: "raw" });
  const checkpoint = await session.checkpoint();
  const added = () => readdirSync(run).filter((name) => !before.has(name));
  assert.equal(added().filter((name) => name.endsWith(".d")).length, 1);
  await own.close();
  assert.deepEqual(added(), []);
  await assert.rejects(checkpoint.restore(), /closed/);
});

noLeftovers();
