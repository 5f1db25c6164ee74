/** Scope: order, barriers, moving, failures, and two disposals at once. */
import assert from "node:assert/strict";
import test from "node:test";
import { CleanupError, PermanentError } from "../../../src/base/errors.ts";
import { primaryError, Scope } from "../../../src/base/scope.ts";
import { settled } from "../../support/waiting.ts";

/** A resource that writes its name down when it is released. */
function resource(name: string, log: string[], failure?: unknown): AsyncDisposable {
  return {
    [Symbol.asyncDispose]: async () => {
      await Promise.resolve();
      log.push(name);
      if (failure !== undefined) throw failure;
    },
  };
}

test("Scope releases in reverse order, whatever kind each is", async () => {
  const log: string[] = [];
  {
    await using scope = new Scope();
    scope.use("a", resource("a", log));
    scope.defer("b", () => void log.push("b"));
    scope.barrier("c", resource("c", log));
    const owned = resource("d", log);
    assert.equal(scope.use("d", owned), owned);
  }
  assert.deepEqual(log, ["d", "c", "b", "a"]);
});

test("Scope waits for each release before the next begins", async () => {
  const log: string[] = [];
  const scope = new Scope();
  scope.defer("first", () => void log.push("first"));
  scope.defer("second", async () => {
    await new Promise((resolve) => setTimeout(resolve, 5));
    log.push("second");
  });
  await scope[Symbol.asyncDispose]();
  assert.deepEqual(log, ["second", "first"]);
});

test("Scope goes on after a failed release and names every one", async () => {
  const log: string[] = [], causes = [new Error("late"), new Error("early")];
  const scope = new Scope();
  scope.use("a", resource("a", log));
  scope.use("b", resource("b", log, causes[1]));
  scope.defer("c", () => {
    throw causes[0];
  });
  await assert.rejects(scope[Symbol.asyncDispose](), (error) => {
    assert.ok(error instanceof CleanupError && error instanceof PermanentError);
    assert.deepEqual([error.leftovers, error.cause, error.code], [["c", "b"], causes[0], "SBX_CLEANUP"]);
    return true;
  });
  assert.deepEqual(log, ["b", "a"]);
});

test("Scope touches nothing below a barrier that failed, and says what is left", async () => {
  const log: string[] = [];
  const scope = new Scope();
  scope.use("directory", resource("directory", log));
  scope.use("lock", resource("lock", log));
  scope.barrier("process", resource("process", log, new Error("lives")));
  scope.use("pipe", resource("pipe", log));
  await assert.rejects(scope[Symbol.asyncDispose](), { name: "CleanupError", leftovers: ["process", "lock", "directory"] });
  await scope[Symbol.asyncDispose]();
  assert.deepEqual(log, ["pipe", "process"]);
});

test("Scope that was moved releases nothing; its successor everything", async () => {
  const log: string[] = [];
  const take = async () => {
    await using scope = new Scope();
    scope.use("a", resource("a", log));
    scope.use("b", resource("b", log));
    return await Promise.resolve(scope.move());
  };
  const moved = await take();
  assert.deepEqual(log, []);
  moved.use("c", resource("c", log));
  await moved[Symbol.asyncDispose]();
  assert.deepEqual(log, ["c", "b", "a"]);
});

test("Scope releases once, however often it is disposed", async () => {
  const log: string[] = [];
  const scope = new Scope();
  scope.use("a", resource("a", log));
  await scope[Symbol.asyncDispose]();
  await scope[Symbol.asyncDispose]();
  await new Scope()[Symbol.asyncDispose]();
  assert.deepEqual(log, ["a"]);
});

test("Scope disposed twice at once keeps its order: what is below waits for what is above", async () => {
  const log: string[] = [];
  const gate = Promise.withResolvers<void>();
  const scope = new Scope();
  scope.use("directory", resource("directory", log));
  scope.defer("process", async () => {
    await gate.promise;
    log.push("process");
  });
  const both = [scope[Symbol.asyncDispose](), scope[Symbol.asyncDispose]()];
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(log, []);
  gate.resolve();
  await settled(Promise.all(both), "both disposals");
  assert.deepEqual(log, ["process", "directory"]);
});

test("Scope disposed twice at once stops at a failed barrier in both", async () => {
  const log: string[] = [];
  const scope = new Scope();
  scope.use("directory", resource("directory", log));
  scope.barrier("process", resource("process", log, new Error("lives")));
  const both = await Promise.allSettled([scope[Symbol.asyncDispose](), scope[Symbol.asyncDispose]()]);
  assert.equal(both.filter(({ status }) => status === "rejected").length >= 1, true);
  assert.deepEqual(log, ["process"]);
});

test("primaryError is the failure of the body, not of the release", async () => {
  const body = new Error("body"), release = new Error("release");
  const run = async () => {
    await using _outer = resource("outer", [], new Error("outermost"));
    await using _inner = resource("inner", [], release);
    throw body;
  };
  await assert.rejects(run(), (error) => {
    assert.ok(error !== body, "the runtime wraps it");
    assert.equal(primaryError(error), body);
    return true;
  });
  assert.equal(primaryError(body), body);
  assert.equal(primaryError("text"), "text");
});
