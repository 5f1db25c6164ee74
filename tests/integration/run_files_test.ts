/** Files around a run, in real VMs: `files`, `prepare` and `collect`, and what becomes of the result. */
import assert from "node:assert/strict";
import fs from "node:fs";
import test, { after, before } from "node:test";
import {
  type ExecutionResult,
  type FileAccess,
  type Language,
  OutputLimitError,
  type RunRequest,
  SandboxFileError,
  SessionClosedError,
} from "../../src/mod.ts";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());
const run = (request: Partial<RunRequest>) => vms.scheduler.run({ language: "raw", code: ":", ...request });

const READ: Readonly<Record<Language, string>> = {
  python: "print(open('in/a.txt').read())",
  javascript: "console.log(require('fs').readFileSync('in/a.txt', 'utf8'))",
  raw: "cat in/a.txt; echo",
};
for (const language of ["python", "javascript", "raw"] as const) {
  test(`${language}: files are there when the code starts`, async () => {
    const { stdout, exitCode } = await run({ language, files: { "in/a.txt": "zwölf 🙂" }, code: READ[language] });
    assert.deepEqual([stdout, exitCode], ["zwölf 🙂\n", 0]);
  });
}

test("files of every kind of source, and more than may be sent at once", async (t) => {
  const local = `${temporaryDirectory(t)}/local`;
  fs.writeFileSync(local, "local");
  const files: NonNullable<RunRequest["files"]> = {
    text: "text",
    bytes: new Uint8Array([98]),
    blob: new Blob(["blob"]),
    stream: ReadableStream.from([new TextEncoder().encode("stream")]) as ReadableStream<Uint8Array>,
    local: { local },
    ...Object.fromEntries(Array.from({ length: 100 }, (_, number) => [`many/${number}`, { local }])),
  };
  const { stdout } = await run({ files, code: "cat text bytes blob stream local; echo; cat many/* | wc -c" });
  assert.equal(stdout, "textbblobstreamlocal\n500\n");
});

test("a file that cannot be written ends the run before the code, with its error", async () => {
  let hasRun = false;
  const onStdout = () => void (hasRun = true);
  await assert.rejects(run({ files: { a: "x", "a/b": "y" }, code: "echo ran", onStdout }), (error) => {
    assert.ok(error instanceof SandboxFileError, String(error));
    return error.side === "guest";
  });
  await assert.rejects(run({ files: { a: { local: "/none/such" } }, code: "echo ran", onStdout }), SandboxFileError);
  assert.equal(hasRun, false);
});

test("prepare comes before the code and collect after it; the times of the result are the execution's", async () => {
  const order: string[] = [];
  const prepare = async (files: FileAccess) => {
    order.push("prepare");
    await files.makeDir("d");
    await files.writeFile("d/in", "in", { executable: true });
    assert.deepEqual([await files.exists("given"), (await files.stat("d/in")).mode], [true, 0o755]);
  };
  let collected = "";
  const collect = async (files: FileAccess) => {
    order.push("collect");
    collected = await files.readFile("out", { encoding: "utf-8" });
    assert.deepEqual((await files.listFiles()).map(({ name }) => name), ["d", "given", "out"]);
    await files.rename("out", "out-2");
    await files.remove("d", { recursive: true });
    await new Promise((resolve) => setTimeout(resolve, 500));
  };
  const onStdout = (text: string) => void order.push(text.trim());
  const result = await run({ files: { given: "x" }, prepare, collect, onStdout, code: "cat d/in > out; echo code; exit 3" });
  assert.deepEqual([order, collected, result.exitCode], [["prepare", "code", "collect"], "in", 3]);
  const { setupMs, bootMs, executeMs, totalMs } = result.timing;
  assert.ok(totalMs >= 500 && setupMs + bootMs + executeMs <= totalMs - 450, JSON.stringify(result.timing));
});

test("what prepare or collect throws is what the call rejects with", async () => {
  const reason = new Error("mine");
  const fail = () => {
    throw reason;
  };
  let hasRun = false;
  await assert.rejects(run({ prepare: fail, code: "echo ran", onStdout: () => void (hasRun = true) }), (error) => error === reason);
  assert.equal(hasRun, false);
  await assert.rejects(run({ collect: fail }), (error) => error === reason);
  await assert.rejects(run({ collect: async (files) => void await files.readFile("none") }), SandboxFileError);
});

test("collect is called after a time-out and an exceeded output limit too, and what they are stays", async () => {
  let collected = "";
  const collect = async (files: FileAccess) => void (collected += await files.readFile("f", { encoding: "utf-8" }));
  const late: ExecutionResult = await run({ collect, timeoutSeconds: 1, code: "printf 1 > f; while :; do :; done" });
  assert.equal(late.timedOut, true);
  await assert.rejects(run({ collect, code: "printf 2 > f; while :; do printf %065536d 1; done" }), OutputLimitError);
  assert.equal(collected, "12");
});

test("an abort ends prepare and collect, and the files are nobody's afterwards", async () => {
  for (const when of ["prepare", "collect"] as const) {
    const ending = new AbortController(), reason = new Error("enough");
    let kept: FileAccess | undefined, seen: unknown;
    const hook = async (files: FileAccess, signal: AbortSignal) => {
      kept = files;
      signal.addEventListener("abort", () => void (seen = signal.reason));
      ending.abort(reason);
      await new Promise(() => {});
    };
    await assert.rejects(run({ [when]: hook, signal: ending.signal }), (error) => error === reason, when);
    assert.equal(seen, reason);
    await assert.rejects(kept?.exists("f") as Promise<boolean>, (error) => error === reason);
  }
  let kept: FileAccess | undefined;
  await run({ collect: async (files) => void (kept = files) });
  await assert.rejects(kept?.exists("f") as Promise<boolean>, SessionClosedError);
});

noLeftovers();
