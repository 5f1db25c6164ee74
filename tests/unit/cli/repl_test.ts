/** `sbx session` at a terminal: what is typed, what runs, what is said. */
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import path from "node:path";
import test from "node:test";
import { OutcomeUnknownError, OutputLimitError } from "../../../src/base/errors.ts";
import type { SessionRequest } from "../../../src/run/session_request.ts";
import { temporaryDirectory } from "../../support/leftovers.ts";
import { eventually, settled } from "../../support/waiting.ts";
import { resultOf, type World } from "./fake_context.ts";
import { ended, FakeSession } from "./fake_session.ts";
import { openRepl } from "./fake_repl.ts";
import { ctrl, KEYS } from "./fake_terminal.ts";

test("what is typed runs, and its output and value are printed", async (t) => {
  const repl = openRepl(t, {
    async *execute({ code }) {
      yield { type: "stdout", text: `out of ${code}` };
      yield { type: "stderr", text: "err\n" };
      yield ended({ value: "42" });
    },
  });
  repl.enter("f(1)");
  await repl.shows(/42\npy>$/);
  assert.equal(repl.terminal.screen(), "py> f(1)\nout of f(1)err\n42\npy>");
  void repl.terminal.type(ctrl("d"));
  const { code, opened, closed } = await settled(repl.ended, "the end");
  assert.deepEqual([code, opened, closed, repl.terminal.isDisposed, repl.sessions[0]?.closed], [0, 1, 1, true, true]);
});

test("typing does not wait for the VM, and what was entered runs when it is there", async (t) => {
  const gate = Promise.withResolvers<FakeSession>();
  const repl = openRepl(t, { world: { session: () => gate.promise } });
  await repl.terminal.type("x = 1");
  assert.equal(repl.terminal.screen(), "py> x = 1");
  repl.enter("");
  const session = new FakeSession();
  gate.resolve(session);
  await eventually("it ran", () => session.executed.length === 1);
  void repl.terminal.type("quit", KEYS.enter);
  assert.equal((await settled(repl.ended, "the end")).code, 0);
});

test("Ctrl-C while the VM starts gives the block back", async (t) => {
  const opening = Promise.withResolvers<FakeSession>();
  const session = ({ signal }: SessionRequest) => {
    signal?.addEventListener("abort", () => opening.reject(signal.reason));
    return opening.promise;
  };
  const repl = openRepl(t, { world: { session } });
  repl.enter("x = 1");
  await repl.shows(/x = 1/);
  void repl.terminal.type(ctrl("c"));
  await repl.shows(/x = 1\n[^]*\^C\npy>$/);
  void repl.terminal.type(ctrl("d"));
  assert.equal((await settled(repl.ended, "the end")).code, 0);
});

test("a block goes on until the guest says that it is complete", async (t) => {
  const repl = openRepl(t, {
    isComplete: (code) => /:\n.*\n\s*$/.test(code) ? { state: "complete", indent: "" } : { state: "incomplete", indent: "    " },
  });
  repl.enter("def f():", "return 1", "");
  await eventually("it ran", () => repl.sessions[0]?.executed.length === 1);
  assert.equal(repl.sessions[0]?.executed[0]?.code, "def f():\n    return 1\n    ");
  assert.match(repl.terminal.screen(), /^py> def f\(\):\n\.\.\. {5}return 1\n/);
});

test("Tab completes names by the guest, and leaves out what a terminal would act on", async (t) => {
  const repl = openRepl(t, {
    complete: (code) => ({ start: code.lastIndexOf(".") + 1, candidates: ["alpha", "al\x1b[2Jpha", "alpine\n"] }),
  });
  await repl.terminal.type("x.al");
  await repl.terminal.type(KEYS.tab);
  assert.equal(repl.terminal.screen(), "py> x.alpha");
});

test("Tab completes commands, languages, and files of either side", async (t) => {
  const directory = temporaryDirectory(t);
  await fs.writeFile(path.join(directory, "a file.txt"), "");
  const repl = openRepl(t, { files: { "data.csv": "1", "my dir": "/" } });
  for (
    const [typed, completed] of [
      [":up", ":upload"],
      [":lang j", ":lang javascript"],
      [":help pro", ":help processes"],
      [`:upload ${directory}/a`, `:upload ${directory}/a\\ file.txt`],
      [":upload x my", ":upload x my\\ dir/"],
      [":download da", ":download data.csv"],
      [":files my", ":files my\\ dir/"],
      [":files da", ":files da"],
    ]
  ) {
    await repl.terminal.type(typed ?? "");
    await repl.terminal.type(KEYS.tab);
    assert.equal(repl.terminal.screen().split("\n").at(-1)?.trimEnd(), `py> ${completed}`);
    await repl.terminal.type(ctrl("u"), ctrl("k"));
  }
});

test("Ctrl-C interrupts running code and keeps the session", async (t) => {
  const repl = openRepl(t, {
    async *execute({ code, interrupted }) {
      if (code !== "loop()") return yield ended({ value: "still here" });
      await interrupted;
      yield { type: "stderr", text: "KeyboardInterrupt\n" };
      yield ended({ exitCode: 130 });
    },
  });
  repl.enter("loop()");
  await eventually("it runs", () => repl.sessions[0]?.executed.length === 1);
  void repl.terminal.type(ctrl("c"));
  await repl.shows(/\^C\nKeyboardInterrupt\npy>$/);
  repl.enter("again()");
  await repl.shows(/still here\npy>$/);
  assert.deepEqual([repl.sessions.length, repl.sessions[0]?.interrupts], [1, 1]);
});

test("Ctrl-C forgets what was typed ahead", async (t) => {
  const repl = openRepl(t, {
    async *execute({ code, interrupted }) {
      if (code === "loop()") await interrupted;
      yield ended({ exitCode: code === "loop()" ? 130 : 0 });
    },
  });
  repl.enter("loop()");
  await eventually("it runs", () => repl.sessions[0]?.executed.length === 1);
  void repl.terminal.type("remove_everything()\r");
  void repl.terminal.type("mor");
  void repl.terminal.type(ctrl("c"));
  await repl.shows(/\^C\npy>$/);
  repl.enter("next()");
  await eventually("the next runs", () => repl.sessions[0]?.executed.length === 2);
  assert.deepEqual(repl.sessions[0]?.executed.map(({ code }) => code), ["loop()", "next()"]);
});

test("a second Ctrl-C ends code that ignores the first, and says so", async (t) => {
  const repl = openRepl(t, {
    async *execute({ options: { signal } }) {
      await new Promise((resolve) => signal?.addEventListener("abort", resolve));
      signal?.throwIfAborted();
      yield ended();
    },
  });
  repl.enter("loop()");
  await eventually("it runs", () => repl.sessions[0]?.executed.length === 1);
  void repl.terminal.type(ctrl("c"), ctrl("c"));
  void repl.terminal.type(ctrl("c"));
  await repl.shows(/sbx: The code did not stop and was ended\nVariables may be gone; files are kept\.\npy>$/);
});

test("a terminal that goes away ends code that ignores an interrupt, and the session", async (t) => {
  const repl = openRepl(t, {
    async *execute({ options: { signal } }) {
      await new Promise((resolve) => signal?.addEventListener("abort", resolve));
      signal?.throwIfAborted();
      yield ended();
    },
  });
  repl.enter("loop()");
  await eventually("it runs", () => repl.sessions[0]?.executed.length === 1);
  void repl.terminal.send({ type: "closed" });
  assert.equal((await settled(repl.ended, "the end")).code, 0);
  assert.equal(repl.sessions[0]?.closed, true);
});

test("Ctrl-C at the prompt clears the block, Ctrl-Z stops sbx, Ctrl-D leaves", async (t) => {
  const repl = openRepl(t);
  await repl.terminal.type("x = ", ctrl("c"));
  await repl.shows(/^py> x = \^C\npy>$/);
  await repl.terminal.type(ctrl("c"));
  await repl.shows(/Ctrl-D leaves\npy>$/);
  await repl.terminal.type(ctrl("z"));
  assert.equal(repl.terminal.suspended, 1);
  void repl.terminal.type(ctrl("d"));
  assert.equal((await settled(repl.ended, "the end")).code, 0);
  assert.deepEqual(repl.sessions[0]?.executed, []);
});

test("what the guest says is shown without control characters", async (t) => {
  const repl = openRepl(t, {
    async *execute() {
      yield { type: "display", data: { "text/plain": "shown \x1b]0;title\x07\x9b" } };
      yield ended({ value: "value \x1b[2J\x00" });
    },
    files: { "evil\x1b[2J\nname": "x" },
  });
  repl.enter("x");
  await repl.shows(/value .*\npy>$/);
  repl.enter(":files");
  await repl.shows(/name\npy>$/);
  assert.equal(
    repl.terminal.screen(),
    "py> x\nshown \uFFFD]0;title\uFFFD\uFFFD\nvalue \uFFFD[2J\uFFFD\npy> :files\n1  1970-01-01 00:00  evil\uFFFD[2J\uFFFDname\npy>",
  );
});

for (
  const [what, events, said] of [
    [
      "a time-out",
      ended({ exitCode: -1, timedOut: true, stateReset: true }),
      /The code ran out of time and was ended\n:timeout SECONDS .*\nsbx: .*variables are gone, files are kept/,
    ],
    ["a signal", ended({ exitCode: 137, stateReset: true }), /ended by signal 9 \(SIGKILL\)\nsbx: The python process was replaced/],
    ["an exit code", ended({ exitCode: 7 }), /\nexit code 7\npy>/],
    ["an exception", ended({ exitCode: 1 }), /^py> x\npy>$/],
    [
      "a lost VM",
      new OutcomeUnknownError("Cannot tell how the code ended: the VM was lost"),
      /the VM was lost\n.*:reset starts another VM/,
    ],
    [
      "an output limit",
      new OutputLimitError("Cannot keep the output: too much", { result: resultOf() }),
      /sbx: Cannot keep the output: too much/,
    ],
  ] as const
) {
  test(`${what} is told`, async (t) => {
    const repl = openRepl(t, {
      async *execute() {
        if (events instanceof Error) throw events;
        yield events;
      },
    });
    repl.enter("x");
    await repl.shows(said);
    await repl.shows(/py>$/);
  });
}

test("a lost VM is replaced by :reset", async (t) => {
  const repl = openRepl(t);
  repl.enter("x");
  await eventually("it ran", () => repl.sessions[0]?.executed.length === 1);
  await repl.sessions[0]?.close();
  repl.enter("y");
  await repl.shows(/VM was lost\n.*:reset starts another VM/);
  repl.enter(":reset", "z");
  await eventually("it runs in another", () => repl.sessions[1]?.executed[0]?.code === "z");
});

test(":lang starts another language in place of the VM, with its own history", async (t) => {
  const repl = openRepl(t);
  repl.enter("x = 1", ":lang js");
  await repl.shows(/js>$/);
  await eventually("the first is closed", () => repl.sessions[0]?.closed === true);
  assert.equal(repl.sessions[1]?.language, "javascript");
  await repl.terminal.type(KEYS.up);
  assert.match(repl.terminal.screen(), /js>$/);
  void repl.terminal.type(ctrl("d"));
  await settled(repl.ended, "the end");
});

test("commands that do not exist, or lack something, are refused with advice", async (t) => {
  const repl = openRepl(t);
  repl.enter(":rest");
  await repl.shows(/Cannot run :rest: there is no such command\nDid you mean :reset\?/);
  repl.enter(":upload");
  await repl.shows(/Cannot run :upload: wanted :upload LOCAL \[GUEST\]/);
  repl.enter(":download a b c");
  await repl.shows(/Put a name with blanks in quotes/);
  repl.enter(":files 'x");
  await repl.shows(/a quote is not closed/);
  repl.enter(":lang cobol");
  await repl.shows(/must be one of python, .*got "cobol"/);
  repl.enter(":timeout 0");
  await repl.shows(/must be between 1 and 300 seconds, got "0"/);
  repl.enter(":files missing");
  await repl.shows(/sbx: Cannot list files: missing\npy>$/);
  assert.deepEqual(repl.sessions[0]?.executed, []);
  void repl.terminal.type(ctrl("d"));
  await settled(repl.ended, "the end"); // Its history is written by then.
});

test("at a prompt code may run as long as any, unless the user says otherwise", async (t) => {
  for (
    const [args, env, seconds] of [
      [[], {}, 300],
      [["-t", "5"], {}, 5],
      [[], { EXEC_SANDBOX_DEFAULT_TIMEOUT_SECONDS: "9" }, undefined],
    ] as const
  ) {
    const repl = openRepl(t, { args, world: { env } });
    repl.enter("x");
    await eventually("it ran", () => repl.sessions[0]?.executed.length === 1);
    assert.equal(repl.sessions[0]?.executed[0]?.options.timeoutSeconds, seconds);
  }
});

test("a value that was shown as an image is not printed as text too", async (t) => {
  const repl = openRepl(t, {
    async *execute() {
      yield { type: "display", data: { "image/png": "AA==", "text/plain": "<Figure>" } };
      yield ended({ value: "<Figure>" });
    },
  });
  repl.enter("figure");
  await repl.shows(/image: \S+1\.png\npy>$/);
});

test(":timeout holds for what runs next", async (t) => {
  const repl = openRepl(t);
  repl.enter(":timeout 2.5", "x");
  await eventually("it ran", () => repl.sessions[0]?.executed[0]?.options.timeoutSeconds === 2.5);
});

test(":upload and :download copy by the rules of --upload and --download, and tell what came where", async (t) => {
  const directory = temporaryDirectory(t), local = path.join(directory, "a file.txt");
  await fs.writeFile(local, "hello");
  const repl = openRepl(t, { files: { "result.txt": "12345" } });
  repl.enter(`:upload '${local}' data/`);
  await repl.shows(/a file\.txt → data\/a file\.txt, 5 B\npy>$/);
  assert.ok(repl.sessions[0]?.files.has("data/a file.txt"));
  repl.enter(`:download result.txt ${directory}/got.txt`);
  await repl.shows(/result\.txt → .*got\.txt, 5 B\npy>$/);
  assert.equal(await fs.readFile(path.join(directory, "got.txt"), "utf8"), "12345");
  repl.enter(":upload /no/such/file");
  await repl.shows(/sbx: Cannot [^\n]*\/no\/such\/file[^\n]*\n[^]*py>$/);
  repl.enter(`:download missing ${directory}/none.txt`);
  await repl.shows(/does not exist\n[^]*does not exist\npy>$/);
  for (
    const [line, refusal] of [
      [`:upload '${local}' /etc/x`, /Cannot upload: path must be relative to the home directory, got "\/etc\/x"/],
      [":upload ''", /Cannot run :upload: the local path must not be empty/],
      [":upload -", /Cannot run :upload: the local path must be a file or a directory, got "-"/],
      [":download /etc/passwd", /Cannot download: path must be relative to the home directory, got "\/etc\/passwd"/],
      [":download ''", /Cannot run :download: must name a file or directory of the guest/],
    ] as const
  ) {
    repl.enter(line);
    await repl.shows(new RegExp(`${refusal.source}[^]*py>$`));
  }
  assert.deepEqual((await fs.readdir(directory)).sort(), ["a file.txt", "got.txt"]);
});

test("what code does to the terminal ends with it", async (t) => {
  const outputs = ["\x1b[?1049h\x1b[?25l\x1b[31m", "\x1b[?20", "04l\x1b]0;open"];
  const repl = openRepl(t, {
    async *execute({ code }) {
      if (code === "hostile()") { for (const text of outputs) yield { type: "stdout", text }; }
      yield ended();
    },
  });
  repl.enter("plain()");
  await eventually("it ran", () => repl.sessions[0]?.executed.length === 1);
  await repl.shows(/plain\(\)\npy>$/);
  assert.ok(!repl.terminal.written.includes("\x1b[?25h"), "nothing is done where nothing was");
  repl.enter("hostile()");
  await eventually("it is undone", () => repl.terminal.written.includes("\x1b\\\x1b[0m\x1b[?25h\x1b>\x1b(B\x0f\x1b[?1049l\x1b[?2004h"));
});

test(":processes lists what runs beside the prompt", async (t) => {
  const common = { pid: 87, background: false, attached: true, pty: false };
  const repl = openRepl(t, {
    processes: [{ ...common, id: 1, argv: ["sleep", "1\x1b[2J"], exitCode: null }, { ...common, id: 2, argv: ["true"], exitCode: 0 }],
  });
  repl.enter(":ps");
  await repl.shows(/ 1 {5}87 {2}runs {9}sleep 1\uFFFD\[2J\n {2}2 {5}87 {2}ended \(0\) {4}true\npy>$/);
});

test("history is private, and the next session has it", async (t) => {
  const directory = temporaryDirectory(t), world: World = { env: { EXEC_SANDBOX_CACHE_DIR: directory } };
  for (const round of [1, 2]) {
    const repl = openRepl(t, { world });
    if (round === 2) {
      await repl.terminal.type(KEYS.up);
      assert.equal(repl.terminal.screen(), "py> remember = 1");
      await repl.terminal.type(ctrl("c"));
    } else {
      repl.enter("remember = 1");
      await repl.shows(/remember = 1\npy>$/);
    }
    void repl.terminal.type(ctrl("d"));
    await settled(repl.ended, "the end");
  }
  const file = path.join(directory, "history", "python.jsonl");
  assert.equal((await fs.stat(file)).mode & 0o777, 0o600);
  assert.equal((await fs.stat(path.dirname(file))).mode & 0o777, 0o700);
});
