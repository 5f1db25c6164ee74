/** JavaScript REPL: state, results, errors, streams, signals and hostile code, with a real Bun. */
import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { noLeftovers } from "../../support/leftovers.ts";
import { eventually, sleep } from "../../support/waiting.ts";
import { type Execution, findBun, Repl } from "./driver.ts";

const BUN = findBun();

function testBun(name: string, body: (repl: Repl) => Promise<void>): void {
  test(`JavaScript: ${name}`, { skip: BUN.skip }, async (t: TestContext) => await body(await Repl.start(t, BUN)));
}

/** Runs the code and compares the parts given. */
async function expectExec(repl: Repl, code: string, wanted: Partial<Execution>): Promise<void> {
  const got = await repl.exec(code);
  assert.deepEqual(
    Object.fromEntries(Object.keys(wanted).map((key) => [key, got[key as keyof Execution]])),
    wanted,
    `${code}\n${got.stderr}`,
  );
}

testBun("const, let, var, class and function last, stay live and may be declared again", async (repl) => {
  await repl.exec("const a = 1; let b = 2; var c = 3; class D { e = 4 }; function sum() { return a + b + c + new D().e }");
  assert.equal(await repl.value("sum()"), "10");
  assert.equal(await repl.value("b = 20; c = 30; sum()"), "55");
  assert.equal(await repl.value("const a = 100; let b = 200; a + b"), "300");
  assert.equal(await repl.value("sum()"), "55", "old closures keep their own variables");
  await expectExec(repl, "a = 5", { exitCode: 1 });
  assert.equal(await repl.value("const [f, { g = 7, ...h }] = [1, { i: 2 }]; JSON.stringify([f, g, h])"), '"[1,7,{\\"i\\":2}]"');
  assert.equal(await repl.value("var v = 1; var v = 2; v"), "2");
  assert.equal(await repl.value("`\nconst fake = 1\n`; typeof fake"), '"undefined"');
});

testBun("a function declared again is what the code of earlier blocks calls, too", async (repl) => {
  await repl.exec("function helper() { return 'wrong' }\nfunction main() { return helper() }");
  assert.equal(await repl.value("function helper() { return main === helper ? '' : 'right' }\nmain()"), '"right"');
  await repl.exec("function helper() { return 'third' }");
  assert.equal(await repl.value("main()"), '"third"');
  assert.equal(await repl.value("helper = () => 'assigned'; main()"), '"assigned"');
  for (let round = 0; round < 40; round++) await repl.exec(`function helper() { return ${round} }`);
  assert.equal(await repl.value("helper()"), "39");
  // What was no function keeps its own value, and so does what is none any more.
  await repl.exec("let count = 1; const counted = () => count");
  assert.equal(await repl.value("function count() {}\ncounted()"), "1");
  await repl.exec("function shape() { return 1 }\nconst shaped = () => shape()");
  assert.equal(await repl.value("let shape = 2; shaped()"), "1");
});

testBun("a declaration that fails leaves what was there", async (repl) => {
  await repl.exec("const kept = 1; function fail() { throw 0 }");
  await expectExec(repl, "const kept = fail(), fresh = 2", { exitCode: 1 });
  assert.equal(await repl.value("typeof fresh + kept"), '"undefined1"');
});

testBun("imports of every kind work, relative ones from the working directory", async (repl) => {
  const module = "./helper.ts";
  writeFileSync(path.join(repl.home, module), "export const twice = (x: number) => x * 2;\nexport default 'default';\n");
  assert.equal(
    await repl.value(`import d, { twice as t } from './helper'; import * as all from '${module}'; t(2) + d + all.twice(3)`),
    '"4default6"',
  );
  assert.equal(await repl.value(`t(5) + require('./helper').twice(1) + (await import('${module}')).twice(1)`), "14");
  assert.equal(await repl.value("import { readFileSync } from 'node:fs'; typeof readFileSync"), '"function"');
  assert.equal(await repl.value("typeof readFileSync"), '"function"');
  assert.match((await repl.exec("import { nope } from './helper'; nope")).stderr, /Export named 'nope' not found/);
  assert.equal((await repl.exec("import './missing'")).exitCode, 1);
  assert.equal(await repl.value("export const shared = 1; export default function named() { return 2 }; shared + named()"), "3");
  assert.equal(await repl.value("shared + named()"), "3");
});

for (
  const [code, value] of [
    ["1 + 1", "2"],
    ["'text'", '"text"'],
    ["undefined", null],
    ["const x = 1", null],
    ["console.log(1)", null],
    ["let y = 5\n\n// comment\ny + 1 // trailing; comment\n", "6"],
    ["'a'\n+ 'b'", '"ab"'],
    ["let z = `x\n;y\n`\nz.length", "5"],
    ["[\n1,\n2\n].length;", "2"],
    ["if (true) {}\n[3].length", "1"],
    ["({ a: 1 }).a", "1"],
    ["{ a: 1 }", null],
    ["label: for (;;) { break label }", null],
    ["(1, 2)", "2"],
    ["await Promise.resolve(7)", "7"],
    ["async function main() { await 1; return 9 }\nmain()", "9"],
    ["#!/usr/bin/env bun\n7", "7"],
    ["\ufeff6", "6"],
    ["", null],
    ["enum Color { Red, Green }\nColor.Green", "1"],
    ["const n: number = 1; interface I { a: 1 }; n as number satisfies number", "1"],
    ["<number>(5)", "5"],
    ["<div>hi</div>", "<div>hi</div>"],
    ["import.meta.main && require.main === module", "true"],
    ["/ab+c/.test('abbc')", "true"],
  ] as const
) {
  testBun(`the value of ${JSON.stringify(code)} is ${value}`, async (repl) => assert.equal(await repl.value(code), value));
}

testBun("a long value is cut at 32 KiB, between characters", async (repl) => {
  const value = await repl.value("'é'.repeat(100_000)") ?? "";
  assert.ok(Buffer.byteLength(value) <= 32_768 && value.endsWith("é…"), value.slice(-5));
  assert.equal(await repl.value("({ [Bun.inspect.custom]() { throw 1 } })"), "<value that cannot be shown>");
});

testBun("of a huge string only what is shown is looked at", async (repl) => {
  await repl.exec("const inspected = []; const { inspect } = Bun; const text = 'x'.repeat(200_000_000)");
  const value = await repl.value("text") ?? "";
  assert.ok(value.length < 32_768 && value.startsWith('"xxx') && value.endsWith("x…"), value.slice(-5));
});

testBun("what has very many members is told by their number", async (repl) => {
  const entries = "Array.from({ length: 20_000 }, (_, i) => [i, i])";
  assert.equal(await repl.value(`new Map(${entries})`), "Map(20000) { … }");
  assert.equal(await repl.value(`new Set(${entries})`), "Set(20000) { … }");
  assert.equal(await repl.value(`Object.fromEntries(${entries})`), "{ … 20000 properties }");
  assert.match(await repl.value(entries) ?? "", /^\[\n {2}\[ 0, 0 \],/);
  assert.equal(await repl.value("new Map([[1, 2]])"), "Map(1) {\n  1: 2,\n}");
});

testBun("what the REPL itself is reached by can be neither hidden nor replaced", async (repl) => {
  await repl.exec("let globalThis = 2");
  assert.equal(await repl.value("class Own { kept = 3 }; new Own().kept"), "3");
  await expectExec(repl, "$$sbx.link = null", { exitCode: 1 });
  await expectExec(repl, "delete $$sbx.start", { exitCode: 1 });
  assert.equal(await repl.value("const after = 4; after + new Own().kept"), "7");
});

testBun("a return outside of functions is refused, without a line that is not the user's", async (repl) => {
  const { exitCode, stderr } = await repl.exec("const a = 1;\nreturn a");
  assert.deepEqual([exitCode, stderr], [1, "SyntaxError: Top-level return cannot be used inside an ECMAScript module\n"]);
});

testBun("names that the REPL uses itself, and variables within blocks, last as any other", async (repl) => {
  await repl.exec("const name = 'n', set = 1, access = 2, running = 3; let value = 4; if (true) { var inner = 5 }");
  assert.equal(await repl.value("value++; [name, set, access, running, value, inner]"), '[ "n", 1, 2, 3, 5, 5 ]');
  assert.equal(await repl.value("for (var i = 0; i < 3; i++);\ni"), "3");
  assert.equal(await repl.value("try { var t = 1 } finally {}\nt"), "1");
  assert.equal(await repl.value("module.exports === exports"), "true");
});

testBun("error positions are right below blank lines and comments, in scripts and modules of one name", async (repl) => {
  for (
    const [code, line] of [
      ["\n\nthrow new Error('x')", 3],
      ["// one\n\n/* two\n*/\nconst a: number = 1\n\n  throw new Error('x')", 7],
      ["#!/usr/bin/env bun\n\nawait 1\nthrow new Error('x')", 4],
    ] as const
  ) {
    const { stderr } = await repl.exec(code);
    const number = /<input (\d+)>/.exec(stderr)?.[1];
    assert.ok(stderr.startsWith(`<input ${number}>:${line}\n${code.split("\n")[line - 1]}\n`), stderr);
    assert.match(stderr, new RegExp(`at ${repl.home}/<input ${number}>:${line}:\\d+\n$`));
  }
});

testBun("the clocks begin again with a seed", async (repl) => {
  await sleep(2_500);
  const seed = new Uint8Array(32);
  const now = "const [at, origin, up] = [performance.now(), performance.timeOrigin, process.uptime()]; at";
  assert.ok(Number((await repl.exec(now, { seed })).value) < 2_000);
  assert.equal(await repl.value("up < 2 && Math.abs(origin + performance.now() - Date.now()) < 1_000"), "true");
});

testBun("an uncaught error shows the user's line and no frame of ours", async (repl) => {
  await repl.exec("function boom() {\n  throw new Error('boom')\n}");
  const { exitCode, value, stderr } = await repl.exec("\n\n  boom()");
  const home = repl.home;
  assert.deepEqual([exitCode, value], [1, null]);
  assert.equal(
    stderr,
    `<input 1>:2\n  throw new Error('boom')\n            ^\nError: boom\n    at boom (${home}/<input 1>:2:13)\n    at ${home}/<input 2>:3:7\n`,
  );
  assert.match((await repl.exec("null.x")).stderr, /^<input 3>:1\nnull.x\n {4}\^\nTypeError/);
  assert.match((await repl.exec("throw new TypeError('a', { cause: new Error('b') })")).stderr, /TypeError: a\n[^]*\[cause\]: Error: b\n/);
  assert.match((await repl.exec("require('fs').readFileSync('/missing')")).stderr, /ENOENT[^]*code: "ENOENT"/);
  assert.equal((await repl.exec("throw { a: 1 }")).stderr, "Uncaught {\n  a: 1,\n}\n");
  assert.equal((await repl.exec("const x = = 1")).stderr, "<input 7>:1\nconst x = = 1\n          ^\nSyntaxError: Unexpected =\n");
  assert.equal((await repl.exec("throw Object.defineProperty(new Error, 'stack', { get() { throw 1 } })")).exitCode, 1);
});

testBun("rejections and errors in timers are reported, and fail an execution that runs", async (repl) => {
  await expectExec(repl, "Promise.reject(new Error('lost')); 5", { exitCode: 1 });
  const during = await repl.exec("setTimeout(() => { throw new Error('late') }, 1); await new Promise(() => {})");
  assert.equal(during.exitCode, 1);
  assert.match(during.stderr, /Error: late/);
  await repl.exec("setTimeout(() => { throw new Error('between') }, 50); setTimeout(() => Promise.reject(new Error('two')), 60); 0");
  await sleep(200);
  const after = await repl.exec("'alive'");
  assert.deepEqual([after.exitCode, after.value], [0, '"alive"']);
  assert.match(after.stderr, /Error: between[^]*Error: two/);
  await repl.exec("process.on('uncaughtException', (error) => console.log('handled', error.message))");
  await expectExec(repl, "setTimeout(() => { throw new Error('own') }, 1); await Bun.sleep(50)", { exitCode: 0, stdout: "handled own\n" });
});

testBun("timers and servers run on between executions", async (repl) => {
  await repl.exec(
    "let ticks = 0; const timer = setInterval(() => ticks++, 5); let answer = 'one'; const server = Bun.serve({ port: 0, fetch: () => new Response(answer) })",
  );
  const url = `http://127.0.0.1:${await repl.value("server.port")}/`;
  assert.equal(await (await fetch(url)).text(), "one");
  await repl.exec("answer = 'two'");
  assert.equal(await (await fetch(url)).text(), "two");
  assert.equal(await repl.value("await (await fetch(server.url)).text()"), '"two"');
  await eventually("the timer has ticked", async () => Number(await repl.value("ticks")) > 3);
  await repl.exec("clearInterval(timer); server.stop(true)");
});

for (
  const [name, code, exitCode] of [
    ["a plain call", "process.exit(7)", 7],
    [
      "a call that user code tries to catch",
      "try { process.exit(8) } catch { console.log('caught') } finally { console.log('finally') }",
      8,
    ],
    ["a call after an await of a settled promise", "await 1; (() => process.exit(300))()", 44],
    ["process.exitCode", "process.exitCode = 3", 3],
  ] as const
) {
  testBun(`process.exit by ${name} gives ${exitCode} and keeps the state`, async (repl) => {
    await repl.exec("const kept = 1");
    await expectExec(repl, code, { exitCode, stdout: "" });
    await expectExec(repl, "kept", { exitCode: 0, value: "1" });
  });
}

testBun("process.exit after waiting for a timer ends the process with that status", async (repl) => {
  await assert.rejects(repl.exec("await Bun.sleep(1); process.exit(6)"));
  assert.deepEqual(await repl.ended, { code: 6, signal: null });
});

for (
  const [name, code] of [
    ["a busy loop", "while (true) {}"],
    ["a busy loop after an await", "await 1; while (true) {}"],
    ["a busy loop in an imported module", "import './spin'"],
    ["an idle await", "await new Promise(() => {})"],
  ] as const
) {
  testBun(`SIGINT ends ${name} with 130 and keeps the state`, async (repl) => {
    writeFileSync(path.join(repl.home, "spin.ts"), "const forever: boolean = true;\nwhile (forever) {}\n");
    await repl.exec("const kept = 1; process.removeAllListeners('SIGINT')");
    const running = repl.exec(`require('fs').writeFileSync('started', '');\n${code}`);
    if (!code.startsWith("import")) await eventually("the code runs", () => existsSync(path.join(repl.home, "started")));
    await sleep(100);
    repl.interrupt();
    assert.equal((await running).exitCode, 130);
    repl.interrupt(); // While idle it is ignored.
    assert.equal(await repl.value("kept"), "1");
  });
}

testBun("deleted globals and patched prototypes are harmless", async (repl) => {
  await repl.exec("Array.prototype[Symbol.iterator] = Array.prototype.push = Array.prototype.map = null");
  await repl.exec("String.prototype.slice = RegExp.prototype.exec = Uint8Array.prototype.subarray = JSON.stringify = Object.keys = null");
  await repl.exec("Object.prototype.value = 1; Object.prototype.get = 2");
  await repl.exec("delete globalThis.Promise; delete globalThis.process; delete globalThis.Bun; delete globalThis.console");
  await repl.exec("globalThis.setImmediate = globalThis.queueMicrotask = globalThis.Buffer = Math.random = null");
  await repl.exec("const after = 5");
  assert.equal(await repl.value("after"), "5");
  await expectExec(repl, "throw new Error('still reported')", { exitCode: 1 });
});

testBun("env holds for one execution", async (repl) => {
  const env = { SBX_ONE: "1", SBX_TWO: "2=2", HOME: "/elsewhere" };
  const got = await repl.exec(
    "const got = [process.env.SBX_ONE, process.env.SBX_TWO, process.env.HOME].join(); delete process.env.SBX_TWO; process.env.KEPT = 'k'; got",
    { env },
  );
  assert.equal(got.value, '"1,2=2,/elsewhere"');
  const after = "[process.env.SBX_ONE, process.env.SBX_TWO, process.env.KEPT, process.env.HOME === '/elsewhere'].join()";
  assert.equal(await repl.value(after), '",,k,false"');
  assert.equal(await repl.value("Object.keys(process.env).filter((name) => name.startsWith('BUN_')).length"), "0");
});

testBun("a seed makes draws differ and equal seeds repeat", async (repl) => {
  const draw = async (byte: number) => (await repl.exec("Math.random()", { seed: new Uint8Array(32).fill(byte) })).value;
  assert.notEqual(await draw(1), await draw(2));
  assert.equal(await draw(3), await draw(3));
  assert.equal(
    await repl.value("JSON.stringify(Object.getOwnPropertyDescriptor(Math, 'random'))"),
    '"{\\"writable\\":true,\\"enumerable\\":false,\\"configurable\\":true}"',
  );
});

test("JavaScript: 10 MB through a pipe arrive complete and in order", { skip: BUN.skip }, async (t) => {
  const repl = await Repl.start(t, BUN, { piped: true });
  await repl.exec(
    "for (let i = 0; i < 1000; i++) { process.stdout.write('w' + i + 'x'.repeat(5000) + '\\n'); console.log('l' + i + 'y'.repeat(5000)) }",
  );
  const text = () => readFileSync(repl.stdoutFile, "utf8");
  await eventually("all of it is there", () => text().length >= 10_008_000);
  const lines = text().trimEnd().split("\n").map((line) => line.replace(/[xy]+$/, ""));
  assert.deepEqual(lines, Array.from({ length: 2000 }, (_, index) => `${index % 2 ? "l" : "w"}${index >> 1}`));
  await repl.exec("process.stdout.end('end'); process.stderr.write('e')");
  await repl.exec("process.stdout.write('again')");
  await eventually("a stream that was ended is replaced", () => text().endsWith("endagain"));
});

testBun("children do not get the control socket", async (repl) => {
  const list =
    "const { execSync } = require('child_process'); process.stdout.write(''); execSync('ls /proc/self/fd').toString().trim().split('\\n').join()";
  assert.equal(await repl.value(list), '"0,1,2,3"');
  await expectExec(repl, "require('child_process').spawnSync('echo', ['child'], { stdio: 'inherit' }).status", {
    value: "0",
    stdout: "child\n",
  });
});

testBun("many executions do not grow without bound", async (repl) => {
  const residentKiB = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${repl.pid}/status`, "utf8"))?.[1]);
  const run = async (count: number) => {
    for (let index = 0; index < count; index++) await repl.exec("const q = 1; const z = () => q; q + 1");
  };
  await run(4000);
  const before = residentKiB();
  await run(6000);
  assert.ok(residentKiB() - before < 24_000, `grew by ${residentKiB() - before} KiB`);
});

testBun("the largest code arrives whole", async (repl) => {
  const text = "x".repeat((1 << 20) - 30);
  assert.equal(await repl.value(`const s = '${text}'; s.length`), String(text.length));
});

testBun("an output that user code closes ends the process with the code's own status", async (repl) => {
  await assert.rejects(repl.exec("require('fs').closeSync(1); process.exitCode = 4"));
  assert.deepEqual(await repl.ended, { code: 4, signal: null });
});

testBun("the end of the socket ends it with 0", async (repl) => {
  repl.hangUp();
  assert.deepEqual(await repl.ended, { code: 0, signal: null });
});

testBun("a malformed request ends it with 70", async (repl) => {
  repl.send(Buffer.alloc(24, 0xff));
  assert.deepEqual(await repl.ended, { code: 70, signal: null });
});

noLeftovers();
