/** Sessions that idle, in real VMs: they end after their time, not while they are used, and a call at that very moment runs or is refused. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { type Session, SessionClosedError } from "../../src/mod.ts";
import { runs } from "../support/leftovers.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";
import { openTestScheduler, qemuOf, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

/** The shortest that may be asked for. */
const IDLE_MS = 10_000;
/** Longer than that. */
const BUSY_MS = 12_000;
const open = () => vms.scheduler.session({ language: "raw", idleTimeoutSeconds: IDLE_MS / 1000, timeoutSeconds: 60 });

/** Every kind of call, and what it gives when it runs. */
const CALLS: ReadonlyArray<readonly [name: string, call: (session: Session) => Promise<unknown>, gives: unknown]> = [
  ["an execution", async (session) => (await session.exec("sleep 0.3; echo done")).stdout, "done\n"],
  ["a stream", async (session) => (await Array.fromAsync(session.stream("echo done"))).map(({ type }) => type), ["stdout", "result"]],
  ["a write", (session) => session.writeFile("f", "content"), undefined],
  ["a read", (session) => session.readFile("kept", { encoding: "utf-8" }), "kept"],
  ["a listing", async (session) => (await session.listFiles()).map(({ name }) => name), ["kept"]],
  ["a process", async (session) => await (await session.spawn("sh", ["-c", "sleep 0.3; exit 3"])).wait(), { exitCode: 3 }],
  ["an interrupt", (session) => session.interrupt(), false],
  ["a question", async (session) => (await session.isComplete("if true; then")).state, "incomplete"],
];

test("a call at the moment of the idle time-out runs to its end or is refused, and nothing is left of any session", async () => {
  const qemus: number[] = [], ends = { ran: 0, refused: 0 };
  await Promise.all(CALLS.map(async ([name, call, gives], at) => {
    const session = await open();
    qemus.push(qemuOf(session));
    await session.writeFile("kept", "kept");
    await session.exec("true");
    // Some a little before, some a little after: the timer of a busy host decides.
    await sleep(IDLE_MS + 2 * at - CALLS.length);
    const end = await settled(call(session).catch((error) => error), name);
    if (end instanceof Error) {
      assert.ok(end instanceof SessionClosedError, `${name}: ${end}`);
      assert.match(end.message, /it was not used for 10 s/);
      assert.deepEqual([session.closed, session.execCount], [true, 1], `${name} was never sent`);
      ends.refused += 1;
    } else {
      assert.deepEqual([end, session.closed], [gives, false], name);
      ends.ran += 1;
    }
    await session.close();
  }));
  assert.equal(ends.ran + ends.refused, CALLS.length);
  await eventually("every QEMU has ended", () => !qemus.some(runs));
});

test("a session does not close by itself while anything of it is under way, however long that takes", async () => {
  const slowSource = () =>
    new ReadableStream<Uint8Array>({
      async start(controller) {
        await sleep(BUSY_MS);
        controller.close();
      },
    });
  const uses: Readonly<Record<string, (session: Session) => Promise<unknown>>> = {
    "an execution": (session) => session.exec(`sleep ${BUSY_MS / 1000}`),
    "an execution that waits its turn": (session) => Promise.all([session.exec(`sleep ${BUSY_MS / 1000}`), session.exec("true")]),
    "a loop over events that does not come back": async (session) => {
      let pauses = 4;
      for await (const { type } of session.stream("head -c 900000 /dev/zero | tr '\\0' x")) {
        if (type === "stdout" && pauses-- > 0) await sleep(BUSY_MS / 4);
      }
    },
    "a file whose content is slow": (session) => session.writeFile("f", slowSource()),
    "a file whose reader is slow": async (session) => {
      await session.writeFile("f", new Uint8Array(1_000_000));
      let isFirst = true;
      const write = () => isFirst ? (isFirst = false, sleep(BUSY_MS)) : undefined;
      await session.readFile("f", { destination: new WritableStream<Uint8Array>({ write }) });
    },
    "a process that somebody is attached to": async (session) => await (await session.spawn("sleep", [`${BUSY_MS / 1000}`])).wait(),
  };
  await Promise.all(
    Object.entries(uses).map(async ([name, use]) => {
      await using session = await open();
      await use(session);
      assert.equal(session.closed, false, name);
      assert.equal((await session.exec("echo on")).stdout, "on\n", name);
    }),
  );
});
