/** Python REPL: display data, standard input and the end of a program, with a real CPython 3.14. */
import assert from "node:assert/strict";
import { existsSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { noLeftovers } from "../../support/leftovers.ts";
import { eventually, sleep } from "../../support/waiting.ts";
import { findPython, Repl } from "./driver.ts";

const PYTHON = findPython();
const FINAL = 1;
const STDIN = 2;
const MIB = 1 << 20;

function testPython(name: string, body: (repl: Repl) => Promise<void>): void {
  test(`Python: ${name}`, { skip: PYTHON.skip }, async (t: TestContext) => await body(await Repl.start(t, PYTHON)));
}

const RICH = `class Rich:
    def __repr__(self): return 'rich'
    def _repr_html_(self): return '<b>é\\ud800</b>'
    def _repr_png_(self): return b'\\x89PNG', {'width': 1}
    def _repr_json_(self): return {'a': [1, None]}
    def _repr_markdown_(self): return None
    def _repr_svg_(self): raise ValueError('no\\nsvg')
    def _repr_latex_(self): return 5
`;
const RICH_DATA = {
  "text/plain": "rich",
  "text/html": "<b>é\ud800</b>",
  "image/png": "iVBORw==",
  "application/json": { a: [1, null] },
};

testPython("a value shows all it offers; a method that fails is a line on stderr", async (repl) => {
  const { exitCode, value, displays, stderr } = await repl.exec(`${RICH}Rich()`);
  assert.deepEqual({ exitCode, value, displays }, { exitCode: 0, value: "rich", displays: [RICH_DATA] });
  assert.equal(
    stderr,
    "Cannot use _repr_latex_ of Rich: TypeError: it returned int\nCannot use _repr_svg_ of Rich: ValueError: no svg\n",
  );
});

testPython("a bundle of the object's own comes first, and plain values and classes show nothing", async (repl) => {
  const code = "class B:\n    def _repr_mimebundle_(self, include=None, exclude=None):\n" +
    "        return {'text/plain': 'own', 'application/x-own': 1, 'image/png': b'png'}\n    def _repr_png_(self): return b'other'\n";
  assert.deepEqual((await repl.exec(`${code}B()`)).displays, [{ "text/plain": "own", "application/x-own": 1, "image/png": "cG5n" }]);
  for (const plain of ["B", "1", "'text'", "[B()]", "None", "x = B()", "object()"]) {
    assert.deepEqual((await repl.exec(plain)).displays, [], plain);
  }
});

testPython("display() shows objects as it goes, and a name of the user's hides it", async (repl) => {
  await repl.exec(RICH);
  const { value, displays } = await repl.exec("display(1, 'x', Rich())\ndisplay({'text/html': '<i>'}, raw=True)");
  assert.deepEqual([value, displays], [null, [{ "text/plain": "1" }, { "text/plain": "'x'" }, RICH_DATA, { "text/html": "<i>" }]]);
  const { displays: shown, exitCode } = await repl.exec("display(1)\n1 / 0");
  assert.deepEqual([shown, exitCode], [[{ "text/plain": "1" }], 1]);
  assert.equal(await repl.value("display = 5\ndisplay"), "5");
  assert.equal(await repl.value("import pickle, builtins\npickle.loads(pickle.dumps(builtins.display)) is builtins.display"), "True");
});

testPython("display data is bounded, and says so", async (repl) => {
  const large = await repl.exec("display({'text/html': 'x' * 9_000_000}, raw=True)\ndisplay(2)");
  assert.deepEqual(large.displays, [{ "text/plain": "2" }]);
  assert.equal(large.stderr, `Cannot display dict: display data of one object is at most ${8 * MIB} bytes, got 9000016\n`);
  const many = await repl.exec("for n in range(4): display({'text/html': 'x' * 5_000_000}, raw=True)");
  assert.equal(many.displays.length, 3);
  assert.match(many.stderr, /^Cannot display dict: display data of one execution is at most 16777216 bytes, got 20000064\n$/);
  assert.equal((await repl.exec("display({'text/html': 'x' * 5_000_000}, raw=True)")).displays.length, 1, "each execution counts anew");
  const bad = await repl.exec("display({'application/json': float('nan')}, raw=True)\ndisplay({'application/json': {1j}}, raw=True)");
  assert.deepEqual([bad.exitCode, bad.displays, bad.stderr.match(/^Cannot display dict: /gm)?.length], [0, [], 2]);
});

testPython("what a fork or a thread shows too late is printed", async (repl) => {
  await repl.exec(RICH);
  const fork = await repl.exec("import os\nif os.fork() == 0:\n    display(Rich())\n    os._exit(0)\nos.wait()[1]");
  assert.deepEqual([fork.value, fork.displays, fork.stdout], ["0", [], "rich\n"]);
  const code =
    "import threading, time\ndef late():\n    while not os.path.exists('go'): time.sleep(0.01)\n    display(7)\n    open('shown', 'w').close()\nthreading.Thread(target=late).start()";
  assert.deepEqual((await repl.exec(code)).displays, []);
  writeFileSync(path.join(repl.home, "go"), "");
  await eventually("the thread has shown it", async () => (await repl.exec("os.path.exists('shown')")).value === "True");
  const thread = await repl.exec("t = threading.Thread(target=display, args=(8,))\nt.start()\nt.join()");
  assert.deepEqual(thread.displays, [{ "text/plain": "8" }]);
});

testPython("an exception that ends a method is the user's, with none of our frames", async (repl) => {
  const code =
    "class Bad:\n    def _repr_html_(self): raise KeyboardInterrupt\ndef show(): display(Bad())\ntry:\n    1 / 0\nexcept Exception:\n    show()";
  const { exitCode, stderr } = await repl.exec(code);
  assert.equal(exitCode, 130);
  assert.match(stderr, /ZeroDivisionError[^]*During handling[^]*in show[^]*in _repr_html_[^]*KeyboardInterrupt\n$/);
  assert.doesNotMatch(stderr, /python\w*\.py/);
  const group = await repl.exec(
    "async def fail(): raise ValueError(1)\nimport asyncio\nasync with asyncio.TaskGroup() as g:\n    g.create_task(fail())",
  );
  assert.match(group.stderr, /ExceptionGroup[^]*in fail[^]*ValueError: 1/);
  assert.doesNotMatch(group.stderr, /python_\w+\.py|run_async/);
});

testPython("figures left open are shown and closed; show() shows at once", async (repl) => {
  // What matplotlib offers us, without matplotlib: the real one takes 30 MB.
  const files = {
    "__init__.py": "import os\nbackend = os.environ.get('MPLBACKEND')\n",
    "_pylab_helpers.py": "class Gcf:\n    figs = {}\n    @classmethod\n    def destroy(cls, n): del cls.figs[n]\n",
    "figure.py": "class Figure:\n    axes = lines = texts = images = [1]\n    def __repr__(self): return '<Figure>'\n" +
      "    def savefig(self, file, format, bbox_inches):\n        if self.axes is None: raise ValueError('no')\n        file.write(b'png')\n",
    "pyplot.py":
      "from . import figure as f, _pylab_helpers as h\nfrom types import SimpleNamespace as N\ndef show(): print('no screen')\n" +
      "def figure():\n    n = len(h.Gcf.figs)\n    fig = f.Figure()\n    h.Gcf.figs[n] = N(canvas=N(figure=fig))\n    return fig\n",
  };
  await repl.exec("import os\nos.mkdir('matplotlib')");
  for (const [name, text] of Object.entries(files)) writeFileSync(path.join(repl.home, "matplotlib", name), text);
  const picture = { "text/plain": "<Figure>", "image/png": "cG5n" };
  assert.deepEqual((await repl.exec("import matplotlib.pyplot as plt\nx = plt.figure(), plt.figure()")).displays, [picture, picture]);
  assert.equal(await repl.value("plt.h.Gcf.figs, __import__('matplotlib').backend"), "({}, 'agg')");
  assert.deepEqual((await repl.exec("x = plt.figure()\nplt.show()\nlen(plt.h.Gcf.figs)")).value, "0");
  assert.deepEqual((await repl.exec("plt.figure()")).displays, [picture], "the value, and not once more");
  assert.deepEqual((await repl.exec("x = plt.figure()\n1 / 0")).displays, [picture]);
  const { exitCode, displays, stderr } = await repl.exec("x = plt.figure()\nx.axes = None");
  assert.deepEqual([exitCode, displays, stderr], [0, [], "Cannot draw Figure: ValueError: no\n"]);
});

/** A directory with matplotlib, and perhaps pandas and IPython, for the interpreter, as `pip install --target` makes it. */
const LIBRARIES = process.env["SBX_TEST_PYTHON_LIBRARIES"];
const skipLibraries = PYTHON.skip || (LIBRARIES ? false : "needs SBX_TEST_PYTHON_LIBRARIES");

test("Python: matplotlib shows what it has", { skip: skipLibraries }, async (t: TestContext) => {
  const repl = await Repl.start(t, PYTHON);
  await repl.exec(`import sys\nsys.path.append(${JSON.stringify(LIBRARIES)})`);
  const isPng = (data: unknown) => /^iVBORw0KGgo/.test((data as Record<string, string>)["image/png"] ?? "");
  const open = await repl.exec("import matplotlib.pyplot as plt\nlines = plt.plot([1, 2, 3])");
  assert.deepEqual([open.exitCode, open.displays.map(isPng)], [0, [true]], open.stderr);
  const shown = await repl.exec("lines = plt.plot([1])\nplt.show()\nplt.get_fignums()");
  assert.deepEqual([shown.value, shown.displays.map(isPng), shown.stderr], ["[]", [true], ""]);
  assert.deepEqual((await repl.exec("fig, axes = plt.subplots()\nfig")).displays.map(isPng), [true]);
  const broken = await repl.exec("title = plt.title('$\\\\frac{$')");
  assert.deepEqual([broken.exitCode, broken.displays], [0, []]);
  assert.match(broken.stderr, /^Cannot draw Figure: ValueError: [^\n]+\n$/);
});

const skipMore = skipLibraries ||
  (["pandas", "IPython"].every((name) => existsSync(path.join(LIBRARIES ?? "", name))) ? false : "needs pandas and IPython");

test("Python: pandas and IPython show what they have", { skip: skipMore }, async (t: TestContext) => {
  const repl = await Repl.start(t, PYTHON);
  await repl.exec(`import sys\nsys.path.append(${JSON.stringify(LIBRARIES)})`);
  const [frame] = (await repl.exec("import pandas\npandas.DataFrame({'a': [1]})")).displays as Record<string, string>[];
  assert.match(frame?.["text/html"] ?? "", /<table/);
  const [html] = (await repl.exec("from IPython.display import display, HTML\ndisplay(HTML('<b>x</b>'))")).displays as Record<
    string,
    string
  >[];
  assert.equal(html?.["text/html"], "<b>x</b>");
});

testPython("code reads its standard input, and so do its children; then it is at its end again", async (repl) => {
  const code = "first = input('? ')\nimport sys, os, subprocess\n(first, sys.stdin.readline())";
  const { value, stdout } = await repl.exec(code, { flags: STDIN, stdin: "one\ntwo\nthree\n" });
  assert.deepEqual([value, stdout], ["('one', 'two\\n')", "? "]);
  assert.match((await repl.exec("input()")).stderr, /EOFError/);
  assert.equal((await repl.exec("subprocess.run(['cat']).returncode", { flags: STDIN, stdin: "child\n" })).stdout, "child\n");
  assert.equal((await repl.exec("subprocess.run(['cat']).returncode")).stdout, "");
  assert.equal((await repl.exec("os.read(0, 3)", { flags: STDIN, stdin: "raw" })).value, "b'raw'");
  assert.equal((await repl.exec("pass", { flags: STDIN, stdin: "unread" })).exitCode, 0);
  assert.equal(await repl.value("sys.stdin.read(), os.read(0, 1)"), "('', b'')");
});

for (
  const [what, code, wanted] of [
    ["plain code ends at once", "print(1)", { exitCode: 0, stdout: "1\n", stderr: /^$/ }],
    [
      "threads are waited for, then atexit functions run, last first",
      "import threading, time, atexit\natexit.register(print, 'first')\natexit.register(print, 'last')\n" +
      "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'))).start()\nprint('main')",
      { exitCode: 0, stdout: "main\nthread\nlast\nfirst\n", stderr: /^$/ },
    ],
    [
      "a failing thread and a failing atexit function do not change the exit code",
      "import threading, atexit\natexit.register(lambda: 1 / 0)\nthreading.Thread(target=lambda: {}['key']).start()",
      { exitCode: 0, stdout: "", stderr: /KeyError: 'key'[^]*Exception ignored in atexit callback[^]*ZeroDivisionError/ },
    ],
    [
      "sys.exit decides the code, and a daemon thread is not waited for",
      "import threading, time, atexit, sys\natexit.register(print, 'bye')\n" +
      "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nsys.exit(7)",
      { exitCode: 7, stdout: "bye\n", stderr: /^$/ },
    ],
    [
      "an exception is reported before the threads end",
      "import threading, time, sys\nthreading.Thread(target=lambda: (threading.main_thread().join(), print('late', file=sys.stderr))).start()\n1 / 0",
      { exitCode: 1, stdout: "", stderr: /^Traceback[^]*ZeroDivisionError: division by zero\nlate\n$/ },
    ],
    [
      "tasks that still run are cancelled, as asyncio.run does it",
      "import asyncio\nasync def work():\n    try:\n        await asyncio.sleep(60)\n    finally:\n        print('cancelled')\n" +
      "task = asyncio.create_task(work())\nawait asyncio.sleep(0)",
      { exitCode: 0, stdout: "cancelled\n", stderr: /^$/ },
    ],
    [
      "executors finish their work",
      "from concurrent.futures import ThreadPoolExecutor\nimport time\n" +
      "future = ThreadPoolExecutor(1).submit(lambda: (time.sleep(0.2), print('done')))",
      { exitCode: 0, stdout: "done\n", stderr: /^$/ },
    ],
    [
      "child processes of multiprocessing are waited for",
      "import multiprocessing\nmultiprocessing.Process(target=print, args=('child',)).start()",
      { exitCode: 0, stdout: "child\n", stderr: /^$/ },
    ],
    [
      "a stream of the program's own lasts to its end",
      "import atexit, sys\nsys.stdout = open('log', 'w')\n_ = atexit.register(lambda: (print('x', flush=True), sys.stderr.write(open('log').read())))",
      { exitCode: 0, stdout: "", stderr: /^x\n$/ },
    ],
  ] as const
) {
  testPython(`at the end of a program ${what}`, async (repl) => {
    const { exitCode, stdout, stderr } = await repl.exec(code, { flags: FINAL });
    assert.deepEqual({ exitCode, stdout }, { exitCode: wanted.exitCode, stdout: wanted.stdout }, stderr);
    assert.match(stderr, wanted.stderr);
    assert.doesNotMatch(stderr, /python_\w+\.py/);
  });
}

testPython("nothing of the end happens in an execution that is not final", async (repl) => {
  const code =
    "import atexit, threading, time\natexit.register(print, 'bye')\nthread = threading.Thread(target=time.sleep, args=(30,))\nthread.daemon = False\nthread.start()";
  assert.equal((await repl.exec(code)).stdout, "");
  assert.equal(await repl.value("thread.is_alive()"), "True");
});

for (
  const [what, code] of [
    ["threads are waited for", "import threading, time\nthreading.Thread(target=time.sleep, args=(30,)).start()"],
    ["a function of atexit runs", "import atexit, time\natexit.register(time.sleep, 30)"],
    [
      "tasks are cancelled",
      "import asyncio\nasync def stay():\n    while True:\n        try:\n            await asyncio.sleep(30)\n" +
      "        except asyncio.CancelledError: pass\nt = asyncio.create_task(stay())\nawait asyncio.sleep(0)",
    ],
  ] as const
) {
  testPython(`SIGINT ends the program while ${what}`, async (repl) => {
    const running = repl.exec(`import atexit\natexit.register(print, 'bye')\n${code}\nopen('started', 'w').close()`, { flags: FINAL });
    await eventually("it has started", async () => await exists(path.join(repl.home, "started")));
    await sleep(200);
    repl.interrupt();
    const { exitCode, stdout, stderr } = await running;
    assert.deepEqual([exitCode, stdout], [130, "bye\n"], stderr);
    assert.match(stderr, /KeyboardInterrupt/);
    assert.doesNotMatch(stderr, /python_\w+\.py/);
  });
}

async function exists(file: string): Promise<boolean> {
  const { access } = await import("node:fs/promises");
  return await access(file).then(() => true, () => false);
}

noLeftovers();
