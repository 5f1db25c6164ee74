/** Sessions that end, in real VMs, in the middle of every kind of call: each call ends soon, with a typed error, and nothing is left. */
import assert from "node:assert/strict";
import process from "node:process";
import test, { after, before } from "node:test";
import { CommunicationError, OutcomeUnknownError, type Session, SessionClosedError, type SessionProcess } from "../../src/mod.ts";
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
  "interrupts": (session) => forever(() => session.interrupt()),
  "pings": (session) => forever(() => session.ping()),
  "starts": (session) => forever(async () => await (await session.spawn("true")).wait()),
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

test("a session that has ended ends the streams that it is given", async () => {
  const session = await vms.scheduler.session({ language: "raw" });
  await session.close();
  const seen: unknown[] = [];
  const note = (reason: unknown) => void seen.push(reason);
  await assert.rejects(session.writeFile("f", new ReadableStream({ cancel: note })), SessionClosedError);
  await assert.rejects(session.readFile("f", { destination: new WritableStream({ abort: note }) }), SessionClosedError);
  assert.ok(seen.length === 2 && seen.every((reason) => reason instanceof SessionClosedError), String(seen));
});
