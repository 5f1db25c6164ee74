/** JavaScript REPL: final executions, standard input, display data, and questions about code that somebody types. */
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { noLeftovers } from "../../support/leftovers.ts";
import { sleep } from "../../support/waiting.ts";
import { findBun, Repl } from "./driver.ts";

const BUN = findBun();
const FINAL = 1, STDIN = 2, COMPLETE = 4, IS_COMPLETE = 8;

function testBun(name: string, body: (repl: Repl) => Promise<void>): void {
  test(`JavaScript: ${name}`, { skip: BUN.skip }, async (t: TestContext) => await body(await Repl.start(t, BUN)));
}

for (
  const [name, code, exitCode, stdout, stderr] of [
    ["waits for timers", "setTimeout(() => console.log('late'), 20); console.log('now')", 0, "now\nlate\n", /^$/],
    [
      "waits for a server until it is closed",
      "const s = Bun.serve({ port: 0, fetch: () => new Response('hi') }); setTimeout(async () => { console.log(await (await fetch(s.url)).text()); s.stop(true) }, 20)",
      0,
      "hi\n",
      /^$/,
    ],
    ["waits for a promise nobody holds", "(async () => { await Bun.sleep(20); console.log('done') })(); 0", 0, "done\n", /^$/],
    [
      "runs beforeExit and exit listeners, also those added late",
      "process.once('beforeExit', () => setTimeout(() => process.on('exit', (c) => console.log('exit', c)), 5)); process.on('exit', () => console.log('first'))",
      0,
      "first\nexit 0\n",
      /^$/,
    ],
    ["honours process.exitCode, set as late as in an exit listener", "process.on('exit', () => { process.exitCode = 9 })", 9, "", /^$/],
    [
      "calls each exit listener once, in order, and ends where one calls process.exit",
      "setTimeout(() => {}, 1); for (const name of ['a', 'b', 'c', 'd']) process[name === 'a' ? 'prependListener' : 'on']('exit', () => { console.log(name); if (name === 'c') process.exit(5) })",
      5,
      "a\nb\nc\n",
      /^$/,
    ],
    [
      "that only computes is answered at once",
      "class A { f() { let s = 0; for (let i = 0; i < 9; i++) s += i; return s } }\nconsole.log(new A().f())",
      0,
      "36\n",
      /^$/,
    ],
    ["does not wait for a promise that it shows", "new Promise(() => {})", 0, "", /^$/],
    ["ends with process.exit in a timer", "setTimeout(() => process.exit(7), 5); setInterval(() => {}, 5)", 7, "", /^$/],
    ["ends with process.exit at once", "process.on('exit', (c) => console.log(c)); process.exit(3); console.log('never')", 3, "3\n", /^$/],
    ["ends with 1 after a rejection that comes last", "setTimeout(() => Promise.reject(new Error('lost')), 5)", 1, "", /Error: lost/],
    [
      "ends with 1 after a rejection that comes later",
      "setTimeout(() => Promise.reject(new Error('lost')), 5); setTimeout(() => console.log('on'), 30)",
      1,
      "on\n",
      /Error: lost/,
    ],
    [
      "ends with 1 at an error in a timer",
      "setTimeout(() => { throw new Error('late') }, 5); setInterval(() => {}, 5)",
      1,
      "",
      /Error: late/,
    ],
    [
      "ends with 1 at an error of its own, without waiting",
      "setTimeout(() => console.log('never'), 50); throw new Error('own')",
      1,
      "",
      /Error: own/,
    ],
    ["says that an await can never end", "await new Promise(() => {})", 13, "", /^Error: the code awaits a promise/],
    ["takes an error in an exit listener for one", "process.on('exit', () => { throw new Error('in exit') })", 1, "", /Error: in exit/],
  ] as const
) {
  testBun(`a final execution ${name}`, async (repl) => {
    const got = await repl.exec(code, { flags: FINAL });
    assert.deepEqual([got.exitCode, got.stdout], [exitCode, stdout], got.stderr);
    assert.match(got.stderr, stderr);
  });
}

testBun("a final execution has a value, and SIGINT ends its busy loop", async (repl) => {
  await repl.exec("(() => 1)()");
  const running = repl.exec("require('fs').writeFileSync('started', ''); for (;;);", { flags: FINAL });
  setTimeout(() => repl.interrupt(), 300);
  await assert.rejects(running);
  assert.deepEqual(await repl.ended, { code: null, signal: "SIGINT" });
});

testBun("a final execution's value is that of its last expression, and nothing runs after it", async (repl) => {
  assert.equal((await repl.exec("setTimeout(() => {}, 5); 6 * 7", { flags: FINAL })).value, "42");
  await assert.rejects(repl.exec("1"));
  assert.deepEqual(await repl.ended, { code: 70, signal: null });
});

const TEXT = "first\nsecond\r\nthird";
const LINES = '[ "first", "second", "third" ]';

testBun("standard input reaches every reader, again in each execution, and is at its end afterwards", async (repl) => {
  const readers: readonly [string, string][] = [
    ["require('fs').readFileSync(0, 'utf8')", JSON.stringify(TEXT)],
    ["await Bun.stdin.text()", JSON.stringify(TEXT)],
    ["let a = ''; for await (const chunk of Bun.stdin.stream()) a += Buffer.from(chunk); a", JSON.stringify(TEXT)],
    ["let b = ''; process.stdin.setEncoding('utf8'); for await (const chunk of process.stdin) b += chunk; b", JSON.stringify(TEXT)],
    [
      "let c = ''; process.stdin.on('data', (chunk) => c += chunk); await new Promise((end) => process.stdin.on('end', end)); c",
      JSON.stringify(TEXT),
    ],
    [
      "import { createInterface } from 'node:readline'; const d = []; for await (const line of createInterface({ input: process.stdin })) d.push(line); d",
      LINES,
    ],
    ["const e = []; for await (const line of console) e.push(line); e", LINES],
    [
      "const f = []; for await (const line of console) { f.push(line); break } for await (const line of console) f.push('+' + line); f",
      '[ "first", "+second", "+third" ]',
    ],
    ["[prompt(), prompt(), prompt(), prompt()]", '[ "first", "second", "third", null ]'],
    ["require('child_process').execSync('cat', { stdio: ['inherit', 'pipe', 'inherit'] }).toString()", JSON.stringify(TEXT)],
    ["await new Response(Bun.spawn(['cat'], { stdin: 'inherit' }).stdout).text()", JSON.stringify(TEXT)],
  ];
  for (const round of [1, 2]) {
    for (const [code, wanted] of readers) {
      const got = await repl.exec(code, { flags: STDIN, stdin: TEXT });
      assert.deepEqual([got.exitCode, got.value], [0, wanted], `round ${round}: ${code}\n${got.stderr}`);
    }
  }
  const after =
    "const rest = [await Bun.stdin.text(), require('fs').readFileSync(0, 'utf8'), prompt()]; for await (const line of console) rest.push(line); for await (const chunk of process.stdin) rest.push(chunk); rest";
  assert.equal(await repl.value(after), '[ "", "", null ]');
  assert.equal((await repl.exec("5", { flags: STDIN, stdin: "unread" })).value, "5");
});

testBun("a final execution reads its standard input to the end", async (repl) => {
  const code = "let all = ''; process.stdin.on('data', (chunk) => all += chunk).on('end', () => console.log(all.length)); 0";
  assert.equal((await repl.exec(code, { flags: FINAL | STDIN, stdin: TEXT })).stdout, `${TEXT.length}\n`);
});

testBun("display sends what an object offers, raw MIME types, or text", async (repl) => {
  const got = await repl.exec(
    "const own = { async [Symbol.for('Jupyter.display')]() { return { 'text/html': '<b>', 'application/json': { a: [1] }, 'text/plain': 'own', 'x/none': undefined } } };" +
      "await display(own); display({ 'image/png': new Uint8Array([1, 2, 3]) }, { raw: true }); display([1, 'two'])",
  );
  assert.deepEqual([got.exitCode, got.value, got.stderr], [0, null, ""]);
  assert.deepEqual(got.displays, [
    { "text/html": "<b>", "application/json": { a: [1] }, "text/plain": "own" },
    { "image/png": "AQID" },
    { "text/plain": '[ 1, "two" ]' },
  ]);
  const trailing = await repl.exec("own");
  assert.deepEqual(trailing.displays, [got.displays[0]]);
  assert.match(trailing.value ?? "", /Jupyter.display/);
  const failing = await repl.exec("({ [Symbol.for('Jupyter.display')]() { throw new Error('no picture') } })");
  assert.deepEqual([failing.exitCode, failing.displays], [1, []]);
  assert.match(failing.stderr, /no picture/);
  const odd = "new Proxy(() => {}, { get: () => () => 1 })";
  assert.deepEqual((await repl.exec(odd)).displays, []);
  assert.equal(await repl.value("const display = 5; display"), "5", "the name is free for the user");
});

testBun("display data beyond the limits, empty or no JSON is refused on stderr", async (repl) => {
  const show = async (code: string) => {
    const { exitCode, displays, stderr } = await repl.exec(code);
    assert.equal(exitCode, 0, stderr);
    return { count: displays.length, stderr };
  };
  const text = (chars: string) => `display({ 'text/plain': 'x'.repeat(${chars}) }, { raw: true });`;
  assert.deepEqual(await show(text("(8 << 20) - 17")), { count: 1, stderr: "" });
  assert.deepEqual(await show(text("(8 << 20) - 16")), {
    count: 0,
    stderr: "display: cannot show an object: it has 8388609 bytes, the limit is 8388608 bytes\n",
  });
  const much = await show(text("8 << 19").repeat(5));
  assert.equal(much.count, 3);
  assert.match(much.stderr, /this execution would have shown 16777\d{3} bytes, the limit is 16777216 bytes/);
  assert.match((await show("display({}, { raw: true })")).stderr, /no MIME type with a content/);
  assert.match((await show("display(5, { raw: true })")).stderr, /must be an object of MIME types, got number/);
  assert.match(
    (await show("const o = {}; o.o = o; display({ 'application/json': o }, { raw: true })")).stderr,
    /cannot show an object: .*cycl/i,
  );
  await repl.exec("setTimeout(() => display([1]), 20)");
  await sleep(200);
  assert.deepEqual(await repl.exec("0"), { exitCode: 0, value: "0", displays: [], stdout: "[ 1 ]\n", stderr: "" });
});

const SESSION = `
const sess = { alpha: 1, beta: { gamma: [1, 2] }, 'not-id': 3, get danger() { console.log('getter') } };
const trap = (name) => () => { console.log(name) };
const prox = new Proxy({ a: 1 }, { ownKeys: trap('ownKeys'), get: trap('get'), has: trap('has'), getOwnPropertyDescriptor: trap('descriptor'), getPrototypeOf: trap('proto') });
const heir = Object.create(prox); class Made { static shared = 1; method() {} } const made = new Made(); const long = new Array(100_000).fill(0);
`;

testBun("complete: names, members, keys and modules, and nothing of the user's runs", async (repl) => {
  await repl.exec(SESSION);
  mkdirSync(path.join(repl.home, "node_modules/@scope/inner"), { recursive: true });
  mkdirSync(path.join(repl.home, "node_modules/leftpad"));
  writeFileSync(path.join(repl.home, "helper.ts"), "");
  const ask = async (code: string) => {
    const { exitCode, value, stdout, stderr } = await repl.exec(code, { flags: COMPLETE });
    assert.deepEqual([exitCode, stdout, stderr], [0, "", ""]);
    const { start, candidates } = JSON.parse(value ?? "") as { start: number; candidates: string[] };
    return [start, ...candidates];
  };
  const cases: readonly [string, number, ...string[]][] = [
    ["ses", 0, "sess"],
    ["sess.b", 5, "beta"],
    ["sess.beta\n  .ga", 13, "gamma"],
    ["sess?.be", 6, "beta"],
    ["sess.beta.gamma.len", 16, "length"],
    ["sess['beta'].ga", 13, "gamma"],
    ["sess['al", 6, "alpha"],
    ['sess?.["not', 8, "not-id"],
    ["sess.beta.gamma[0].toF", 19, "toFixed"],
    ["sess.danger.", 12],
    ["sess.missing.", 13],
    ["prox.", 5],
    ["heir.", 5],
    ["made.me", 5, "method"],
    ["Made.sh", 5, "shared"],
    ["long.leng", 5, "length"],
    ["'x'.toUpperC", 4, "toUpperCase"],
    ["`x`.toUpperC", 4, "toUpperCase"],
    ["[1].flatM", 4, "flatMap"],
    ["/x/.tes", 4, "test"],
    ["𝒳 + ses", 5, "sess"],
    ["f(sess.al", 7, "alpha"],
    ["x = 5 / ses", 8, "sess"],
    ["`${ses", 3, "sess"],
    ["const zork = 1; zor", 16, "zork"],
    ["awai", 0, "await"],
    ["process.stdout.cor", 15, "cork"],
    ["// ses", 6],
    ["'ses", 4],
    ["`ses", 4],
    ["made().", 7],
    ["12", 2],
    ["require('left", 9, "leftpad"],
    ["import x from '@scope/", 15, "@scope/inner"],
    ["await import('node:fs/", 14, "node:fs/promises"],
    ["import './he", 10, "helper.ts"],
    ["$$sb", 0],
  ];
  for (const [code, ...wanted] of cases) assert.deepEqual(await ask(code), wanted, code);
  assert.ok((await ask("")).length > 60, "all global names");
  await repl.exec("for (let i = 0; i < 3000; i++) globalThis['many' + i] = i");
  assert.equal((await ask("many")).length, 1001);
  await repl.exec("Array.prototype.push = Array.prototype[Symbol.iterator] = null");
  await ask("ses");
  assert.equal((await repl.exec("throw 1")).stderr, "Uncaught 1\n");
  assert.match((await repl.exec("null.x")).stderr, /<input 5>/, "questions do not count");
});

testBun("is_complete tells finished, unfinished and wrong code apart", async (repl) => {
  const cases: readonly [string, string, string][] = [
    ["1 + 1", "complete", ""],
    ["// comment", "complete", ""],
    ["#!/usr/bin/env bun\n1", "complete", ""],
    ["const f = <T>(x: T) => x", "complete", ""],
    ["if (a) {", "incomplete", "  "],
    ["function f() {\n  if (x) {", "incomplete", "    "],
    ["f([ // comment {", "incomplete", "    "],
    ["f(')', `]`, /}/, {", "incomplete", "    "],
    ["`text", "incomplete", ""],
    ["`a${b", "incomplete", "  "],
    ["/* text", "incomplete", ""],
    ["'text\\\n", "incomplete", ""],
    ["foo.", "incomplete", ""],
    ["foo?.", "incomplete", ""],
    ["a +", "incomplete", ""],
    ["(x) =>", "incomplete", ""],
    ["a ? b", "incomplete", ""],
    ["<div>", "incomplete", ""],
    ["import { a } from", "incomplete", ""],
    ["interface I {", "incomplete", "  "],
    ["let x: Array<", "incomplete", ""],
    ["const x = = 1", "invalid", ""],
    ["'text", "invalid", ""],
    ["}", "invalid", ""],
    ["if (a) { )", "invalid", ""],
    ["a b", "invalid", ""],
  ];
  for (const [code, state, indent] of cases) {
    const { value, exitCode, stderr } = await repl.exec(code, { flags: IS_COMPLETE });
    assert.deepEqual([exitCode, stderr, JSON.parse(value ?? "")], [0, "", { state, indent }], code);
  }
  await repl.exec("globalThis.ran = true", { flags: IS_COMPLETE });
  assert.equal(await repl.value("typeof ran"), '"undefined"');
});

noLeftovers();
