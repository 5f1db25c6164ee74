/** Runs in real VMs: the three languages, their values, streams, environment and exits. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import type { ExecutionResult, Language, RunRequest } from "../../src/mod.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

const run = (language: Language, code: string, more: Partial<RunRequest> = {}): Promise<ExecutionResult> =>
  vms.scheduler.run({ language, code, ...more });

const PRINT: Record<Language, string> = { python: "print('hello')", javascript: "console.log('hello')", raw: "echo hello" };
for (const [language, code] of Object.entries(PRINT) as [Language, string][]) {
  test(`${language}: prints, from a clone of a template`, async () => {
    const result = await run(language, code);
    assert.deepEqual([result.stdout, result.stderr, result.exitCode, result.timedOut], ["hello\n", "", 0, false]);
    assert.deepEqual([result.start, result.warmPoolHit, result.exposedPorts], ["template", false, []]);
  });

  test(`${language}: two runs see nothing of each other`, async () => {
    const write: Record<Language, string> = {
      python: "open('left','w').write('x'); x = 1",
      javascript: "await Bun.write('left', 'x'); globalThis.x = 1",
      raw: "echo x > left; x=1",
    };
    const look: Record<Language, string> = {
      python: "import os; print(os.listdir('.'), 'x' in globals())",
      javascript: "console.log(require('fs').readdirSync('.').length, typeof x)",
      raw: 'ls; echo "[$x]"',
    };
    assert.equal((await run(language, write[language])).exitCode, 0);
    const { stdout } = await run(language, look[language]);
    assert.ok(["[] False\n", "0 undefined\n", "[]\n"].includes(stdout), stdout);
  });

  test(`${language}: time zones are known by their names, the older ones too`, async () => {
    // 2024-07-01T12:00:00Z: all of these have summer time but the last.
    const hour: Record<Language, string> = {
      python: "import time; print(time.localtime(1719835200).tm_hour)",
      javascript: "console.log(new Date(1719835200000).getHours())",
      raw: "date -d @1719835200 +%-H",
    };
    const zones = { "Europe/Berlin": 14, "America/New_York": 8, "US/Eastern": 8, "Asia/Calcutta": 17, UTC: 12 };
    for (const [TZ, wanted] of Object.entries(zones)) {
      assert.equal((await run(language, hour[language], { env: { TZ } })).stdout, `${wanted}\n`, TZ);
    }
    // What a program of the image makes of it.
    const spawn: Record<Language, string> = {
      python:
        "import subprocess; print(subprocess.run(['date', '-d', '@1719835200', '+%H %Z'], capture_output=True, text=True).stdout, end='')",
      javascript: "process.stdout.write(require('child_process').execFileSync('date', ['-d', '@1719835200', '+%H %Z']))",
      raw: "(date -d @1719835200 '+%H %Z')",
    };
    assert.equal((await run(language, spawn[language], { env: { TZ: "Europe/Berlin" } })).stdout, "14 CEST\n");
  });

  test(`${language}: env reaches the process environment, and only as data`, async () => {
    const read: Record<Language, string> = {
      python: "import os; print(os.environ['GREETING'], end='')",
      javascript: "process.stdout.write(process.env.GREETING)",
      raw: 'printf %s "$GREETING"',
    };
    const value = "a'b\"c$(id)`id`\\n\t\n${HOME} ünï 🎈 =x";
    assert.equal((await run(language, read[language], { env: { GREETING: value } })).stdout, value);
  });

  test(`${language}: env reaches child processes`, async () => {
    const read: Record<Language, string> = {
      python: "import subprocess; print(subprocess.check_output(['printenv','WHO'], text=True), end='')",
      javascript: "console.log((await Bun.$`printenv WHO`.text()).trim())",
      raw: "printenv WHO",
    };
    assert.equal((await run(language, read[language], { env: { WHO: "child" } })).stdout, "child\n");
  });

  test(`${language}: an exit status is a result`, async () => {
    const exit: Record<Language, string> = { python: "import sys; sys.exit(7)", javascript: "process.exit(7)", raw: "exit 7" };
    assert.equal((await run(language, exit[language])).exitCode, 7);
  });

  test(`${language}: an error is on stderr, with exit code 1`, async () => {
    const fail: Record<Language, string> = {
      python: "def f():\n    raise ValueError('why')\nf()",
      javascript: "function f() { throw new RangeError('why') }\nf()",
      raw: "nosuchcommand why; exit 1",
    };
    const result = await run(language, fail[language]);
    assert.equal(result.exitCode, 1);
    assert.match(result.stderr, /why|nosuchcommand/);
    assert.doesNotMatch(result.stderr, /run\/sbx|python\.py|javascript\.mjs|shell\.sh|__sbx/, "nothing of ours in what the user reads");
  });

  test(`${language}: a syntax error is on stderr, with an exit code`, async () => {
    const result = await run(language, "if ( ;; else {");
    assert.notEqual(result.exitCode, 0);
    assert.notEqual(result.stderr, "");
  });

  test(`${language}: a byte-order mark is dropped`, async () => {
    assert.equal((await run(language, "\uFEFF" + code)).stdout, "hello\n");
  });

  test(`${language}: stdin is at its end`, async () => {
    const read: Record<Language, string> = {
      python: "import sys; print(repr(sys.stdin.read()))",
      javascript: "console.log(JSON.stringify(await Bun.stdin.text()))",
      raw: "cat | wc -c | tr -d ' '",
    };
    const { stdout } = await run(language, read[language]);
    assert.ok(["''\n", '""\n', "0\n"].includes(stdout), stdout);
  });

  test(`${language}: runs as an ordinary user in its home`, async () => {
    const look = "id -u; id -un; pwd; echo $HOME";
    const shell: Record<Language, string> = {
      python: `import subprocess; print(subprocess.check_output('${look}', shell=True, text=True), end='')`,
      javascript: `console.log(require('child_process').execSync('${look}').toString().trim())`,
      raw: look,
    };
    assert.equal((await run(language, shell[language])).stdout, "1000\nuser\n/home/user\n/home/user\n");
  });

  test(`${language}: many characters of many kinds arrive as they were`, async () => {
    const text = "héllo → 世界 🎈".repeat(2000);
    const show: Record<Language, string> = {
      python: `print(${JSON.stringify("héllo → 世界 🎈")} * 2000, end='')`,
      javascript: `process.stdout.write(${JSON.stringify("héllo → 世界 🎈")}.repeat(2000))`,
      raw: "for i in {1..2000}; do printf 'héllo → 世界 🎈'; done",
    };
    const pieces: string[] = [];
    const result = await run(language, show[language], { onStdout: (piece) => pieces.push(piece) });
    assert.equal(result.stdout, text);
    assert.equal(pieces.join(""), text);
    assert.ok(pieces.every((piece) => new TextEncoder().encode(piece).length <= 65_536));
  });
}

test("python: the value of a trailing expression is the result's, and is not printed", async () => {
  const result = await run("python", "x = [1, 2]\nx + [3]");
  assert.deepEqual([result.value, result.stdout], ["[1, 2, 3]", ""]);
  assert.equal((await run("python", "x = 1")).value, undefined);
});

test("javascript: the value of a trailing expression is the result's, and is not printed", async () => {
  const result = await run("javascript", "const x = [1, 2]; [...x, 3].length");
  assert.deepEqual([result.value, result.stdout], ["3", ""]);
});

test("python: no precompiled file is hidden, and the interpreter is CPython 3.14", async () => {
  const code = "import sys, json.decoder as m; print(sys.version_info[:2], sys.pycache_prefix, m.__cached__ is not None)\n" +
    "import os; print(os.path.exists(m.__cached__))";
  assert.equal((await run("python", code)).stdout, "(3, 14) None True\nTrue\n");
});

test("python: nothing of ours is among the user's names", async () => {
  const names = "print(sorted(n for n in globals() if not n.startswith('__')), __name__)";
  assert.equal((await run("python", names)).stdout, "[] __main__\n");
  assert.equal((await run("python", "sys = code = exit_code = io = os = 3\nprint(sys)")).stdout, "3\n");
});

test("python: a future import holds only where the user wrote it", async () => {
  assert.equal((await run("python", "def f(x: undefined_name) -> None: ...\nprint(f.__annotations__ if False else 'ok')")).exitCode, 0);
  const future = "from __future__ import annotations\ndef f(x: no_such_name): ...\nprint(f.__annotations__)";
  assert.equal((await run("python", future)).stdout, "{'x': 'no_such_name'}\n");
  const without = "def f(x: int): ...\nprint(f.__annotations__)";
  assert.equal((await run("python", without)).stdout, "{'x': <class 'int'>}\n");
});

test("python: top-level await, int digits without limit, multiprocessing with lambdas", async () => {
  assert.equal((await run("python", "import asyncio\nawait asyncio.sleep(0)\nprint('awaited')")).stdout, "awaited\n");
  assert.equal((await run("python", "print(len(str(10**10000)))")).stdout, "10001\n");
  const pool = "from multiprocessing import Pool\ndef square(x): return x * x\n" +
    "with Pool(2) as pool: print(pool.map(square, [1, 2, 3]), pool.map(lambda x: x + 1, [1, 2]))";
  assert.equal((await run("python", pool, { timeoutSeconds: 60 })).stdout, "[1, 4, 9] [2, 3]\n");
});

test("python: a forked child that returns from the code ends and is no second program", async () => {
  const fork = "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint('parent' if pid else 'child')";
  const { stdout, exitCode } = await run("python", fork);
  assert.deepEqual([stdout.split("\n").filter(Boolean).sort(), exitCode], [["child", "parent"], 0]);
});

test("javascript: TypeScript, JSX, imports and top-level await need no build step", async () => {
  const code = 'import { join } from "node:path";\ninterface P { a: number }\nconst p: P = { a: 1 };\n' +
    "const x = await Promise.resolve(p.a as number);\nenum E { A = 5 }\nconsole.log(join('a', 'b'), x, E.A)";
  assert.equal((await run("javascript", code)).stdout, "a/b 1 5\n");
  const jsx =
    "const React = { createElement: (type: string, props: unknown, ...kids: string[]) => `<${type}>${kids.join('')}</${type}>` };\n" +
    "const h = React.createElement;\nconsole.log(<b>hi</b>)";
  const result = await run("javascript", "/** @jsxRuntime classic */\n" + jsx);
  assert.equal(result.exitCode, 0, result.stderr);
});

test("raw: code that begins with #! runs under that interpreter", async () => {
  assert.equal((await run("raw", "#!/bin/sh\necho $0 | grep -c bash\nexit 3")).exitCode, 3);
  assert.equal((await run("raw", "#!/usr/bin/awk -f\nBEGIN { print 6 * 7 }")).stdout, "42\n");
});

test("raw: heredocs, arrays, functions and pipes", async () => {
  const code = 'f() { cat <<EOT\nhello $1\nEOT\n}\na=(x y z)\nf "${a[1]}" | tr a-z A-Z';
  assert.equal((await run("raw", code)).stdout, "HELLO Y\n");
});

test("code at its limit runs, one byte more is refused", async () => {
  const limit = 1_048_576, head = "print(1)#";
  assert.equal((await run("python", head + "x".repeat(limit - head.length))).stdout, "1\n");
  await assert.rejects(run("python", head + "x".repeat(limit - head.length + 1)), {
    code: "SBX_INPUT_VALIDATION",
    message: "Cannot run: code must be at most 1048576 bytes of UTF-8, got 1048577",
  });
});

test("the largest environment reaches the program", async () => {
  const env = Object.fromEntries(Array.from({ length: 100 }, (_, index) => [`V${index}`.padEnd(256, "_"), "x".repeat(32_768)]));
  const { stdout } = await run("python", "import os; print(sum(len(v) for k, v in os.environ.items() if k.startswith('V')))", { env });
  assert.equal(stdout, `${100 * 32_768}\n`);
});
