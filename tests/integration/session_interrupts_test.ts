/** Interrupts and aborts at bad moments, in real VMs: the code ends, soon, and the state is kept. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import type { Language, Session } from "../../src/mod.ts";
import { settled, sleep } from "../support/waiting.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

type Each = Readonly<Record<Language, string>>;
const SET: Each = { python: "kept = 'kept'", javascript: "const kept = 'kept'", raw: "kept=kept" };
const SHOW: Each = {
  python: "print(globals().get('kept', 'lost'))",
  javascript: "console.log(typeof kept === 'undefined' ? 'lost' : kept)",
  raw: 'echo "${kept:-lost}"',
};
const ENDLESS: Each = {
  python: "while True: pass",
  javascript: "while (true) { Math.sqrt(2) }",
  raw: "while :; do :; done",
};
/** From the same turn of the host's event loop on, over the time in which the guest comes to the code. */
const MOMENTS_MS = [0, 0, 1, 2, 3, 5, 8, 13, 25] as const;

async function showsKept(session: Session, when: string): Promise<void> {
  assert.equal((await settled(session.exec(SHOW[session.language]), "the next execution")).stdout, "kept\n", when);
}

for (const language of ["python", "javascript", "raw"] as const) {
  test(`${language}: an abort at any moment after the call ends the code and keeps the state`, async () => {
    await using session = await vms.scheduler.session({ language, timeoutSeconds: 60 });
    await session.exec(SET[language]);
    for (const [at, ms] of MOMENTS_MS.entries()) {
      const controller = new AbortController(), reason = new Error("enough");
      const running = session.exec(ENDLESS[language], { signal: controller.signal });
      running.catch(() => {}); // It is awaited below.
      if (at > 0) await sleep(ms);
      controller.abort(reason);
      await assert.rejects(settled(running, "the aborted call"), (error) => error === reason);
      await showsKept(session, `aborted after ${ms} ms (${at})`);
    }
  });

  test(`${language}: one interrupt at any moment after the call ends the code and keeps the state`, async () => {
    await using session = await vms.scheduler.session({ language, timeoutSeconds: 60 });
    await session.exec(SET[language]);
    for (const [at, ms] of MOMENTS_MS.entries()) {
      const running = session.exec(ENDLESS[language]);
      if (at > 0) await sleep(ms);
      assert.equal(await session.interrupt(), true, "it counts as running from the call on");
      const { exitCode, stateReset } = await settled(running, "the interrupted code");
      assert.deepEqual([exitCode, stateReset], [130, false], `interrupted after ${ms} ms (${at})`);
      await showsKept(session, `interrupted after ${ms} ms (${at})`);
    }
  });

  test(`${language}: a storm of interrupts, over the end of the code and the next start, keeps the state`, async () => {
    await using session = await vms.scheduler.session({ language, timeoutSeconds: 60 });
    await session.exec(SET[language]);
    for (let round = 0; round < 10; round++) {
      let isOver = false;
      const running = session.exec(ENDLESS[language]).finally(() => isOver = true);
      while (!isOver) {
        await Promise.all([session.interrupt(), session.interrupt()]);
        await sleep(round % 3);
      }
      assert.equal((await running).exitCode, 130);
      await showsKept(session, `round ${round}`);
    }
  });
}

for (const language of ["python", "javascript", "raw"] as const) {
  test(`${language}: a question that is given up, or interrupted, costs neither state nor time`, async () => {
    await using session = await vms.scheduler.session({ language });
    await session.exec(SET[language]);
    for (const [at, ms] of MOMENTS_MS.entries()) {
      const controller = new AbortController(), { signal } = controller;
      const asked = at % 2 ? session.complete("ke", undefined, { signal }) : session.isComplete("if true", { signal });
      const ends = Promise.allSettled([asked]);
      if (at > 0) await sleep(ms);
      if (at % 3 === 0) controller.abort(new Error("enough"));
      else assert.equal(await session.interrupt(), false, "no code runs");
      const [end] = await settled(ends, "the question");
      assert.ok(end.status === "fulfilled" || /enough/.test(String(end.reason)), JSON.stringify(end));
      await showsKept(session, `${at} after ${ms} ms`);
    }
  });
}

test("raw: an interrupt while the shell leaves keeps the state", async () => {
  await using session = await vms.scheduler.session({ language: "raw", timeoutSeconds: 60 });
  await session.exec(SET.raw);
  // It comes when the command is decided, and is dealt with before the first one of the EXIT trap.
  const { exitCode, stateReset } = await session.exec("exit $(kill -INT $$; echo 3)");
  assert.deepEqual([exitCode, stateReset], [3, false]);
  await showsKept(session, "after exit");
  for (const code of ["exit 3", "set -e; false"]) {
    for (let round = 0; round < 20; round++) {
      const running = session.exec(code);
      await sleep(round / 2);
      await session.interrupt();
      const end = await settled(running, "the interrupted code");
      assert.deepEqual([[1, 3, 130].includes(end.exitCode), end.stateReset], [true, false], `${code}, round ${round}: ${end.exitCode}`);
      await session.exec("set +e");
      await showsKept(session, `${code}, round ${round}`);
    }
  }
});

test("an interrupt without code to interrupt harms nobody who comes next", async () => {
  for (const language of ["python", "javascript", "raw"] as const) {
    await using session = await vms.scheduler.session({ language });
    await session.exec(SET[language]);
    for (let round = 0; round < 5; round++) {
      assert.equal(await session.interrupt(), false);
      await showsKept(session, language);
    }
  }
});

test("javascript: an interrupt while a timer of earlier code keeps the process busy reaches the code it was meant for", async () => {
  await using session = await vms.scheduler.session({ language: "javascript", timeoutSeconds: 60 });
  await session.exec(SET.javascript);
  await session.exec("setTimeout(() => { const end = Date.now() + 1500; while (Date.now() < end); }, 20); 0");
  await sleep(200); // The timer has begun, and the next request is not read before it is over.
  const running = session.exec(ENDLESS.javascript);
  assert.equal(await session.interrupt(), true);
  assert.equal((await settled(running, "the interrupted code")).exitCode, 130);
  await showsKept(session, "after the timer");
});
