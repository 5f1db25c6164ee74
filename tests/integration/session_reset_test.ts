/** Resets in real VMs: whatever the code left behind, a new process of the language takes over, and says so. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import type { Language, Session } from "../../src/mod.ts";
import { settled } from "../support/waiting.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

type Each = Readonly<Record<Language, string>>;
const HELLO: Each = { python: "print('hello')", javascript: "console.log('hello')", raw: "echo hello" };
const LANGUAGES = Object.keys(HELLO) as Language[];

async function greets(session: Session, what: string): Promise<void> {
  const { stdout, exitCode } = await settled(session.exec(HELLO[session.language]), what);
  assert.deepEqual([stdout.endsWith("hello\n"), exitCode], [true, 0], `${what}: ${stdout}`);
}

for (const language of LANGUAGES) {
  test(`${language}: a home that nobody may enter does not keep a new process from starting`, async () => {
    const code: Each = {
      python: "import os; os.chmod('/home/user', 0); os._exit(3)",
      javascript: "require('fs').chmodSync('/home/user', 0); process.kill(process.pid, 'SIGKILL')",
      raw: "chmod 0 /home/user; kill -9 $$",
    };
    await using session = await vms.scheduler.session({ language });
    const { exitCode, stateReset } = await session.exec(code[language]);
    assert.deepEqual([exitCode, stateReset], [language === "python" ? 3 : 137, true]);
    await greets(session, "the next execution");
    await session.writeFile("f", "content");
    assert.equal(await session.readFile("f", { encoding: "utf-8" }), "content");
  });
}

test("javascript: the files of a project in the home decide nothing about the process that replaces another", async () => {
  const files: ReadonlyArray<readonly [string, string]> = [
    ["bunfig.toml", 'preload = ["./nowhere.ts"]'],
    ["bunfig.toml", "[["],
    [".bunfig.toml", 'preload = ["./nowhere.ts"]'],
    [".env", "PLANTED=1\n"],
    ["tsconfig.json", "{{"],
    ["package.json", "{{"],
  ];
  await using session = await vms.scheduler.session({ language: "javascript" });
  for (const [name, content] of files) {
    await session.writeFile(name, content);
    assert.equal((await session.exec("process.kill(process.pid, 'SIGKILL')")).exitCode, 137);
    await greets(session, `${name} of ${content}`);
    assert.equal((await session.exec("process.env.PLANTED")).value, undefined, name);
    await session.remove(name);
  }
});

test("python: what harms the protocol costs the state, never the session", async () => {
  await using session = await vms.scheduler.session({ language: "python", timeoutSeconds: 20 });
  const harms: ReadonlyArray<readonly [string, boolean]> = [
    ["import os; os.write(1000, b'x' * 100)", true],
    ["import os, struct; os.write(1000, struct.pack('<IIiI', 0xffffffff, 1, 0, 100))", true],
    ["import os; os.close(1000)", true],
    ["import os; os.closerange(0, 2000)", true],
    ["import os, signal; os.kill(os.getpid(), signal.SIGTERM)", true],
    ["import os; os.kill(-1, 9)", false],
    ["import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))", false],
    ["import sys; sys.settrace(lambda *_: 1 / 0)", false],
    ["import os; display('before'); print('said', flush=True); os._exit(7)", true],
  ];
  for (const [code, isReset] of harms) {
    const { stateReset, stdout, results } = await settled(session.exec(code), code);
    assert.equal(stateReset, isReset, code);
    if (code.includes("display")) assert.deepEqual([stdout, results.length], ["said\n", 1], "what came before the end is told");
    assert.deepEqual((await session.exec("import os; os._exit(0)")).stateReset, true, "the next starts afresh");
    await greets(session, `after ${code}`);
  }
});
