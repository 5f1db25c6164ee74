/** `sbx session` as people use it: the real program in a real terminal, or with pipes, on real VMs. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { childrenOf, noLeftovers, processesWith, runs, temporaryDirectory } from "../support/leftovers.ts";
import { reasonToSkip } from "../support/scheduler.ts";
import { eventually } from "../support/waiting.ts";
import { ANSWER_MS, envOf, prompt, skipTerminal } from "./cli_prompt.ts";
import { commandLine, type Ended, quoted, sbx, Terminal } from "./cli_terminal.ts";

const skip = reasonToSkip() ?? false;
/** Baking under emulation on a loaded machine takes its time. */
const TIMEOUT_MS = 600_000;

const testPiped = (name: string, body: (t: TestContext) => Promise<void>) => test(name, { skip, timeout: TIMEOUT_MS }, body);
const testTerminal = (name: string, body: (t: TestContext) => Promise<void>) =>
  test(name, { skip: skipTerminal, timeout: TIMEOUT_MS }, body);

const piped = (t: TestContext, stdin: string, args: readonly string[] = []): Promise<Ended> =>
  sbx(["session", "-q", ...args], { stdin, env: envOf(temporaryDirectory(t)) });

testTerminal("Python: values, blocks, tracebacks, names, and a history that lasts and is private", async (t) => {
  const directory = temporaryDirectory(t);
  {
    await using repl = await prompt({ directory });
    assert.match(await repl.terminal.screen(), /^sbx \d\S* · Python in a VM of its own/);
    await repl.line("x = 20", /x = 20\npy>$/);
    await repl.line("x + 22", /\n42\npy>$/);
    await repl.line("print('out', end='')", /\nout\npy>$/);
    await repl.line("None", /None\npy>$/);
    await repl.line("def double(n):", /double\(n\):\n\.\.\.$/);
    await repl.line("return n * 2", /return n \* 2\n\.\.\.$/);
    await repl.press("Enter", /\.\.\.\npy>$/);
    await repl.line("double('é🎈')", /'é🎈é🎈'\npy>$/);
    await repl.line("1 / 0", /ZeroDivisionError[^\n]*\npy>$/);
    await repl.terminal.type("doub");
    await repl.press("Tab", /py> double\(?$/);
    await repl.terminal.press("C-u");
    await repl.terminal.type(":down");
    await repl.press("Tab", /py> :download$/);
    await repl.press("C-c", /:download *\^C\npy>$/);
    await repl.line(":dwonload", /Did you mean :download\?/);
    await repl.leave();
  }
  const file = path.join(directory, "history", "python.jsonl");
  assert.equal((await fs.stat(file)).mode & 0o777, 0o600);
  await using repl = await prompt({ directory });
  await repl.press("Up", /py> :dwonload$/);
  await repl.press("Up", /py> 1 \/ 0$/);
  await repl.terminal.press("C-c");
  await repl.terminal.press("C-r");
  await repl.terminal.type("return");
  await repl.press("Enter", /def double\(n\):\n\.\.\. {5}return n \* 2[^]*py>$/);
  await repl.line("double(4)", /\n8\npy>$/);
  await repl.line("exit()", /\[status 0\]/);
});

testTerminal("Ctrl-C interrupts and keeps what there is; endings and time-outs are told", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["-q"] });
  await repl.line("x = 7", /x = 7\npy>$/);
  await repl.line("import time; print('runs'); time.sleep(1000)", /\nruns$/);
  await repl.press("C-c", /\^C[^]*KeyboardInterrupt\npy>$/);
  await repl.line("x", /\n7\npy>$/);
  await repl.line("import sys; sys.exit(9)", /exit code 9\npy>$/);
  await repl.line("x * 2", /\n14\npy>$/);
  await repl.terminal.press("C-l");
  await repl.line("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf'); time.sleep(1000)", /\ndeaf$/);
  await repl.press("C-c", /it still runs; Ctrl-C again ends it/);
  await repl.press("C-c", /sbx: The code did not stop and was ended[^]*py>$/);
  await repl.line("x", /NameError[^\n]*\npy>$/);
  await repl.terminal.press("C-l");
  await repl.line("import os; os._exit(3)", /exit code 3\nsbx: The python process was replaced: variables are gone, files are kept\npy>$/);
  await repl.line(":timeout 1", /code may run 1 s\npy>$/);
  await repl.line("import time; time.sleep(1000)", /ran out of time and was ended[^]*variables are gone[^]*py>$/);
  await repl.line("'alive'", /'alive'\npy>$/);
  await repl.leave();
});

testTerminal("files go in and out, and :reset leaves nothing behind", async (t) => {
  const directory = temporaryDirectory(t);
  await fs.mkdir(path.join(directory, "in"));
  await fs.writeFile(path.join(directory, "in", "a file.txt"), "hello");
  await fs.writeFile(path.join(directory, "first.txt"), "first");
  await using repl = await prompt({
    directory,
    args: ["-q", "--upload", path.join(directory, "first.txt")],
    size: { columns: 160, rows: 40 },
  });
  await repl.line(":files", /5 {2}\d{4}-\d\d-\d\d \d\d:\d\d {2}first\.txt\npy>$/);
  await repl.terminal.type(`:upload ${directory}/in/a`);
  await repl.press("Tab", /a\\ file\.txt$/);
  await repl.line("", /→ a file\.txt, 5 B\npy>$/);
  await repl.line("open('a file.txt').read()", /'hello'\npy>$/);
  await repl.line("import os; os.mkdir('out'); open('out/r.txt', 'w').write('result')", /\n6\npy>$/);
  await repl.terminal.type(":download ou");
  await repl.press("Tab", /:download out\/$/);
  await repl.line(` ${directory}/got`, /→ \S*got, 6 B\npy>$/);
  assert.equal(await fs.readFile(path.join(directory, "got", "r.txt"), "utf8"), "result");
  await repl.line(":download ../etc/passwd", /sbx: Cannot [^\n]*\.\.[^]*py>$/);
  await repl.line(":reset", /new VM: Python; the one before is gone/);
  await repl.line(
    "'x' in globals(), sorted(os.listdir('.')) if 'os' in globals() else __import__('os').listdir('.')",
    /\(False, \['first\.txt'\]\)\npy>$/,
  );
  await repl.leave();
});

testTerminal("JavaScript and bash have their prompts; :lang goes from one to the other", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["-q", "-l", "ts"] });
  await repl.line("const sumOfTwo = (a: number, b: number) => {", /=> \{\n\.\.\.$/);
  await repl.line("return a + b", /return a \+ b\n\.\.\.$/);
  await repl.line("}", /\n\.\.\. \}\njs>$/);
  await repl.terminal.type("sumOf");
  await repl.press("Tab", /js> sumOfTwo\(?$/);
  await repl.press("C-u", /js>$/);
  await repl.line("sumOfTwo(40, 2)", /\n42\njs>$/);
  await repl.line("[1, 'two']", /\[ ?1, ["']two["'] ?\]\njs>$/);
  await repl.line(":lang sh", /new VM: bash; the one before is gone[^]*sh>$/);
  await repl.line("for i in 1 2; do", /do\n\.\.\.$/);
  await repl.line("echo $i", /echo \$i\n\.\.\.$/);
  await repl.line("done", /done\n1\n2\nsh>$/);
  await repl.line("cd /tmp; pwd", /\n\/tmp\nsh>$/);
  await repl.line("pwd", /pwd\n\/tmp\nsh>$/);
  await repl.line("greeting=hello", /greeting=hello\nsh>$/);
  await repl.terminal.type("echo $greet");
  await repl.press("Tab", /echo \$greeting *$/);
  await repl.line("", /\nhello\nsh>$/);
  await repl.leave();
});

testTerminal("a pasted block runs as a whole, and the screen follows the terminal's size", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["-q"] });
  await repl.terminal.paste("def f(n):\n    if n:\n        return 'yes'\n\n    return 'no'\n");
  await repl.terminal.shows(/return 'no'\n\.\.\.$/, ANSWER_MS);
  await repl.press("Enter", /\.\.\.[^\n]*\npy>$/);
  await repl.line("f(1), f(0)", /\('yes', 'no'\)\npy>$/);
  await repl.terminal.type("y = " + "'0123456789' + ".repeat(8) + "''");
  await repl.terminal.resize(60, 30);
  await repl.line("", /\+ ''\npy>$/);
  await repl.line("len(y)", /\n80\npy>$/);
  await repl.leave();
});

const SHOW_PNG = "class P:\n    def _repr_png_(self):\n        import zlib, struct\n" +
  "        c = lambda t, d: struct.pack('>I', len(d)) + t + d + struct.pack('>I', zlib.crc32(t + d))\n" +
  "        return b'\\x89PNG\\r\\n\\x1a\\n' + c(b'IHDR', struct.pack('>IIBBBBB', 2, 1, 8, 2, 0, 0, 0)) + c(b'IDAT', zlib.compress(b'\\0\\xff\\0\\0\\xff\\0\\0')) + c(b'IEND', b'')\n\n";

testTerminal("images are drawn where the terminal can, and are files where it cannot", async (t) => {
  const directory = temporaryDirectory(t);
  for (
    const [what, env, drawn] of [
      ["kitty", ["-u TMUX", "TERM=xterm-256color", "KITTY_WINDOW_ID=1"], "\x1b_Ga=T,f=100,q=2,m=0;iVBORw0KGgo"],
      ["iTerm2", ["-u TMUX", "TERM=xterm-256color", "TERM_PROGRAM=iTerm.app"], "\x1b]1337;File=inline=1;size="],
      ["sixel", ["EXEC_SANDBOX_TERMINAL_IMAGES=sixel"], '\x1bPq"1;1;2;1#210;2;100;0;0#210@@\x1b\\'],
      ["none", ["TERM_PROGRAM=tmux"], undefined],
    ] as const
  ) {
    await using repl = await prompt({ directory, args: ["-q"], env, size: { columns: 160, rows: 40 } });
    const file = path.join(directory, what);
    await repl.terminal.record(file);
    await repl.terminal.paste(SHOW_PNG);
    await repl.terminal.shows(/IEND[^]*\.\.\.$/, ANSWER_MS);
    await repl.press("Enter", /\.\.\.[^\n]*\npy>$/);
    if (drawn === undefined) {
      const screen = await repl.line("P()", /image: \S+\.png\n[^]*py>$/);
      const image = /image: (\S+\.png)/.exec(screen)?.[1] ?? "";
      assert.ok(image.startsWith(path.join(directory, "figures")), image);
      assert.deepEqual([...(await fs.readFile(image)).subarray(1, 4)], [...Buffer.from("PNG")]);
    } else {
      await repl.terminal.type("P()");
      await repl.terminal.press("Enter");
      await eventually(`${what} is drawn`, async () => existsSync(file) && (await fs.readFile(file, "latin1")).includes(drawn));
      await repl.terminal.shows(/py>$/, ANSWER_MS);
    }
    await repl.leave();
  }
});

testTerminal("SIGTERM gives the terminal back; SIGKILL leaves no QEMU", async (t) => {
  const directory = temporaryDirectory(t);
  const qemus = () => processesWith(directory).filter((pid) => readFileSync(`/proc/${pid}/cmdline`, "latin1").includes("qemu"));
  {
    await using repl = await prompt({ directory });
    await repl.line("1", /\n1\npy>$/);
    process.kill(repl.pid(), "SIGTERM");
    await repl.terminal.shows(/^icanon\n\[status 143\]/m, ANSWER_MS);
    await eventually("no QEMU is left", () => qemus().length === 0);
  }
  await using repl = await prompt({ directory });
  await repl.line("1", /\n1\npy>$/);
  const children = childrenOf(repl.pid()).flatMap((pid) => [pid, ...childrenOf(pid)]);
  assert.ok(children.length > 0, "it has children");
  process.kill(repl.pid(), "SIGKILL");
  await eventually("no child is left", () => children.filter(runs).length === 0);
});

testTerminal("a terminal that goes away takes sbx and its VM with it", async (t) => {
  const directory = temporaryDirectory(t);
  const states: ReadonlyArray<readonly [what: string, args: readonly string[], waitFor: RegExp, line: string | undefined, shows: RegExp]> =
    [
      ["at the prompt", ["-q"], /py>$/, undefined, /py>$/],
      ["while code runs", ["-q"], /py>$/, "import time; print('runs', flush=True); time.sleep(1000)", /\nruns$/],
      ["in :shell", ["-q"], /py>$/, ":shell", /\$$/],
      ["in --shell", ["-q", "--shell"], /\$$/, "sleep 1000", /sleep 1000$/],
    ];
  for (const [what, args, waitFor, line, shows] of states) {
    let pids: readonly number[] = [];
    {
      await using repl = await prompt({ directory, args, waitFor });
      if (line !== undefined) await repl.line(line, shows);
      await eventually(`a VM runs ${what}`, () => childrenOf(repl.pid()).length > 0); // The prompt does not wait for it.
      pids = [repl.pid(), ...childrenOf(repl.pid()).flatMap((pid) => [pid, ...childrenOf(pid)])];
    }
    await eventually(`nothing is left of what was ${what}`, () => pids.filter(runs).length === 0);
  }
});

testTerminal("a VM that dies is told, and :reset starts another", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["-q"] });
  await repl.line("x = 1", /x = 1\npy>$/);
  const kill = () => childrenOf(repl.pid()).forEach((pid) => process.kill(pid, "SIGKILL"));
  kill();
  await repl.line("x", /sbx: [^\n]*VM was lost[^]*:reset starts another VM[^]*py>$/);
  await repl.line(":files", /:files\nsbx: [^\n]*VM was lost[^]*py>$/);
  await repl.line(":reset", /new VM: Python[^]*py>$/);
  await repl.line("import time; print('runs', flush=True); time.sleep(1000)", /\nruns$/);
  kill();
  await repl.terminal.shows(/runs\nsbx: [^\n]*VM was lost[^]*py>$/, ANSWER_MS);
  await repl.leave();
});

testTerminal("Ctrl-Z stops sbx as any program, with the terminal as it was; fg goes on", async (t) => {
  const directory = temporaryDirectory(t);
  const pairs = Object.entries(envOf(directory)).map(([name, value]) => quoted(`${name}=${value}`));
  await using terminal = await Terminal.open("PS1='outer> ' bash --norc --noprofile -i");
  const line = async (text: string, pattern: RegExp) => {
    await terminal.type(text);
    await terminal.press("Enter");
    await terminal.shows(pattern, ANSWER_MS);
  };
  await terminal.shows(/outer>$/, ANSWER_MS);
  await line(`clear; env ${pairs.join(" ")} ${commandLine(["session", "-q"])}`, /py>$/);
  await line("x = 41", /x = 41\npy>$/);
  await terminal.type("x +");
  await terminal.press("C-z");
  await terminal.shows(/Stopped[^]*outer>$/, ANSWER_MS);
  await line('stty -a | grep -o -- "-*icanon"', /^icanon\nouter>$/m);
  await line("fg", /py> *(x \+)?$/);
  await terminal.press("C-u");
  await line("x + 1", /\n42\npy>$/);
  await terminal.press("C-d");
  await terminal.shows(/outer>$/, ANSWER_MS);
  await terminal.type("exit");
  await terminal.press("Enter");
  assert.equal(await terminal.exitCode(ANSWER_MS), 0);
});

testTerminal("a shell has a terminal of its own: colours, keys, job control, size, status", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["-q"] });
  await repl.line(":shell", /\$$/);
  await repl.line("tty; echo $TERM; id -un", /\/dev\/pts\/\d+\n\S+\nuser\n[^\n]*\$$/);
  await repl.line("stty size", /\n30 100\n/);
  await repl.terminal.resize(80, 24);
  await repl.until("stty size", /\n24 80\n/); // It is told to the shell beside what is typed.
  // What speaks for itself has the terminal: a key before that would be the shell's own.
  await repl.line("sh -c 'echo o$((0)); exec sleep 1000'", /\no0$/);
  await repl.press("C-c", /\^C\n[^\n]*\$$/);
  await repl.line("sh -c 'echo o$((1)); exec sleep 1001'", /\no1$/);
  await repl.press("C-z", /Stopped[^\n]*sleep 1001'\n[^\n]*\$$/);
  await repl.line('kill -KILL %1; while [ "$(jobs -s)" ]; do sleep .1; done; echo gone', /\ngone\n[^\n]*\$$/);
  await repl.line("exit 5", /the shell ended with 5; back at the prompt\npy>$/);
  await repl.line("1 + 1", /\n2\npy>$/);
  await repl.line(":shell", /\$$/);
  await repl.press("C-d", /back at the prompt\npy>$/);
  await repl.leave();
});

testTerminal("--shell is a shell and nothing else, and ends with its status", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["--shell", "-l", "sh"], waitFor: /\$$/ });
  await repl.line("echo $0 $((6 * 7))", /bash 42\n/);
  await repl.line("exit 6", /icanon\n\[status 6\]/);
});

testPiped("standard input runs block by block in one session", async (t) => {
  const program = "x = 20\nx + 22\ndef f():\n    return 'f'\nprint(f())\nif x:\n    print('if')\nelse:\n    print('else')\n" +
    "s = '''\nlines\n'''\nprint(s, end='')\n";
  const { code, stdout, stderr } = await piped(t, program);
  assert.deepEqual([code, stdout, stderr], [0, "42\nf\nif\n\nlines\n", ""]);
});

testPiped("what fails gives the status, and what follows still runs; exit leaves", async (t) => {
  const { code, stdout, stderr } = await piped(t, "1/0\nprint('alive')\nimport sys\nsys.exit(7)\nprint('never')\n");
  assert.deepEqual([code, stdout], [7, "alive\n"]);
  assert.match(stderr, /ZeroDivisionError/);
  assert.equal((await piped(t, "while True: pass", ["-t", "1"])).code, 124);
  assert.equal((await piped(t, "echo one\nif true; then\n  echo two\nfi\nexit 3\necho never\n", ["-l", "sh"])).code, 3);
});

testPiped("--json prints a line for each block", async (t) => {
  const { code, stdout, stderr } = await piped(t, "const x = 20\nx + 22\nthrow new Error('no')\n", ["-l", "js", "--json"]);
  assert.deepEqual([code, stderr], [1, ""]);
  const lines = stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(lines.map((each) => [each.line, each.exit_code, each.value]), [[1, 0, null], [2, 0, "42"], [3, 1, null]]);
});

testPiped("bad input is refused before a VM is started", async (t) => {
  assert.deepEqual(await piped(t, "", ["--shell"]), {
    code: 2,
    signal: null,
    stdout: "",
    stderr: "sbx: Cannot open a shell: standard input and standard error must be a terminal\n",
  });
  const missing = await piped(t, "1", ["--upload", "/no/such/file"]);
  assert.deepEqual([missing.code !== 0, missing.stdout], [true, ""]);
  assert.match(missing.stderr, /\/no\/such\/file/);
});

noLeftovers();
