/** Session terminals in real VMs: their size, colours, job control, and what a hang-up does. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import type { Session, SpawnOptions } from "../../src/mod.ts";
import { bytes, countIn, outcomeOf, Reading } from "../support/processes.ts";
import { eventually, settled } from "../support/waiting.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
let session: Session;
before(async () => {
  vms = await openTestScheduler();
  session = await vms.scheduler.session({ language: "raw" });
});
after(async () => {
  await session.close();
  await vms.close();
});

const sh = (code: string, options: SpawnOptions = {}) => session.spawn("sh", ["-c", code], options);
const countOf = (text: string) => countIn(session, text);
const PTY = { pty: { columns: 90, rows: 30 } } as const;

test("terminals: a process has one, of its size, and gets its colours", async () => {
  const [out, err, exitCode] = await outcomeOf(await sh("tty; stty size; echo $TERM; echo err >&2; exit 4", PTY));
  assert.match(out, /^\/dev\/pts\/\d+\r\n30 90\r\nxterm-256color\r\nerr\r\n$/);
  assert.deepEqual([err, exitCode], ["", 4]);
  const env = { TERM: "vt100", COLORTERM: "truecolor" };
  assert.equal((await outcomeOf(await sh("echo $TERM $COLORTERM", { ...PTY, env })))[0], "vt100 truecolor\r\n");
  assert.ok((await outcomeOf(await session.spawn("ls", ["--color=auto", "-d", "/tmp"], PTY)))[0].split("\x1b[").length > 1);
  assert.equal((await outcomeOf(await session.spawn("ls", ["--color=auto", "-d", "/tmp"])))[0], "/tmp\n");
});

test("terminals: a new size is told", async () => {
  const started = await sh("trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done", PTY);
  const reading = new Reading(started.stdout);
  await reading.until("ready");
  await started.resize(120, 40);
  await reading.until("40 120\r\n");
  await started.kill("SIGKILL");
  assert.deepEqual(await started.wait(), { exitCode: 137 });
  await started.resize(10, 10);
  const plain = await session.spawn("sleep", ["7007"]);
  await assert.rejects(plain.resize(80, 24), /no terminal/);
  await plain.detach();
});

test("terminals: a shell has job control: Ctrl-C, Ctrl-Z, fg, echo, its end", async () => {
  const shell = await session.spawn("bash", ["--norc"], { ...PTY, env: { PS1: "> " } });
  const writer = shell.stdin.getWriter(), reading = new Reading(shell.stdout);
  const type = async (text: string, wanted: string | RegExp) => {
    reading.forget();
    await writer.write(bytes(text));
    await reading.until(wanted);
  };
  await reading.until("> ");
  await type("echo $((20+1))\n", /echo \$\(\(20\+1\)\)[^]*\r21\r\n[^]*> $/);
  await type("sleep 7008\n", "sleep 7008");
  await eventually("it runs", async () => await countOf("^sleep 7008") === 1);
  await type("\x03", /\^C[^]*> $/);
  await type("echo code=$?\n", "code=130");
  await type("sleep 7009\n", "sleep 7009");
  await eventually("it runs", async () => await countOf("^sleep 7009") === 1);
  await type("\x1a", /Stopped[^]*> $/);
  await type("jobs\n", /Stopped\s+sleep 7009[^]*> $/);
  await type("fg\n", /fg[^]*sleep 7009/);
  // It goes on once it has the terminal; a key before that would be the shell's own.
  await eventually("it goes on", async () => (await session.exec("ps -o stat= -p $(pgrep -f '^sleep 7009')")).stdout.startsWith("S"));
  await type("\x03", /\^C[^]*> $/);
  await writer.write(bytes("exit 5\n"));
  assert.deepEqual(await settled(shell.wait(), "the shell"), { exitCode: 5 });
});

test("terminals: the end of the input ends the program, and letting go hangs up", async () => {
  const cat = await session.spawn("cat", [], { ...PTY, stdin: "in a line" });
  const [out, , exitCode] = await outcomeOf(cat);
  assert.ok(out.startsWith("in a linein a line"), JSON.stringify(out));
  assert.equal(exitCode, 0);
  const shell = await session.spawn("bash", ["--norc"], { ...PTY, env: { PS1: "> " } });
  await new Reading(shell.stdout).until("> ");
  await settled(shell.detach(), "the hang-up");
  assert.equal((await shell.wait()).exitCode, 129);
  const kept = await session.spawn("bash", ["--norc"], { ...PTY, env: { PS1: "> " }, background: true });
  await new Reading(kept.stdout).until("> ");
  await kept.detach();
  const again = await session.attach(kept.id);
  const reading = new Reading(again.stdout);
  await again.stdin.getWriter().write(bytes("echo $((6*7)); exit\n"));
  await reading.until("42");
  assert.deepEqual(await again.wait(), { exitCode: 0 });
});
