/** History: what is kept, for whom, and how much. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { execFileSync, spawnSync } from "node:child_process";
import fs from "node:fs/promises";
import path from "node:path";
import test from "node:test";
import { History } from "../../../src/cli/repl_history.ts";
import { HistorySearch, HistoryWalk } from "../../../src/cli/repl_search.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { settled } from "../../support/waiting.ts";

test("entries come back in the next session, blocks of several lines whole, in a file for this user alone", async (t) => {
  const file = path.join(temporaryDirectory(t), "history", "python");
  const first = await History.open(file);
  first.add("x = 1\n");
  first.add("def f():\n    return '\u2028é'\n");
  await first.flush();
  assert.deepEqual((await History.open(file)).entries, ["x = 1", "def f():\n    return '\u2028é'"]);
  assert.equal((await fs.stat(file)).mode & 0o777, 0o600);
  assert.equal((await fs.stat(path.dirname(file))).mode & 0o777, 0o700);
});

test("what begins with a space, is blank or repeats the last entry is not kept", async (t) => {
  const file = path.join(temporaryDirectory(t), "python");
  const history = await History.open(file);
  for (const entry of ["a", " secret", "\tsecret", "", "  \n", "a", "b", "a"]) history.add(entry);
  await history.flush();
  assert.deepEqual(history.entries, ["a", "b", "a"]);
  assert.equal(await fs.readFile(file, "utf8"), '"a"\n"b"\n"a"\n');
});

test("two sessions at once lose nothing of each other", async (t) => {
  const file = path.join(temporaryDirectory(t), "python");
  const [one, other] = [await History.open(file), await History.open(file)];
  for (let count = 0; count < 20; count += 1) {
    one.add(`one ${count}`);
    other.add(`other ${count}`);
  }
  await Promise.all([one.flush(), other.flush()]);
  const { entries } = await History.open(file);
  const of = (name: string) => entries.filter((entry) => entry.startsWith(name));
  assert.deepEqual([of("one").length, of("other").length], [20, 20]);
  assert.equal(of("one")[19], "one 19");
});

test("a long file is cut back to its newest entries", async (t) => {
  const file = path.join(temporaryDirectory(t), "python");
  await fs.writeFile(file, Array.from({ length: 30_000 }, (_, at) => `${JSON.stringify(`entry ${at} ${"x".repeat(40)}`)}\n`).join(""), {
    mode: 0o600,
  });
  const { entries } = await History.open(file);
  assert.ok(entries.length <= 2_000);
  assert.match(entries.at(-1) ?? "", /^entry 29999 /);
  assert.ok((await fs.stat(file)).size <= 524_288);
  assert.equal((await fs.stat(file)).mode & 0o777, 0o600);
  assert.deepEqual(await fs.readdir(path.dirname(file)), ["python"]);
});

test("damaged lines cost themselves alone", async (t) => {
  const file = path.join(temporaryDirectory(t), "python");
  await fs.writeFile(file, 'garbage\n"good"\n{"a":1}\n"torn');
  const history = await History.open(file);
  assert.deepEqual(history.entries, ["good"]);
  history.add("next");
  await history.flush();
  assert.deepEqual((await History.open(file)).entries, ["good", "next"]);
});

test("a place that cannot be written, or is no file, is no reason to fail", async (t) => {
  const directory = temporaryDirectory(t), file = path.join(directory, "python");
  await fs.writeFile(file, "");
  execFileSync("mkfifo", [path.join(directory, "fifo")]);
  for (const place of [path.join(file, "below a file"), path.join(directory, "fifo"), directory]) {
    const history = await settled(History.open(place), "the history");
    history.add("x");
    await settled(history.flush(), "the flush");
    assert.deepEqual(history.entries, ["x"]);
  }
});

test("on a full disk and on a read-only one what is there is read, and a session goes on", { skip: !canMount() }, async (t) => {
  const directory = temporaryDirectory(t), file = path.join(directory, "python"), filler = path.join(directory, "filler");
  const mount = (options: string, ...words: string[]) => execFileSync("mount", [...words, "-o", options, directory]);
  const enter = async (entry: string) => {
    const history = await History.open(file), last = history.entries.at(-1)?.slice(0, 11);
    history.add(entry);
    await history.flush();
    assert.equal(history.entries.at(-1), entry);
    return last;
  };
  mount("size=4m", "-t", "tmpfs", "sbx-test");
  try {
    const lines = Array.from({ length: 30_000 }, (_, at) => `${JSON.stringify(`entry ${at} ${"x".repeat(40)}`)}\n`);
    await fs.writeFile(file, lines.join(""));
    await assert.rejects(fs.writeFile(filler, Buffer.alloc(4_194_304)), { code: "ENOSPC" });
    assert.equal(await enter("y".repeat(60_000)), "entry 29999");
    mount("remount,ro");
    assert.equal(await enter("read-only"), "entry 29999");
    mount("remount,rw");
    await fs.rm(filler);
    assert.equal(await enter("room again"), "entry 29999");
    assert.equal(await enter("the next"), "room again");
  } finally {
    execFileSync("umount", [directory]);
  }
});

/** Mounting needs root, and a container may forbid it to root. */
function canMount(): boolean {
  return spawnSync("unshare", ["-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).status === 0;
}

test("walking visits the entries that begin with what was typed, and comes back to it", () => {
  const walk = new HistoryWalk(["import os", "x = 1", "import sys"], "im");
  assert.deepEqual([walk.step(-1), walk.step(-1), walk.step(-1), walk.step(1), walk.step(1), walk.step(1)], [
    "import sys",
    "import os",
    undefined,
    "import sys",
    "im",
    undefined,
  ]);
});

test("searching finds the newest first, goes on in both directions and says when there is no more", () => {
  const search = new HistorySearch(["alpha one", "beta", "alpha two"], "typed");
  search.look("alp");
  assert.equal(search.found, "alpha two");
  search.next(-1);
  assert.equal(search.found, "alpha one");
  search.next(-1);
  assert.deepEqual([search.found, search.isFailed], ["alpha one", true]);
  search.next(1);
  assert.deepEqual([search.found, search.isFailed], ["alpha two", false]);
  search.look("alpha o");
  assert.equal(search.found, "alpha one");
  search.look("nothing");
  assert.equal(search.isFailed, true);
  search.look("");
  assert.deepEqual([search.found, search.isFailed], [undefined, false]);
});

noLeftovers();
