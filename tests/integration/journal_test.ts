/** Journal: what a killed owner left is ended by another process; what lives, is foreign or unreadable is left alone. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { lineLogger, silentLogger } from "../../src/base/log.ts";
import { ownIdentity } from "../../src/host/files.ts";
import { Child } from "../../src/host/process.ts";
import { Journal, reap } from "../../src/vm/journal.ts";
import { noLeftovers, processesWith, runs, temporaryDirectory } from "../support/leftovers.ts";
import { type Script, startScript } from "../support/subprocess.ts";
import { eventually } from "../support/waiting.ts";

/** A program that looks like a QEMU of the owner with `token`. */
async function fakeQemu(token: string): Promise<Child> {
  const child = await Child.spawn(["bash", "-c", `exec -a "qemu-sbx -name vm-${token}-abc" sleep 60`], { isTermFirst: false });
  await eventually("it has its name", () => processesWith(`vm-${token}-abc`).includes(child.pid));
  return child;
}

/** An owner with an open journal, in a process of its own. */
async function owner(t: TestContext, root: string): Promise<{ script: Script; token: string }> {
  const before = existsSync(root) ? readdirSync(root) : [];
  const script = startScript(t, "journal_owner.ts", [root]);
  await script.said("open");
  const [token] = readdirSync(root).filter((name) => !before.includes(name) && !name.startsWith("."));
  assert.ok(token);
  return { script, token };
}

async function reapElsewhere(t: TestContext, root: string): Promise<string> {
  const { code, stdout, stderr } = await startScript(t, "reap.ts", [root]).ended;
  assert.deepEqual([code, stderr], [0, ""]);
  return stdout;
}

test("Journal says whose it is while it is open, to this user alone, and nothing after", async (t) => {
  const root = path.join(temporaryDirectory(t), "deep", "run");
  {
    await using journal = await Journal.open(root, silentLogger());
    assert.match(journal.token, /^[0-9a-f]{16}$/);
    assert.deepEqual(readdirSync(root), [journal.token]);
    const file = path.join(root, journal.token);
    assert.deepEqual([JSON.parse(readFileSync(file, "utf8")), statSync(file).mode & 0o777], [ownIdentity(), 0o600]);
    assert.equal(await reap(root, silentLogger()), 0);
    assert.deepEqual(readdirSync(root), [journal.token], "our own entry is a living owner's");
    await journal[Symbol.asyncDispose]();
  }
  assert.deepEqual(readdirSync(root), []);
});

test("Journals of one process have different tokens", async (t) => {
  const root = temporaryDirectory(t);
  await using first = await Journal.open(root, silentLogger());
  await using second = await Journal.open(root, silentLogger());
  assert.notEqual(first.token, second.token);
  assert.equal(readdirSync(root).length, 2);
});

test("Journal that cannot be written is a warning and no failure", async (t) => {
  const file = path.join(temporaryDirectory(t), "file"), lines: string[] = [];
  writeFileSync(file, "");
  {
    await using journal = await Journal.open(path.join(file, "run"), lineLogger("debug", (line) => lines.push(line)));
    assert.match(journal.token, /^[0-9a-f]{16}$/);
  }
  assert.equal(lines.length, 1);
  assert.match(lines[0] ?? "", /^sbx warning: the journal cannot be written/);
  assert.equal(await reap(path.join(file, "run"), silentLogger()), 0);
});

test("reap ends the QEMUs of an owner that was killed, all of them, and removes its entry", async (t) => {
  const root = temporaryDirectory(t);
  const { script, token } = await owner(t, root);
  await using first = await fakeQemu(token);
  await using second = await fakeQemu(token);
  script.raw.kill("SIGKILL");
  await script.ended;
  assert.equal(await reapElsewhere(t, root), "ended 2\n");
  assert.deepEqual([await first.exited, (await second.exited).signal], [{ code: null, signal: "SIGKILL" }, "SIGKILL"]);
  assert.deepEqual(readdirSync(root), []);
  assert.equal(await reapElsewhere(t, root), "ended 0\n");
});

test("reap leaves a living owner's QEMU and its entry", async (t) => {
  const root = temporaryDirectory(t);
  const living = await owner(t, root), dead = await owner(t, root);
  await using kept = await fakeQemu(living.token);
  await using ended = await fakeQemu(dead.token);
  dead.script.raw.kill("SIGKILL");
  await dead.script.ended;
  assert.equal(await reapElsewhere(t, root), "ended 1\n");
  await ended.exited;
  assert.deepEqual([runs(kept.pid), readdirSync(root)], [true, [living.token]]);
  living.script.tell("close");
  assert.equal((await living.script.ended).code, 0);
  assert.deepEqual([runs(kept.pid), readdirSync(root)], [true, []]);
});

test("reap tells an owner from another process that has its number now", async (t) => {
  const root = temporaryDirectory(t), token = "0123456789abcdef", own = ownIdentity();
  writeFileSync(path.join(root, token), JSON.stringify({ pid: own.pid, startTicks: own.startTicks + 1 }));
  await using child = await fakeQemu(token);
  assert.equal(await reapElsewhere(t, root), own.startTicks === 0 ? "ended 0\n" : "ended 1\n");
  child.kill();
  assert.equal((await child.exited).signal, "SIGKILL");
});

test("reap removes the entry of a dead owner that left no QEMU", async (t) => {
  const root = temporaryDirectory(t);
  const { script } = await owner(t, root);
  script.raw.kill("SIGKILL");
  await script.ended;
  assert.equal(await reap(root, silentLogger()), 0);
  assert.deepEqual(readdirSync(root), []);
});

test("reap does not end itself or what merely has a similar name", async (t) => {
  const root = temporaryDirectory(t), token = "00112233445566aa";
  writeFileSync(path.join(root, token), JSON.stringify({ pid: 0x7fff_fffe, startTicks: 1 }));
  await using similar = await Child.spawn(["bash", "-c", `exec -a "xvm-${token} vm-${token.slice(1)}-x vm-${token}" sleep 60`]);
  await eventually("it has its name", () => processesWith(`xvm-${token}`).includes(similar.pid));
  assert.equal(await reap(root, silentLogger()), 0);
  assert.deepEqual([runs(similar.pid), runs(process.pid)], [true, true]);
});

test("reap touches no foreign file and no damaged entry, and ends nothing on their word", async (t) => {
  const root = temporaryDirectory(t);
  const names = ["README", "0123", "0123456789ABCDEF", "0123456789abcdef0", ".0123456789abcde", "zzzzzzzzzzzzzzzz"];
  for (const name of names) writeFileSync(path.join(root, name), JSON.stringify({ pid: 0x7fff_fffe, startTicks: 1 }));
  mkdirSync(path.join(root, "00000000000000aa"));
  const damaged: Array<readonly [string, string]> = [
    "",
    "{}",
    "null",
    "x",
    '{"pid":1,"startTicks":1}',
    '{"pid":-5,"startTicks":1}',
    '{"pid":99999999}',
    "[]",
  ]
    .map((content, at) => [`000000000000000${at}`, content]);
  for (const [name, content] of damaged) writeFileSync(path.join(root, name), content);
  await using child = await fakeQemu(damaged[1]?.[0] ?? "");
  const before = readdirSync(root).sort();
  assert.equal(await reapElsewhere(t, root), "ended 0\n");
  assert.deepEqual([readdirSync(root).sort(), runs(child.pid)], [before, true]);
});

test("reap of a directory that is not there does nothing", async (t) => {
  const root = path.join(temporaryDirectory(t), "missing");
  assert.equal(await reap(root, silentLogger()), 0);
  assert.equal(existsSync(root), false);
});

test("reap by several processes at once ends everything and fails nowhere", async (t) => {
  const root = temporaryDirectory(t);
  const owners = [await owner(t, root), await owner(t, root), await owner(t, root)];
  const children = await Promise.all(owners.map(({ token }) => fakeQemu(token)));
  for (const { script } of owners) {
    script.raw.kill("SIGKILL");
    await script.ended;
  }
  await Promise.all([1, 2, 3, 4].map(() => reapElsewhere(t, root)));
  for (const child of children) assert.equal((await child.exited).signal, "SIGKILL");
  assert.deepEqual(readdirSync(root), []);
});

noLeftovers();
