/** Progress: one line on a terminal, plain lines elsewhere, nothing when quiet. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Progress } from "../../../src/cli/progress.ts";
import { FakeOutput } from "./fake_context.ts";

function progressOn(output: FakeOutput, isQuiet = false) {
  const clock = { nowMs: 0 };
  return { clock, progress: new Progress(output, { isQuiet, nowMs: () => clock.nowMs }) };
}

test("elsewhere than on a terminal each change of a task is one line", () => {
  const output = new FakeOutput();
  const { clock, progress } = progressOn(output);
  progress.update({ task: "kernel" });
  progress.update({ task: "kernel", message: "compiling", percent: 10 });
  progress.update({ task: "kernel", message: "compiling", percent: 60 });
  progress.update({ task: "qemu", message: "configuring" });
  clock.nowMs = 61_250;
  progress.update({ task: "kernel", message: "ready", isDone: true });
  progress[Symbol.dispose]();
  assert.equal(output.text, "kernel: started\nkernel: compiling\nqemu: configuring\nkernel: ready (61.3 s)\n");
});

test("on a terminal one line is drawn over and over, and taken away", () => {
  const output = new FakeOutput({ isTty: true });
  const { clock, progress } = progressOn(output);
  progress.update({ task: "a", message: "booting" });
  clock.nowMs = 1_200;
  progress.update({ task: "b", message: "copying", percent: 41.9 });
  assert.equal(output.text, "\ra: booting (0.0 s)\x1b[K\ra: booting (1.2 s) · b: copying 41 % (0.0 s)\x1b[K");
  output.text = "";
  progress.clear();
  progress.clear();
  assert.equal(output.text, "\r\x1b[K", "once is enough");
  output.text = "";
  progress.update({ task: "a", message: "ready", isDone: true });
  assert.equal(output.text, "a: ready (1.2 s)\n");
  progress[Symbol.dispose]();
});

test("the line never reaches the last column of the terminal", () => {
  const output = new FakeOutput({ isTty: true, columns: 20 });
  const { progress } = progressOn(output);
  progress.update({ task: "task", message: "x".repeat(100) });
  progress[Symbol.dispose]();
  // deno-lint-ignore no-control-regex
  assert.equal(/\r(.*?)\x1b\[K/.exec(output.text)?.[1]?.length, 19);
});

test("the elapsed time moves without news, and stops with the last task", async () => {
  const output = new FakeOutput({ isTty: true });
  const { clock, progress } = progressOn(output);
  progress.update({ task: "a", message: "booting" });
  clock.nowMs = 5_000;
  await new Promise((resolve) => setTimeout(resolve, 500));
  assert.ok(output.text.includes("a: booting (5.0 s)"), output.text);
  progress.update({ task: "a", isDone: true });
  const { text } = output;
  await new Promise((resolve) => setTimeout(resolve, 450));
  assert.equal(output.text, text);
  progress[Symbol.dispose]();
});

test("nothing is written when quiet", () => {
  const output = new FakeOutput({ isTty: true });
  const { progress } = progressOn(output, true);
  progress.update({ task: "a", message: "booting" });
  progress.update({ task: "a", isDone: true });
  progress.clear();
  progress[Symbol.dispose]();
  assert.equal(output.text, "");
});

test("details are for terminals: elsewhere the last event of the task is all", () => {
  const output = new FakeOutput(), { clock, progress } = progressOn(output);
  progress.update({ task: "upload", message: "1 MB of 2", isDetail: true });
  clock.nowMs = 1_500;
  progress.update({ task: "upload", message: "2 MB", isDone: true });
  assert.equal(output.text, "upload: 2 MB (1.5 s)\n");
  const terminal = new FakeOutput({ isTty: true }), drawn = progressOn(terminal).progress;
  drawn.update({ task: "upload", message: "1 MB of 2,", percent: 50, isDetail: true });
  assert.equal(terminal.text, "\rupload: 1 MB of 2, 50 % (0.0 s)\x1b[K");
  drawn[Symbol.dispose]();
});

test("a task that came to nothing is forgotten, and its line taken away", () => {
  const output = new FakeOutput({ isTty: true }), { progress } = progressOn(output);
  progress.drop("never begun");
  progress.update({ task: "a", message: "x" });
  progress.update({ task: "b", message: "y" });
  output.text = "";
  progress.drop("a");
  assert.equal(output.text, "\r\x1b[K");
  progress.update({ task: "b", message: "y" });
  assert.equal(output.text, "\r\x1b[K\rb: y (0.0 s)\x1b[K");
  progress[Symbol.dispose]();
});

test("a message cannot steer the terminal", () => {
  const output = new FakeOutput();
  progressOn(output).progress.update({ task: "a", message: "x\x1b[2J\ny" });
  assert.equal(output.text, "a: x\uFFFD[2J y\n");
});

test("a line of wide characters never fills its row", () => {
  const output = new FakeOutput({ isTty: true, columns: 20 });
  const { progress } = progressOn(output);
  progress.update({ task: "漢".repeat(40) });
  progress[Symbol.dispose]();
  assert.equal(output.text, `\r${"漢".repeat(9)}\x1b[K\r\x1b[K`);
});
