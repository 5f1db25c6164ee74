/** `sbx doctor`: the table, the JSON and the exit status, with checks of the test's own. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { AssetError } from "../../../src/base/errors.ts";
import type { Check, CheckResult } from "../../../src/cli/doctor_report.ts";
import { InterruptedError } from "../../../src/cli/failure.ts";
import { FakeOutput, sbx } from "./fake_context.ts";

const check = (name: string, isRequired: boolean, result: CheckResult | Error): Check => ({
  name,
  isRequired,
  run: () => result instanceof Error ? Promise.reject(result) : Promise.resolve(result),
});
const ok: CheckResult = { status: "ok", detail: "here" };
const missing: CheckResult = { status: "missing", detail: "not here", hint: "Get it." };

test("the table has a row for each check, and what mends what is missing", async () => {
  const { code, stdout, stderr } = await sbx(["doctor"], { checks: [check("one", true, ok), check("second", false, missing)] });
  assert.equal(
    stdout,
    "ok       required  one     here\n" +
      "missing  optional  second  not here\n" +
      "                           → Get it.\n",
  );
  assert.deepEqual([code, stderr], [0, ""]);
});

test("a required check that fails is exit status 1, an optional one is not", async () => {
  assert.equal((await sbx(["doctor"], { checks: [check("a", false, missing)] })).code, 0);
  const { code, stderr } = await sbx(["doctor"], { checks: [check("a", true, missing), check("b", true, ok)] });
  assert.equal(code, 1);
  assert.match(stderr, /Something required is missing/);
  assert.equal((await sbx(["doctor", "--json"], { checks: [check("a", true, missing)] })).code, 1);
});

test("--json has the same findings", async () => {
  const { stdout, stderr } = await sbx(["doctor", "--json"], { checks: [check("a", true, ok), check("b", false, missing)] });
  assert.deepEqual(JSON.parse(stdout), {
    ok: true,
    checks: [
      { name: "a", required: true, status: "ok", detail: "here", hint: null },
      { name: "b", required: false, status: "missing", detail: "not here", hint: "Get it." },
    ],
  });
  assert.equal(stderr, "");
});

test("a check that throws is missing, with the error's message and hint", async () => {
  const { stdout, code } = await sbx(["doctor", "--json"], {
    checks: [check("a", true, new AssetError("no\nimages", { hint: "Build them." }))],
  });
  assert.deepEqual(JSON.parse(stdout).checks[0], {
    name: "a",
    required: true,
    status: "missing",
    detail: "no\nimages",
    hint: "Build them.",
  });
  assert.equal(code, 1);
});

test("checks run side by side and are shown in their order", async () => {
  const order: string[] = [];
  const slow = (name: string, ms: number): Check => ({
    name,
    isRequired: true,
    run: async () => {
      await new Promise((resolve) => setTimeout(resolve, ms));
      order.push(name);
      return ok;
    },
  });
  const { stdout } = await sbx(["doctor", "--json"], { checks: [slow("a", 30), slow("b", 1)] });
  assert.deepEqual(order, ["b", "a"]);
  assert.deepEqual(JSON.parse(stdout).checks.map((row: { name: string }) => row.name), ["a", "b"]);
});

test("colour marks the status on a terminal only", async () => {
  const checks = [check("a", true, ok), check("b", true, missing), check("c", false, missing)];
  const { stdout } = await sbx(["doctor"], { checks, stdout: new FakeOutput({ isTty: true, hasColor: true }) });
  for (const color of [32, 31, 33]) assert.ok(stdout.includes(`\x1b[${color}m`), String(color));
  // deno-lint-ignore no-control-regex
  assert.ok(!/\x1b/.test((await sbx(["doctor"], { checks })).stdout));
});

test("an interrupt ends the checks", async () => {
  const ending = new AbortController();
  const waiting: Check = {
    name: "a",
    isRequired: true,
    run: (signal) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
  };
  setTimeout(() => ending.abort(new InterruptedError("SIGINT", 2)), 5);
  assert.equal((await sbx(["doctor"], { checks: [waiting], signal: ending.signal })).code, 130);
});
