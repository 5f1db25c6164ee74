/** A shell in the session: who has the terminal, and how it comes back. */
import assert from "node:assert/strict";
import test from "node:test";
import { OutcomeUnknownError } from "../../../src/base/errors.ts";
import { InterruptedError } from "../../../src/cli/failure.ts";
import { eventually, settled } from "../../support/waiting.ts";
import { openRepl } from "./fake_repl.ts";

test(":shell hands the terminal over, byte by byte, and takes it back as it was", async (t) => {
  const repl = openRepl(t);
  repl.enter(":shell");
  await eventually("the shell runs", () => repl.terminal.taker !== undefined);
  const shell = repl.sessions[0]?.shell;
  assert.deepEqual([shell?.argv, shell?.options.pty], [["bash", "-i"], { columns: 200, rows: 40 }]);
  repl.terminal.taker?.onBytes(new TextEncoder().encode("ls\x03\x1a"));
  repl.terminal.columns = 90;
  repl.terminal.taker?.onResize();
  shell?.say(new TextEncoder().encode("\x1b[?1049h\x1b[?1006;1000h\x1b[?20"));
  shell?.say(new TextEncoder().encode("04hprompt"));
  await eventually("it is typed", () => shell?.typed === "ls\x03\x1a");
  assert.deepEqual(shell?.sizes, ["90x40"]);
  shell?.exit(3);
  await repl.shows(/the shell ended with 3; back at the prompt\npy>$/);
  assert.equal(repl.terminal.taker, undefined);
  assert.ok(repl.terminal.written.includes("\x1b[0m\x1b[?25h\x1b>\x1b(B\x0f\x1b[?1049l\x1b[?1006l\x1b[?1000l\x1b[?2004l"));
  assert.ok(shell?.isDetached);
});

test("--shell runs a shell alone and ends with its status", async (t) => {
  const repl = openRepl(t, { args: ["--shell"] });
  await eventually("the shell runs", () => repl.sessions[0]?.shell !== undefined && repl.terminal.taker !== undefined);
  repl.sessions[0]?.shell?.exit(5);
  const { code } = await settled(repl.ended, "the end");
  assert.deepEqual([code, repl.terminal.isDisposed, repl.sessions[0]?.closed], [5, true, true]);
});

test("an end from outside ends a shell too, and gives the terminal back", async (t) => {
  for (const args of [[], ["--shell"]]) {
    const ending = new AbortController();
    const repl = openRepl(t, { args, world: { signal: ending.signal } });
    if (args.length === 0) repl.enter(":shell");
    await eventually("the shell runs", () => repl.terminal.taker !== undefined);
    ending.abort(new InterruptedError("SIGHUP", 1));
    const { code } = await settled(repl.ended, "the end");
    const [session] = repl.sessions;
    assert.deepEqual([code, repl.terminal.taker, repl.terminal.isDisposed, session?.closed, session?.shell?.isDetached], [
      129,
      undefined,
      true,
      true,
      true,
    ]);
  }
});

test("a terminal that goes away ends the shell in it", async (t) => {
  const alone = openRepl(t, { args: ["--shell"] });
  await eventually("the shell runs", () => alone.terminal.taker !== undefined);
  alone.terminal.taker?.onEnd();
  assert.equal((await settled(alone.ended, "the end")).code, 129);
  const repl = openRepl(t);
  repl.enter(":shell");
  await eventually("the shell runs", () => repl.terminal.taker !== undefined);
  repl.terminal.taker?.onEnd();
  void repl.terminal.send({ type: "closed" });
  assert.equal((await settled(repl.ended, "the end")).code, 0);
  assert.equal(repl.sessions[0]?.closed, true);
});

test("a shell whose VM is lost gives the terminal back", async (t) => {
  const repl = openRepl(t);
  repl.enter(":shell");
  await eventually("the shell runs", () => repl.terminal.taker !== undefined);
  repl.sessions[0]?.shell?.fail(new OutcomeUnknownError("Cannot tell how the process ended: the VM was lost"));
  await repl.shows(/the VM was lost\n[^]*py>$/);
  assert.equal(repl.terminal.taker, undefined);
});
