/** Python sessions in real VMs: values, display data, input, state, workers, tracebacks, the end of a program, completion. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import process from "node:process";
import test, { after, before } from "node:test";
import { planUpload, uploadTree } from "../../src/cli/transfer.ts";
import type { DisplayData, ExecutionEvent, ExecutionResult, Session } from "../../src/mod.ts";
import { settled, sleep } from "../support/waiting.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

const open = () => vms.scheduler.session({ language: "python" });
const run = (code: string, timeoutSeconds = 30) => vms.scheduler.run({ code, language: "python", timeoutSeconds });
const OUR_FRAME = /\/run\/sbx|python_?\w*\.py/;

/** Runs code that must succeed. */
async function good(session: Session, code: string): Promise<ExecutionResult> {
  const result = await session.exec(code);
  assert.equal(result.exitCode, 0, `${code}\n${result.stderr}`);
  return result;
}

test("python: a value is text beside the output, long ones are cut, and an exception has none", async () => {
  await using session = await open();
  const { value, stdout, results } = await good(session, "print('shown')\n[1, 'two']");
  assert.deepEqual({ value, stdout, results }, { value: "[1, 'two']", stdout: "shown\n", results: [] });
  const { value: long = "" } = await good(session, "'é' * 100_000");
  assert.ok(long.endsWith("é…") && Buffer.byteLength(long) <= 32_768, `${Buffer.byteLength(long)}`);
  assert.equal((await session.exec("1\n1 / 0")).value, undefined);
  assert.equal((await good(session, "'_' in globals()")).value, "False");
});

test("python: display data comes as events while the code runs, and in the result", async () => {
  await using session = await open();
  await good(
    session,
    "class Rich:\n    def __repr__(self): return 'rich'\n    def _repr_html_(self): return '<b>é</b>'\n    def _repr_png_(self): return b'png'",
  );
  const events: ExecutionEvent[] = [];
  for await (const event of session.stream("print('first', flush=True)\ndisplay(1)\nRich()")) events.push(event);
  const rich = { "text/plain": "rich", "text/html": "<b>é</b>", "image/png": "cG5n" };
  const shown = events.flatMap((event) => event.type === "display" ? [event.data] : []);
  assert.deepEqual(shown, [{ "text/plain": "1" }, rich]);
  const last = events.at(-1);
  assert.ok(last?.type === "result");
  assert.deepEqual([last.result.value, last.result.results], ["rich", shown]);
  const failing = await good(session, "class Bad:\n    def _repr_html_(self): raise ValueError('no html')\nBad()");
  assert.equal(failing.stderr, "Cannot use _repr_html_ of Bad: ValueError: no html\n");
  assert.deepEqual((await run("display({'text/html': '<i>'}, raw=True)")).results, [{ "text/html": "<i>" }]);
});

/** A directory with matplotlib for the guest's Python, as `pip install --target` makes it. */
const LIBRARIES = process.env["SBX_TEST_PYTHON_LIBRARIES"];
const needsLibraries = LIBRARIES ? false : "needs SBX_TEST_PYTHON_LIBRARIES, a directory with matplotlib for CPython 3.14";

test("python: figures of matplotlib that are left open are display data", { skip: needsLibraries, timeout: 300_000 }, async () => {
  // A home of 700 MB: half of the memory.
  await using session = await vms.scheduler.session({ language: "python", memoryMb: 1400, timeoutSeconds: 300 });
  const wheels = await planUpload({ local: LIBRARIES ?? "", guest: "libraries" }, AbortSignal.timeout(300_000));
  await uploadTree(session, wheels, {});
  await good(session, "import sys\nsys.path.insert(0, 'libraries')\nimport matplotlib.pyplot as plt");
  const pngOf = (data: DisplayData | undefined) => Buffer.from(data?.["image/png"] ?? "", "base64").subarray(1, 4).toString();
  const open = await good(session, "lines = plt.plot([1, 2, 3])\nother, axes = plt.subplots()\nmarks = axes.plot([3, 1], 'o')\n1");
  assert.deepEqual([open.results.map(pngOf), open.value, open.stderr], [["PNG", "PNG"], "1", ""]);
  assert.equal((await good(session, "plt.get_fignums()")).value, "[]", "what was shown is closed");
  const events: string[] = [];
  for await (const event of session.stream("lines = plt.plot([1])\nplt.show()\nprint('shown', flush=True)\nlines = plt.plot([2])")) {
    events.push(event.type === "display" ? pngOf(event.data) : event.type);
  }
  assert.deepEqual(events, ["PNG", "stdout", "PNG", "result"]);
  const failed = await session.exec("lines = plt.plot([1])\n1 / 0");
  assert.deepEqual([failed.exitCode, failed.results.map(pngOf)], [1, ["PNG"]]);
});

test("python: display data up to its limits arrives whole; what is beyond is said", async () => {
  await using session = await open();
  const size = 8_000_000;
  const { results } = await good(
    session,
    `display({'text/plain': 'x' * ${size}}, raw=True)\ndisplay({'text/plain': 'y' * ${size}}, raw=True)`,
  );
  assert.deepEqual(results.map((data) => data["text/plain"]?.length), [size, size]);
  const beyond = await good(session, "display({'text/plain': 'x' * (8 << 20)}, raw=True)");
  assert.deepEqual(beyond.results, []);
  assert.match(beyond.stderr, /^Cannot display dict: display data of one object is at most 8388608 bytes, got 8388\d+\n$/);
});

test("python: input() and children read the standard input, which is then at its end again", async () => {
  await using session = await open();
  const code = "import sys, subprocess\nname = input()\nprint(name, sys.stdin.readline().strip(), flush=True)\nname";
  const { stdout, value } = await session.exec(code, { stdin: "one\ntwo\nthree\n" });
  assert.deepEqual([stdout, value], ["one two\n", "'one'"]);
  assert.equal((await session.exec("subprocess.run(['cat']).returncode", { stdin: "for a child" })).stdout, "for a child");
  assert.match((await session.exec("input()")).stderr, /EOFError/);
  const bytes = 300_000;
  const counted = await session.exec("len(sys.stdin.buffer.read())", { stdin: new Uint8Array(bytes) });
  assert.equal(counted.value, `${bytes}`);
});

for (
  const [what, code, exitCode, isKept] of [
    ["an exception", "1 / 0", 1, true],
    ["a syntax error", "x = = 1", 1, true],
    ["sys.exit(7)", "import sys\nsys.exit(7)", 7, true],
    ["os._exit(8)", "import os\nos._exit(8)", 8, false],
    ["a signal", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", 139, false],
    ["memory that is not there", "x = [bytes([1]) * (1 << 20) for _ in range(2000)]", 137, false],
  ] as const
) {
  test(`python: ${what} gives ${exitCode}, and state is ${isKept ? "kept" : "reset"}`, async () => {
    await using session = await open();
    await good(
      session,
      "kept = 1\nasync def stay():\n    await asyncio.sleep(0.01)\n    return 5\nimport asyncio\ntask = asyncio.create_task(stay())\nawait asyncio.sleep(0)",
    );
    const result = await session.exec(code, { timeoutSeconds: 60 });
    assert.equal(result.exitCode, exitCode, result.stderr);
    assert.equal((await good(session, "'kept' in globals()")).value, isKept ? "True" : "False");
    if (isKept) assert.equal((await good(session, "await task")).value, "5", "a task goes on");
  });
}

test("python: tracebacks show the user's lines, also of earlier executions, and nothing of ours", async () => {
  await using session = await open();
  await good(
    session,
    "class Odd:\n    def _repr_html_(self): raise KeyboardInterrupt\ndef outer():\n    try:\n        1 / 0\n    except ZeroDivisionError as error:\n        raise KeyError('k') from error",
  );
  const chained = await session.exec("outer()");
  assert.match(chained.stderr, /File "<input 1>", line 5, in outer\n {4}1 \/ 0[^]*direct cause[^]*outer\(\)[^]*KeyError: 'k'/);
  const display = await session.exec("def show():\n    display(Odd())\nshow()");
  assert.match(display.stderr, /in show\n {4}display\(Odd\(\)\)[^]*in _repr_html_[^]*KeyboardInterrupt/);
  const group = await session.exec(
    "async def fail():\n    raise ValueError(1)\nimport asyncio\nasync with asyncio.TaskGroup() as g:\n    g.create_task(fail())",
  );
  assert.match(group.stderr, /ExceptionGroup[^]*in fail[^]*ValueError: 1/);
  const syntax = await session.exec("ok = 1\nx = (1,, 2)");
  assert.match(syntax.stderr, /File "<input \d+>", line 2\n {4}x = \(1,, 2\)\n {11}\^\nSyntaxError/);
  for (const { stderr } of [chained, display, group, syntax]) assert.doesNotMatch(stderr, OUR_FRAME);
});

test("python: user names like ours are harmless, and nothing of ours is in sight", async () => {
  await using session = await open();
  await good(session, "sys = code = exit_code = repl = part = parts = load = display = request = posix = value = 1");
  assert.equal((await session.exec("1 / 0")).exitCode, 1);
  assert.equal(
    (await good(session, "(sys, code, exit_code, repl, part, parts, load, display, request, posix, value)")).value,
    `(${"1, ".repeat(10)}1)`,
  );
  const seen = "import sys\n[n for n in sys.modules if 'sbx' in n or n.startswith('python_')], [p for p in sys.path if 'sbx' in p]";
  assert.equal((await good(session, seen)).value, "([], [])");
  for (const name of ["python_display", "python_session", "python"]) {
    assert.match((await session.exec(`import ${name}`)).stderr, /ModuleNotFoundError/);
  }
  assert.match((await session.exec("open('/run/sbx/python_display.py', 'a')")).stderr, /Permission|Read-only/);
});

test("python: future statements hold where they were written", async () => {
  await using session = await open();
  assert.equal((await good(session, "from __future__ import annotations\ndef f(a: Nope): pass\nf.__annotations__")).value, "{'a': 'Nope'}");
  assert.match((await session.exec("def g(a: Nope): pass\ng.__annotations__")).stderr, /NameError/);
});

test("python: workers take functions, lambdas and dataclasses of the session; its classes are pickled", async () => {
  await using session = await open();
  await good(
    session,
    "import multiprocessing as mp, pickle\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\ndef double(p): return P(p.a * 2)",
  );
  const code = "with mp.Pool(2) as pool:\n    got = pool.map(double, [P(1)]), pool.map(lambda n: n + 1, [1])\ngot";
  const { value, stderr } = await session.exec(code, { timeoutSeconds: 90 });
  assert.equal(value, "([P(a=2)], [2])", stderr);
  assert.equal((await good(session, "pickle.loads(pickle.dumps(P(3)))")).value, "P(a=3)");
});

test("python: what runs once ends as a program does; what runs in a session does not", async () => {
  const code = "import threading, time, atexit\natexit.register(print, 'bye')\n" +
    "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'))).start()\nprint('main')";
  const once = await run(code);
  assert.deepEqual([once.exitCode, once.stdout], [0, "main\nthread\nbye\n"], once.stderr);
  await using session = await open();
  assert.equal((await good(session, `${code}\nthreading.Thread(target=time.sleep, args=(60,)).start()`)).stdout, "main\n");
});

test("python: the end of a program keeps its exit code, cancels its tasks, and counts in the time-out", async () => {
  const failed = await run("import threading, sys\nthreading.Thread(target=lambda: 1 / 0).start()\nsys.exit(3)");
  assert.equal(failed.exitCode, 3);
  assert.match(failed.stderr, /ZeroDivisionError/);
  const tasks = "import asyncio\nasync def work():\n    try:\n        await asyncio.sleep(60)\n    finally:\n        print('cancelled')\n" +
    "t = asyncio.create_task(work())\nawait asyncio.sleep(0)";
  assert.equal((await run(tasks)).stdout, "cancelled\n");
  const late = await run("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\nprint('main')", 4);
  assert.deepEqual([late.timedOut, late.stdout], [true, "main\n"]);
});

test("python: an interrupt ends the code with 130 and keeps tasks and state", async () => {
  await using session = await open();
  const { promise, resolve } = Promise.withResolvers<void>();
  const running = session.exec("kept = 1\nimport asyncio\nprint('on', flush=True)\nawait asyncio.sleep(60)", { onStdout: () => resolve() });
  await settled(promise, "the code runs");
  await sleep(50);
  assert.equal(await session.interrupt(), true);
  const { exitCode, stderr } = await running;
  assert.equal(exitCode, 130, stderr);
  assert.doesNotMatch(stderr, OUR_FRAME);
  assert.equal((await good(session, "kept")).value, "1");
});

test("python: completion knows the session, runs nothing and is no execution", async () => {
  await using session = await open();
  await good(
    session,
    "alpha = 1\nclass A:\n    @property\n    def danger(self): print('RUN')\n    zed = 2\na = A()\ntable = {'key': 1}\nopen('data.txt', 'w').close()",
  );
  const count = session.execCount;
  for (
    const [code, start, candidates] of [
      ["alp", 0, ["alpha"]],
      ["'𝒳' + a.", 9, ["danger", "zed"]],
      ["a.danger.", 9, []],
      ["table['k", 7, ["key"]],
      ["open('da", 6, ["data.txt"]],
      ["import dataclas", 7, ["dataclasses"]],
      ["sorted([], ke", 11, ["key="]],
      ["if a:\n    alp", 10, ["alpha"]],
    ] as const
  ) {
    assert.deepEqual(await session.complete(code), { start, candidates }, code);
  }
  assert.deepEqual(
    await session.complete("alp + 1", 3),
    { start: 0, candidates: ["alpha"] },
    "what stands after the cursor does not matter",
  );
  assert.equal(session.execCount, count);
  assert.equal((await good(session, "alpha")).stdout, "", "nothing was printed meanwhile");
});

test("python: a block is finished, unfinished or wrong", async () => {
  await using session = await open();
  for (
    const [code, state, indent] of [
      ["x = 1", "complete", ""],
      ["for x in y:", "incomplete", "    "],
      ["for x in y:\n    pass", "incomplete", ""],
      ["for x in y:\n    pass\n", "complete", ""],
      ["await x", "complete", ""],
      ["x = '''text", "incomplete", ""],
      ["x = )", "invalid", ""],
    ] as const
  ) {
    assert.deepEqual(await session.isComplete(code), { state, indent }, code);
  }
  assert.equal((await session.exec("1 is 1")).stderr.includes("SyntaxWarning"), true, "the question did not use up the warning");
});
