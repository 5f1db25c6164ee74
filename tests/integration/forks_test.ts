/** Forks of real sessions: copies side by side, maps and races over them, and the room they need. */
import assert from "node:assert/strict";
import os from "node:os";
import process from "node:process";
import test, { after, before } from "node:test";
import {
  InputValidationError,
  type Language,
  NoneAcceptedError,
  OutcomeUnknownError,
  type SchedulerConfig,
  type Session,
  VmCapacityError,
} from "../../src/mod.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { descendants, openTestScheduler, qemuOf, type TestScheduler } from "../support/vm.ts";
import { eventually, settled } from "../support/waiting.ts";

const ADD_ONE: Readonly<Record<Language, string>> = {
  python: "n += 1; print(n)",
  javascript: "n += 1; console.log(n)",
  raw: "n=$((n + 1)); echo $n",
};
const SET: Readonly<Record<Language, string>> = { python: "n = 0", javascript: "let n = 0", raw: "n=0" };

let vms: TestScheduler;
before(async () => {
  vms = await openTestScheduler();
});
after(async () => {
  await vms.close();
});

const open = (language: Language = "raw") => vms.scheduler.session({ language });
/** A machine that was given up while it started dies without anybody waiting for it. */
const machinesLeft = (count: number) =>
  eventually(`${count} machines are left`, () => descendants().filter((line) => line.includes("qemu")).length === count);

/** A scheduler with memory for so many VMs of 256 MB. */
function openSmall(machines: number): Promise<TestScheduler> {
  const hostMiB = os.totalmem() / 1_048_576;
  const config: SchedulerConfig = { hostMemoryReserveRatio: 0.95, memoryOvercommitRatio: (256 * machines + 100) / (0.05 * hostMiB) };
  return openTestScheduler(config);
}

for (const language of ["python", "javascript", "raw"] as const) {
  test(`${language}: forks begin where the session is, go on by themselves, and leave nothing`, async () => {
    await using session = await open(language);
    await session.exec(SET[language]);
    const forks = await session.fork(3);
    assert.equal(new Set([session, ...forks].map(({ id }) => id)).size, 4);
    for (let round = 1; round <= 2; round += 1) {
      const outputs = await Promise.all(forks.slice(0, round).map((fork) => fork.exec(ADD_ONE[language])));
      assert.deepEqual(outputs.map(({ stdout }) => stdout), round === 1 ? ["1\n"] : ["2\n", "1\n"]);
    }
    assert.equal((await session.exec(ADD_ONE[language])).stdout, "1\n");
    const [first, second, third] = forks as [Session, Session, Session];
    process.kill(qemuOf(third), "SIGKILL");
    await eventually("the fork knows", () => third.closed);
    assert.deepEqual([session.closed, first.closed, second.closed], [false, false, false], "one that is lost is lost alone");
    await Promise.all(forks.map((fork) => fork.close()));
    await machinesLeft(1);
  });
}

for (const language of ["python", "javascript", "raw"] as const) {
  test(`${language}: a map and a race go on from where the session is, which stays as it was`, async () => {
    await using session = await open(language);
    await session.exec(SET[language]);
    const add = async (fork: Session, times: number) => {
      let stdout = "";
      for (let count = 0; count < times; count += 1) ({ stdout } = await fork.exec(ADD_ONE[language]));
      return Number(stdout);
    };
    assert.deepEqual(await session.forkMap([3, 1, 2], add, { concurrency: 2 }), [3, 1, 2]);
    const winner = await session.race([ADD_ONE[language], "(", async (fork) => await add(fork, 2)], (result) => result === 2);
    assert.deepEqual([winner.index, winner.result], [2, 2]);
    await machinesLeft(1);
    assert.equal((await session.exec(ADD_ONE[language])).stdout, "1\n");
  });
}

test("forkMap gives results in the order of its inputs, with as many forks at once as asked for, and closes all of them", async () => {
  await using session = await open("python");
  await session.exec("base = 100");
  let atOnce = 0, most = 0;
  const areTwo = Promise.withResolvers<void>();
  const results = await session.forkMap([5, 4, 3, 2, 1], async (fork, input, index) => {
    most = Math.max(most, ++atOnce);
    if (atOnce === 2) areTwo.resolve();
    await settled(areTwo.promise, "the second fork beside the first");
    const { value } = await fork.exec(`base += ${input}\nbase`);
    atOnce -= 1;
    return `${index}:${value}`;
  }, { concurrency: 2 });
  assert.deepEqual(results, ["0:105", "1:104", "2:103", "3:102", "4:101"]);
  assert.equal(most, 2);
  assert.deepEqual(await session.forkMap([], () => assert.fail("nothing to do")), []);
  await machinesLeft(1);
  assert.equal((await session.exec("base")).value, "100");
});

test("the first failure in a map ends the others, and an abort all of them", async () => {
  await using session = await open();
  const seen: Session[] = [];
  const mapping = session.forkMap(["bad", "endless"], async (fork, input) => {
    seen.push(fork);
    if (input === "endless") return await fork.exec("sleep 1000");
    await eventually("the other has begun", () => seen.length === 2);
    throw new Error("no good");
  });
  await assert.rejects(settled(mapping, "the map"), /no good/);
  assert.ok(seen.every(({ closed }) => closed));
  const stop = new AbortController();
  const aborted = session.forkMap([1, 2], async (fork) => {
    stop.abort(new Error("enough"));
    return await fork.exec("sleep 1000");
  }, { signal: stop.signal });
  await assert.rejects(settled(aborted, "the aborted map"), /enough/);
  await machinesLeft(1);
  assert.equal((await session.exec("echo alive")).stdout, "alive\n");
});

test("a race is won by the first result that is accepted; the others are destroyed, and the session goes on as it was", async () => {
  await using session = await open("python");
  await session.exec("n = 1");
  const accepted: string[] = [];
  const winner = await session.race(
    ["import time; time.sleep(1000)", "n = 7; raise SystemExit(3)", "n = 9; print('right')", "while True: pass"],
    ({ exitCode, stdout }, index) => {
      accepted.push(`${index}:${exitCode}`);
      return exitCode === 0 && stdout === "right\n";
    },
  );
  assert.deepEqual([winner.index, winner.result.stdout, winner.session], [2, "right\n", undefined]);
  assert.ok(accepted.includes("2:0") && accepted.every((each) => each === "2:0" || each === "1:3"), String(accepted));
  await machinesLeft(1);
  assert.equal((await session.exec("n")).value, "1");
});

test("a race hands the winner's session over when asked, and takes functions as candidates", async () => {
  await using session = await open("python");
  await session.exec("n = 1");
  const isOver = Promise.withResolvers<void>();
  const { index, result, session: won } = await session.race<number>(
    [
      async (fork) => Number((await fork.exec("n += 1\nn")).value),
      async (_fork, signal) => await new Promise(() => signal.addEventListener("abort", () => isOver.resolve())),
      () => Promise.reject(new Error("a candidate that fails has lost")),
    ],
    (value) => value === 2,
    { keepSession: true },
  );
  await settled(isOver.promise, "the loser is told");
  assert.deepEqual([index, result], [0, 2]);
  assert.ok(won);
  assert.equal((await won.exec("n")).value, "2");
  await machinesLeft(2);
  await won.close();
  assert.equal((await session.exec("n")).value, "1");
});

test("a race without a winner tells what became of each candidate", async () => {
  await using session = await open();
  const error = await session.race(["echo a", "exit 3"], () => false).catch((caught) => caught);
  assert.ok(error instanceof NoneAcceptedError, String(error));
  assert.deepEqual(
    error.outcomes.map((outcome) => "result" in outcome ? (outcome.result as { exitCode: number }).exitCode : outcome.error),
    [0, 3],
  );
  const lost = await session.race([async (fork) => {
    process.kill(qemuOf(fork), "SIGKILL");
    return await fork.exec("sleep 1000");
  }], () => true).catch((caught) => caught);
  assert.ok(lost instanceof NoneAcceptedError);
  const [outcome] = lost.outcomes;
  assert.ok(
    outcome && "error" in outcome && outcome.error instanceof OutcomeUnknownError,
    String(outcome && "error" in outcome && outcome.error),
  );
  const thrown = session.race(["echo a"], () => {
    throw new Error("cannot judge");
  });
  await assert.rejects(thrown, /cannot judge/);
  await machinesLeft(1);
});

test("what is asked for wrongly is refused before anything starts", async () => {
  await using session = await open();
  // deno-lint-ignore no-explicit-any -- callers in plain JavaScript pass anything.
  const wrong: any = session;
  for (
    const call of [
      () => wrong.fork(0),
      () => wrong.fork(1.5),
      () => wrong.fork("2"),
      () => wrong.forkMap("inputs", () => 1),
      () => wrong.forkMap([1], "fn"),
      () => wrong.forkMap([1], () => 1, { concurrency: 0 }),
      () => wrong.race([], () => true),
      () => wrong.race([1], () => true),
      () => wrong.race(["echo"]),
    ]
  ) await assert.rejects(call(), InputValidationError);
  await machinesLeft(1);
});

test("forks that can never fit are refused at once; others wait for room as any VM does, and may be given up", async () => {
  const own = await openSmall(3), { scheduler } = own;
  await using session = await scheduler.session({ language: "raw" });
  await assert.rejects(session.fork(3), (error) => {
    assert.ok(error instanceof VmCapacityError, String(error));
    assert.match(error.message, /^Cannot fork: 3 more sessions of 256 MB do not fit beside this one: /);
    return error.retry === "never";
  });
  await assert.rejects(session.fork(2 ** 50), VmCapacityError);
  assert.equal((await session.exec("echo here")).stdout, "here\n");
  const other = await scheduler.session({ language: "raw" });
  const stop = new AbortController();
  let isForked = false;
  const given = session.fork(2, { signal: stop.signal });
  const forking = session.fork(2).finally(() => isForked = true);
  await session.exec("echo beside");
  assert.equal(isForked, false);
  stop.abort(new Error("given up"));
  await assert.rejects(settled(given, "the fork that was given up"), /given up/);
  await other.close();
  const forks = await settled(forking, "the fork that waited");
  assert.deepEqual((await Promise.all(forks.map((fork) => fork.exec("echo $((6 * 7))")))).map(({ stdout }) => stdout), ["42\n", "42\n"]);
  await Promise.all(forks.map((fork) => fork.close()));
  assert.deepEqual(await session.forkMap([1, 2, 3, 4, 5], async (fork, each) => (await fork.exec(`echo ${each}`)).stdout), [
    "1\n",
    "2\n",
    "3\n",
    "4\n",
    "5\n",
  ]);
  await session.close();
  await own.close();
});

test("where there is room for the session alone a map and a race are refused at once, and a rollback needs no more", async () => {
  const own = await openSmall(1), { scheduler } = own;
  {
    await using session = await scheduler.session({ language: "raw" });
    for (const call of [() => session.forkMap([1], () => 1), () => session.race(["echo"], () => true), () => session.fork(1)]) {
      await assert.rejects(settled<unknown>(call(), "the refusal"), (error) => {
        return error instanceof VmCapacityError && /another session of 256 MB does not fit beside this one/.test(error.message);
      });
    }
    assert.equal((await session.exec("echo here")).stdout, "here\n");
  }
  for (let count = 0; count < 3; count += 1) {
    await using session = await scheduler.session({ language: "raw" });
    await session.exec("n=1");
    await using checkpoint = await session.checkpoint();
    await session.exec("n=2");
    await session.rollback(checkpoint);
    assert.equal((await session.exec("echo $n")).stdout, "1\n");
  }
  await own.close();
});

noLeftovers();
