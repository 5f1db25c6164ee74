/** Sessions in real VMs: what the request gives them, what they show, and the rows of the contract that hold in every language. */
import assert from "node:assert/strict";
import { appendFileSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { after, before } from "node:test";
import { type Language, SandboxFileError, SessionClosedError } from "../../src/mod.ts";
import { temporaryDirectory } from "../support/leftovers.ts";
import { Reading } from "../support/processes.ts";
import { settled } from "../support/waiting.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

const LANGUAGES: readonly Language[] = ["python", "javascript", "raw"];
type Each = Readonly<Record<Language, string>>;

test("a session starts as a clone, with its files, its environment and its callbacks", async () => {
  const seen = { stdout: "", stderr: "", boot: "" };
  await using session = await vms.scheduler.session({
    language: "python",
    files: { "in/data.txt": "from the host", "in/bytes": new Uint8Array([0, 255]) },
    env: { SHARED: "yes" },
    onStdout: (text) => void (seen.stdout += text),
    onStderr: (text) => void (seen.stderr += text),
    onBootLog: (text) => void (seen.boot += text),
  });
  const result = await session.exec(
    "import os, sys\nprint(open('in/data.txt').read(), list(open('in/bytes', 'rb').read()), os.environ['SHARED'])\nprint('e', file=sys.stderr)",
  );
  assert.deepEqual([result.start, result.stdout, result.stderr], ["template", "from the host [0, 255] yes\n", "e\n"]);
  assert.deepEqual([seen.stdout, seen.stderr], [result.stdout, result.stderr]);
  assert.ok(seen.boot.length > 0, "the template's boot log");
  let own = "";
  await session.exec("print('own')", { onStdout: (text) => void (own += text) });
  assert.deepEqual([own, seen.stdout], ["own\n", result.stdout], "a callback of the call's own takes the place of the session's");
  await session.exec("print('throws')", { onStdout: () => assert.fail("mine") });
  assert.equal((await session.exec("print('on')")).stdout, "on\n", "a callback that throws hurts nobody");
});

test("output of a process is there when it has written it", async () => {
  await using session = await vms.scheduler.session({ language: "raw" });
  const code = "for n in 0 1 2; do printf $n; until [ -e seen$n ]; do sleep 0.01; done; done";
  for (const pty of [undefined, { columns: 80, rows: 24 }]) {
    const started = await session.spawn("sh", ["-c", code], pty === undefined ? {} : { pty });
    const reading = new Reading(started.stdout);
    for (const wanted of ["0", "01", "012"]) {
      await reading.until(wanted);
      await session.writeFile(`seen${wanted.at(-1)}`, "");
    }
    assert.deepEqual(await settled(started.wait(), "its end"), { exitCode: 0 });
    for (const n of "012") await session.remove(`seen${n}`);
  }
});

test("every call of a session that was closed is refused", async () => {
  const session = await vms.scheduler.session({ language: "raw" });
  await session.close();
  const calls: ReadonlyArray<() => Promise<unknown>> = [
    () => session.exec("true"),
    () => session.stat("x"),
    () => session.exists("x"),
    () => session.makeDir("x"),
    () => session.remove("x"),
    () => session.rename("x", "y"),
    () => session.attach(1),
    () => session.processes(),
    () => session.isComplete("x"),
    () => session.complete("x"),
  ];
  for (const call of calls) await assert.rejects(call(), SessionClosedError, String(call));
});

for (const language of LANGUAGES) {
  test(`${language}: running out of memory ends the code; the session and its files live, and what became of its variables is told`, async () => {
    const fill: Each = {
      python: "x = []\nwhile True: x.append(bytearray(1 << 20))",
      javascript: "const x = []; for (;;) x.push(new Uint8Array(1 << 20).fill(1))",
      raw: "x=x; while :; do x=$x$x; done",
    };
    await using session = await vms.scheduler.session({ language, memoryMb: 128, timeoutSeconds: 120 });
    await session.writeFile("kept", "kept");
    const { exitCode, timedOut, stateReset } = await session.exec(fill[language]);
    // Killed from outside it has 137 and its state is new; an interpreter that notices by itself fails as with any error.
    assert.deepEqual([timedOut, exitCode > 0, stateReset === true], [false, true, exitCode === 137], `${exitCode}`);
    const show: Each = {
      python: "print('x' in globals(), open('kept').read())",
      javascript: "console.log(typeof x !== 'undefined', require('fs').readFileSync('kept', 'utf8'))",
      raw: 'echo "${x:+true}" $(cat kept)',
    };
    const { stdout } = await session.exec(show[language]);
    assert.deepEqual([/true/i.test(stdout), stdout.includes("kept")], [exitCode !== 137, true], stdout);
  });

  test(`${language}: output is there when the guest has written it, not when the code or its line is over`, async () => {
    // Each goes on only when the host has seen what it wrote: an order that no buffer in between would let come about.
    const code: Each = {
      python: "import os, sys, time\nfor n in range(5):\n    sys.stdout.write(f'{n};'); sys.stdout.flush()\n" +
        "    while not os.path.exists(f'seen{n}'): time.sleep(0.005)",
      javascript: "for (let n = 0; n < 5; n++) {\n  process.stdout.write(`${n};`)\n" +
        "  while (!require('fs').existsSync(`seen${n}`)) await Bun.sleep(5)\n}",
      raw: "for n in 0 1 2 3 4; do\n  printf '%s;' $n\n  until [ -e seen$n ]; do sleep 0.01; done\ndone",
    };
    await using session = await vms.scheduler.session({ language, timeoutSeconds: 120 });
    const answers: Promise<void>[] = [];
    const answer = (text: string) => {
      for (const [n] of text.matchAll(/\d/g)) answers.push(session.writeFile(`seen${n}`, ""));
    };
    const { stdout, exitCode } = await session.exec(code[language], { onStdout: answer });
    assert.deepEqual([stdout, exitCode, answers.length], ["0;1;2;3;4;", 0, 5]);
    await Promise.all(answers);
    for (let n = 0; n < 5; n++) await session.remove(`seen${n}`);
    let streamed = "";
    for await (const event of session.stream(code[language])) {
      if (event.type !== "stdout") continue;
      streamed += event.text;
      await session.writeFile(`seen${event.text.at(-2)}`, "");
    }
    assert.equal(streamed, "0;1;2;3;4;");
  });

  test(`${language}: a leading byte-order mark is dropped`, async () => {
    await using session = await vms.scheduler.session({ language });
    const code: Each = { python: "print('first')", javascript: "console.log('first')", raw: "echo first" };
    const { stdout, stderr, exitCode } = await session.exec(`\ufeff${code[language]}`);
    assert.deepEqual([stdout, stderr, exitCode], ["first\n", "", 0]);
  });
}

test("a forked child that comes back from the code exits and is no second session", async () => {
  await using session = await vms.scheduler.session({ language: "python" });
  await session.exec("import os\nn = 0\npid = os.fork()");
  for (let count = 1; count <= 3; count++) assert.equal((await session.exec("n += 1\nprint(n)")).stdout, `${count}\n`);
  const { stdout } = await session.exec("print(os.waitpid(pid, 0)[1])");
  assert.equal(stdout, "0\n");
});

test("more display data than a result keeps is told, and all of it comes as events", async () => {
  await using session = await vms.scheduler.session({ language: "python", timeoutSeconds: 120 });
  const show = (count: number) => `for n in range(${count}): display({'text/plain': str(n)}, raw=True)`;
  let shown = 0;
  for await (const event of session.stream(show(10_001))) {
    if (event.type === "display") assert.equal(event.data["text/plain"], `${shown++}`);
    if (event.type !== "result") continue;
    assert.deepEqual([event.result.results.length, event.result.results.at(-1)?.["text/plain"]], [10_000, "9999"]);
    assert.match(event.result.stderr, /^Cannot keep all display data: one execution has at most 10000 objects, got 10001: .*\n$/);
  }
  assert.equal(shown, 10_001);
  assert.equal((await session.exec(show(2))).stderr, "");
});

test("display data of every kind arrives as it was made", async () => {
  await using session = await vms.scheduler.session({ language: "python" });
  const { results } = await session.exec(`
class Svg:
    def _repr_svg_(self): return "<svg/>"
class Json:
    def _repr_json_(self): return {"a": [1, None]}
class Bundle:
    def _repr_mimebundle_(self, include=None, exclude=None): return {"text/plain": "b", "text/markdown": "**b**"}
class Png:
    def _repr_png_(self): return bytes([137, 80, 78, 71])
display(Svg()); display(Json()); display(Bundle())
Png()`);
  assert.deepEqual(results.map((data) => Object.keys(data).filter((type) => type !== "text/plain")), [
    ["image/svg+xml"],
    ["application/json"],
    ["text/markdown"],
    ["image/png"],
  ]);
  const [svg, json, , png] = results;
  assert.equal(svg?.["image/svg+xml"], "<svg/>");
  assert.deepEqual(JSON.parse(json?.["application/json"] ?? ""), { a: [1, null] });
  assert.equal(png?.["image/png"]?.trim(), "iVBORw==");
});

test("a local file that grows or shrinks while it is sent is refused as changed, and nothing is left in the guest", async (t) => {
  await using session = await vms.scheduler.session({ language: "raw" });
  const local = path.join(temporaryDirectory(t), "local");
  for (const change of [() => appendFileSync(local, "more"), () => truncateSync(local, 1_000_000)]) {
    writeFileSync(local, new Uint8Array(8_000_000));
    let isChanged = false;
    const onProgress = () => {
      if (!isChanged) change();
      isChanged = true;
    };
    const changed = (error: unknown) => error instanceof SandboxFileError && error.side === "host" && error.reason === "changed";
    await assert.rejects(session.writeFile("f", { local }, { onProgress }), changed);
    assert.deepEqual(await session.listFiles(), []);
    assert.equal((await session.exec("ls -A | wc -l")).stdout, "0\n");
  }
});

test("a sparse local file arrives with its holes as zeros", async (t) => {
  await using session = await vms.scheduler.session({ language: "raw" });
  const local = path.join(temporaryDirectory(t), "sparse");
  writeFileSync(local, "begin");
  truncateSync(local, 20_000_000);
  appendFileSync(local, "end");
  await session.writeFile("sparse", { local });
  const { stdout } = await session.exec("stat -c %s sparse; sha256sum < sparse | cut -c 1-64");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", readFileSync(local)));
  assert.equal(stdout, `20000003\n${Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("")}\n`);
});
