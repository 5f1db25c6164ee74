/** Python REPL: state, results, errors, streams, signals and hostile code, with a real CPython 3.14. */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { noLeftovers } from "../../support/leftovers.ts";
import { eventually, sleep } from "../../support/waiting.ts";
import { type Execution, findPython, Repl } from "./driver.ts";

const PYTHON = findPython();

function testPython(name: string, body: (repl: Repl) => Promise<void>): void {
  test(`Python: ${name}`, { skip: PYTHON.skip }, async (t: TestContext) => await body(await Repl.start(t, PYTHON)));
}

/** Runs the code and compares the parts given. */
async function expectExec(repl: Repl, code: string, wanted: Partial<Execution>): Promise<void> {
  const got = await repl.exec(code);
  assert.deepEqual(
    Object.fromEntries(Object.keys(wanted).map((key) => [key, got[key as keyof Execution]])),
    wanted,
    `${code}\n${got.stderr}`,
  );
}

testPython("variables, functions and imports last", async (repl) => {
  await repl.exec("import math\nx = 41\ndef add(n):\n    return x + n\n");
  assert.equal(await repl.value("add(1) + math.floor(0.5)"), "42");
});

for (
  const [code, value] of [
    ["1 + 1", "2"],
    ["x = 1\nx", "1"],
    ["x = 1", null],
    ["None", null],
    ["if True:\n    5", null],
    ["5;", "5"],
    ["'''text'''", "'text'"],
    ["print('shown')", null],
    ["def f(): return 3\nf()", "3"],
    ["assert(True)", null],
    ["'\\ud800'", "'\\ud800'"],
    ["\ufeff8", "8"],
    ["len(str(10 ** 10000))", "10001"],
    ["await (lambda: __import__('asyncio').sleep(0, 7))()", "7"],
    ["import asyncio\nt = asyncio.create_task(asyncio.sleep(0, 5))\nawait t", "5"],
    ["class Odd:\n    def __repr__(self): raise ValueError\nOdd()", "<Odd object whose repr raised ValueError>"],
  ] as const
) {
  testPython(`the value of ${JSON.stringify(code)} is ${value}`, async (repl) => assert.equal(await repl.value(code), value));
}

testPython("a coroutine that was forgotten is told of at the user's line", async (repl) => {
  await repl.exec("async def work(): return 1");
  const got = await repl.exec("x = 1\nwork()\n");
  assert.match(got.value ?? "", /^<coroutine object work at 0x/);
  assert.match(got.stderr, /^<input 2>:2: RuntimeWarning: coroutine 'work' was never awaited\n {2}work\(\)\n/);
  assert.doesNotMatch(got.stderr, /python(_session)?\.py/);
  assert.match((await repl.exec("kept = work(); kept")).value ?? "", /^<coroutine/);
  assert.equal(await repl.value("await kept"), "1", "one that is still held is not closed");
});

testPython("a long value is cut at 32 KiB, between characters", async (repl) => {
  const value = await repl.value("'é' * 100_000") ?? "";
  assert.ok(Buffer.byteLength(value) <= 32_768 && value.endsWith("é…"), value.slice(-5));
  assert.ok((await repl.value("[1] * 10_000_000") ?? "").length <= 32_768);
  assert.equal(await repl.value("1 << 10_000_000"), "<int of 10000001 bits>");
});

testPython("a future statement holds for its own execution only", async (repl) => {
  assert.equal(await repl.value("from __future__ import annotations\ndef f(a: Nope): pass\nf.__annotations__"), "{'a': 'Nope'}");
  await expectExec(repl, "def g(a: Nope): pass\ng.__annotations__", { exitCode: 1 });
});

testPython("a traceback shows the user's lines and no frame of ours", async (repl) => {
  await repl.exec("def divide(n):\n    return 1 / n\n");
  await expectExec(repl, "x = 0\ndivide(x)", {
    exitCode: 1,
    value: null,
    stderr: 'Traceback (most recent call last):\n  File "<input 2>", line 2, in <module>\n    divide(x)\n    ~~~~~~^^^\n' +
      '  File "<input 1>", line 2, in divide\n    return 1 / n\n           ~~^~~\nZeroDivisionError: division by zero\n',
  });
  const chained = await repl.exec("try:\n    divide(0)\nexcept Exception as e:\n    raise KeyError('k') from e");
  assert.match(chained.stderr, /ZeroDivisionError[^]*direct cause[^]*KeyError: 'k'\n$/);
  assert.doesNotMatch(chained.stderr, /python\w*\.py/);
  const { stderr } = await repl.exec("\fa = 1\r\nb = 2\r1 / 0");
  assert.match(stderr, /line 3, in <module>\n {4}1 \/ 0\n/, "form feeds and carriage returns do not shift lines");
});

for (
  const [code, message] of [
    ["x = = 1", '  File "<input 1>", line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax\n'],
    ["return 5", "  File \"<input 1>\", line 1\n    return 5\n    ^^^^^^^^\nSyntaxError: 'return' outside function\n"],
  ] as const
) {
  testPython(`the syntax error in ${code} is shown as Python shows it`, async (repl) => {
    await expectExec(repl, code, { exitCode: 1, stderr: message });
  });
}

for (
  const [code, exitCode, stderr] of [
    ["raise SystemExit", 0, ""],
    ["import sys; sys.exit(7)", 7, ""],
    ["exit(300)", 44, ""],
    ["raise SystemExit(-1)", 255, ""],
    ["raise SystemExit('bye')", 1, "bye\n"],
    ["import asyncio\nawait asyncio.sleep(0)\nraise SystemExit(4)", 4, ""],
  ] as const
) {
  testPython(`${code.split("\n").at(-1)} exits with ${exitCode} and keeps the state`, async (repl) => {
    await repl.exec("kept = 'state'");
    await expectExec(repl, code, { exitCode, stderr });
    assert.equal(await repl.value("kept"), "'state'");
  });
}

testPython("user names like ours, deleted builtins and patched modules are harmless", async (repl) => {
  await repl.exec("sys = code = exit_code = source = request = 1\nimport builtins\nbuiltins.print = None");
  await repl.exec("import posix, io, linecache\nposix.readinto = posix.write = posix._exit = io.FileIO = None\nlinecache.cache.clear()");
  await repl.exec("for n in [n for n in vars(builtins) if n not in ('__import__', 'delattr')]: delattr(builtins, n)");
  await expectExec(repl, "1 / 0", { exitCode: 1 });
  await repl.exec("del __builtins__");
  await repl.exec("import sys\nsys.modules.clear()\nsys.settrace(lambda *a: 1 / 0)");
  assert.equal(await repl.value("(sys.gettrace(), code)"), "(None, 1)");
});

testPython("an error is reported and the state kept whatever became of the hooks", async (repl) => {
  for (const damage of ["del sys.excepthook", "sys.excepthook = None", "del sys.__excepthook__", "sys.excepthook = lambda *a: 1 / 0"]) {
    const { exitCode, stderr } = await repl.exec(`import sys\n${damage}\n{}['key']`);
    assert.equal(exitCode, 1, damage);
    assert.match(stderr, /KeyError: 'key'\n$/, damage);
  }
  assert.equal(
    (await repl.exec("del sys.unraisablehook\nimport atexit\natexit.register(print, 'bye')\n1 / 0", { flags: 1 })).stdout,
    "bye\n",
  );
});

testPython("nothing of ours is in the user's namespace", async (repl) => {
  const names = "['__builtins__', '__doc__', '__loader__', '__name__', '__package__', '__spec__']";
  assert.equal(await repl.value("sorted(globals())"), names);
  assert.equal(await repl.value("__name__"), "'__main__'");
});

testPython("closed, replaced, detached and redirected streams are put right", async (repl) => {
  for (
    const damage of [
      "import sys, os\nsys.stdout.close()\nsys.stderr.close()\nsys.stdin.close()",
      "sys.stdout = sys.stderr = sys.stdin = None",
      "del sys.stdout, sys.stderr, sys.stdin",
      "x = sys.stdout.detach()",
      "os.close(0)\nos.close(1)\nos.close(2)",
      "os.dup2(os.open(os.devnull, os.O_RDWR), 1)\nprint('nowhere')",
    ]
  ) {
    await repl.exec(damage);
    await expectExec(repl, "print('out')\nprint('err', file=sys.stderr)", { exitCode: 0, stdout: "out\n", stderr: "err\n" });
    await expectExec(repl, "input()", { exitCode: 1, stdout: "" });
  }
  await expectExec(repl, "print('\\ud800', end='')", { exitCode: 0, stdout: "\\ud800" });
});

testPython("env holds for one execution, whatever the code does to it", async (repl) => {
  const env = { SBX_ONE: "1", SBX_TWO: "2=2", HOME: "/elsewhere", TZ: "Asia/Tokyo" };
  const code =
    "import os, time\ngot = os.environ['SBX_ONE'], os.environ.pop('SBX_TWO'), os.environ['HOME'], time.tzname[0]\nos.environ['KEPT'] = 'k'\ngot";
  assert.equal((await repl.exec(code, { env })).value, "('1', '2=2', '/elsewhere', 'JST')");
  const after = await repl.value(
    "[os.environ.get(n) for n in ('SBX_ONE', 'SBX_TWO', 'KEPT')], os.environ['HOME'] == '/elsewhere', time.tzname[0]",
  );
  assert.equal(after, "([None, None, 'k'], False, 'UTC')");
});

testPython("a seed makes equal draws differ and equal seeds repeat", async (repl) => {
  await repl.exec("import random, tempfile, uuid, ssl");
  const draw = async (byte: number) =>
    (await repl.exec("random.random(), next(tempfile._get_candidate_names())[:0]", { seed: new Uint8Array(32).fill(byte) })).value;
  assert.notEqual(await draw(1), await draw(2));
  assert.equal(await draw(3), await draw(3));
});

for (
  const [name, code] of [
    ["a busy loop", "while True: pass"],
    ["a sleep", "import time\ntime.sleep(60)"],
    ["an idle await", "import asyncio\nawait asyncio.sleep(60)"],
    ["a busy loop in a coroutine", "async def spin():\n    while True: pass\nawait spin()"],
    ["a busy loop in asyncio.run", "import asyncio\nasync def spin():\n    while True: pass\nasyncio.run(spin())"],
  ] as const
) {
  testPython(`SIGINT ends ${name} with 130 and keeps the state`, async (repl) => {
    await repl.exec("kept = 1\nimport time, asyncio");
    const running = repl.exec(`open('started', 'w').close()\n${code}`);
    await eventually("the code runs", () => hasFile(repl, "started"));
    await sleep(50);
    repl.interrupt();
    const { exitCode, stderr } = await running;
    assert.equal(exitCode, 130, stderr);
    assert.match(stderr, /^Traceback[^]*<input 2>[^]*KeyboardInterrupt\n$/);
    assert.doesNotMatch(stderr, /python\w*\.py/);
    assert.equal(await repl.value("kept"), "1");
  });
}

testPython("signals while idle, and handlers that raise, do no harm", async (repl) => {
  for (let count = 0; count < 5; count++) repl.interrupt();
  await repl.exec(
    "import signal, time\ndef late(*a): raise OSError('late')\nsignal.signal(signal.SIGALRM, late)\nsignal.setitimer(signal.ITIMER_REAL, 0.02)",
  );
  await sleep(100);
  await repl.exec("signal.signal(signal.SIGINT, signal.SIG_IGN)");
  assert.equal(await repl.value("signal.getsignal(signal.SIGINT) == signal.SIG_IGN"), "False");
});

testPython("interrupts at any moment end executions only, never the session", async (repl) => {
  await repl.exec("kept = 1\nimport time");
  const timer = setInterval(() => repl.interrupt(), 1);
  try {
    for (
      const [code, flags] of [["print(1)", 0], ["1 / 0", 0], ["time.sleep(0.001)", 0], ["display(1)", 0], ["pri", 4], ["if x:", 8]] as const
    ) {
      for (let count = 0; count < 150; count++) {
        const { exitCode } = await repl.exec(code, { flags });
        assert.ok([0, 1, 130].includes(exitCode), `${code} ${exitCode}`);
      }
    }
  } finally {
    clearInterval(timer);
  }
  assert.equal(await repl.value("kept"), "1");
});

testPython("a forked child that returns exits and never answers", async (repl) => {
  await expectExec(repl, "import os\npid = os.fork()\nif pid == 0:\n    raise ValueError('child')\nos.waitpid(pid, 0)[1] >> 8", {
    value: "1",
  });
  await expectExec(repl, "pid = os.fork()\nif pid == 0:\n    raise SystemExit(5)\nos.waitpid(pid, 0)[1] >> 8", { value: "5" });
  await expectExec(repl, "import ctypes\npid = ctypes.CDLL(None).fork()\nos.waitpid(pid, 0)[1] if pid else print('child')", {
    value: "0",
    stdout: "child\n",
  });
  await expectExec(repl, "import subprocess\nsubprocess.run(['ls', '/proc/self/fd'], capture_output=True, text=True).stdout.split()[:4]", {
    value: "['0', '1', '2', '3']",
  });
});

testPython("workers know the session's functions, lambdas and classes", async (repl) => {
  await repl.exec(
    "import multiprocessing as mp\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\ndef double(p): return P(p.a * 2)\n",
  );
  assert.equal(await repl.value("mp.get_start_method()"), "'fork'");
  await repl.exec("pool = mp.Pool(2)");
  assert.equal(await repl.value("pool.map(double, [P(1)])"), "[P(a=2)]");
  assert.equal(await repl.value("isinstance(pool.map(double, [P(1)])[0], P)"), "True");
  await repl.exec("offset = 10\ndef late(p): return double(p).a + offset");
  assert.equal(await repl.value("pool.map(late, [P(1)]), pool.map(lambda n: n + offset, [1])"), "([12], [11])");
  const refused = await repl.exec("pool.map(lambda n: n, [open('file', 'w')])");
  assert.match(refused.stderr, /^Traceback[^]*Cannot pickle files that are not opened for reading/, "one error, with nothing of ours");
  assert.doesNotMatch(refused.stderr, /During handling|python_\w+\.py/);
  await repl.exec("pool.terminate()\npool.join()");
  await repl.exec("def begin(n):\n    global shared\n    shared = n\ndef use(n): return shared + n");
  assert.equal(
    await repl.value("with_shared = mp.Pool(1, begin, (5,))\nwith_shared.map(use, [1]), with_shared.map(lambda n: shared + n, [2])"),
    "([6], [7])",
  );
  await repl.exec("with_shared.terminate()\nwith_shared.join()");
  assert.equal(await repl.value("import pickle\ntype(pickle.loads(pickle.dumps(P(1)))) is P"), "True");
});

testPython("threads go on between executions", async (repl) => {
  const code =
    "import threading, time\ndef work():\n    time.sleep(0.05)\n    open('done', 'w').close()\nthreading.Thread(target=work).start()";
  await repl.exec(code);
  await eventually("the thread has ended", () => hasFile(repl, "done"));
});

testPython("an uploaded module is imported from the working directory", async (repl) => {
  writeFileSync(path.join(repl.home, "helper.py"), "answer = 42\n");
  assert.equal(await repl.value("import helper\nhelper.answer"), "42");
});

testPython("10,000 executions do not grow", async (repl) => {
  const residentKiB = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${repl.pid}/status`, "utf8"))?.[1]);
  const run = async (count: number) => {
    for (let index = 0; index < count; index++) await repl.exec("def f(a):\n    return a + 1\nx = f(1)\nx");
  };
  await run(1000);
  const before = residentKiB();
  await run(9000);
  assert.ok(residentKiB() - before < 2048, `grew by ${residentKiB() - before} KiB`);
});

testPython("the largest code arrives whole", async (repl) => {
  const text = "x".repeat((1 << 20) - 20);
  assert.equal(await repl.value(`s = '${text}'\nlen(s)`), String(text.length));
});

testPython("the end of the socket ends it in order, after atexit handlers", async (repl) => {
  await repl.exec("import atexit\natexit.register(open, 'left', 'w')");
  repl.hangUp();
  assert.deepEqual(await repl.ended, { code: 0, signal: null });
  assert.ok(hasFile(repl, "left"), "atexit handlers ran");
});

test("Python: a malformed request ends it with 70", { skip: PYTHON.skip }, async (t) => {
  const repl = await Repl.start(t, PYTHON);
  repl.send(Buffer.alloc(24, 0xff));
  assert.deepEqual(await repl.ended, { code: 70, signal: null });
});

test("Python: code that closes the control socket ends it with 71", { skip: PYTHON.skip }, async (t) => {
  const repl = await Repl.start(t, PYTHON);
  await assert.rejects(repl.exec("import os\nos.close(1000)"));
  assert.deepEqual(await repl.ended, { code: 71, signal: null });
});

function hasFile(repl: Repl, name: string): boolean {
  try {
    readFileSync(path.join(repl.home, name));
    return true;
  } catch {
    return false;
  }
}

noLeftovers();
