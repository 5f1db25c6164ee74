/** Abuse from inside: code that breaks what it can reach hurts itself, gets a result in time, and leaves nothing behind. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { type ExecutionResult, type Language, OutputLimitError, type RunRequest } from "../../src/mod.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

const run = (language: Language, code: string, more: Partial<RunRequest> = {}): Promise<ExecutionResult> =>
  vms.scheduler.run({ language, code, ...more });
const python = (code: string, more?: Partial<RunRequest>) => run("python", code, more);
const raw = (code: string, more?: Partial<RunRequest>) => run("raw", code, more);
const LANGUAGES: readonly Language[] = ["python", "javascript", "raw"];

for (const language of LANGUAGES) {
  test(`${language}: a time-out is a result, however the program takes SIGTERM`, async () => {
    const endless: Record<Language, string> = {
      python: "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True)\nwhile True: pass",
      javascript: "process.on('SIGTERM', () => {}); console.log('on'); while (true);",
      raw: "trap '' TERM; echo on; while :; do :; done",
    };
    const result = await run(language, endless[language], { timeoutSeconds: 3 });
    assert.deepEqual([result.exitCode, result.timedOut, result.stdout], [-1, true, "on\n"]);
  });

  test(`${language}: silence for the whole time-out is a time-out`, async () => {
    const silent: Record<Language, string> = {
      python: "import time; time.sleep(60)",
      javascript: "await new Promise(r => setTimeout(r, 60000))",
      raw: "sleep 60",
    };
    const result = await run(language, silent[language], { timeoutSeconds: 1 });
    assert.deepEqual([result.exitCode, result.timedOut, result.stdout], [-1, true, ""]);
    // A shell may still say which of its children was ended.
    if (language !== "raw") assert.equal(result.stderr, "");
  });

  test(`${language}: a gigabyte of output ends at the limit, with what fitted`, async () => {
    const flood: Record<Language, string> = {
      python: "import sys\nfor _ in range(1024): sys.stdout.write('x' * 2**20)",
      javascript: "for (let i = 0; i < 1024; i++) process.stdout.write('x'.repeat(2 ** 20))",
      raw: "head -c 1073741824 /dev/zero | tr '\\0' x",
    };
    const error = await run(language, flood[language], { timeoutSeconds: 60 }).catch((caught) => caught);
    assert.ok(error instanceof OutputLimitError, String(error));
    assert.equal(error.result.stdout, "x".repeat(1_000_000));
    assert.match(error.message, /stdout must be at most 1000000 bytes/);
  });

  test(`${language}: closing the standard descriptors hurts nobody else`, async () => {
    const close: Record<Language, string> = {
      python: "import os\nfor fd in (0, 1, 2): os.close(fd)",
      javascript: "for (const fd of [0, 1, 2]) require('fs').closeSync(fd)",
      raw: "exec 0<&- 1>&- 2>&-",
    };
    const result = await run(language, close[language]);
    assert.equal(result.timedOut, false);
  });

  test(`${language}: ended by its own signal, it has 128 plus the signal`, async () => {
    const kill: Record<Language, string> = {
      python: "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
      javascript: "process.kill(process.pid, 'SIGKILL'); await new Promise(() => {})",
      raw: "kill -KILL $$",
    };
    assert.equal((await run(language, kill[language])).exitCode, 137);
  });

  test(`${language}: killing everything it may kill ends only itself`, async () => {
    const kill: Record<Language, string> = {
      python: "import os, signal; os.kill(-1, signal.SIGKILL)",
      javascript: "try { process.kill(-1, 'SIGKILL') } catch {}",
      raw: "kill -KILL -1; sleep 5",
    };
    const result = await run(language, kill[language], { timeoutSeconds: 10 });
    assert.ok([0, 1, 137].includes(result.exitCode), String(result.exitCode));
  });

  test(`${language}: writing to every descriptor it finds ends in a result`, async () => {
    const garbage: Record<Language, string> = {
      python: "import os\nfor fd in range(3, 2048):\n  try: os.write(fd, b'\\xff' * 64)\n  except OSError: pass\nprint('done')",
      javascript:
        "for (let fd = 3; fd < 2048; fd++) { try { require('fs').writeSync(fd, 'garbage'.repeat(9)) } catch {} }\nconsole.log('done')",
      raw: "for fd in /proc/self/fd/* /proc/$$/fd/*; do echo garbage > $fd; done 2>/dev/null; echo garbage >&1000; echo done",
    };
    const result = await run(language, garbage[language], { timeoutSeconds: 10 });
    assert.equal(typeof result.exitCode, "number");
  });
}

test("the parent of the user's process cannot be killed or seen", async () => {
  const { stdout } = await raw("kill -KILL 1; kill -KILL $PPID; ls /proc | grep -cx 1; cat /proc/1/cmdline; echo alive");
  assert.match(stdout, /^0\nalive\n$/);
});

test("a fork bomb ends with the time-out", async () => {
  const result = await raw("b() { b | b & }; b; while :; do :; done", { timeoutSeconds: 3 });
  assert.deepEqual([result.exitCode, result.timedOut], [-1, true]);
});

test("more than 1024 processes are refused, fewer are not", async () => {
  const code = "import os, time\nn = 0\ntry:\n  while n < 1200:\n    if os.fork() == 0:\n      time.sleep(60); os._exit(0)\n    n += 1\n" +
    "except OSError as e: print(e.errno == 11)\nprint(900 < n < 1024)";
  const result = await python(code, { memoryMb: 1024, timeoutSeconds: 120 });
  assert.equal(result.stdout, "True\nTrue\n", result.stderr);
});

test("filling memory ends the program, not the machine", async () => {
  const result = await python("x = []\nwhile True: x.append(bytearray(b'x' * 2**20))", { timeoutSeconds: 120 });
  assert.ok(result.exitCode === 137 || /MemoryError/.test(result.stderr), `${result.exitCode} ${result.stderr}`);
  const fill = "const kept = []; while (true) kept.push(new Uint8Array(2 ** 20).fill(kept.length + 1))";
  assert.equal((await run("javascript", fill, { timeoutSeconds: 120 })).exitCode, 137);
});

test("a flood on standard error ends at its own limit, with what fitted of both", async () => {
  const error = await raw("echo out; head -c 1G /dev/zero | tr '\\0' e >&2", { timeoutSeconds: 60 }).catch((caught) => caught);
  assert.ok(error instanceof OutputLimitError, String(error));
  assert.deepEqual([error.result.stdout, error.result.stderr], ["out\n", "e".repeat(100_000)]);
});

test("filling the disks ends with 'no space', and their sizes are as promised", async () => {
  const fill = "for d in /tmp /dev/shm /home/user; do head -c 1G /dev/zero > $d/big 2>/dev/null; stat -c %s $d/big; rm $d/big; done";
  const sizes = (await raw(fill, { timeoutSeconds: 120, memoryMb: 512 })).stdout.trim().split("\n").map((size) => Number(size) / 1_048_576);
  const [tmp = 0, shm = 0, home = 0] = sizes;
  assert.ok(tmp > 120 && tmp <= 128, `tmp ${tmp}`);
  assert.ok(shm > 60 && shm <= 64, `shm ${shm}`);
  assert.ok(home > 200 && home <= 256, `home ${home}`);
});

test("inodes in /tmp end at 16,384", async () => {
  const code =
    "import os\nn = 0\ntry:\n  while n < 20000:\n    os.mknod(f'/tmp/{n}'); n += 1\nexcept OSError as e: print(e.errno == 28)\nprint(16000 < n <= 16384)";
  assert.equal((await python(code, { timeoutSeconds: 120 })).stdout, "True\nTrue\n");
});

test("deleting the home directory's content and itself ends in a result", async () => {
  assert.equal((await raw("rm -rf /home/user /tmp/* 2>/dev/null; cd /; echo still here")).stdout, "still here\n");
  const later = await python("import shutil; shutil.rmtree('/home/user', ignore_errors=True); print('done')");
  assert.deepEqual([later.stdout, later.exitCode], ["done\n", 0]);
});

test("changing every signal handler does not escape the time-out", async () => {
  const code =
    "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): pass\nwhile True: pass";
  const result = await python(code, { timeoutSeconds: 1 });
  assert.deepEqual([result.exitCode, result.timedOut], [-1, true]);
});

test("children that outlive the code do not keep the run", async () => {
  const result = await raw("sleep 300 & setsid sleep 300 & echo started");
  assert.deepEqual([result.stdout, result.exitCode], ["started\n", 0]);
});

test("each way out has its exit code", async () => {
  const exits: Array<[string, number]> = [
    ["import sys; sys.exit()", 0],
    ["import sys; sys.exit(300)", 44],
    ["import sys; sys.exit('why')", 1],
    ["import os; os._exit(9)", 9],
    ["raise SystemExit(5)", 5],
    ["raise KeyboardInterrupt", 130],
    ["import os; os.abort()", 134],
    ["import ctypes; ctypes.string_at(0)", 139],
    ["def f(): f()\nf()", 1],
  ];
  for (const [code, expected] of exits) {
    const { exitCode } = await python(code, { timeoutSeconds: 60 });
    assert.equal(exitCode, expected, code);
  }
});

test("each way out of JavaScript and of the shell has its exit code", async () => {
  const exits: Array<[Language, string, number]> = [
    ["javascript", "process.exit()", 0],
    ["javascript", "process.exit(300)", 44],
    ["javascript", "process.exitCode = 5", 5],
    ["javascript", "throw 1", 1],
    ["javascript", "Promise.reject(new Error('late'))", 1],
    ["javascript", "process.abort()", 134],
    ["javascript", "process.kill(process.pid); await new Promise(() => {})", 143],
    ["javascript", "queueMicrotask(() => process.exit(4))", 4],
    ["javascript", "setTimeout(() => process.exit(9), 50)", 9],
    ["javascript", "function f() { f() }\nf()", 1],
    ["raw", "exit 300", 44],
    ["raw", "false", 1],
    ["raw", "set -e; false; echo no", 1],
    ["raw", "exec sh -c 'exit 6'", 6],
    ["raw", "trap 'exit 8' EXIT", 8],
    ["raw", ": ${nothing:?is unset}", 127],
    ["raw", "no_such_command", 127],
    ["raw", "/etc/passwd", 126],
  ];
  for (const [language, code, expected] of exits) {
    const { exitCode } = await run(language, code, { timeoutSeconds: 60 });
    assert.equal(exitCode, expected, code);
  }
});

test("a shell that a signal ends has 128 plus the signal, whichever it is", async () => {
  // All whose default is the end, as signal(7) has them, but for SIGINT and SIGQUIT, which a shell treats in its own way.
  const fatal = [1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 25, 26, 27, 29, 30, 31, 34, 64];
  const codes = await Promise.all(fatal.map(async (signal) => (await raw(`kill -${signal} $$; sleep 9`)).exitCode));
  assert.deepEqual(codes, fatal.map((signal) => 128 + signal));
});

test("bytes that are no UTF-8 become U+FFFD, and characters cut by writes stay whole", async () => {
  const code =
    "import os, time\nos.write(1, b'\\xf0\\x9f'); time.sleep(0.05); os.write(1, b'\\x8e\\x88'); time.sleep(0.05); os.write(1, b'\\xff\\x00ok')";
  assert.equal((await python(code)).stdout, "🎈\uFFFD\0ok");
});

test("the machine has no network, no devices and no privileges to offer", async () => {
  const probe = "ip link 2>/dev/null | grep -v lo; cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '; " +
    "exec 3<>/dev/tcp/192.0.2.1/80 && echo connected; ls /dev | grep -cE '^(mem|kmem|port|kvm|vd[b-z])'; " +
    "cat /dev/vda | head -c 1; cat /dev/vport0p1 | head -c 1; mount -t tmpfs x /mnt; unshare -U true; dmesg | head -1; " +
    "touch /usr/x /etc/x; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status";
  const { stdout } = await raw(probe);
  assert.match(stdout, /^lo\n0\nCapEff:\t0{16}\nCapBnd:\t0{16}\nNoNewPrivs:\t1\nSeccomp:\t2\n$/);
});

test("the clock is the host's, to the second", async () => {
  const before = Date.now() / 1000;
  const guest = Number((await python("import time; print(time.time())")).stdout);
  assert.ok(guest > before - 1 && guest < Date.now() / 1000 + 1, `${guest - before}`);
});

test("clones draw different random numbers", async () => {
  const draw: Record<Language, string> = {
    python: "import random, os, uuid; print(random.random(), os.urandom(8).hex(), uuid.uuid4())",
    javascript: "console.log(Math.random(), crypto.randomUUID(), require('crypto').randomBytes(8).toString('hex'))",
    raw: "echo $RANDOM$RANDOM $SRANDOM $(head -c 8 /dev/urandom | od -An -tx8)",
  };
  for (const language of LANGUAGES) {
    const draws = await Promise.all([1, 2, 3, 4].map(async () => (await run(language, draw[language])).stdout.trim().split(" ")));
    for (let at = 0; at < draws[0]!.length; at++) {
      assert.equal(new Set(draws.map((words) => words[at])).size, 4, `${language}: ${JSON.stringify(draws)}`);
    }
  }
});
