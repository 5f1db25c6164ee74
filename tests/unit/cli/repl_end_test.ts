/** How a prompt ends: left, without a VM, or from outside. */
import assert from "node:assert/strict";
import test from "node:test";
import { AssetError } from "../../../src/base/errors.ts";
import { InterruptedError } from "../../../src/cli/failure.ts";
import { settled } from "../../support/waiting.ts";
import { FakeSession } from "./fake_session.ts";
import { openRepl } from "./fake_repl.ts";

test("without a first VM the session ends with the reason", async (t) => {
  const failing = () => Promise.reject(new AssetError("Cannot find the images", { hint: "sbx prefetch" }));
  const repl = openRepl(t, { world: { session: failing } });
  const { code, stderr } = await settled(repl.ended, "the end");
  assert.equal(code, 125);
  assert.match(stderr, /sbx: Cannot find the images\nsbx prefetch\n/);
  assert.ok(repl.terminal.isDisposed);
  assert.equal(repl.terminal.screen(), "sbx: Cannot find the images\nsbx prefetch", "no prompt is left");
});

test("what was typed when the first VM fails stays on the screen, and no prompt does", async (t) => {
  for (const [typed, screen] of [["", ""], ["x = 1", "py> x = 1\n"]] as const) {
    const gate = Promise.withResolvers<FakeSession>();
    const repl = openRepl(t, { world: { session: () => gate.promise } });
    await repl.shows(/^py>$/);
    if (typed !== "") await repl.terminal.type(typed);
    gate.reject(new AssetError("Cannot find the images"));
    await settled(repl.ended, "the end");
    await new Promise((resolve) => setTimeout(resolve, 20)); // What still reads hears that the terminal was given back.
    assert.equal(repl.terminal.screen(), `${screen}sbx: Cannot find the images`);
  }
});

test("exit leaves with its status, in any language, and runs nothing", async (t) => {
  for (
    const [language, line, status] of [
      ["py", "exit(3)", 3],
      ["py", "exit()", 0],
      ["py", "sys.exit(4)", 4],
      ["js", "process.exit(5);", 5],
      ["sh", "exit 6", 6],
    ] as const
  ) {
    const repl = openRepl(t, { args: ["-l", language] });
    repl.enter(line);
    const { code } = await settled(repl.ended, line);
    assert.deepEqual([code, repl.sessions[0]?.executed, repl.sessions[0]?.closed], [status, [], true]);
  }
});

test("an end from outside gives the terminal back and closes the VM", async (t) => {
  const ending = new AbortController();
  const repl = openRepl(t, { world: { signal: ending.signal } });
  await repl.shows(/py>/);
  ending.abort(new InterruptedError("SIGTERM", 15));
  const { code } = await settled(repl.ended, "the end");
  assert.deepEqual([code, repl.terminal.isDisposed, repl.sessions[0]?.closed], [143, true, true]);
});
