/** `:checkpoint`, `:rollback`, `:fork` and what goes with them, at a prompt and without one. */
import assert from "node:assert/strict";
import test from "node:test";
import type { CliCheckpoint } from "../../../src/cli/context.ts";
import { sbx } from "./fake_context.ts";
import { type OpenedRepl, openRepl } from "./fake_repl.ts";
import { ended, FakeSession, type FakeSessionOptions } from "./fake_session.ts";
import { ctrl, KEYS } from "./fake_terminal.ts";

/** Code that is a name makes a file of that name. */
const asFiles = (session: () => FakeSession | undefined): NonNullable<FakeSessionOptions["execute"]> =>
  async function* ({ code }) {
    session()?.files.set(code.trim(), "");
    yield ended();
  };

/** Types lines, each when the prompt is back. */
async function enter({ terminal }: OpenedRepl, ...lines: readonly string[]): Promise<void> {
  for (const line of lines) await terminal.type(line, KEYS.enter);
}

test(":checkpoint numbers what has no name, and :rollback goes back to the newest, a number or a name", async (t) => {
  const checkpoints: CliCheckpoint[] = [];
  const repl = openRepl(t, { checkpoints, world: { checkpoints }, execute: asFiles(() => repl.sessions[0]) });
  await enter(repl, "one", ":checkpoint", "two", ":checkpoint kept", "three");
  await repl.shows(/checkpoint 1, 134\.0 MB, kept until the end of this prompt; :rollback 1 goes back to it/);
  await repl.shows(/checkpoint kept, 134\.0 MB, kept until :forget[^\n]*:rollback kept goes back to it\s+py> three\s+py>/);
  await enter(repl, ":rollback", ":files");
  await repl.shows(/as it was at checkpoint kept\s+py> :files\s+0 [^\n]*one\s+0 [^\n]*two\s+py>/);
  await enter(repl, ":rollback 1", ":checkpoints");
  await repl.shows(/as it was at checkpoint 1/);
  await repl.shows(/1 {5}1970-01-01 00:00 {2}python {6}256 MB of memory, 134\.0 MB\s+kept {2}1970[^\n]*\s+py> ?$/);
  assert.deepEqual([...repl.sessions[0]?.files.keys() ?? []], ["one"]);
  await repl.terminal.type(":rollback k", KEYS.tab);
  await repl.shows(/py> :rollback kept ?$/);
  await repl.terminal.type(KEYS.enter);
  await repl.shows(/py> :rollback kept\s+as it was at checkpoint kept\s+py> ?$/);
  await enter(repl, ":forget 1", ":forget kept", ":checkpoints", ":rollback 1", ":rollback gone");
  await repl.shows(/checkpoint 1 is removed\s[^]*checkpoint kept is removed\s[^]*no checkpoints\s/);
  await repl.shows(
    /sbx: Cannot find the checkpoint 1: there is none\s[^]*:checkpoints lists[^]*sbx: Cannot roll back: it was removed\s[^]*py> ?$/,
  );
  void repl.terminal.type(ctrl("d"));
  assert.equal((await repl.ended).code, 0);
});

test(":fork goes on in a copy, of which there may be another; leaving goes back, and the last one leaves", async (t) => {
  const repl = openRepl(t);
  await enter(repl, ":fork", ":fork");
  await repl.shows(/this is a copy[^]*this is a copy/);
  const [original] = repl.sessions, copy = original?.copies[0], second = copy?.copies[0];
  await enter(repl, "in the second", ":quit", "in the first");
  await repl.shows(/back where the copy was made; the copy is gone\s+py> in the first\s+py> ?$/);
  await repl.terminal.type(ctrl("d"));
  await repl.shows(/the copy is gone[^]*the copy is gone/);
  await repl.shows(/the copy is gone\s+py> ?$/);
  await enter(repl, "in the original");
  await repl.shows(/in the original\s+py> ?$/);
  void repl.terminal.type(ctrl("d"));
  const { code, closed } = await repl.ended;
  assert.deepEqual([code, closed], [0, 1]);
  assert.deepEqual(
    [second, copy, original].map((session) => [session?.executed.map((each) => each.code), session?.closed]),
    [[["in the second"], true], [["in the first"], true], [["in the original"], true]],
  );
});

test("a prompt that ends in a copy closes the original as well", async (t) => {
  const stop = new AbortController();
  const repl = openRepl(t, { world: { signal: stop.signal } });
  await enter(repl, ":fork");
  await repl.shows(/this is a copy/);
  stop.abort(new Error("stopped"));
  await repl.ended;
  const [original] = repl.sessions;
  assert.deepEqual([original?.closed, original?.copies.map(({ closed }) => closed)], [true, [true]]);
});

test("without a terminal the same commands do the same, and what cannot be done is an error", async () => {
  const sessions: FakeSession[] = [];
  const run = (lines: readonly string[]) =>
    sbx(["session", "-q"], {
      stdin: lines.map((line) => `${line}\n`).join(""),
      session: () => {
        const session = new FakeSession();
        sessions.push(session);
        return Promise.resolve(session);
      },
    });
  const done = await run([":checkpoint", ":rollback 1", ":fork", "a", ":quit", "b", ":quit", "c"]);
  assert.deepEqual([done.code, sessions[0]?.copies[0]?.executed.length, sessions[0]?.executed.length], [0, 1, 1]);
  assert.match(done.stderr, /checkpoint 1, .*\nas it was at checkpoint 1\nthis is a copy/);
  const refused = await run([":rollback", ":checkpoint 12", ":forget x", ":forget"]);
  assert.equal(refused.code, 2);
  for (
    const says of [
      /Cannot roll back: there is no checkpoint of this prompt\n.*:checkpoint makes one/,
      /Cannot name a checkpoint: the name must not be a number, got 12\n/,
      /Cannot find the checkpoint x: there is none\n/,
      /Cannot run :forget: wanted :forget CHECKPOINT\n/,
    ]
  ) assert.match(refused.stderr, says);
});
