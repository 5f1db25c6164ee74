/** Jobs: who could continue a process that stops. */
import assert from "node:assert/strict";
import process from "node:process";
import test from "node:test";
import { isGroupOrphaned, type ProcessPlace } from "../../../src/cli/repl_jobs.ts";

function isOrphaned(places: Readonly<Record<number, ProcessPlace>>): boolean {
  return isGroupOrphaned(9, (pid) => places[pid]);
}

test("a shell with job control continues what it started", () => {
  assert.equal(isOrphaned({ 9: { parent: 5, group: 9, session: 5 }, 5: { parent: 1, group: 5, session: 5 } }), false);
  assert.equal(
    isOrphaned({ 9: { parent: 8, group: 8, session: 5 }, 8: { parent: 5, group: 8, session: 5 }, 5: { parent: 1, group: 5, session: 5 } }),
    false,
    "a script that the shell started",
  );
});

test("nobody continues the first of a session, or what its own script started", () => {
  assert.equal(isOrphaned({ 9: { parent: 1, group: 9, session: 9 }, 1: { parent: 0, group: 1, session: 1 } }), true);
  assert.equal(
    isOrphaned({ 9: { parent: 8, group: 8, session: 8 }, 8: { parent: 1, group: 8, session: 8 }, 1: { parent: 0, group: 1, session: 1 } }),
    true,
  );
  assert.equal(isOrphaned({ 9: { parent: 7, group: 9, session: 5 } }), true, "its shell has ended");
});

test("what is not known is no reason to refuse, and a circle ends", () => {
  assert.equal(isOrphaned({}), false);
  assert.equal(isOrphaned({ 9: { parent: 9, group: 9, session: 9 } }), false);
  assert.equal(typeof isGroupOrphaned(process.pid), "boolean");
});
