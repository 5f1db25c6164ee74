/** Python REPL: completion and unfinished code, with a real CPython 3.14. */
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { noLeftovers } from "../../support/leftovers.ts";
import { findPython, Repl } from "./driver.ts";

const PYTHON = findPython();
const COMPLETE = 4;
const IS_COMPLETE = 8;

interface Answer {
  readonly start: number;
  readonly candidates: readonly string[];
}

function testPython(name: string, body: (repl: Repl) => Promise<void>): void {
  test(`Python: ${name}`, { skip: PYTHON.skip }, async (t: TestContext) => await body(await Repl.start(t, PYTHON)));
}

/** Asks, and checks that asking shows nothing. */
async function ask(repl: Repl, code: string, flags: number): Promise<unknown> {
  const { exitCode, value, displays, stdout, stderr } = await repl.exec(code, { flags });
  assert.deepEqual({ exitCode, displays, stdout, stderr }, { exitCode: 0, displays: [], stdout: "", stderr: "" }, code);
  return JSON.parse(value ?? "");
}

async function complete(repl: Repl, code: string): Promise<Answer> {
  return await ask(repl, code, COMPLETE) as Answer;
}

const SETUP = `import os, math
alpha = 1
class Point:
    zed = 1
    __slots__ = ('slot', '__dict__')
    @property
    def danger(self): print('RUN')
    def meth(self, first, *, second=2): pass
    @classmethod
    def make(cls, size): pass
    def __getattr__(self, name): print('RUN')
    def __getattribute__(self, name): print('RUN')
    def __dir__(self): print('RUN')
class Loud(dict):
    def __iter__(self): print('RUN')
    def keys(self): print('RUN')
class Meta(type):
    def __getattr__(cls, name): print('RUN')
    def __dir__(cls): print('RUN')
class Odd(metaclass=Meta):
    inner = 'text'
point = Point()
object.__setattr__(point, 'inst', 'text')
table = {'key one': 1, 'key2': 2, 3: 4, 'quo"te': 5}
loud = Loud(lamp=1)
def func(pos, /, aa, bb=1, *, cc): pass
`;

for (
  const [code, start, candidates] of [
    ["alp", 0, ["alpha"]],
    ["x = 5\nif True:\n    alp", 19, ["alpha"]],
    ["def g(alpine):\n    return alp", 26, ["alpha", "alpine"]],
    ["imp", 0, ["import"]],
    ["isin", 0, ["isinstance"]],
    ["point.", 6, ["danger", "inst", "make", "meth", "slot", "zed"]],
    ["point.in", 6, ["inst"]],
    ["point.inst.isal", 11, ["isalnum", "isalpha"]],
    ["point.danger.", 13, []],
    ["Point.ze", 6, ["zed"]],
    ["Odd.inn", 4, ["inner"]],
    ["Odd.inner.isal", 10, ["isalnum", "isalpha"]],
    ["os.path.joi", 8, ["join"]],
    ["'text'.isal", 7, ["isalnum", "isalpha"]],
    ["func().", 7, []],
    ["1.", 2, []],
    ["nothing.", 8, []],
    ["table['key", 7, ["key one", "key2"]],
    ['print(table["', 13, ["key one", "key2"]],
    ["loud['", 6, ["lamp"]],
    ["func(1, b", 8, ["bb="]],
    ["func(1, aa=2, c", 14, ["cc="]],
    ["point.meth(", 11, ["first=", "second="]],
    ["Point.make(si", 11, ["size="]],
    ["sorted([1], ke", 12, ["key="]],
    ["f'{alp", 3, ["alpha"]],
    ["f'{table[\"key", 10, ["key one", "key2"]],
    ["'é𝒳' + alp", 8, ["alpha"]],
    ["# alp", 5, []],
    ["open('da", 6, ["data.txt"]],
    ["open('dir/", 10, ["inner.txt"]],
    ["x = '''no such", 7, []],
    ["import mym", 7, ["mymodule"]],
    ["import os, mym", 11, ["mymodule"]],
    ["from mymod", 5, ["mymodule"]],
    ["from mymodule ", 14, ["import"]],
    ["from mymodule import to", 21, ["topclass", "topname"]],
    ["from mymodule import (topname,\n    topc", 35, ["topclass"]],
    ["import pack.", 12, ["part"]],
    ["from pack import pa", 17, ["part"]],
    ["from xml.dom import minid", 20, ["minidom"]],
    ["from math import floo", 17, ["floor"]],
    ["if alpha: import mym", 17, ["mymodule"]],
    ["from . import ", 14, []],
  ] as const
) {
  testPython(`${JSON.stringify(code)} is completed`, async (repl) => {
    assert.equal((await repl.exec(SETUP)).exitCode, 0);
    mkdirSync(path.join(repl.home, "dir"));
    mkdirSync(path.join(repl.home, "pack"));
    for (const name of ["data.txt", "dir/inner.txt", "pack/__init__.py", "pack/part.py"]) writeFileSync(path.join(repl.home, name), "");
    writeFileSync(path.join(repl.home, "mymodule.py"), "print('RUN')\ntopname = '\\d'\nclass topclass: pass\n");
    const answer = await complete(repl, code);
    assert.equal(answer.start, start);
    // Among names of the language there are more than the ones looked for.
    const found = code === "point.meth("
      ? answer.candidates.slice(0, 2)
      : answer.candidates.filter((name) => !/^b(in|ool|reak)|^bytes?/.test(name));
    assert.deepEqual(found.filter((name) => name !== "breakpoint" && name !== "bytearray" && !/^c[a-z]+$/.test(name)), candidates);
  });
}

testPython("completion runs nothing, counts as no execution and is bounded", async (repl) => {
  await repl.exec(SETUP);
  await repl.exec("for n in range(3000): globals()[f'name_{n:04}_' + 'x' * 10] = n");
  const { candidates } = await complete(repl, "name_");
  assert.ok(candidates.length === 1000 && candidates[0]?.startsWith("name_0000_"), String(candidates.length));
  await repl.exec("for n in range(3000): globals()[f'{n:04}_' + 'ü' * 200] = globals()['ü' * 200 + str(n)] = n");
  assert.ok((await complete(repl, "ü")).candidates.length > 10, "what fits the answer is there");
  await complete(repl, "x".repeat(1 << 19));
  assert.match((await repl.exec("1 / 0")).stderr, /<input 4>/);
});

testPython("a module named like one of the library's is not run by completion", async (repl) => {
  for (const name of ["re", "keyword", "warnings", "types"]) writeFileSync(path.join(repl.home, `${name}.py`), "print('RUN')\n");
  assert.ok((await complete(repl, "im")).candidates.includes("import"));
  assert.deepEqual(await ask(repl, "'\\d'", IS_COMPLETE), { state: "complete", indent: "" });
});

for (
  const [code, state, indent] of [
    ["x = 1", "complete", ""],
    ["# only a comment", "complete", ""],
    ["await x", "complete", ""],
    ["async with a as b: pass\n", "complete", ""],
    ["1 is 1; '\\d'", "complete", ""],
    ["if x:", "incomplete", "    "],
    ["if x:  # why", "incomplete", "    "],
    ["if x:\n    y", "incomplete", "    "],
    ["if x:\n    y\n", "complete", ""],
    ["if x:\n    y\n    ", "complete", ""],
    ["if x:\n    y\nz", "complete", ""],
    ["if x: y", "incomplete", ""],
    ["def f():\n    return 1", "incomplete", ""],
    ["def f(\n    a,\n):", "incomplete", "    "],
    ["class A:\n    def f(self):\n        if x:\n            return", "incomplete", "        "],
    ["for x in y:\n\tprint(x)", "incomplete", "\t"],
    ["for x in y:\n\tif x:", "incomplete", "\t\t"],
    ["for x in y:\n    pass\nelse:", "incomplete", "    "],
    ["match x:\n    case 1:\n        y", "incomplete", "        "],
    ["try:\n    x\n", "incomplete", "    "],
    ["@decorator", "incomplete", ""],
    ["@decorator\n", "incomplete", ""],
    ["x = (1,", "incomplete", ""],
    ["foo(", "incomplete", "    "],
    ["foo(\n    1,", "incomplete", "    "],
    ["x = '''text", "incomplete", ""],
    ["x = 1 + \\", "incomplete", "    "],
    ["f'''{x", "incomplete", ""],
    ["x = 'text", "invalid", ""],
    ["x = = 1", "invalid", ""],
    ["f(1))", "invalid", ""],
    ["return 5", "invalid", ""],
    ["else:", "invalid", ""],
    ["if x:\n    y\n  z", "invalid", ""],
  ] as const
) {
  testPython(`${JSON.stringify(code)} is ${state}`, async (repl) => {
    assert.deepEqual(await ask(repl, code, IS_COMPLETE), { state, indent });
  });
}

noLeftovers();
