/** Sessions that end, in real VMs, in the middle of every kind of call: each call ends soon, with a typed error, and nothing is left. */
import assert from "node:assert/strict";
import process from "node:process";
import test, { after, before } from "node:test";
import { CommunicationError, OutcomeUnknownError, type Session, SessionClosedError, type SessionProcess } from "../../src/mod.ts";
import { runs as isAlive } from "../support/leftovers.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";
import { openTestScheduler, qemuOf, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

const ENDLESS = "while True: pass";
const LONG = { timeoutSeconds: 60 };
/** A source that never gives anything, and never ends. */
const silence = () => new ReadableStream<Uint8Array>({ pull: () => new Promise(() => {}) });
/** A destination that never takes anything. */
const wall = () => new WritableStream<Uint8Array>({ write: () => new Promise(() => {}) });
const forever = async (call: () => Promise<unknown>) => {
  for (;;) await call();
};
/** Two that must not be waited for when the session ends. */
const busy = (session: Session) => void session.exec(ENDLESS, LONG).catch(() => {});
const unwatched = (process: SessionProcess) => {
  process.wait().catch(() => {});
  return process;
};

/** What is under way when the session ends; it does not end by itself. */
const CALLS: Readonly<Record<string, (session: Session) => Promise<unknown>>> = {
  "an execution": (session) => session.exec(ENDLESS, LONG),
  "an execution that waits for its input": (session) => session.exec("input()", { stdin: silence(), ...LONG }),
  "an execution that waits its turn": (session) => (busy(session), session.exec("1")),
  "a question that waits its turn": (session) => (busy(session), session.complete("pri")),
  "a stream": async (session) => {
    for await (const event of session.stream("import time\nwhile True: print('x' * 100); time.sleep(0.01)", LONG)) void event;
  },
  "a stream whose loop did not come back": async (session) => {
    const events = session.stream("while True: print('x' * 1000)", LONG);
    await events.next();
    await sleep(300);
    while (!(await events.next()).done);
  },
  "questions": (session) => forever(() => session.isComplete("for")),
  "a file that is written": (session) => session.writeFile("f", silence()),
  "a file that is read": (session) => session.readFile("large", { destination: wall() }),
  "listings": (session) => forever(() => session.listFiles("many")),
  "removals": (session) => forever(() => session.remove("many/0").catch(rethrowUnless("not-found"))),
  "looks at files": (session) => forever(() => session.stat("large")),
  "questions whether there is a file": (session) => forever(() => session.exists("large")),
  "new directories": (session) => forever(() => session.makeDir("new/deep", { recursive: true })),
  "renames": (session) =>
    forever(async () => {
      await session.rename("many/1", "one");
      await session.rename("one", "many/1");
    }),
  "removals of trees": (session) =>
    forever(async () => {
      await session.makeDir("new/deep", { recursive: true });
      await session.remove("new", { recursive: true });
    }),
  "interrupts": (session) => forever(() => session.interrupt()),
  "pings": (session) => forever(() => session.ping()),
  "starts": (session) => forever(async () => await (await session.spawn("true")).wait()),
  "lists of processes": (session) => forever(() => session.processes()),
  "signals": async (session) => {
    const started = unwatched(await session.spawn("sleep", ["1000"]));
    await forever(() => started.kill("SIGCONT"));
  },
  "new sizes of a terminal": async (session) => {
    const started = unwatched(await session.spawn("sleep", ["1000"], { pty: { columns: 80, rows: 24 } }));
    await forever(() => started.resize(90, 30));
  },
  "processes that are let go of and taken up": async (session) => {
    const { id } = await session.spawn("sleep", ["1000"], { background: true }).then(async (started) => (await started.detach(), started));
    await forever(async () => await unwatched(await session.attach(id)).detach());
  },
  "a wait": async (session) => await (await session.spawn("sleep", ["1000"])).wait(),
  "a process that waits for its input": async (session) => await (await session.spawn("cat", [], { stdin: silence() })).wait(),
  "a process whose output nobody reads": async (session) => await (await session.spawn("yes")).wait(),
  "a write to a process": async (session) => {
    const writer = unwatched(await session.spawn("sleep", ["1000"], { stdin: true })).stdin.getWriter();
    writer.closed.catch(() => {});
    await forever(() => writer.write(new Uint8Array(65_536)));
  },
  "a read from a process": async (session) => {
    for await (const piece of unwatched(await session.spawn("sleep", ["1000"])).stdout) void piece;
  },
  "a process that was taken up": async (session) => {
    const started = await session.spawn("sleep", ["1000"], { background: true });
    await started.detach();
    await (await session.attach(started.id)).wait();
  },
};

function rethrowUnless(reason: string) {
  return (error: unknown) => {
    if ((error as { reason?: unknown }).reason !== reason) throw error;
  };
}

const ENDS: Readonly<Record<string, { end(session: Session): unknown; isRight(error: unknown): boolean }>> = {
  "is closed": { end: (session) => session.close(), isRight: (error) => error instanceof SessionClosedError },
  "loses its VM": {
    end: (session) => process.kill(qemuOf(session), "SIGKILL"),
    isRight: (error) => [OutcomeUnknownError, CommunicationError, SessionClosedError].some((type) => error instanceof type),
  },
};

for (const [what, { end, isRight }] of Object.entries(ENDS)) {
  test(`a session that ${what} ends every kind of call with its error, and refuses the next`, async () => {
    for (const [name, call] of Object.entries(CALLS)) {
      await using session = await vms.scheduler.session({ language: "python" });
      await session.exec(
        "import os; open('large', 'wb').write(bytes(8_000_000)); os.mkdir('many')\nfor n in range(300): os.link('large', f'many/{n}')",
      );
      const running = call(session);
      running.catch(() => {}); // It is awaited below.
      await sleep(30);
      await end(session);
      await assert.rejects(settled(running, name), isRight, name);
      await eventually("the session knows", () => session.closed);
      await assert.rejects(session.exec("1"), SessionClosedError, name);
    }
  });
}

/** What is under way where another language runs; `begun` is called when it is. */
type Begun = (session: Session, begun: () => void) => Promise<unknown>;
const runs = (code: string, stdin?: () => ReadableStream<Uint8Array>): Begun => (session, begun) =>
  session.exec(code, { ...LONG, onStdout: begun, ...(stdin === undefined ? {} : { stdin: stdin() }) });
const asks = (question: (session: Session) => Promise<unknown>): Begun => async (session, begun) => {
  for (;;) {
    await question(session);
    begun();
  }
};
const OTHERS: Readonly<Record<"javascript" | "raw", Readonly<Record<string, Begun>>>> = {
  javascript: {
    "a loop": runs("console.log('on'); while (true) { Math.sqrt(2) }"),
    "an await": runs("console.log('on'); await new Promise(() => setInterval(() => {}, 1000))"),
    "a child that is waited for": runs("require('child_process').execSync('echo on; sleep 1000', { stdio: 'inherit' })"),
    "a read of its input": runs("console.log('on'); await Bun.stdin.text()", silence),
    "a stream": async (session, begun) => {
      for await (const _ of session.stream("for (;;) { console.log('x'.repeat(100)); await Bun.sleep(10) }", LONG)) begun();
    },
    "questions": asks((session) => session.isComplete("if (x) {")),
    "completions": asks((session) => session.complete("cons")),
  },
  raw: {
    "a loop": runs("echo on; while :; do :; done"),
    "a child that is waited for": runs("sh -c 'echo on; sleep 1000'"),
    "a read of its input": runs("echo on; read x", silence),
    "questions": asks((session) => session.isComplete("if true; then")),
    "completions": asks((session) => session.complete("ech")),
  },
};
const isQuestion = (name: string) => name === "questions" || name === "completions";

for (const [language, calls] of Object.entries(OTHERS) as ["javascript" | "raw", Readonly<Record<string, Begun>>][]) {
  test(`${language}: a VM that is lost ends what runs with its error, and the session`, async () => {
    for (const [name, call] of Object.entries(calls)) {
      await using session = await vms.scheduler.session({ language });
      const qemu = qemuOf(session), { promise: hasBegun, resolve: begun } = Promise.withResolvers<void>();
      const running = call(session, begun);
      running.catch(() => {}); // It is awaited below.
      await settled(hasBegun, `${name} has begun`);
      process.kill(qemu, "SIGKILL");
      const error = await settled(running, name).catch((caught) => caught);
      const wanted = isQuestion(name) ? [CommunicationError, SessionClosedError] : [OutcomeUnknownError];
      assert.ok(wanted.some((type) => error instanceof type), `${name}: ${error}`);
      await eventually("the session knows", () => session.closed);
      await assert.rejects(session.exec("1"), SessionClosedError, name);
      await eventually("QEMU has ended", () => !isAlive(qemu));
    }
  });
}

test("a session that has ended ends the streams that it is given", async () => {
  const session = await vms.scheduler.session({ language: "raw" });
  await session.close();
  const seen: unknown[] = [];
  const note = (reason: unknown) => void seen.push(reason);
  await assert.rejects(session.writeFile("f", new ReadableStream({ cancel: note })), SessionClosedError);
  await assert.rejects(session.readFile("f", { destination: new WritableStream({ abort: note }) }), SessionClosedError);
  assert.ok(seen.length === 2 && seen.every((reason) => reason instanceof SessionClosedError), String(seen));
});
