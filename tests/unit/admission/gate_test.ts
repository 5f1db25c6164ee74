/** Gate: nobody gets in beyond the budget, nobody is overtaken, nobody is forgotten. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { Gate } from "../../../src/admission/gate.ts";
import { TransientError, VmCapacityError } from "../../../src/base/errors.ts";
import { settled, sleep } from "../../support/waiting.ts";

const BUDGET = { memoryMiB: 1000, cpus: 4 };
const need = (memoryMiB: number, cpus = 1) => ({ memoryMiB, cpus });

/** True when `promise` is still open after a few turns of the event loop. */
async function isPending(promise: Promise<unknown>): Promise<boolean> {
  let isOver = false;
  promise.then(() => isOver = true, () => isOver = true);
  await sleep(5);
  return !isOver;
}

test("Gate admits at once what fits, up to the last MB and slot", async () => {
  const gate = new Gate(BUDGET);
  const grants = [await gate.acquire(need(600)), await gate.acquire(need(400, 3))];
  const next = gate.acquire(need(0, 0));
  assert.ok(!(await isPending(next)), "nothing needs no room");
  const one = gate.acquire(need(1));
  assert.ok(await isPending(one));
  for (const grant of [...grants, await next]) grant[Symbol.dispose]();
  (await settled(one, "the one that waited"))[Symbol.dispose]();
});

for (const [name, wanted] of [["memory", need(1001)], ["slots", need(1, 5)], ["both", need(1e9, 1e9)]] as const) {
  test(`Gate refuses at once what could never fit: ${name}`, async () => {
    const gate = new Gate(BUDGET);
    const holder = await gate.acquire(need(1000));
    await assert.rejects(gate.acquire(wanted), (error) => {
      assert.ok(error instanceof VmCapacityError && error instanceof TransientError);
      assert.deepEqual([error.code, error.retry], ["SBX_VM_CAPACITY", "never"]);
      assert.match(error.message, new RegExp(`^Cannot start a VM with ${wanted.memoryMiB} MB.*1000 MB`));
      assert.match(error.hint ?? "", /memoryOvercommitRatio/);
      return true;
    });
    holder[Symbol.dispose]();
  });
}

test("Gate: first come, first served", async () => {
  const gate = new Gate(BUDGET);
  const holder = await gate.acquire(need(1000));
  const order: number[] = [];
  const waiting = [1, 2, 3, 4].map(async (id) => {
    using _grant = await gate.acquire(need(900));
    order.push(id);
    await sleep(1);
  });
  holder[Symbol.dispose]();
  await Promise.all(waiting);
  assert.deepEqual(order, [1, 2, 3, 4]);
});

test("Gate: a large request is not starved by small ones that would fit", async () => {
  const gate = new Gate(BUDGET);
  const small = await gate.acquire(need(100)), other = await gate.acquire(need(100));
  const large = gate.acquire(need(1000)), late = gate.acquire(need(1));
  small[Symbol.dispose]();
  assert.ok(await isPending(large), "one small one is still inside");
  assert.ok(await isPending(late), "there is room, but not out of turn");
  other[Symbol.dispose]();
  const grant = await settled(large, "the large one's turn");
  assert.ok(await isPending(late));
  grant[Symbol.dispose]();
  (await settled(late, "the late one's turn"))[Symbol.dispose]();
});

test("Gate: several small ones enter together when a large one leaves", async () => {
  const gate = new Gate(BUDGET);
  const large = await gate.acquire(need(1000));
  const waiting = [300, 300, 300].map((memory) => gate.acquire(need(memory)));
  large[Symbol.dispose]();
  for (const grant of await settled(Promise.all(waiting), "all three")) grant[Symbol.dispose]();
});

test("Gate: who aborts while queued leaves with the reason, and those behind move up", async () => {
  const gate = new Gate(BUDGET);
  const holder = await gate.acquire(need(500));
  const controller = new AbortController(), reason = new Error("enough");
  const large = gate.acquire(need(1000), { signal: controller.signal });
  const small = gate.acquire(need(500));
  assert.ok(await isPending(small));
  controller.abort(reason);
  await assert.rejects(large, (error) => error === reason);
  (await settled(small, "the one behind, without any release"))[Symbol.dispose]();
  holder[Symbol.dispose]();
  await assert.rejects(gate.acquire(need(1), { signal: controller.signal }), (error) => error === reason);
  (await settled(gate.acquire(need(1000)), "the whole budget is free"))[Symbol.dispose]();
});

test("Gate: an abort after the admission changes nothing", async () => {
  const gate = new Gate(BUDGET);
  const controller = new AbortController();
  const holder = await gate.acquire(need(1000));
  const admitted = gate.acquire(need(1000), { signal: controller.signal });
  const behind = gate.acquire(need(1000));
  holder[Symbol.dispose]();
  controller.abort();
  const grant = await admitted;
  assert.ok(await isPending(behind));
  grant[Symbol.dispose]();
  (await settled(behind, "the one behind"))[Symbol.dispose]();
});

test("Gate: who waits too long is told what is in use, and those behind move up", async () => {
  const gate = new Gate(BUDGET);
  const holder = await gate.acquire(need(700, 2));
  const late = gate.acquire(need(1000), { timeoutMs: 20 });
  const behind = gate.acquire(need(300));
  await assert.rejects(late, (error) => {
    assert.ok(error instanceof VmCapacityError);
    assert.deepEqual([error.retry, error.message], [
      "safe",
      "Cannot start a VM with 1000 MB: no room after 20 ms (in use: 700 of 1000 MB, 2 of 4 slots)",
    ]);
    return true;
  });
  (await settled(behind, "the one behind"))[Symbol.dispose]();
  holder[Symbol.dispose]();
});

test("Gate: a queue that moves is no lack of capacity, however long it takes as a whole", async () => {
  const gate = new Gate({ memoryMiB: 100, cpus: 1 });
  let holder = await gate.acquire(need(100));
  const waiting = Array.from({ length: 6 }, () => gate.acquire(need(100), { timeoutMs: 400 }));
  for (const next of waiting) {
    await sleep(100);
    holder[Symbol.dispose]();
    holder = await settled(next, "the next in the queue");
  }
  holder[Symbol.dispose]();
});

test("Gate: a wait that ended well leaves no timer that could end it again", async () => {
  const gate = new Gate(BUDGET);
  const holder = await gate.acquire(need(1000));
  const waiting = gate.acquire(need(1000), { timeoutMs: 30 });
  holder[Symbol.dispose]();
  const grant = await waiting;
  const behind = gate.acquire(need(1000));
  await sleep(60);
  assert.ok(await isPending(behind), "the grant is still held");
  grant[Symbol.dispose]();
  (await behind)[Symbol.dispose]();
});

test("Gate: a grant disposed twice gives its room back once", async () => {
  const gate = new Gate(BUDGET);
  const first = await gate.acquire(need(600));
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  const held = [await gate.acquire(need(600)), await gate.acquire(need(400))];
  const beyond = gate.acquire(need(1));
  assert.ok(await isPending(beyond));
  for (const grant of held) grant[Symbol.dispose]();
  (await beyond)[Symbol.dispose]();
});

test("Gate: at most 10,000 wait", async () => {
  const gate = new Gate(BUDGET);
  const holder = await gate.acquire(need(1000));
  const controller = new AbortController();
  const waiting = Array.from({ length: 10_000 }, () => gate.acquire(need(1), { signal: controller.signal }));
  await assert.rejects(gate.acquire(need(1)), { name: "VmCapacityError", message: /at most 10000 may wait/ });
  controller.abort(new Error("all leave"));
  assert.ok((await Promise.allSettled(waiting)).every(({ status }) => status === "rejected"));
  holder[Symbol.dispose]();
  (await settled(gate.acquire(need(1000)), "the queue is empty"))[Symbol.dispose]();
});

test("Gate: under any schedule never beyond the budget, in order, and everything comes back", async () => {
  const job = fc.record({
    memoryMiB: fc.integer({ min: 0, max: 1100 }),
    cpus: fc.integer({ min: 0, max: 5 }),
    turns: fc.integer({ min: 0, max: 6 }),
    abortsAfter: fc.option(fc.integer({ min: 0, max: 6 }), { nil: undefined }),
  });
  const turns = async (count: number) => {
    for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve));
  };
  await fc.assert(
    fc.asyncProperty(fc.array(job, { maxLength: 15 }), async (jobs) => {
      const gate = new Gate(BUDGET);
      const used = { memoryMiB: 0, cpus: 0 };
      const admitted: number[] = [];
      await Promise.all(jobs.map(async ({ memoryMiB, cpus, turns: stay, abortsAfter }, id) => {
        const controller = new AbortController();
        if (abortsAfter !== undefined) void turns(abortsAfter).then(() => controller.abort("left"));
        try {
          const grant = await gate.acquire({ memoryMiB, cpus }, { signal: controller.signal });
          admitted.push(id);
          used.memoryMiB += memoryMiB;
          used.cpus += cpus;
          assert.ok(used.memoryMiB <= BUDGET.memoryMiB && used.cpus <= BUDGET.cpus, JSON.stringify(used));
          await turns(stay);
          used.memoryMiB -= memoryMiB;
          used.cpus -= cpus;
          grant[Symbol.dispose]();
        } catch (error) {
          if (error !== "left") assert.ok(error instanceof VmCapacityError && (memoryMiB > 1000 || cpus > 4), String(error));
        }
      }));
      assert.deepEqual(admitted, [...admitted].sort((a, b) => a - b), "in the order of arrival");
      for (const [id, { memoryMiB, cpus, abortsAfter }] of jobs.entries()) {
        if (abortsAfter === undefined && memoryMiB <= 1000 && cpus <= 4) assert.ok(admitted.includes(id), `job ${id} got in`);
      }
      (await settled(gate.acquire(BUDGET), "the whole budget came back"))[Symbol.dispose]();
    }),
    { numRuns: 150 },
  );
});
