/** Sessions in real VMs: what lasts, what ends them, and what each call says then. */
import assert from "node:assert/strict";
import process from "node:process";
import test, { after, before } from "node:test";
import {
  type ExecutionEvent,
  ExecutionFailedError,
  type ExecutionResult,
  InputValidationError,
  type Language,
  OutcomeUnknownError,
  OutputLimitError,
  type Session,
  SessionClosedError,
  VmCapacityError,
  VmConfigError,
  VmTimeoutError,
} from "../../src/mod.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";
import { openTestScheduler, qemuOf, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

const LANGUAGES: readonly Language[] = ["python", "javascript", "raw"];
type Each = Readonly<Record<Language, string>>;
const open = (language: Language = "python", more: Record<string, unknown> = {}) => vms.scheduler.session({ language, ...more });

const SET: Each = { python: "kept = 'kept'", javascript: "const kept = 'kept'", raw: "kept=kept" };
const SHOW: Each = {
  python: "print(globals().get('kept', 'lost'))",
  javascript: "console.log(typeof kept === 'undefined' ? 'lost' : kept)",
  raw: 'echo "${kept:-lost}"',
};
const ENDLESS: Each = {
  python: "print('on', flush=True)\nwhile True: pass",
  javascript: "console.log('on'); while (true) { Math.sqrt(2) }",
  raw: "echo on; while :; do :; done",
};
const STUBBORN: Each = {
  python:
    "import signal\nfor s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\nprint('on', flush=True)\nwhile True: pass",
  javascript: "require('child_process').execSync(\"trap '' INT TERM; echo on; while :; do :; done\", { stdio: 'inherit' })",
  raw: "trap '' INT TERM; echo on; while :; do :; done",
};
/** Ends of its own accord, each in its ways, when it is told that its time is up. */
const OBEDIENT: Readonly<Record<Language, readonly string[]>> = {
  python: ["sys.exit(0)", "os._exit(7)", "1 / 0"].map((end) =>
    `import os, signal, sys\ndef bye(*_):\n    print('bye', flush=True)\n    ${end}\nsignal.signal(signal.SIGTERM, bye)\n` +
    "print('on', flush=True)\nwhile True: pass"
  ),
  javascript: ["process.exit(0)", "process.exit(7)"].map((end) =>
    `process.once("SIGTERM", () => { console.log("bye"); ${end} }); console.log("on"); await new Promise(() => setInterval(() => {}, 1000))`
  ),
  raw: ["exit 0", "exit 7"].map((end) => `trap 'echo bye; ${end}' TERM; echo on; while :; do sleep 0.1; done`),
};

async function stateOf(session: Session): Promise<"kept" | "lost"> {
  const { stdout } = await session.exec(SHOW[session.language]);
  return stdout.trim() as "kept" | "lost";
}

/** Starts code and resolves once it has printed; the result comes on its own. */
async function started(session: Session, code: string, options: { signal?: AbortSignal; timeoutSeconds?: number } = {}) {
  const { promise: printed, resolve } = Promise.withResolvers<void>();
  const result = session.exec(code, { ...options, onStdout: () => resolve() });
  result.catch(() => {}); // Whoever awaits it sees it.
  await settled(printed, "the code runs");
  return { result };
}

for (const language of LANGUAGES) {
  test(`${language}: state lasts, executions are counted and numbered in order, and a session is no one else's`, async () => {
    await using session = await open(language);
    await using other = await open(language);
    const results = await Promise.all([session.exec(SET[language]), session.exec(SHOW[language]), session.exec(SHOW[language])]);
    assert.deepEqual(results.map(({ stdout }) => stdout), ["", "kept\n", "kept\n"]);
    assert.equal(await stateOf(other), "lost");
    assert.deepEqual([session.execCount, other.execCount, session.language, session.closed], [3, 1, language, false]);
    assert.deepEqual(session.exposedPorts, []);
    assert.notEqual(session.id, other.id);
  });

  test(`${language}: an interrupt ends the code with 130 and keeps the state; with nothing running it says so`, async () => {
    await using session = await open(language);
    await session.exec(SET[language]);
    assert.equal(await session.interrupt(), false);
    const { result } = await started(session, ENDLESS[language]);
    const answers = await Promise.all([session.interrupt(), session.interrupt()]);
    assert.equal(answers[0], true);
    assert.deepEqual([(await settled(result, "the interrupted code")).exitCode, (await result).timedOut], [130, false]);
    assert.equal(await stateOf(session), "kept");
  });

  test(`${language}: an abort interrupts, and keeps the session and its state`, async () => {
    await using session = await open(language);
    await session.exec(SET[language]);
    const controller = new AbortController(), reason = new Error("enough");
    const { result } = await started(session, ENDLESS[language], { signal: controller.signal });
    controller.abort(reason);
    await assert.rejects(settled(result, "the aborted call"), (error) => error === reason);
    assert.deepEqual([await stateOf(session), session.closed], ["kept", false]);
  });

  test(`${language}: a time-out is a result, whatever the code makes of SIGTERM; the session lives with new state`, async () => {
    await using session = await open(language);
    await session.exec(SET[language]);
    const { exitCode, timedOut, stdout } = await session.exec(STUBBORN[language], { timeoutSeconds: 1 });
    assert.deepEqual([exitCode, timedOut, stdout], [-1, true, "on\n"]);
    assert.equal(await stateOf(session), "lost");
  });

  test(`${language}: a program that ends by itself at SIGTERM has run out of time all the same`, async () => {
    await using session = await open(language);
    for (const code of OBEDIENT[language]) {
      await session.exec(SET[language]);
      const { exitCode, timedOut, stdout, stateReset } = await session.exec(code, { timeoutSeconds: 1 });
      assert.deepEqual([exitCode, timedOut, stdout, stateReset], [-1, true, "on\nbye\n", true], code);
      assert.equal(await stateOf(session), "lost");
    }
  });

  test(`${language}: output past its cap ends the execution with what fitted; the session lives`, async () => {
    const flood: Each = {
      python: "import sys\nwhile True:\n  sys.stdout.write('o' * 65536); sys.stderr.write('e' * 65536)",
      javascript: "for (;;) { process.stdout.write('o'.repeat(65536)); process.stderr.write('e'.repeat(65536)) }",
      raw: "while :; do printf %065536d 1; printf %065536d 1 >&2; done",
    };
    await using session = await open(language);
    let seen = 0;
    const error = await session.exec(flood[language], { onStdout: (text) => void (seen += text.length) }).catch((caught) => caught);
    assert.ok(error instanceof OutputLimitError, String(error));
    const { stdout, stderr } = error.result as ExecutionResult;
    assert.ok(stdout.length === 1_000_000 || stderr.length === 100_000, `${stdout.length} and ${stderr.length}`);
    assert.equal(seen, stdout.length);
    assert.equal((await session.exec(SHOW[language])).exitCode, 0);
  });
}

for (const language of LANGUAGES) {
  test(`${language}: code that ignores an interrupt is killed after an abort: the session lives, the state is new`, async () => {
    await using session = await open(language);
    await session.exec(SET[language]);
    const controller = new AbortController();
    const { result } = await started(session, STUBBORN[language], { signal: controller.signal });
    assert.equal(await session.interrupt(), true);
    controller.abort(new Error("enough"));
    await assert.rejects(settled(result, "the aborted call"), /enough/);
    assert.deepEqual([await stateOf(session), session.closed], ["lost", false]);
  });
}

test("check turns what is unsuccessful into exceptions that carry the result, per session and per call", async () => {
  await using session = await open("python", { check: true });
  const failed = await session.exec("import sys; print('out'); sys.exit(3)").catch((error) => error);
  assert.ok(failed instanceof ExecutionFailedError);
  assert.deepEqual([failed.result.exitCode, failed.result.stdout], [3, "out\n"]);
  const late = await session.exec("while True: pass", { timeoutSeconds: 1 }).catch((error) => error);
  assert.ok(late instanceof VmTimeoutError && (late.result as ExecutionResult).timedOut);
  assert.equal((await session.exec("raise SystemExit(4)", { check: false })).exitCode, 4);
});

test("the session's environment reaches every execution, an execution's own only itself", async () => {
  await using session = await open("python", { env: { SHARED: "s", BOTH: "session" } });
  const show = "import os; print(os.environ.get('SHARED'), os.environ.get('BOTH'), os.environ.get('OWN'))";
  assert.equal((await session.exec(show, { env: { OWN: "o", BOTH: "call" } })).stdout, "s call o\n");
  assert.equal((await session.exec(show)).stdout, "s session None\n");
});

test("a stream gives the output as it comes, in order, and the result last", async () => {
  await using session = await open("python");
  const events: ExecutionEvent[] = [];
  for await (const event of session.stream("import sys\nfor i in range(3): print(i, flush=True)\nprint('e', file=sys.stderr)\n6 * 7")) {
    events.push(event);
  }
  const text = (wanted: string) => events.map((event) => event.type === wanted && "text" in event ? event.text : "").join("");
  assert.deepEqual([text("stdout"), text("stderr")], ["0\n1\n2\n", "e\n"]);
  const last = events.at(-1);
  assert.ok(last?.type === "result" && last.result.value === "42" && last.result.exitCode === 0);
  assert.equal(events.filter(({ type }) => type === "result").length, 1);
});

test("a stream's first event comes while the code still runs", async () => {
  await using session = await open("python");
  const stream = session.stream("print('first', flush=True)\ninput_never = __import__('time').sleep(3600)", { timeoutSeconds: 60 });
  const first = await settled(stream.next(), "the first event");
  assert.deepEqual(first.value, { type: "stdout", text: "first\n" });
  await stream.return(); // Leaving interrupts it.
  assert.equal((await settled(session.exec("print('free')"), "the next execution")).stdout, "free\n");
});

test("a loop that does not come back holds the guest; it loses nothing", async () => {
  await using session = await open("python");
  let text = "", events = 0;
  for await (const event of session.stream("import sys\nfor i in range(900): sys.stdout.write(f'{i:4}' * 256)", { timeoutSeconds: 120 })) {
    if (event.type === "stdout") text += event.text;
    if (++events <= 3) await sleep(200);
  }
  assert.equal(text, Array.from({ length: 900 }, (_, i) => String(i).padStart(4).repeat(256)).join(""));
});

test("pings and interrupts are answered while code runs that hogs the processor", async () => {
  await using session = await open("python");
  const { result } = await started(session, ENDLESS.python);
  for (let count = 0; count < 5; count++) assert.ok(await settled(session.ping(), "a ping") > 0);
  await session.interrupt();
  assert.equal((await result).exitCode, 130);
});

test("standard input is what was given, and then at its end; the next execution has none", async () => {
  await using session = await open("python");
  const read = "import sys; print(repr(sys.stdin.read()))";
  assert.equal((await session.exec(read, { stdin: "zwei\nZeilen äöü" })).stdout, "'zwei\\nZeilen äöü'\n");
  assert.equal((await session.exec(read)).stdout, "''\n");
  const large = new Uint8Array(3_000_000).fill(120);
  const count = "import sys; print(len(sys.stdin.buffer.read()))";
  assert.equal((await session.exec(count, { stdin: large })).stdout, "3000000\n");
  const pieces = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const word of ["a", "b", "c"]) controller.enqueue(new TextEncoder().encode(word));
      controller.close();
    },
  });
  assert.equal((await session.exec(read, { stdin: pieces })).stdout, "'abc'\n");
});

test("standard input that nobody reads, and one that fails, end with the execution", async () => {
  await using session = await open("python");
  assert.equal((await session.exec("print('done')", { stdin: new Uint8Array(5_000_000) })).stdout, "done\n");
  const broken = new ReadableStream<Uint8Array>({ pull: () => Promise.reject(new Error("torn")) });
  await assert.rejects(settled(session.exec("input()", { stdin: broken }), "a call with a broken input"), /torn/);
  assert.equal((await session.exec("print('alive')")).stdout, "alive\n");
});

test("bad arguments are refused before anything is sent, and touch nothing", async () => {
  await using session = await open("python");
  await assert.rejects(session.exec(""), InputValidationError);
  await assert.rejects(session.exec("x\0y"), InputValidationError);
  await assert.rejects(session.exec("pass", { timeoutSeconds: 301 }), InputValidationError);
  await assert.rejects(session.exec("pass", { unknown: 1 } as never), VmConfigError);
  await assert.rejects(session.exec("pass", { env: { PATH: "/" } }), InputValidationError);
  await assert.rejects(session.exec(`#${"x".repeat(1_048_576)}`), InputValidationError);
  assert.equal(session.execCount, 0);
  assert.equal((await session.exec(`#${"x".repeat(1_048_575)}`)).exitCode, 0);
  await assert.rejects(open("python", { idleTimeoutSeconds: 9 }), InputValidationError);
  await assert.rejects(open("cobol" as Language), InputValidationError);
});

test("a closed session refuses every call, may be closed twice, and what ran when it closed is told so", async () => {
  const session = await open("python");
  const { result } = await started(session, ENDLESS.python);
  const waiting = session.exec("print('never')");
  waiting.catch(() => {});
  await Promise.all([session.close(), session.close()]);
  await assert.rejects(result, SessionClosedError);
  await assert.rejects(waiting, SessionClosedError);
  for (
    const call of [
      () => session.exec("1"),
      () => session.ping(),
      () => session.interrupt(),
      () => session.readFile("x"),
      () => session.writeFile("x", ""),
      () => session.listFiles(),
      () => session.spawn("true"),
      () => session.processes(),
      () => session.complete("x"),
      () => session.stream("1").next(),
    ]
  ) await assert.rejects(call(), SessionClosedError);
  await session.close();
  assert.equal(session.closed, true);
});

test("a VM that is killed while it executes: the outcome is unknown, and the session is closed", async () => {
  await using session = await open("python");
  const { result } = await started(session, ENDLESS.python);
  const waiting = session.exec("print('never')");
  waiting.catch(() => {});
  process.kill(qemuOf(session), "SIGKILL");
  await assert.rejects(settled(result, "the lost execution"), OutcomeUnknownError);
  await assert.rejects(settled(waiting, "the execution that waited"), SessionClosedError);
  await eventually("the session knows", () => session.closed);
  await assert.rejects(session.exec("1"), /its VM was lost/);
});

test("a VM that is killed while nothing runs: the next call is refused", async () => {
  await using session = await open("raw");
  process.kill(qemuOf(session), "SIGKILL");
  await eventually("the session knows", () => session.closed);
  await assert.rejects(session.exec("true"), SessionClosedError);
});

test("a scheduler that closes ends its sessions", async () => {
  const own = await openTestScheduler();
  const session = await own.scheduler.session({ language: "raw" });
  const { result } = await started(session, ENDLESS.raw);
  await own.close();
  await assert.rejects(result, SessionClosedError);
  await assert.rejects(session.exec("true"), /the scheduler is closed/);
});

test("sessions give their room back: more than fit at once fit one after the other", async () => {
  const own = await openTestScheduler({ cpuOvercommitRatio: 1 });
  try {
    for (let count = 0; count < 6; count++) {
      await using session = await own.scheduler.session({ language: "raw" });
      assert.equal((await session.exec("echo $((6 * 7))")).stdout, "42\n");
    }
  } finally {
    await own.close();
  }
});

test("an abort while a session opens leaves no VM, and a request that can never fit is refused", async () => {
  const own = await openTestScheduler();
  try {
    for (const delayMs of [0, 5, 30]) {
      const signal = AbortSignal.timeout(delayMs);
      const opened = await own.scheduler.session({ language: "python", signal }).catch((error) => error);
      if (opened instanceof Error) assert.equal(opened.name, "TimeoutError");
      else await opened.close();
    }
    await assert.rejects(own.scheduler.session({ language: "raw", memoryMb: 100_000_000 }), VmCapacityError);
  } finally {
    await own.close();
  }
});
