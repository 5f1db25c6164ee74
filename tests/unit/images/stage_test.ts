/** Stages: made once per input, made anew when damaged, and never half. */
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import { AssetError } from "../../../src/base/errors.ts";
import type { BuildProgress } from "../../../src/images/progress.ts";
import { runStage, type Stage, type StageRun } from "../../../src/images/stage.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

function options(buildDir: string, more: Partial<StageRun> = {}): StageRun {
  return { buildDir, signal: new AbortController().signal, onProgress: () => {}, isForced: false, enclosure: [], ...more };
}

/** A stage that writes one file and counts how often. */
function counting(inputs: readonly string[], content = "result"): Stage & { readonly runs: () => number } {
  let runs = 0;
  return {
    name: "image test",
    inputs,
    runs: () => runs,
    build: async ({ out, work, exec }) => {
      runs += 1;
      assert.deepEqual(readdirSync(work), []);
      assert.equal((await exec(["sh", "-c", "echo said"])).trim(), "said");
      writeFileSync(path.join(out, "file"), content);
      return { versions: { thing: "1" } };
    },
  };
}

test("the same inputs are made once, other inputs anew", async (t) => {
  const buildDir = temporaryDirectory(t);
  const first = counting(["a"]), second = counting(["b"]);
  const made = await runStage(first, options(buildDir));
  const kept = await runStage(first, options(buildDir));
  assert.deepEqual([made.isCached, kept.isCached, first.runs()], [false, true, 1]);
  assert.deepEqual(kept.versions, { thing: "1" });
  assert.equal(readFileSync(path.join(kept.directory, "file"), "utf8"), "result");
  assert.equal((await runStage(second, options(buildDir))).isCached, false);
  assert.equal((await runStage(first, options(buildDir))).isCached, true, "one earlier result is kept");
  assert.equal((await runStage(first, options(buildDir, { isForced: true }))).isCached, false);
});

test("a kept file with a wrong byte, or gone, is made anew", async (t) => {
  const buildDir = temporaryDirectory(t);
  const stage = counting(["a"]);
  const { directory } = await runStage(stage, options(buildDir));
  writeFileSync(path.join(directory, "file"), "resulT");
  assert.equal((await runStage(stage, options(buildDir))).isCached, false);
  assert.equal(readFileSync(path.join(directory, "file"), "utf8"), "result");
  rmSync(path.join(directory, "file"));
  assert.equal((await runStage(stage, options(buildDir))).isCached, false);
  assert.equal(stage.runs(), 3);
});

test("a program that fails is an AssetError with the end of its output, and nothing is kept", async (t) => {
  const buildDir = temporaryDirectory(t);
  const stage: Stage = {
    name: "broken",
    inputs: [],
    build: async ({ out, exec }) => {
      writeFileSync(path.join(out, "half"), "");
      await exec(["sh", "-c", "seq 1000; echo the reason >&2; exit 3"]);
      return { versions: {} };
    },
  };
  await assert.rejects(runStage(stage, options(buildDir)), (error) => {
    assert.ok(error instanceof AssetError);
    assert.match(error.message, /Cannot build broken: "sh" exited with status 3/);
    assert.match(error.message, /the reason/);
    assert.match(error.hint ?? "", /broken\.log/);
    return true;
  });
  assert.match(readFileSync(path.join(buildDir, "logs", "broken.log"), "utf8"), /\n500\n/);
  for (const part of ["stages", "work"]) assert.deepEqual(readdirSync(path.join(buildDir, part)), []);
});

test("a program that is missing says what installs it", async (t) => {
  const stage: Stage = {
    name: "needy",
    inputs: [],
    build: async ({ exec }) => ({ versions: { v: await exec(["no-such-program-anywhere"]) } }),
  };
  await assert.rejects(runStage(stage, options(temporaryDirectory(t))), (error) => {
    assert.ok(error instanceof AssetError);
    return /no-such-program-anywhere/.test(error.message) && /install\.sh/.test(error.hint ?? "");
  });
});

test("an abort ends the running program and keeps nothing", async (t) => {
  const buildDir = temporaryDirectory(t);
  const stop = new AbortController(), reason = new Error("enough");
  const stage: Stage = {
    name: "endless",
    inputs: [],
    build: async ({ exec }) => {
      await exec(["sh", "-c", "echo started; exec sleep 600"], { onLine: () => stop.abort(reason) });
      return { versions: {} };
    },
  };
  await assert.rejects(runStage(stage, options(buildDir, { signal: stop.signal })), (error) => error === reason);
  for (const part of ["stages", "work"]) assert.deepEqual(readdirSync(path.join(buildDir, part)), []);
  assert.ok(existsSync(path.join(buildDir, "logs", "endless.log")));
});

test("progress names the stage, what it does, and its end once", async (t) => {
  const seen: BuildProgress[] = [];
  const buildDir = temporaryDirectory(t);
  const stage: Stage = {
    name: "told",
    inputs: [],
    build: ({ step }) => {
      step("half", 50);
      return Promise.resolve({ versions: {} });
    },
  };
  for (let round = 0; round < 2; round++) await runStage(stage, options(buildDir, { onProgress: (progress) => seen.push(progress) }));
  assert.deepEqual(seen[0], { task: "told", message: "half", percent: 50 });
  assert.equal(seen.filter((progress) => progress.isDone).length, 2);
  assert.deepEqual(seen.at(-1), { task: "told", message: "unchanged", isDone: true });
});

noLeftovers();
