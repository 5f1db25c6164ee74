/** JavaScript in real VMs: what a session keeps, the end of a program, standard input, display data, and help for who types. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import type { ExecutionEvent, RunRequest, Session } from "../../src/mod.ts";
import { settled, sleep } from "../support/waiting.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

const open = () => vms.scheduler.session({ language: "javascript" });
const run = (code: string, more: Partial<RunRequest> = {}) => vms.scheduler.run({ language: "javascript", code, ...more });

/** The value of code that must succeed. */
async function valueOf(session: Session, code: string): Promise<string | undefined> {
  const { exitCode, value, stderr } = await session.exec(code);
  assert.equal(exitCode, 0, `${code}\n${stderr}`);
  return value;
}

test("declarations of every kind last and may be declared again; closures keep their own", async () => {
  await using session = await open();
  await session.exec(
    "const a = 1; let name = 'n', set = 2, value = 3; var b = 4; class C { d = 5 }; function sum() { return a + b + new C().d }",
  );
  assert.equal(await valueOf(session, "sum()"), "10");
  assert.equal(await valueOf(session, "const a = 100; [a, sum(), name, set, value++]"), '[ 100, 10, "n", 2, 3 ]');
  assert.equal(await valueOf(session, "value"), "4");
  assert.equal(await valueOf(session, "{ var fromBlock = 7; let hidden = 8 }\n[fromBlock, typeof hidden]"), '[ 7, "undefined" ]');
  assert.equal(await valueOf(session, "for (var i = 0; i < 3; i++);\ni"), "3");
  assert.equal(await valueOf(session, "const { x: { y = 6 } = {}, ...rest } = { z: 1 }; [y, rest.z, fromBlock + i]"), "[ 6, 1, 10 ]");
  assert.equal(await valueOf(session, "function* two() { yield 1; yield 2 }\n[...two()]"), "[ 1, 2 ]");
  assert.equal(
    await valueOf(
      session,
      "const seen = []; for await (const n of (async function* () { yield 1; await 0; yield 2 })()) seen.push(n); seen",
    ),
    "[ 1, 2 ]",
  );
  assert.equal(await valueOf(session, "outer: for (;;) { for (;;) break outer }\nseen.length"), "2");
  assert.equal(await valueOf(session, "\ufeff'use strict'; (function () { return arguments.length })(1, 2)"), "2");
  assert.equal(await valueOf(session, "#!/usr/bin/env bun\nmodule.exports.kept = 5; typeof require"), '"function"');
  assert.equal(await valueOf(session, "[exports.kept, module.exports === exports]"), "[ 5, true ]");
});

test("TypeScript and JSX run as they are, and what they declare lasts", async () => {
  await using session = await open();
  await session.exec(
    "enum Color { Red = 1, Green }\ninterface Point { x: number }\nconst twice = <T extends number>(n: T): number => n * 2;",
  );
  assert.equal(await valueOf(session, "const p: Point = { x: Color.Green }; twice<number>(p.x as number)"), "4");
  await session.exec(
    "abstract class Box<T> { constructor(private held: T) {} get() { return this.held } }\nclass Own extends Box<string> {}",
  );
  assert.equal(await valueOf(session, "new Own('held').get() satisfies string"), '"held"');
  assert.equal(await valueOf(session, "const list = <ul>{[1, 2].map((n) => <li key={n}>{n}</li>)}</ul>; list.props.children.length"), "2");
  assert.equal(await valueOf(session, "[list.type, Color[2]]"), '[ "ul", "Green" ]');
});

test("imports: built-in modules, files that the session wrote, and one that has changed", async () => {
  await using session = await open();
  const helper = "./lib/helper";
  await session.writeFile("lib/helper.ts", "export const answer: number = 41; export default 'default';\n");
  assert.equal(
    await valueOf(session, `import d, { answer } from '${helper}'; import * as all from '${helper}.ts'; [d, answer + 1, all.answer]`),
    '[ "default", 42, 41 ]',
  );
  assert.equal(
    await valueOf(session, `[answer, (await import('${helper}.ts')).default, require('${helper}').answer]`),
    '[ 41, "default", 41 ]',
  );
  await session.writeFile("lib/helper.ts", "export const answer: number = 43;\n");
  assert.equal(await valueOf(session, `import { answer as cached } from '${helper}'; cached`), "41", "a module is loaded once");
  assert.equal(
    await valueOf(session, `delete require.cache[require.resolve('${helper}.ts')]; (await import('${helper}.ts')).answer`),
    "43",
  );
  assert.equal(await valueOf(session, "import { readFileSync } from 'node:fs'; readFileSync('lib/helper.ts', 'utf8').length"), "34");
  assert.match((await session.exec("import './missing'")).stderr, /missing/);
});

test("timers and a server go on between executions", async () => {
  await using session = await open();
  await session.exec("let ticks = 0, greeting = 'one'; setInterval(() => ticks++, 5)");
  await session.exec("const server = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: () => new Response(greeting) })");
  assert.equal(await valueOf(session, "await (await fetch(server.url)).text()"), '"one"');
  await session.exec("greeting = 'two'");
  const before = Number(await valueOf(session, "ticks"));
  await sleep(300);
  assert.ok(Number(await valueOf(session, "ticks")) > before, "the timer ticked while nothing was executed");
  assert.equal(await valueOf(session, "await (await fetch(server.url)).text()"), '"two"');
});

test("what ends an execution: its exit code, and whether the state is kept", async () => {
  await using session = await open();
  for (
    const [code, exitCode, isKept] of [
      ["throw new Error('thrown')", 1, true],
      ["const broken = = 1", 1, true],
      ["process.exit(7)", 7, true],
      ["try { process.exit(8) } catch {} finally {}", 8, true],
      ["process.exitCode = 9", 9, true],
      ["Promise.reject(new Error('nobody'))", 1, true],
      ["await Bun.sleep(1); process.exit(6)", 6, false],
      ["process.kill(process.pid, 'SIGKILL')", 137, false],
    ] as const
  ) {
    await session.exec("const state = 'kept'");
    const result = await session.exec(code);
    assert.deepEqual([code, result.exitCode, result.timedOut], [code, exitCode, false]);
    assert.equal(await valueOf(session, "typeof state"), isKept ? '"string"' : '"undefined"', code);
  }
});

for (const [name, code] of [["a busy loop", "for (;;);"], ["an idle await", "await new Promise(() => {})"]] as const) {
  test(`an interrupt ends ${name} with 130 and keeps the state`, async () => {
    await using session = await open();
    await session.exec("const state = 'kept'");
    const { promise: printed, resolve } = Promise.withResolvers<void>();
    const running = session.exec(`console.log('on'); ${code}`, { onStdout: () => resolve() });
    await settled(printed, "the code runs");
    assert.equal(await session.interrupt(), true);
    assert.equal((await running).exitCode, 130);
    assert.equal(await valueOf(session, "state"), '"kept"');
  });
}

test("an error points at the user's line, also below blank lines and comments, in a clone's first execution", async () => {
  for (
    const [code, line, text] of [
      ["\n\nthrow new Error('blank')", 3, "throw new Error('blank')"],
      ["// comment\n\n/* more\n*/\nconst x: number = 1;\n  throw new Error('typed')", 6, "  throw new Error('typed')"],
    ] as const
  ) {
    const { exitCode, stderr } = await run(code);
    assert.equal(exitCode, 1);
    assert.ok(stderr.startsWith(`<input 1>:${line}\n${text}\n`), stderr);
    assert.match(stderr, new RegExp(`at /home/user/<input 1>:${line}:\\d+\n$`));
  }
});

test("the clocks count from the first execution of a clone", async () => {
  const code =
    "const told = Date.now(); console.log(JSON.stringify([performance.now(), performance.timeOrigin + performance.now() - told, process.uptime()]))";
  const [elapsedMs, skewMs, uptimeSeconds] = JSON.parse((await run(code)).stdout) as [number, number, number];
  assert.ok(elapsedMs >= 0 && elapsedMs < 3000, `performance.now() is ${elapsedMs}`);
  assert.ok(Math.abs(skewMs) < 1000, `timeOrigin is ${skewMs} ms off`);
  assert.ok(uptimeSeconds >= 0 && uptimeSeconds < 3, `process.uptime() is ${uptimeSeconds}`);
});

test("run: the code ends as a program does", async () => {
  for (
    const [code, exitCode, stdout, stderr] of [
      ["setTimeout(() => console.log('late'), 50); console.log('now')", 0, "now\nlate\n", /^$/],
      [
        "process.on('beforeExit', () => console.log('before')); process.on('exit', (code) => console.log('exit', code))",
        0,
        "before\nexit 0\n",
        /^$/,
      ],
      ["process.exitCode = 3; setTimeout(() => {}, 10)", 3, "", /^$/],
      ["setTimeout(() => process.exit(7), 10); setInterval(() => {}, 10)", 7, "", /^$/],
      ["setTimeout(() => Promise.reject(new Error('lost')), 10)", 1, "", /Error: lost/],
      [
        "const s = Bun.serve({ port: 0, fetch: () => new Response('served') }); fetch(s.url).then((r) => r.text()).then((t) => { console.log(t); s.stop(true) })",
        0,
        "served\n",
        /^$/,
      ],
    ] as const
  ) {
    const result = await run(code);
    assert.deepEqual([code, result.exitCode, result.stdout], [code, exitCode, stdout], result.stderr);
    assert.match(result.stderr, stderr);
  }
  const endless = await run("setInterval(() => {}, 1000); console.log('open')", { timeoutSeconds: 2 });
  assert.deepEqual([endless.timedOut, endless.exitCode, endless.stdout], [true, -1, "open\n"]);
});

test("standard input reaches every reader, and is at its end in the next execution", async () => {
  await using session = await open();
  const stdin = "first\nsecond\n";
  for (
    const [code, value] of [
      ["require('fs').readFileSync(0, 'utf8')", JSON.stringify(stdin)],
      ["require('fs').readFileSync('/dev/stdin', 'utf8').split('\\n').length", "3"],
      ["await Bun.sleep(300); require('fs').readFileSync('/dev/stdin', 'utf8').length", String(stdin.length)],
      ["await Bun.stdin.text()", JSON.stringify(stdin)],
      ["let text = ''; for await (const chunk of process.stdin) text += chunk; text", JSON.stringify(stdin)],
      ["const lines = []; for await (const line of console) lines.push(line); lines", '[ "first", "second" ]'],
      ["[prompt('?'), prompt(), prompt()]", '[ "first", "second", null ]'],
      ["require('child_process').execSync('cat', { stdio: ['inherit', 'pipe', 'inherit'] }).toString()", JSON.stringify(stdin)],
    ] as const
  ) {
    const result = await session.exec(code, { stdin });
    assert.deepEqual([code, result.exitCode, result.value], [code, 0, value], result.stderr);
  }
  assert.equal(
    await valueOf(session, "[await Bun.stdin.text(), require('fs').readFileSync('/dev/stdin', 'utf8'), prompt()]"),
    '[ "", "", null ]',
  );
  const big = await session.exec("require('fs').readFileSync(0).length", { stdin: "x".repeat(3_000_000) });
  assert.equal(big.value, "3000000");
});

test("values and display data are results, and events of a stream in their place", async () => {
  await using session = await open();
  const events: ExecutionEvent[] = [];
  const code =
    "console.log('before'); display({ 'image/png': new Uint8Array([137, 80]) }, { raw: true }); ({ [Symbol.for('Jupyter.display')]: () => ({ 'text/html': '<b>', 'application/json': [1] }) })";
  for await (const event of session.stream(code)) events.push(event);
  const result = events.at(-1);
  assert.ok(result?.type === "result");
  assert.deepEqual(result.result.results, [{ "image/png": "iVA=" }, { "text/html": "<b>", "application/json": "[1]" }]);
  assert.equal(result.result.exitCode, 0);
  const big = await session.exec("display({ 'text/plain': 'x'.repeat(9 << 20) }, { raw: true }); 'went on'");
  assert.deepEqual([big.results, big.value], [[], '"went on"']);
  assert.match(big.stderr, /cannot show an object: it has 9437\d+ bytes, the limit is 8388608 bytes/);
  assert.equal(await valueOf(session, "display"), "[Function: display]");
  assert.equal((await valueOf(session, "'é'.repeat(40_000)"))?.endsWith("é…"), true);
  // Shown whole it would take the memory that there is.
  assert.equal((await valueOf(session, "'x'.repeat(100_000_000)"))?.endsWith("x…"), true);
});

test("complete and isComplete answer between executions, and change nothing", async () => {
  await using session = await open();
  await session.exec("const treasure = { gold: 1, get trap() { console.log('sprung'); return {} } }; await Bun.write('chest.ts', '')");
  assert.deepEqual(await session.complete("treas"), { start: 0, candidates: ["treasure"] });
  assert.deepEqual(await session.complete("treasure.go + 1", 11), { start: 9, candidates: ["gold"] });
  assert.deepEqual(await session.complete("treasure.trap."), { start: 14, candidates: [] });
  assert.deepEqual(await session.complete("import './che"), { start: 10, candidates: ["chest.ts"] });
  assert.deepEqual(await session.isComplete("if (treasure) {"), { state: "incomplete", indent: "  " });
  assert.deepEqual(await session.isComplete("treasure.trap"), { state: "complete", indent: "" });
  assert.deepEqual(await session.isComplete("treasure = = 1"), { state: "invalid", indent: "" });
  const { stdout, stderr } = await session.exec("throw new Error('second')");
  assert.equal(stdout, "");
  assert.match(stderr, /^<input 2>:1\n/);
});
