/** Line editor: what keys make of the text and of the screen. */
import assert from "node:assert/strict";
import test from "node:test";
import { type EditorAssist, type Entered, LineEditor, type Verdict } from "../../../src/cli/repl_editor.ts";
import { History } from "../../../src/cli/repl_history.ts";
import type { Completion } from "../../../src/cli/repl_menu.ts";
import { settled } from "../../support/waiting.ts";
import { ctrl, FakeTerminal, KEYS, paste } from "./fake_terminal.ts";

interface World {
  readonly columns?: number;
  readonly rows?: number;
  readonly hasColor?: boolean;
  readonly history?: readonly string[];
  readonly check?: (text: string) => Verdict;
  readonly words?: readonly string[];
}

const COMPLETE: Verdict = { state: "complete" };
/** A block goes on after a colon, until a blank line. */
const untilBlank = (text: string): Verdict =>
  /:[^\n]*\n?[^\n]*$/.test(text) && !/\n\s*$/.test(text) ? { state: "incomplete", indent: "    " } : COMPLETE;

function open(world: World = {}) {
  const terminal = new FakeTerminal(world);
  const editor = new LineEditor(terminal);
  const words = world.words ?? [];
  const assist: EditorAssist = {
    check: (text) => Promise.resolve(world.check?.(text) ?? COMPLETE),
    complete(text, cursor): Promise<Completion> {
      const word = /[\w./]*$/.exec(text.slice(0, cursor))?.[0] ?? "";
      return Promise.resolve({ start: cursor - word.length, candidates: words.filter((candidate) => candidate.startsWith(word)) });
    },
    highlight: (text) => text.startsWith("for") ? [{ start: 0, end: 3, style: "35" }] : [],
  };
  const history = new History(world.history);
  const read = () =>
    editor.read({ prompt: { text: "> ", style: "" }, continuation: { text: "| ", style: "" }, history, assist, indent: 4 });
  return { terminal, editor, history, read, reading: read() };
}

/** What was entered when `strokes` were typed, the last of which ends the block. */
async function entered(world: World, ...strokes: readonly string[]): Promise<Entered> {
  const { terminal, reading } = open(world);
  void terminal.type(...strokes);
  return await settled(reading, "the block is entered");
}

test("Enter runs what is complete and keeps it in the history", async () => {
  const { terminal, reading, history } = open();
  void terminal.type("x = 1", KEYS.enter);
  assert.deepEqual(await settled(reading, "the block"), { type: "block", text: "x = 1" });
  assert.deepEqual(history.entries, ["x = 1"]);
  assert.equal(terminal.screen(), "> x = 1");
  assert.deepEqual(terminal.cursor(), [1, 0]);
});

test("Enter continues what is not complete, with its indentation; an empty line ends it", async () => {
  const { terminal, reading } = open({ check: untilBlank });
  await terminal.type("if x:", KEYS.enter);
  assert.equal(terminal.screen(), "> if x:\n|");
  assert.deepEqual(terminal.cursor(), [1, 6]);
  await terminal.type("y", KEYS.enter);
  void terminal.type(KEYS.enter);
  assert.deepEqual(await settled(reading, "the block"), { type: "block", text: "if x:\n    y\n    " });
});

test("a bracket that closes a block goes back to where the block began", async () => {
  const { terminal } = open({ check: (text) => text.endsWith("}") ? COMPLETE : { state: "incomplete", indent: "    " } });
  await terminal.type("f() {", KEYS.enter);
  await terminal.type("}");
  assert.equal(terminal.screen(), "> f() {\n| }");
  await terminal.type(ctrl("u"), "  x", "}");
  assert.equal(terminal.screen(), "> f() {\n|   x}");
});

test("a bracket that closes a block goes back though Enter comes with it at once", async () => {
  const { terminal, reading } = open({ check: (text) => text.endsWith("}") ? COMPLETE : { state: "incomplete", indent: "    " } });
  await terminal.type("f() {", KEYS.enter);
  void terminal.type("}\r");
  assert.deepEqual(await settled(reading, "the block"), { type: "block", text: "f() {\n}" });
});

test("a bracket keeps the indentation that was pasted with it", async () => {
  const check = (text: string): Verdict => text.endsWith(")") ? COMPLETE : { state: "incomplete", indent: "    " };
  assert.deepEqual(await entered({ check }, "f() {\r    }\r)\r"), { type: "block", text: "f() {\n    }\n)" });
});

test("what is typed ahead keeps its own indentation", async () => {
  assert.deepEqual(await entered({ check: untilBlank }, "if x:\r    y\r\r"), { type: "block", text: "if x:\n    y\n" });
});

test("what is typed ahead is indented as if it had been waited for, unless it brings blanks", async () => {
  for (
    const [strokes, text] of [
      [["if x:", KEYS.enter, "y", KEYS.enter, KEYS.enter], "if x:\n    y\n    "],
      [["if x:", KEYS.enter, "  y", KEYS.enter, KEYS.enter], "if x:\n  y\n    "],
      [["if x:", KEYS.enter, "(", KEYS.altEnter, ")", KEYS.enter], "if x:\n    (\n)"],
    ] as const
  ) {
    const { terminal, reading } = open({ check: untilBlank });
    void terminal.typeAhead(...strokes);
    assert.deepEqual(await settled(reading, "the block"), { type: "block", text });
  }
});

test("a pasted block is edited as a whole and runs with one Enter", async () => {
  const { terminal, reading } = open({ check: untilBlank });
  await terminal.type(paste("for i in x:\r\n\ty\r\n"));
  assert.equal(terminal.screen(), "> for i in x:\n|     y\n|");
  await terminal.type(KEYS.up, KEYS.end, "2");
  void terminal.type(ctrl("n"), KEYS.enter);
  assert.deepEqual(await settled(reading, "the block"), { type: "block", text: "for i in x:\n\ty2\n" });
});

test("Enter inside a block, Alt-Enter and Ctrl-J break the line and run nothing", async () => {
  const { terminal, reading } = open();
  await terminal.type("ab", KEYS.altEnter, "cd", KEYS.up, KEYS.left, KEYS.enter, ctrl("j"));
  assert.equal(terminal.screen(), "> a\n|\n| b\n| cd");
  void terminal.type("\x1b>", KEYS.enter);
  assert.deepEqual(await settled(reading, "the block"), { type: "block", text: "a\n\nb\ncd" });
});

test("Ctrl-C gives the block up, Ctrl-D leaves on an empty line and deletes on any other", async () => {
  assert.deepEqual(await entered({}, "abc", ctrl("c")), { type: "cancelled", text: "abc" });
  assert.deepEqual(await entered({}, ctrl("d")), { type: "end" });
  assert.deepEqual(await entered({}, "ab", ctrl("a"), ctrl("d"), KEYS.enter), { type: "block", text: "b" });
});

test("a terminal that is gone ends the reading", async () => {
  const { terminal, reading } = open();
  void terminal.send({ type: "text", text: "x" }, { type: "closed" });
  assert.deepEqual(await settled(reading, "the end"), { type: "end" });
});

test("long lines wrap, wide characters whole, and the cursor follows", async () => {
  const { terminal } = open({ columns: 10 });
  await terminal.type("abcdefgh");
  assert.deepEqual([terminal.screen(), terminal.cursor()], ["> abcdefgh", [1, 0]]);
  await terminal.type("i", KEYS.left, KEYS.left);
  assert.deepEqual([terminal.screen(), terminal.cursor()], ["> abcdefgh\ni", [0, 9]]);
  await terminal.type(ctrl("u"), ctrl("k"), "1234567世界");
  assert.deepEqual([terminal.screen(), terminal.cursor()], ["> 1234567\n世界", [1, 4]]);
});

test("a block higher than the terminal shows the rows around the cursor, and all of itself when it is entered", async () => {
  const lines = Array.from({ length: 30 }, (_, at) => `line ${at}`);
  const { terminal, reading } = open({ rows: 6 });
  await terminal.type(paste(lines.join("\n")));
  assert.equal(terminal.screen(), lines.slice(24).map((line) => `| ${line}`).join("\n"));
  await terminal.type(...Array.from({ length: 10 }, () => KEYS.up));
  assert.match(terminal.screen(), /^\| line 16\n.*\n.*\n\| line 19\n/);
  assert.equal(terminal.cursor()[0], 3);
  void terminal.type("\x1b>", KEYS.enter);
  await settled(reading, "the block");
  assert.equal(terminal.screen().split("\n").length, 30);
});

test("a resize draws anew in the new width", async () => {
  const { terminal, editor } = open({ columns: 20 });
  await terminal.type("0123456789abcdef");
  editor.printAbove("above\r\n");
  for (const columns of [12, 7, 30]) {
    terminal.resize(columns);
    await terminal.send({ type: "resize" });
  }
  assert.deepEqual([terminal.screen(), terminal.cursor()], ["above\n> 0123456789abcdef", [1, 18]]);
});

test("Tab completes as far as there is no doubt, then offers, then chooses", async () => {
  const { terminal, reading } = open({ words: ["os.path.join", "os.path.exists", "print"] });
  await terminal.type("pr", KEYS.tab);
  assert.equal(terminal.screen(), "> print");
  await terminal.type("(os.", KEYS.tab);
  assert.equal(terminal.screen(), "> print(os.path.\njoin    exists");
  await terminal.type(KEYS.tab);
  assert.equal(terminal.screen(), "> print(os.path.join\n>join   exists");
  await terminal.type(KEYS.tab, KEYS.tab, KEYS.shiftTab);
  assert.equal(terminal.screen(), "> print(os.path.exists\njoin    >exists");
  await terminal.type(KEYS.enter);
  assert.equal(terminal.screen(), "> print(os.path.exists", "Enter takes the choice and runs nothing");
  void terminal.type(")", KEYS.enter);
  assert.deepEqual(await settled(reading, "the block"), { type: "block", text: "print(os.path.exists)" });
});

test("Escape takes a choice back, any other key accepts it", async () => {
  const { terminal } = open({ words: ["abx", "aby"] });
  await terminal.type("a", KEYS.tab, KEYS.tab);
  assert.equal(terminal.screen().split("\n")[0], "> abx");
  await terminal.type("\x1b");
  assert.equal(terminal.screen(), "> ab");
  await terminal.type(KEYS.tab, KEYS.tab, "!");
  assert.equal(terminal.screen(), "> abx!");
});

test("Tab indents at the beginning of a line, and rings where nothing fits", async () => {
  const { terminal } = open();
  await terminal.type(KEYS.tab, "x", KEYS.tab);
  assert.equal(terminal.screen(), ">     x");
  assert.ok(terminal.written.includes("\x07"));
});

test("a long list of candidates never pushes the block off the screen", async () => {
  const { terminal } = open({ rows: 10, words: Array.from({ length: 200 }, (_, at) => `name${at}`) });
  await terminal.type("na", KEYS.tab);
  const rows = terminal.screen().split("\n");
  assert.equal(rows[0], "> name");
  assert.ok(rows.length <= 10);
  assert.equal(rows.at(-1), "… 200 in all");
});

test("Up and Down move in the block first, then in the history", async () => {
  const { terminal, reading } = open({ history: ["first", "if a:\n    b", "other"] });
  await terminal.type(KEYS.up, KEYS.up);
  assert.equal(terminal.screen(), "> if a:\n|     b");
  await terminal.type(KEYS.up);
  assert.equal(terminal.screen(), "> first");
  await terminal.type(KEYS.down, KEYS.down, KEYS.down);
  assert.equal(terminal.screen(), ">");
  await terminal.type("x\x1b\ry", KEYS.up, "1");
  assert.equal(terminal.screen(), "> x1\n| y");
  void terminal.type(ctrl("c"));
  await settled(reading, "the end");
});

test("a block from the history runs with one Enter", async () => {
  const block = "if a:\n    b";
  assert.deepEqual(await entered({ history: [block], check: () => ({ state: "incomplete", indent: "" }) }, KEYS.up, KEYS.enter), {
    type: "block",
    text: block,
  });
});

test("Ctrl-R finds, Enter runs what was found, Ctrl-G gives up", async () => {
  const { terminal, reading } = open({ columns: 60, history: ["alpha one", "beta", "alpha two"] });
  await terminal.type("typed", ctrl("r"), "alp");
  assert.equal(terminal.screen(), "history with `alp`: alpha two");
  await terminal.type(ctrl("r"), ctrl("r"));
  assert.equal(terminal.screen(), "no more history with `alp`: alpha one");
  await terminal.type(ctrl("g"));
  assert.equal(terminal.screen(), "> typed");
  await terminal.type(ctrl("r"), "bet", KEYS.left);
  assert.equal(terminal.screen(), "> beta", "any other key takes it over");
  void terminal.type(ctrl("r"), "two", KEYS.enter);
  assert.deepEqual(await settled(reading, "the block"), { type: "block", text: "alpha two" });
});

test("messages come above the block, the status below", async () => {
  const { terminal, editor } = open();
  await terminal.type("abc");
  editor.setStatus("starting");
  assert.equal(terminal.screen(), "> abc\nstarting");
  editor.printAbove("news\r\n");
  assert.deepEqual([terminal.screen(), terminal.cursor()], ["news\n> abc\nstarting", [1, 5]]);
  editor.setStatus("");
  assert.equal(terminal.screen(), "news\n> abc");
});

test("Ctrl-Z leaves the block behind and draws it again when the program goes on", async () => {
  const { terminal } = open();
  await terminal.type("abc", ctrl("z"));
  assert.equal(terminal.suspended, 1);
  await terminal.send({ type: "resume" });
  assert.match(terminal.screen(), /> abc$/);
});

test("Ctrl-L clears the screen above the block", async () => {
  const { terminal, editor } = open();
  editor.printAbove("old\r\n");
  await terminal.type("abc", ctrl("l"));
  assert.ok(terminal.written.includes("\x1b[H\x1b[2J"));
  assert.equal(terminal.cursor()[1], 5);
});

test("colours come only where the terminal has them", async () => {
  const coloured = open({ hasColor: true }), plain = open();
  await coloured.terminal.type("for x");
  await plain.terminal.type("for x");
  assert.ok(coloured.terminal.written.includes("\x1b[0;35mfor\x1b[0m x"));
  assert.ok(!plain.terminal.written.includes("m"));
});
