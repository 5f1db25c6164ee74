/** Usage: processor time and memory of a program behind the jail, as the host sees them. */
import assert from "node:assert/strict";
import process from "node:process";
import test, { after, before, describe } from "node:test";
import { delay } from "../../src/base/async.ts";
import { Child, run } from "../../src/host/process.ts";
import { qemuPid, readUsage } from "../../src/qemu/usage.ts";
import { confinedPid, JailFixture, type Mode, skipReason } from "../fixtures/jail.ts";

const PERL = "/usr/bin/perl";
/** Burns 200 ms of processor time, then waits. */
const BURN = "while (1) { my ($user, $system) = times; last if $user + $system >= 0.2 } sleep 60";
const isLinux = process.platform === "linux";
let fixture: JailFixture;

before(async () => {
  if (isLinux) fixture = await JailFixture.create();
});
after(async () => {
  if (!isLinux) return;
  await fixture[Symbol.asyncDispose]();
  assert.equal((await run(["pgrep", "-f", fixture.directory])).stdout, "", "no child left");
});

/** What the program has used when it sleeps: the time stands still although there was enough of it, as on a busy host it may before. */
async function settledCpuMs(pid: number): Promise<number> {
  for (let last = -1;;) {
    const now = readUsage(pid).cpuTimeMs ?? 0;
    if (now === last && now >= 195) return now;
    last = now;
    await delay(100);
  }
}

for (const mode of ["root", "unprivileged"] as const satisfies readonly Mode[]) {
  describe(`as ${mode}`, { skip: skipReason(mode) }, () => {
    test("is that of the program, not of the jail", async () => {
      await using child = await fixture.start(mode, { program: PERL, args: ["-e", BURN] });
      const program = await confinedPid(child.pid);
      assert.equal(qemuPid(child.pid), program);
      const cpuMs = await settledCpuMs(child.pid);
      assert.ok(cpuMs >= 195 && cpuMs < 1_000, `${cpuMs} ms`);
    });

    test("knows the peak of memory after it was given back", async () => {
      const code = "{ my $x = 'x' x (64 << 20); } sleep 60";
      await using child = await fixture.start(mode, { program: PERL, args: ["-e", code] });
      let peak = 0;
      // Between fork and exec, the child still has the memory of the process that runs this test.
      const isTheProgram = (): boolean => peak >= 64 && peak < 200;
      for (let tries = 0; tries < 3000 && !isTheProgram(); tries++, await delay(10)) peak = readUsage(child.pid).memoryPeakMiB ?? 0;
      assert.ok(isTheProgram(), `${peak} MiB`);
    });

    test("is found where there is no pid namespace, too", async () => {
      const argv = await fixture.argv(mode, { program: PERL, args: ["-e", BURN] });
      argv.splice(argv.indexOf(fixture.jail) + 1, 0, "--skip", "pid_namespace");
      await using child = await Child.spawn(argv, { isTermFirst: false });
      while (qemuPid(child.pid) === undefined) await delay(5);
      assert.equal(qemuPid(child.pid), child.pid);
      assert.ok(await settledCpuMs(child.pid) >= 195);
    });

    test("is null for a process that has ended", async () => {
      const child = await fixture.start(mode, { program: "/bin/sleep", args: ["60"] });
      child.kill();
      await child.exited;
      assert.deepEqual(readUsage(child.pid), { cpuTimeMs: null, memoryPeakMiB: null });
    });
  });
}
