/** Waiting: permits, aborts, deadlines and shared flights, each with what must not happen. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { abortable, concurrently, Deadline, delay, Semaphore, settlesWithin, Singleflight } from "../../../src/base/async.ts";
import { settled, sleep } from "../../support/waiting.ts";

/** True when `promise` is still open after a few turns of the event loop. */
async function isPending(promise: Promise<unknown>): Promise<boolean> {
  let isOver = false;
  promise.then(() => isOver = true, () => isOver = true);
  await sleep(5);
  return !isOver;
}

for (const limit of [0, -1, 1.5, NaN, Infinity]) {
  test(`Semaphore refuses a limit of ${limit}`, () => {
    assert.throws(() => new Semaphore(limit), { name: "RangeError", message: new RegExp(`got ${limit}$`) });
  });
}

test("Semaphore hands a released permit to whoever waited longest", async () => {
  const semaphore = new Semaphore(1);
  const first = await semaphore.acquire();
  const order: number[] = [];
  const waiting = [1, 2, 3].map(async (id) => {
    using _permit = await semaphore.acquire();
    order.push(id);
  });
  assert.ok(await isPending(Promise.race(waiting)));
  first[Symbol.dispose]();
  await Promise.all(waiting);
  assert.deepEqual(order, [1, 2, 3]);
});

test("Semaphore does not let a newcomer overtake a permit that was handed over", async () => {
  const semaphore = new Semaphore(1);
  const first = await semaphore.acquire();
  const second = semaphore.acquire();
  first[Symbol.dispose]();
  const third = semaphore.acquire();
  (await second)[Symbol.dispose]();
  (await settled(third, "the newcomer's turn"))[Symbol.dispose]();
});

test("Semaphore gives a permit back once, however often it is disposed", async () => {
  const semaphore = new Semaphore(1);
  const first = await semaphore.acquire();
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  const second = await semaphore.acquire();
  const third = semaphore.acquire();
  assert.ok(await isPending(third), "one permit, one holder");
  second[Symbol.dispose]();
  (await third)[Symbol.dispose]();
});

test("Semaphore rejects with the signal's reason and keeps the place of those behind", async () => {
  const semaphore = new Semaphore(1);
  const holder = await semaphore.acquire();
  const controller = new AbortController(), reason = new Error("left");
  const leaver = semaphore.acquire(controller.signal), stayer = semaphore.acquire();
  controller.abort(reason);
  await assert.rejects(leaver, (error) => error === reason);
  assert.ok(await isPending(stayer));
  holder[Symbol.dispose]();
  (await settled(stayer, "the one behind"))[Symbol.dispose]();
  await assert.rejects(semaphore.acquire(AbortSignal.abort(reason)), (error) => error === reason);
  (await settled(semaphore.acquire(), "no permit was lost"))[Symbol.dispose]();
});

test("Semaphore ignores an abort that comes after the permit", async () => {
  const semaphore = new Semaphore(1);
  const controller = new AbortController();
  const holder = await semaphore.acquire();
  const second = semaphore.acquire(controller.signal);
  const third = semaphore.acquire();
  holder[Symbol.dispose]();
  controller.abort(new Error("late"));
  (await second)[Symbol.dispose]();
  (await settled(third, "the queue is whole"))[Symbol.dispose]();
});

test("Semaphore never lets more in than its limit, and everybody in the end", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 4 }),
      fc.array(fc.record({ turns: fc.integer({ min: 0, max: 3 }), isAborted: fc.boolean() }), { maxLength: 20 }),
      async (limit, jobs) => {
        const semaphore = new Semaphore(limit);
        let inside = 0, most = 0, through = 0;
        await Promise.all(jobs.map(async ({ turns, isAborted }) => {
          const controller = new AbortController();
          const acquiring = semaphore.acquire(controller.signal);
          if (isAborted) queueMicrotask(() => controller.abort());
          try {
            using _permit = await acquiring;
            most = Math.max(most, ++inside);
            for (let turn = 0; turn < turns; turn++) await Promise.resolve();
            inside--;
            through++;
          } catch {
            assert.ok(isAborted, "only the aborted are turned away");
          }
        }));
        assert.ok(most <= limit, `${most} inside, ${limit} allowed`);
        assert.ok(through >= jobs.filter(({ isAborted }) => !isAborted).length);
        for (let count = 0; count < limit; count++) await settled(semaphore.acquire(), "every permit came back");
      },
    ),
    { numRuns: 200 },
  );
});

test("abortable gives the promise's own outcome when nothing aborts", async () => {
  const { signal } = new AbortController();
  assert.equal(await abortable(Promise.resolve(1), signal), 1);
  assert.equal(await abortable(Promise.resolve(2), undefined), 2);
  const failure = new Error("own");
  await assert.rejects(abortable(Promise.reject(failure), signal), (error) => error === failure);
});

test("abortable rejects with the reason, before and while it waits, whatever the promise does later", async () => {
  const reason = new Error("enough"), controller = new AbortController();
  const { promise, reject } = Promise.withResolvers<void>();
  const waiting = abortable(promise, controller.signal);
  controller.abort(reason);
  await assert.rejects(waiting, (error) => error === reason);
  // An unread failure would end the test run as an unhandled rejection.
  reject(new Error("nobody listens"));
  await assert.rejects(abortable(Promise.reject(new Error("nor here")), controller.signal), (error) => error === reason);
  await sleep(5);
});

test("abortable leaves no listener behind", async () => {
  const controller = new AbortController();
  let listeners = 0;
  const add = controller.signal.addEventListener.bind(controller.signal);
  const remove = controller.signal.removeEventListener.bind(controller.signal);
  controller.signal.addEventListener = (...args: Parameters<typeof add>) => (listeners++, add(...args));
  controller.signal.removeEventListener = (...args: Parameters<typeof remove>) => (listeners--, remove(...args));
  for (let count = 0; count < 100; count++) await abortable(Promise.resolve(), controller.signal);
  await sleep(0);
  assert.equal(listeners, 0);
});

test("Deadline aborts with its reason, which is made only then", async () => {
  let made = 0;
  const reason = new Error("too late");
  using deadline = new Deadline(1, () => (made++, reason));
  assert.deepEqual([made, deadline.signal.aborted], [0, false]);
  await new Promise((resolve) => deadline.signal.addEventListener("abort", resolve, { once: true }));
  assert.deepEqual([made, deadline.signal.reason], [1, reason]);
});

test("Deadline that was disposed never aborts", async () => {
  const deadline = new Deadline(1, () => assert.fail("the reason is not needed"));
  deadline[Symbol.dispose]();
  deadline[Symbol.dispose]();
  await sleep(20);
  assert.equal(deadline.signal.aborted, false);
});

test("delay resolves in time and rejects with the reason when aborted first", async () => {
  await settled(delay(1), "a short delay");
  const reason = new Error("stop"), controller = new AbortController();
  const waiting = delay(600_000, controller.signal);
  controller.abort(reason);
  await assert.rejects(waiting, (error) => error === reason);
  await assert.rejects(delay(600_000, controller.signal), (error) => error === reason);
});

test("settlesWithin tells a settled promise from one that goes on", async () => {
  assert.equal(await settlesWithin(Promise.resolve(), 600_000), true);
  assert.equal(await settlesWithin(Promise.reject(new Error("settled too")), 600_000), true);
  assert.equal(await settlesWithin(new Promise(() => {}), 1), false);
});

test("Singleflight shares one flight per key and starts anew after it", async () => {
  const flights = new Singleflight<number>();
  let started = 0;
  const gate = Promise.withResolvers<void>();
  const work = async () => {
    const own = ++started;
    await gate.promise;
    return own;
  };
  const sharing = [flights.run("a", work), flights.run("a", work), flights.run("a", work)];
  const other = flights.run("b", work);
  gate.resolve();
  assert.deepEqual(await Promise.all([...sharing, other]), [1, 1, 1, 2]);
  assert.equal(await flights.run("a", work), 3);
});

test("Singleflight gives a failure to all who share it and to nobody after", async () => {
  const flights = new Singleflight<number>();
  const failure = new Error("crash");
  const results = await Promise.allSettled([1, 2].map(() => flights.run("a", () => Promise.reject(failure))));
  assert.deepEqual(results.map((result) => result.status === "rejected" && result.reason === failure), [true, true]);
  assert.equal(await flights.run("a", () => Promise.resolve(7)), 7);
});

test("Singleflight turns work that throws at once into a failed flight", async () => {
  const flights = new Singleflight<number>();
  const failure = new Error("at once");
  const flight = flights.run("a", () => {
    throw failure;
  });
  await assert.rejects(flight, (error) => error === failure);
  assert.equal(await flights.run("a", () => Promise.resolve(7)), 7);
});

test("Singleflight.settled waits for every flight, those that start meanwhile and those that fail included", async () => {
  const flights = new Singleflight<void>();
  await flights.settled();
  const first = Promise.withResolvers<void>(), second = Promise.withResolvers<void>();
  const a = flights.run("a", () => first.promise);
  a.catch(() => {}); // Read below.
  const all = flights.settled();
  const b = flights.run("b", () => second.promise);
  first.reject(new Error("failed"));
  await assert.rejects(a);
  assert.ok(await isPending(all));
  second.resolve();
  await Promise.all([b, settled(all, "no flight is left")]);
});

test("concurrently does every item once, in order, and no more than the limit at once", async () => {
  await fc.assert(fc.asyncProperty(fc.nat(40), fc.integer({ min: 1, max: 8 }), async (count, limit) => {
    const begun: number[] = [];
    let atOnce = 0, most = 0;
    await concurrently(Array(count).keys(), { limit }, async (item) => {
      begun.push(item);
      most = Math.max(most, ++atOnce);
      await Promise.resolve();
      atOnce -= 1;
    });
    assert.deepEqual(begun, [...Array(count).keys()]);
    assert.equal(most, Math.min(limit, count));
  }));
});

test("concurrently: the first failure aborts the others, is what the caller gets, and comes when nothing is under way", async () => {
  const failure = new Error("failed"), begun: number[] = [];
  const { promise: stuck, resolve } = Promise.withResolvers<void>();
  let seen: unknown;
  const all = concurrently([0, 1, 2, 3], { limit: 2 }, async (item, signal) => {
    begun.push(item);
    if (item === 1) throw failure;
    signal.addEventListener("abort", () => void (seen = signal.reason));
    await stuck;
  });
  assert.ok(await isPending(all), "the other one still works");
  assert.equal(seen, failure);
  resolve();
  await assert.rejects(settled(all, "all"), (error) => error === failure);
  assert.deepEqual(begun, [0, 1]);
});

test("concurrently: an abort, before or amid, begins nothing more and gives its reason; the signal is let go", async () => {
  const reason = new Error("enough"), begun: number[] = [];
  const work = (item: number) => Promise.resolve(void begun.push(item));
  await assert.rejects(concurrently([1], { limit: 1, signal: AbortSignal.abort(reason) }, work), (error) => error === reason);
  assert.deepEqual(begun, []);
  const controller = new AbortController();
  const ending = concurrently([1, 2, 3], { limit: 1, signal: controller.signal }, async (item) => {
    await work(item);
    if (item === 2) controller.abort(reason);
  });
  await assert.rejects(settled(ending, "all"), (error) => error === reason);
  assert.deepEqual(begun, [1, 2]);
  await concurrently([], { limit: 3 }, work);
});
