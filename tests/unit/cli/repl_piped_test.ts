/** `sbx session` without a terminal: which blocks run, what is printed, how it ends. */
import assert from "node:assert/strict";
import test from "node:test";
import { AssetError, OutcomeUnknownError, OutputLimitError } from "../../../src/base/errors.ts";
import { blocksOf } from "../../../src/cli/repl_blocks.ts";
import type { CodeState } from "../../../src/run/assist.ts";
import type { Language } from "../../../src/run/request.ts";
import { FakeOutput, type Ran, resultOf, sbx, type World } from "./fake_context.ts";
import { ended, FakeSession, type FakeSessionOptions } from "./fake_session.ts";

/** As Python has it, roughly: a block after a colon needs a blank line, a bracket its other half. */
function judge(code: string): CodeState {
  const isOpen = code.split("(").length > code.split(")").length || code.split('"""').length % 2 === 0;
  const isBlock = /^[^#\n]*:\s*$/m.test(code) && !/\n\s*\n$/.test(code);
  return { state: isOpen || isBlock ? "incomplete" : code.includes("= =") ? "invalid" : "complete", indent: "" };
}

async function blocks(input: string, language: Language = "python"): Promise<string[]> {
  const found: string[] = [];
  for await (const { text, line } of blocksOf(input, () => language, async (code) => judge(code).state !== "incomplete")) {
    found.push(`${line}:${text}`);
  }
  return found;
}

interface Piped extends Ran {
  readonly sessions: readonly FakeSession[];
  readonly executed: readonly string[];
}

async function piped(stdin: string, options: FakeSessionOptions & { args?: readonly string[]; world?: World } = {}): Promise<Piped> {
  const sessions: FakeSession[] = [];
  const ran = await sbx(["session", "-q", ...options.args ?? []], {
    stdin,
    session: (request) => {
      const session = new FakeSession({ isComplete: judge, ...options, language: request.language });
      sessions.push(session);
      return Promise.resolve(session);
    },
    ...options.world,
  });
  return { ...ran, sessions, executed: sessions.flatMap((session) => session.executed.map(({ code }) => code)) };
}

test("statements are blocks of their own; compound ones keep what belongs to them", async () => {
  assert.deepEqual(await blocks("x = 1\nprint(x)\n\n\ny\n"), ["1:x = 1", "2:print(x)\n\n", "5:y\n"].map((text) => text));
  assert.deepEqual(await blocks("def f():\n    return 1\n\n    # more\nprint(f())"), [
    "1:def f():\n    return 1\n\n    # more",
    "5:print(f())",
  ]);
  assert.deepEqual(await blocks("if x:\n  a\nelse:\n  b\nc"), ["1:if x:\n  a\nelse:\n  b", "5:c"]);
  assert.deepEqual(await blocks('s = """\na\nb\n"""\nf(\n1\n)\n'), ['1:s = """\na\nb\n"""', "5:f(\n1\n)\n"]);
  assert.deepEqual(await blocks("x = = 1\ny"), ["1:x = = 1", "2:y"]);
  assert.deepEqual(await blocks("\uFEFFx\r\ny\r\n"), ["1:x", "2:y\n"]);
});

test("JavaScript goes on where the next line says so; bash reads its program itself", async () => {
  assert.deepEqual(await blocks("f()\n  .then(g)\nif (a) {}\nelse {}\nx", "javascript"), [
    "1:f()\n  .then(g)",
    "3:if (a) {}\nelse {}",
    "5:x",
  ]);
  assert.deepEqual(await blocks("if true\nthen echo\nfi\nexit 3\n:files\necho", "raw"), [
    "1:if true\nthen echo\nfi\nexit 3",
    "5::files",
    "6:echo",
  ]);
});

test("a command is one only where no block is open", async () => {
  assert.deepEqual(await blocks(":files\nx\n:reset\n"), ["1::files", "2:x", "3::reset"]);
  assert.deepEqual(await blocks('s = """\n:files\n"""'), ['1:s = """\n:files\n"""']);
});

test("nothing, and white space, run nothing", async () => {
  for (const input of ["", "\n \n\t\n"]) {
    const { code, stdout, stderr, executed } = await piped(input);
    assert.deepEqual([code, stdout, stderr, executed], [0, "", "", []]);
  }
});

test("blocks run in one session; output passes through and values are printed", async () => {
  const { code, stdout, stderr, executed, sessions, closed } = await piped("x = 1\nx + 1\n", {
    async *execute({ code }) {
      yield { type: "stdout", text: `${code}\n` };
      yield { type: "stderr", text: "err" };
      yield ended(code.startsWith("x +") ? { value: "2" } : {});
    },
  });
  assert.deepEqual([code, stdout, stderr], [0, "x = 1\nx + 1\n\n2\n", "errerr"]);
  assert.deepEqual([executed, sessions.length, sessions[0]?.closed, closed], [["x = 1", "x + 1\n"], 1, true, 1]);
});

test("what follows a failed block runs, and the status tells of the last failure", async () => {
  const execute: FakeSessionOptions["execute"] = async function* ({ code }) {
    yield ended({ exitCode: Number(code) });
  };
  const { code, executed } = await piped("0\n3\n4\n0", { execute });
  assert.deepEqual([code, executed], [4, ["0", "3", "4", "0"]]);
});

for (
  const [what, result, code, said] of [
    ["a time-out", { exitCode: -1, timedOut: true, stateReset: true }, 124, /ran out of time[^]*variables are gone/],
    ["a lost status", { exitCode: -1 }, 125, /ended without a status/],
    ["a signal", { exitCode: 139 }, 139, /^$/],
  ] as const
) {
  test(`${what} gives its status, as in run`, async () => {
    const ran = await piped("x", {
      async *execute() {
        yield ended(result);
      },
    });
    assert.equal(ran.code, code);
    assert.match(ran.stderr, said);
  });
}

test("exit leaves with its status, and nothing after it runs", async () => {
  for (
    const [line, status] of [["exit()", 0], ["sys.exit(3)", 3], ["quit", 0], ["process.exit(4);", 4], ["exit(256)", 0], [
      "exit 7",
      7,
    ]] as const
  ) {
    const { code, executed } = await piped(`x\n${line}\ny`);
    assert.deepEqual([code, executed], [status, ["x"]], line);
  }
});

test("what only looks like an exit runs", async () => {
  for (const line of ["process.exit", "sys.exit", "exit = 3", "exiting", "sys.exit(f())", "x.exit(3)", "quit_it()"]) {
    const { executed } = await piped(`${line}\ny`);
    assert.deepEqual(executed, [line, "y"], line);
  }
});

test("a lost VM ends the session with 125", async () => {
  const { code, executed, stderr } = await piped("x\ny", {
    async *execute() {
      yield* [];
      throw new OutcomeUnknownError("Cannot tell how the code ended: the VM was lost");
    },
  });
  assert.deepEqual([code, executed.length], [125, 2]);
  assert.match(stderr, /the VM was lost/);
});

test("--json prints a line for each block, and nothing else on standard output", async () => {
  const { code, stdout, stderr } = await piped("x\n:files\ny\nz", {
    args: ["--json"],
    files: { "a.txt": "1" },
    async *execute({ code }) {
      if (code === "z") {
        throw new OutputLimitError("Cannot keep the output: stdout", { result: resultOf({ stdout: "part", stateReset: true }) });
      }
      yield { type: "stdout", text: "out" };
      yield { type: "display", data: { "text/plain": "shown" } };
      yield ended(code === "y" ? { exitCode: 1, stdout: "out", value: "\x1b", results: [{ "text/plain": "shown" }] } : { stdout: "out" });
    },
  });
  assert.equal(code, 125);
  assert.equal(stderr, "1  1970-01-01 00:00  a.txt\n");
  const lines = stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(
    lines.map(({ line, exit_code, value, results, state_reset, error }) => [line, exit_code, value, results, state_reset, error?.code]),
    [
      [1, 0, null, [], false, undefined],
      [3, 1, "\x1b", [{ "text/plain": "shown" }], false, undefined],
      [4, 0, null, [], true, "SBX_OUTPUT_LIMIT"],
    ],
  );
});

test("commands work without a terminal, but for the shell", async () => {
  const { code, stderr, stdout, sessions, executed } = await piped(":lang js\n1\n:shell\n:nonsense\n:quit\n2");
  assert.equal(code, 2);
  assert.match(stderr, /Cannot open a shell: .*must be a terminal\n[^]*Cannot run :nonsense/);
  assert.deepEqual([stdout, sessions.map((session) => [session.language, session.closed]), executed], [
    "",
    [["python", true], ["javascript", true]],
    ["1"],
  ]);
});

test("input that is no UTF-8, a shell without a terminal, and options that do not fit are refused", async () => {
  const dumb = await sbx(["session", "--shell"], { isStdinTty: true, env: { TERM: "dumb" } });
  assert.match(dumb.stderr, /must be a terminal\nTERM=dumb stands for/);
  const bytes = await sbx(["session"], { stdin: new Uint8Array([0x78, 0xff]), session: async () => new FakeSession() });
  assert.deepEqual([bytes.code, bytes.stderr], [2, "sbx: Cannot read standard input: code must be UTF-8\n"]);
  for (
    const [args, said] of [
      [["--shell"], /must be a terminal/],
      [["--shell", "--json"], /exclude each other/],
      [["-t", "0"], /--timeout: must be between 1 and 300 seconds, got "0"/],
      [["-m", "64"], /--memory: must be a whole number of at least 128/],
      [["-l", "cobol"], /--language: must be one of python/],
      [["-e", "X"], /--env: must be KEY=VALUE/],
      [["extra"], /too many arguments/],
    ] as const
  ) {
    const { code, stdout, stderr, opened } = await sbx(["session", ...args]);
    if (args.includes("--json" as never)) assert.match(stdout, said);
    else assert.match(stderr, said);
    assert.deepEqual([code, opened], [2, 0], args.join(" "));
  }
});

test("the options reach the session", async () => {
  let request: unknown;
  await sbx(["session", "-q", "-l", "ts", "-t", "5", "-m", "512", "-e", "A=1"], {
    stdin: "x",
    session: (given) => {
      const { signal: _signal, ...rest } = given;
      request = rest;
      return Promise.resolve(new FakeSession());
    },
  });
  assert.deepEqual(request, { language: "javascript", timeoutSeconds: 5, memoryMb: 512, env: { A: "1" } });
});

test("without images the reason is told, with its status", async () => {
  const session = () => Promise.reject(new AssetError("Cannot find the images"));
  for (const stdin of ["x", ""]) {
    const { code, stderr } = await sbx(["session", "-q"], { stdin, session });
    assert.deepEqual([code, stderr], [125, "sbx: Cannot find the images\n"]);
  }
});

test("a terminal as input, but not as output, is read to its end", async () => {
  const { code, stderr } = await piped("x", { world: { isStdinTty: true, stderr: new FakeOutput() } });
  assert.deepEqual([code, stderr], [0, "Reading code from the terminal; end it with Ctrl-D.\n"]);
});
