/** Budget: the formula of CONTRACT, rounded down, and never without a slot. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { budgetOf, toReclaim } from "../../../src/admission/budget.ts";

const MIB = 1_048_576;
const DEFAULTS = { memoryOvercommitRatio: 1.5, cpuOvercommitRatio: 4, hostMemoryReserveRatio: 0.1 };

test("budget: host × (1 − reserve) × ratio, and cpus × ratio", () => {
  assert.deepEqual(budgetOf({ memoryBytes: 1000 * MIB, cpus: 2 }, DEFAULTS), { memoryMiB: 1350, cpus: 8 });
  const ratios = { memoryOvercommitRatio: 1, cpuOvercommitRatio: 1, hostMemoryReserveRatio: 0 };
  assert.deepEqual(budgetOf({ memoryBytes: 256 * MIB, cpus: 3 }, ratios), { memoryMiB: 256, cpus: 3 });
});

test("budget: parts are rounded down, but one VM may always run", () => {
  const ratios = { memoryOvercommitRatio: 0.5, cpuOvercommitRatio: 0.1, hostMemoryReserveRatio: 0 };
  assert.deepEqual(budgetOf({ memoryBytes: 3 * MIB, cpus: 1 }, ratios), { memoryMiB: 1, cpus: 1 });
  assert.equal(budgetOf({ memoryBytes: 3 * MIB, cpus: 3 }, { ...ratios, cpuOvercommitRatio: 0.5 }).cpus, 1);
});

test("budget: whole, not negative, and never more than the formula, whatever host and ratios", () => {
  const ratio = (min: number, max: number) => fc.double({ min, max, noNaN: true });
  const ratios = fc.record({
    memoryOvercommitRatio: ratio(0.1, 100),
    cpuOvercommitRatio: ratio(0.1, 1000),
    hostMemoryReserveRatio: ratio(0, 0.95),
  });
  fc.assert(fc.property(fc.nat({ max: 2 ** 31 - 1 }), fc.integer({ min: 1, max: 1024 }), ratios, (memoryMiB, cpus, given) => {
    const budget = budgetOf({ memoryBytes: memoryMiB * MIB, cpus }, given);
    assert.ok(Number.isSafeInteger(budget.memoryMiB) && budget.memoryMiB >= 0 && Number.isSafeInteger(budget.cpus) && budget.cpus >= 1);
    assert.ok(budget.memoryMiB <= memoryMiB * (1 - given.hostMemoryReserveRatio) * given.memoryOvercommitRatio);
    assert.ok(budget.cpus <= Math.max(1, cpus * given.cpuOvercommitRatio));
  }));
});

test("toReclaim: enough or nothing, the least worth first, nothing that could stay", () => {
  const reserved = fc.array(fc.record({ amount: fc.integer({ min: 1, max: 50 }), worth: fc.integer({ min: 0, max: 3 }) }), {
    maxLength: 12,
  });
  fc.assert(fc.property(reserved, fc.integer({ min: 1, max: 300 }), (all, missing) => {
    const chosen = toReclaim(all, missing);
    const sum = (parts: typeof all) => parts.reduce((total, { amount }) => total + amount, 0);
    assert.ok(chosen.every((each) => all.includes(each)) && new Set(chosen).size === chosen.length);
    if (sum(all) < missing) return assert.deepEqual(chosen, []);
    assert.ok(sum(chosen) >= missing);
    for (const each of chosen) assert.ok(sum(chosen) - each.amount < missing, "each of them is needed");
    const dearest = Math.max(...chosen.map(({ worth }) => worth));
    assert.ok(sum(all.filter(({ worth }) => worth < dearest)) < missing, "cheaper ones would not have done");
  }));
  assert.deepEqual(toReclaim([{ amount: 3, worth: 1 }, { amount: 2, worth: 0 }], 2), [{ amount: 2, worth: 0 }]);
});
