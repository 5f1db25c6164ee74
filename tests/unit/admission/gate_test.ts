/** Gate: nobody gets in beyond the budget, nobody is overtaken in his line, nobody is forgotten; what is reserved gives way. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { Gate } from "../../../src/admission/gate.ts";
import { TransientError, VmCapacityError } from "../../../src/base/errors.ts";
import { settled, sleep } from "../../support/waiting.ts";

const BUDGET = { memoryMiB: 1000, cpus: 4 };
const EMPTY = { memoryMiB: 0, reservedMiB: 0, cpus: 0 };

/** Some turns of the event loop. */
async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** True when `promise` is still open after a few turns of the event loop. */
async function isPending(promise: Promise<unknown> | Disposable): Promise<boolean> {
  let isOver = false;
  Promise.resolve(promise).then(() => isOver = true, () => isOver = true);
  await turns(3);
  return !isOver;
}

/** A grant that was there at once. */
function atOnce(grant: Disposable | Promise<Disposable>): Disposable {
  assert.ok(!(grant instanceof Promise), "there was room");
  return grant;
}

/** A grant that has to be waited for. */
function later(grant: Disposable | Promise<Disposable>): Promise<Disposable> {
  assert.ok(grant instanceof Promise, "there was no room");
  return grant;
}

const give = (...grants: readonly Disposable[]) => grants.forEach((grant) => grant[Symbol.dispose]());

test("Gate admits at once, and not by a promise, what fits, up to the last MB and the last slot", async () => {
  const gate = new Gate(BUDGET);
  const memory = [atOnce(gate.hold(600)), atOnce(gate.hold(400)), atOnce(gate.hold(0))];
  const slots = [1, 2, 3, 4].map(() => atOnce(gate.occupy()));
  assert.deepEqual(gate.held, { memoryMiB: 1000, reservedMiB: 0, cpus: 4 });
  const oneMore = later(gate.hold(1)), oneSlot = later(gate.occupy());
  assert.ok(await isPending(oneMore) && await isPending(oneSlot));
  assert.ok(gate.isContended);
  give(...memory, ...slots);
  give(await settled(oneMore, "the MB"), await settled(oneSlot, "the slot"));
  assert.deepEqual(gate.held, EMPTY);
  assert.ok(gate.isQuiet);
});

test("Gate refuses at once what could never fit", async () => {
  const gate = new Gate(BUDGET);
  const holder = atOnce(gate.hold(1000));
  for (const wanted of [1001, 1e9]) {
    assert.throws(() => gate.hold(wanted), (error) => {
      assert.ok(error instanceof VmCapacityError && error instanceof TransientError);
      assert.deepEqual([error.code, error.retry], ["SBX_VM_CAPACITY", "never"]);
      assert.match(error.message, new RegExp(`^Cannot start a VM with ${wanted} MB.*1000 MB`));
      assert.match(error.hint ?? "", /memoryOvercommitRatio/);
      return true;
    });
  }
  give(holder);
});

test("Gate: first come, first served", async () => {
  const gate = new Gate(BUDGET);
  const holder = atOnce(gate.hold(1000));
  const order: number[] = [];
  const waiting = [1, 2, 3, 4].map(async (id) => {
    using _grant = await gate.hold(900);
    order.push(id);
    await turns(1);
  });
  give(holder);
  await Promise.all(waiting);
  assert.deepEqual(order, [1, 2, 3, 4]);
});

test("Gate: a large request is not starved by small ones that would fit", async () => {
  const gate = new Gate(BUDGET);
  const small = atOnce(gate.hold(100)), other = atOnce(gate.hold(100));
  const large = later(gate.hold(1000)), late = later(gate.hold(1));
  give(small);
  assert.ok(await isPending(large), "one small one is still inside");
  assert.ok(await isPending(late), "there is room, but not out of turn");
  give(other);
  const grant = await settled(large, "the large one's turn");
  assert.ok(await isPending(late));
  give(grant);
  give(await settled(late, "the late one's turn"));
});

test("Gate: who needs a slot alone does not wait for those who wait for memory, nor the other way round", async () => {
  const gate = new Gate(BUDGET);
  const holder = atOnce(gate.hold(1000));
  const starved = later(gate.hold(1));
  const slots = [1, 2, 3, 4].map(() => atOnce(gate.occupy()));
  const busy = later(gate.occupy());
  give(holder);
  give(await settled(starved, "memory"));
  assert.ok(await isPending(busy));
  give(...slots);
  give(atOnce(gate.hold(1000)), await settled(busy, "a slot"));
  assert.deepEqual(gate.held, EMPTY);
});

test("Gate: several small ones enter together when a large one leaves", async () => {
  const gate = new Gate(BUDGET);
  const large = atOnce(gate.hold(1000));
  const waiting = [300, 300, 300].map((memory) => later(gate.hold(memory)));
  give(large);
  give(...await settled(Promise.all(waiting), "all three"));
});

test("Gate: who aborts while queued leaves with the reason, and those behind move up", async () => {
  const gate = new Gate(BUDGET);
  const holder = atOnce(gate.hold(500));
  const controller = new AbortController(), reason = new Error("enough");
  const large = later(gate.hold(1000, { signal: controller.signal }));
  const small = later(gate.hold(500));
  assert.ok(await isPending(small));
  controller.abort(reason);
  await assert.rejects(large, (error) => error === reason);
  give(await settled(small, "the one behind, without any release"), holder);
  await assert.rejects(later(gate.hold(1, { signal: controller.signal })), (error) => error === reason);
  give(atOnce(gate.hold(1000)));
});

test("Gate: an abort after the admission changes nothing", async () => {
  const gate = new Gate(BUDGET);
  const controller = new AbortController();
  const holder = atOnce(gate.hold(1000));
  const admitted = later(gate.hold(1000, { signal: controller.signal }));
  const behind = later(gate.hold(1000));
  give(holder);
  controller.abort();
  const grant = await admitted;
  assert.ok(await isPending(behind));
  give(grant);
  give(await settled(behind, "the one behind"));
});

test("Gate: who waits too long is told what is in use and what to do, and those behind move up", async () => {
  const gate = new Gate(BUDGET);
  const holder = atOnce(gate.hold(700)), slots = [1, 2, 3, 4].map(() => atOnce(gate.occupy()));
  const late = later(gate.hold(1000, { timeoutMs: 20 })), behind = later(gate.hold(300));
  const refused = (promise: Promise<unknown>, message: string, hint: RegExp) =>
    assert.rejects(promise, (error) => {
      assert.ok(error instanceof VmCapacityError);
      assert.deepEqual([error.retry, error.message], ["safe", message]);
      assert.match(error.hint ?? "", hint);
      return true;
    });
  await refused(late, "Cannot start a VM with 1000 MB: no room after 20 ms (in use: 700 of 1000 MB)", /Close sessions/);
  await refused(
    later(gate.occupy({ timeoutMs: 20 })),
    "Cannot run: no room after 20 ms (in use: 4 of 4 CPU slots)",
    /cpuOvercommitRatio/,
  );
  give(await settled(behind, "the one behind"), holder, ...slots);
  assert.deepEqual(gate.held, EMPTY);
});

test("Gate: a queue that moves is no lack of capacity, however long it takes as a whole", async () => {
  const gate = new Gate({ memoryMiB: 100, cpus: 1 });
  let holder = atOnce(gate.hold(100));
  const waiting = Array.from({ length: 6 }, () => later(gate.hold(100, { timeoutMs: 400 })));
  for (const next of waiting) {
    await sleep(100);
    give(holder);
    holder = await settled(next, "the next in the queue");
  }
  give(holder);
});

test("Gate: a wait that ended well leaves no timer that could end it again", async () => {
  const gate = new Gate(BUDGET);
  const holder = atOnce(gate.hold(1000));
  const waiting = later(gate.hold(1000, { timeoutMs: 30 }));
  give(holder);
  const grant = await waiting;
  const behind = later(gate.hold(1000));
  await sleep(60);
  assert.ok(await isPending(behind), "the grant is still held");
  give(grant);
  give(await behind);
});

test("Gate: a grant disposed twice gives its room back once", async () => {
  const gate = new Gate(BUDGET);
  const first = atOnce(gate.hold(600));
  give(first, first);
  const held = [atOnce(gate.hold(600)), atOnce(gate.hold(400))];
  const beyond = later(gate.hold(1));
  assert.ok(await isPending(beyond));
  give(...held);
  give(await beyond);
});

test("Gate: at most 10,000 wait", async () => {
  const gate = new Gate(BUDGET);
  const holder = atOnce(gate.hold(1000));
  const controller = new AbortController();
  const waiting = Array.from({ length: 10_000 }, () => later(gate.hold(1, { signal: controller.signal })));
  await assert.rejects(later(gate.hold(1)), { name: "VmCapacityError", message: /at most 10000 may wait/ });
  controller.abort(new Error("all leave"));
  assert.ok((await Promise.allSettled(waiting)).every(({ status }) => status === "rejected"));
  give(holder);
  give(atOnce(gate.hold(1000)));
});

test("Gate: what is reserved gives way to a request for use, the least worth first, and no more of it than is needed", () => {
  const gate = new Gate(BUDGET);
  const evicted: string[] = [];
  const reserve = (name: string, memoryMiB: number, worth: number) =>
    gate.reserve(memoryMiB, { worth, evict: () => void evicted.push(name) });
  assert.ok(reserve("pool", 300, 2) && reserve("spare", 100, 1) && reserve("other pool", 300, 2));
  assert.equal(reserve("too much", 301, 1), undefined);
  const first = atOnce(gate.hold(300));
  assert.deepEqual(evicted, [], "it fitted");
  const second = atOnce(gate.hold(100));
  assert.deepEqual(evicted, ["spare"]);
  const third = atOnce(gate.hold(200));
  assert.deepEqual([evicted, gate.held], [["spare", "pool"], { memoryMiB: 600, reservedMiB: 300, cpus: 0 }]);
  give(first, second, third);
  const whole = atOnce(gate.hold(1000));
  assert.deepEqual([evicted, gate.held.reservedMiB], [["spare", "pool", "other pool"], 0]);
  give(whole);
  assert.deepEqual(gate.held, EMPTY);
});

test("Gate: nothing is evicted for a request that would not fit all the same", async () => {
  const gate = new Gate(BUDGET);
  let isEvicted = false;
  const reservation = gate.reserve(300, { worth: 1, evict: () => void (isEvicted = true) });
  const holder = atOnce(gate.hold(500));
  const large = later(gate.hold(900));
  assert.ok(await isPending(large));
  assert.equal(isEvicted, false);
  assert.equal(gate.reserve(1, { worth: 1, evict: () => {} }), undefined, "there is room, but somebody waits");
  give(holder);
  give(await settled(large, "the large one"));
  assert.ok(isEvicted && reservation);
  give(reservation);
  assert.deepEqual(gate.held, EMPTY, "what was evicted gives nothing back");
});

test("Gate: a reservation that is claimed is held like any room; not while others wait, not twice, not after its end", async () => {
  const gate = new Gate(BUDGET);
  let isEvicted = false;
  const reserve = (memoryMiB: number) => gate.reserve(memoryMiB, { worth: 1, evict: () => void (isEvicted = true) });
  const reservation = reserve(600);
  assert.ok(reservation);
  const grant = reservation.claim();
  assert.ok(grant);
  assert.equal(reservation.claim(), undefined);
  give(reservation);
  assert.deepEqual(gate.held, { memoryMiB: 600, reservedMiB: 0, cpus: 0 });
  const other = reserve(100), waiting = later(gate.hold(500));
  assert.ok(other);
  assert.equal(other.claim(), undefined, "somebody came earlier");
  assert.equal(isEvicted, false);
  give(other);
  assert.equal(other.claim(), undefined);
  give(grant);
  give(await settled(waiting, "its turn"));
  assert.deepEqual(gate.held, EMPTY);
});

test("Gate is quiet when nobody works and nobody waits, whatever memory is held", async () => {
  const gate = new Gate(BUDGET);
  const signal = new AbortController().signal;
  const session = atOnce(gate.hold(500)), slot = atOnce(gate.occupy());
  const quiet = gate.quiet(signal);
  assert.ok(await isPending(quiet));
  const waiting = later(gate.hold(600));
  give(slot);
  assert.ok(await isPending(quiet), "somebody waits");
  give(session);
  give(await waiting);
  await settled(quiet, "quiet");
  await settled(gate.quiet(signal), "it is quiet now");
  const controller = new AbortController(), busy = atOnce(gate.occupy());
  const given = gate.quiet(controller.signal);
  controller.abort(new Error("enough"));
  await assert.rejects(given, /enough/);
  await assert.rejects(gate.changed(controller.signal), /enough/);
  give(busy);
});

test("Gate: under any schedule never beyond the budget, in the order of arrival, and everything comes back", async () => {
  const job = fc.record({
    memoryMiB: fc.integer({ min: 0, max: 1100 }),
    hasSlot: fc.boolean(),
    kind: fc.constantFrom("use", "use", "reserve"),
    starts: fc.integer({ min: 0, max: 3 }),
    stays: fc.integer({ min: 0, max: 6 }),
    abortsAfter: fc.option(fc.integer({ min: 0, max: 6 }), { nil: undefined }),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(job, { maxLength: 20 }), async (jobs) => {
      const gate = new Gate(BUDGET), lines = { memory: [] as number[], slots: [] as number[] };
      const asked = { memory: [] as number[], slots: [] as number[] };
      const used = { memoryMiB: 0, cpus: 0 };
      const reserved = new Set<number>();
      const check = () => {
        const reservedMiB = [...reserved].reduce((sum, id) => sum + jobs[id]!.memoryMiB, 0);
        const { held } = gate;
        assert.ok(held.memoryMiB + held.reservedMiB <= BUDGET.memoryMiB && held.cpus <= BUDGET.cpus, JSON.stringify(held));
        // A grant is held a little earlier than its owner learns of it.
        assert.ok(used.memoryMiB <= held.memoryMiB && used.cpus <= held.cpus && reservedMiB === held.reservedMiB, JSON.stringify(held));
      };
      const keep = async (id: number) => {
        const { memoryMiB, stays } = jobs[id]!;
        const reservation = gate.reserve(memoryMiB, { worth: id % 3, evict: () => void assert.ok(reserved.delete(id)) });
        if (!reservation) return;
        reserved.add(id);
        await turns(stays);
        const grant = id % 2 === 0 ? reservation.claim() : undefined;
        reserved.delete(id);
        if (grant) {
          used.memoryMiB += memoryMiB;
          check();
          await turns(1);
          used.memoryMiB -= memoryMiB;
          grant[Symbol.dispose]();
        }
        reservation[Symbol.dispose]();
        check();
      };
      const use = async (id: number) => {
        const { memoryMiB, hasSlot, stays, abortsAfter } = jobs[id]!;
        const controller = new AbortController(), { signal } = controller;
        if (abortsAfter !== undefined) void turns(abortsAfter).then(() => controller.abort("left"));
        try {
          asked.memory.push(id);
          using _memory = await gate.hold(memoryMiB, { signal });
          lines.memory.push(id);
          used.memoryMiB += memoryMiB;
          using _used = { [Symbol.dispose]: () => void (used.memoryMiB -= memoryMiB) };
          if (hasSlot) {
            asked.slots.push(id);
            using _slot = await gate.occupy({ signal });
            lines.slots.push(id);
            used.cpus += 1;
            check();
            await turns(stays);
            used.cpus -= 1;
          } else await turns(stays);
        } catch (error) {
          if (error !== "left") assert.ok(error instanceof VmCapacityError && memoryMiB > 1000, String(error));
        }
      };
      const all = jobs.map(async ({ kind, starts }, id) => {
        await turns(starts);
        await (kind === "use" ? use(id) : keep(id));
      });
      await settled(Promise.all(all), "every job");
      const inOrder = (line: "memory" | "slots") => asked[line].filter((id) => lines[line].includes(id));
      assert.deepEqual([lines.memory, lines.slots], [inOrder("memory"), inOrder("slots")], "in the order of arrival");
      for (const [id, { kind, memoryMiB, abortsAfter }] of jobs.entries()) {
        if (kind === "use" && abortsAfter === undefined && memoryMiB <= 1000) assert.ok(lines.memory.includes(id), `job ${id} got in`);
      }
      assert.deepEqual(gate.held, EMPTY);
      assert.ok(gate.isQuiet);
      atOnce(gate.hold(BUDGET.memoryMiB))[Symbol.dispose]();
    }),
    { numRuns: 150 },
  );
});
