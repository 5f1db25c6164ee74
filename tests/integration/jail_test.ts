/** Jail: sbx-jail starts programs and QEMU, ends with them and with its parent, and says what it cannot do. */
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import test, { after, before, describe } from "node:test";
import { Child, run } from "../../src/host/process.ts";
import { isLayerActive, LAYER_NAMES } from "../../src/qemu/confine.ts";
import { sweepCgroups, VmCgroup } from "../../src/qemu/cgroup.ts";
import { qemuPid } from "../../src/qemu/usage.ts";
import { isAtLeast, QEMU_MIN_VERSION } from "../../src/qemu/probe.ts";
import { confinedPid, hasEnded, JailFixture, type Mode, skipReason, statusOf, TestQmp } from "../fixtures/jail.ts";

const MODES: readonly Mode[] = ["root", "unprivileged"];
const SHELL = "/bin/sh";
const isLinux = process.platform === "linux";
let fixture: JailFixture;

before(async () => {
  if (isLinux) fixture = await JailFixture.create();
});
after(async () => {
  if (!isLinux) return;
  await fixture[Symbol.asyncDispose]();
  const left = await run(["pgrep", "-f", fixture.directory]);
  assert.equal(left.stdout, "", "no child left");
});

describe("command line", { skip: skipReason("unprivileged") }, () => {
  const bad: ReadonlyArray<readonly [args: string[], message: RegExp]> = [
    [[], /no PROGRAM/],
    [["--"], /no PROGRAM after/],
    [["--", "true"], /must be an absolute path, got "true"/],
    [["--frobnicate", "--", "/bin/true"], /unknown option --frobnicate/],
    [["--ro"], /--ro needs a value/],
    [["--ro", "relative", "--", "/bin/true"], /absolute path/],
    [["--ro", "/a/../b", "--", "/bin/true"], /absolute path without `\.\.`/],
    [["--ro", "/", "--", "/bin/true"], /not the root directory/],
    [["--uid", "0", "--", "/bin/true"], /must not be 0/],
    [["--uid", "4294967295", "--", "/bin/true"], /0 to 4294967294/],
    [["--gid", "5", "--", "/bin/true"], /--gid needs --uid/],
    [["--uid", "5", "--", "/bin/true"], /--uid needs `--skip user_namespace`/],
    [["--dev", "mem", "--", "/bin/true"], /unknown device "mem"/],
    [["--rlimit", "core", "--", "/bin/true"], /NAME=VALUE/],
    [["--rlimit", "core=-1", "--", "/bin/true"], /must be an integer/],
    [["--rlimit", "bogus=1", "--", "/bin/true"], /unknown limit "bogus"/],
    [["--hostname", "a b", "--", "/bin/true"], /--hostname must be/],
    [["--keep-fds", "2", "--", "/bin/true"], /at least 3/],
    [["--skip", "bogus", "--", "/bin/true"], /unknown layer "bogus"/],
    [["--env", "=x", "--", "/bin/true"], /NAME=VALUE/],
    [["--cgroup-set", "memory.max=1", "--", "/bin/true"], /--cgroup-set needs --cgroup/],
    [["--cgroup-set", "../x=1", "--", "/bin/true"], /must name a file/],
    [["--probe", "--bogus"], /unknown option/],
  ];
  for (const [args, message] of bad) {
    test(`refuses ${args.join(" ") || "no arguments"}`, async () => {
      const output = await run([fixture.jail, ...args]);
      assert.equal(output.code, 2, output.stderr);
      assert.match(output.stderr, message);
      assert.equal(output.stdout, "");
    });
  }

  test("--version and --help print and succeed", async () => {
    assert.match((await run([fixture.jail, "--version"])).stdout, /^sbx-jail \d+\.\d+\.\d+\n$/);
    const help = await run([fixture.jail, "--help"]);
    assert.equal(help.code, 0);
    for (const name of LAYER_NAMES) assert.ok(help.stdout.includes(name), `help names ${name}`);
  });
});

for (const mode of MODES) {
  describe(`as ${mode}`, { skip: skipReason(mode) }, () => {
    test("probe answers with one line that names every layer once, with a reason for each missing one", async () => {
      const confinement = await fixture.probe(mode);
      assert.deepEqual(confinement.layers.map((layer) => layer.name), [...LAYER_NAMES]);
      for (const { name, active, reason, hint } of confinement.layers) {
        assert.equal(active, reason === null, `${name}: ${reason}`);
        if (active) assert.equal(hint, null);
      }
      assert.ok(isLayerActive(confinement, "no_new_privs") && isLayerActive(confinement, "pdeathsig"));
      if (mode === "unprivileged") assert.ok(!isLayerActive(confinement, "own_uid"));
    });

    test("passes the program's exit status on", async () => {
      for (const status of [0, 1, 42, 255]) {
        await using child = await fixture.start(mode, { program: SHELL, args: ["-c", `exit ${status}`] });
        assert.deepEqual(await child.exited, { code: status, signal: null });
      }
    });

    test("ends by the signal that ended the program", async () => {
      await using killed = await fixture.start(mode, { program: "/bin/sleep", args: ["60"] });
      process.kill(await confinedPid(killed.pid), "SIGKILL");
      assert.deepEqual(await killed.exited, { code: null, signal: "SIGKILL" });
      // A real fault: the first process of a namespace ignores what is only sent to it.
      await using crashed = await fixture.start(mode, { program: "/usr/bin/perl", args: ["-e", 'unpack("p", pack("J", 1))'] });
      assert.deepEqual(await crashed.exited, { code: null, signal: "SIGSEGV" });
    });

    test("ends with 127 for a missing program and 126 for one that cannot run", async () => {
      const text = await fixture.file(mode, "text", "no program");
      const probe = await fixture.probe(mode);
      const skips = probe.layers.filter((layer) => !layer.active).flatMap((layer) => ["--skip", layer.name]);
      const missing = await run(fixture.as(mode, [fixture.jail, ...skips, "--", "/no/such/program"]));
      assert.equal(missing.code, 127, missing.stderr);
      assert.match(missing.stderr, /^sbx-jail: cannot run \/no\/such\/program: No such file/);
      const unfit = await run(fixture.as(mode, [fixture.jail, ...skips, "--ro", text, "--", text]));
      assert.equal(unfit.code, 126, unfit.stderr);
      assert.match(unfit.stderr, /Permission denied/);
    });

    test("names the layer that fails, with status 125, and runs nothing", async () => {
      const marker = await fixture.file(mode, "marker", "", 0o666);
      const run125 = async (command: Partial<Parameters<JailFixture["argv"]>[1]>, message: RegExp) => {
        const files = [{ path: marker, access: "rw" as const }, ...(command.files ?? [])];
        const output = await run(
          await fixture.argv(mode, { program: SHELL, args: ["-c", `echo ran > ${marker}`], ...command, files }),
        );
        assert.equal(output.code, 125, output.stderr);
        assert.match(output.stderr, message);
        assert.equal(await fs.readFile(marker, "utf8"), "");
      };
      await run125(
        { files: [{ path: "/no/such/file", access: "ro" }] },
        /^sbx-jail: mount_namespace: cannot provide \/no\/such\/file: No such/,
      );
      await run125({ parentPid: 1 }, /^sbx-jail: pdeathsig: the parent must be process 1, but is \d+/);
    });

    test("gives the program no other descriptor, no environment and no terminal", async () => {
      const program = { program: "/bin/sleep", args: ["60"], keepFds: [3, 5] };
      await using child = await fixture.start(mode, program, { pipes: 4, env: { PATH: process.env["PATH"] ?? "", SECRET: "x" } });
      const pid = await confinedPid(child.pid);
      assert.deepEqual((await fs.readdir(`/proc/${pid}/fd`)).sort(), ["0", "1", "2", "3", "5"]);
      assert.equal(await fs.readFile(`/proc/${pid}/environ`, "utf8"), "");
      const stat = await fs.readFile(`/proc/${pid}/stat`, "utf8");
      assert.equal(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[4], "0", "no controlling terminal");
      // The jail itself keeps one end of its own pipe, and none of the program's descriptors.
      assert.equal((await fs.readdir(`/proc/${child.pid}/fd`)).length, 1);
    });

    test("the program's sockets reach their end of file while the jail still exists", async () => {
      await using child = await fixture.start(mode, { program: SHELL, args: ["-c", "exec 3>&-; exec sleep 60"], keepFds: [3] }, {
        pipes: 1,
      });
      const [pipe] = child.pipes;
      await new Promise((resolve) => pipe!.once("end", resolve).resume());
      assert.equal(child.gone.aborted, false);
    });

    test("a killed jail takes the program along, and so does a killed group", async () => {
      for (const target of [1, -1]) {
        await using child = await fixture.start(mode, { program: "/bin/sleep", args: ["60"] });
        const pid = await confinedPid(child.pid);
        process.kill(target * child.pid, "SIGKILL");
        await hasEnded(pid);
      }
    });

    test("a killed parent takes jail and program along", async () => {
      const argv = await fixture.argv(mode, { program: "/bin/sleep", args: ["60"] });
      await using parent = await Child.spawn(inShell(argv), { isTermFirst: false });
      const jail = await confinedPid(parent.pid);
      const pid = await confinedPid(jail);
      process.kill(parent.pid, "SIGKILL");
      await hasEnded(pid);
      await hasEnded(jail, "the jail");
    });

    test("limits hold and never rise", async () => {
      await using child = await fixture.start(mode, { program: "/bin/sleep", args: ["60"], memoryMiB: 256 });
      const limits = await fs.readFile(`/proc/${await confinedPid(child.pid)}/limits`, "utf8");
      assert.match(limits, /^Max core file size +0 +0 /m);
      assert.match(limits, /^Max open files +512 +512 /m);
      assert.match(limits, new RegExp(`^Max data size +${(256 + 16 + 512 + 1024) * 1_048_576} `, "m"));
      const argv = await fixture.argv(mode, { program: SHELL, args: ["-c", "ulimit -n"] });
      const output = await run(["prlimit", "--nofile=100:100", ...argv]);
      assert.equal(output.stdout, "100\n", output.stderr);
    });

    test("QEMU starts, talks QMP on descriptor 3 and quits", { skip: isLinux ? false : "Linux only" }, async (t) => {
      if (!fixture.qemu) return t.skip("this host has no QEMU");
      await using child = await startQemu(mode, ["-M", "none"]);
      const qmp = new TestQmp(child.pipes[0]!);
      await qmp.connect();
      const pid = await confinedPid(child.pid);
      assert.deepEqual(await statusOf(pid, "NSpid"), [String(pid), "1"]);
      await qmp.execute("quit");
      assert.deepEqual(await child.exited, { code: 0, signal: null });
    });

    test("QEMU is gone within 1 s of its parent's death", async (t) => {
      if (!fixture.qemu) return t.skip("this host has no QEMU");
      const argv = await qemuArgv(mode, ["-M", "none"], false);
      await using parent = await Child.spawn(inShell(argv), { isTermFirst: false });
      const pid = await confinedPid(await confinedPid(parent.pid));
      process.kill(parent.pid, "SIGKILL");
      await hasEnded(pid);
    });

    test("a template baked and cloned behind the jail leaves the template unchanged", async (t) => {
      if (!fixture.qemu || fixture.qemu.firmware === "") return t.skip("this host has no QEMU or no qboot.rom");
      if (!isAtLeast(fixture.qemu.version, QEMU_MIN_VERSION)) return t.skip(`QEMU ${fixture.qemu.version} cannot migrate to a file`);
      const ram = await fixture.file(mode, `ram`, "", 0o666), state = await fixture.file(mode, "state", "", 0o666);
      await fs.truncate(ram, 64 << 20);
      await bake(mode, ram, state);
      for (const file of [ram, state]) await fs.chmod(file, 0o444);
      const before = await hashOf(ram);
      await clone(mode, ram, state);
      assert.equal(await hashOf(ram), before);
    });
  });
}

describe("where root may do nothing special, as in a bare container", { skip: skipReason("root") }, () => {
  test("QEMU runs behind what is left, and the rest has reasons", async (t) => {
    const confinement = await fixture.probe("bare");
    const active = confinement.layers.filter((layer) => layer.active).map((layer) => layer.name);
    for (const name of ["pdeathsig", "rlimits", "capabilities", "no_new_privs", "seccomp"] as const) assert.ok(active.includes(name), name);
    for (const name of ["mount_namespace", "pid_namespace", "own_uid"] as const) assert.ok(!active.includes(name), name);
    if (!fixture.qemu) return t.skip("this host has no QEMU");
    await using child = await startQemu("bare", ["-M", "none"]);
    const qmp = new TestQmp(child.pipes[0]!);
    await qmp.connect();
    assert.equal(qemuPid(child.pid), child.pid);
    assert.deepEqual(await statusOf(child.pid, "CapBnd"), ["0000000000000000"]);
    await qmp.execute("quit");
    assert.deepEqual(await child.exited, { code: 0, signal: null });
  });

  test("the program ends with its parent", async () => {
    const argv = await fixture.argv("bare", { program: "/bin/sleep", args: ["60"] });
    await using parent = await Child.spawn(inShell(argv), { isTermFirst: false });
    let pid: number | undefined;
    while (pid === undefined) {
      await new Promise((resolve) => setTimeout(resolve, 5));
      pid = qemuPid(parent.pid); // The shell's child.
    }
    process.kill(parent.pid, "SIGKILL");
    await hasEnded(pid);
  });
});

test("a strict umask of the caller does not lock the own user out", { skip: skipReason("root") }, async () => {
  const given = await fixture.file("root", "umask-given", "content");
  const argv = await fixture.argv("root", { program: "/bin/cat", args: [given], files: [{ path: given, access: "ro" }] });
  const output = await run([SHELL, "-c", 'umask 077; exec "$@"', "sh", ...argv]);
  assert.equal(output.stdout, "content", output.stderr);
});

test("the own user can open KVM where the host has it", { skip: skipReason("root") }, async (t) => {
  if (!await fs.access("/dev/kvm").then(() => true, () => false)) return t.skip("this host has no /dev/kvm");
  const code = 'my $h; open($h, "+<", "/dev/kvm") or die $!; print ioctl($h, 0xAE00, 0)'; // KVM_GET_API_VERSION
  const output = await run(await fixture.argv("root", { program: "/usr/bin/perl", args: ["-e", code], needsKvm: true }));
  assert.equal(output.stdout, "12", output.stderr);
  const without = await run(await fixture.argv("root", { program: "/usr/bin/perl", args: ["-e", code] }));
  assert.match(without.stderr, /No such file|Permission denied/);
});

test("a cgroup is made, limited and entered by the jail, and removed by its owner", { skip: skipReason("root") }, async (t) => {
  const mounts = await fs.readFile("/proc/self/mountinfo", "utf8");
  const parent = mounts.split("\n").find((line) => line.includes(" - cgroup2 "))?.split(" ")[4];
  if (parent === undefined) return t.skip("this host has no cgroup v2 mount");
  const scratch = path.join(parent, `sbx-probe-test-${process.pid}`);
  if (!await fs.mkdir(scratch).then(() => fs.rmdir(scratch)).then(() => true, () => false)) {
    return t.skip("this host's cgroup v2 mount is not writable");
  }
  const confinement = { ...await fixture.probe("root"), cgroup: { parent, controllers: [] } };
  const group = VmCgroup.of(confinement, `test-${process.pid}`);
  assert.ok(group);
  const argv = (await fixture.argv("root", { program: "/bin/sleep", args: ["60"] })).join("\0").replace("\0--skip\0cgroup\0", "\0").split(
    "\0",
  );
  argv.splice(1, 0, "--cgroup", group.directory, "--cgroup-set", "cgroup.max.depth=0");
  {
    await using _group = group;
    await using child = await Child.spawn(argv as [string, ...string[]], { isTermFirst: false });
    const pid = await confinedPid(child.pid);
    assert.match(await fs.readFile(`/proc/${pid}/cgroup`, "utf8"), new RegExp(`^0::.*/sbx-test-${process.pid}$`, "m"));
    assert.equal(await fs.readFile(path.join(group.directory, "cgroup.max.depth"), "utf8"), "0\n");
    await sweepCgroups(confinement);
    await fs.access(group.directory); // In use: it stays.
  }
  await assert.rejects(fs.access(group.directory), { code: "ENOENT" });
  await fs.mkdir(group.directory);
  await sweepCgroups(confinement);
  await assert.rejects(fs.access(group.directory), { code: "ENOENT" });
  argv[argv.indexOf("--cgroup") + 1] = "/no/such/cgroup";
  const failed = await run(argv as [string, ...string[]]);
  assert.equal(failed.code, 125);
  assert.match(failed.stderr, /^sbx-jail: cgroup: cannot create \/no\/such\/cgroup/);
});

/** A shell that starts the jail as its child in a session of its own, where no group kill reaches it, is named as its parent, and waits. */
function inShell(argv: readonly string[]): [string, ...string[]] {
  const at = argv.indexOf("--parent-pid") + 1;
  const words = argv.map((word, index) => index === at ? '"$$"' : `'${word}'`).join(" ");
  return [SHELL, "-c", `setsid ${words} & wait`];
}

async function qemuArgv(mode: Mode, args: readonly string[], hasQmp: boolean, files: Parameters<JailFixture["argv"]>[1]["files"] = []) {
  const { path: program, isStatic, firmware } = fixture.qemu!;
  const qmp = hasQmp ? ["-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control"] : [];
  const sandbox = ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"];
  return await fixture.argv(mode, {
    program,
    args: ["-nodefaults", "-no-user-config", "-display", "none", ...sandbox, ...qmp, ...args],
    isStatic,
    files: [...(firmware === "" ? [] : [{ path: firmware, access: "ro" as const }]), ...files],
    keepFds: hasQmp ? [3] : [],
  });
}

async function startQemu(mode: Mode, args: readonly string[], files: Parameters<JailFixture["argv"]>[1]["files"] = []): Promise<Child> {
  return await Child.spawn(await qemuArgv(mode, args, true, files), { pipes: 1, isTermFirst: false });
}

/** A machine that never runs an instruction: its memory and device state are enough for the files' sake. */
function machine(ram: string, access: string): string[] {
  const type = "microvm,x-option-roms=off,acpi=off,isa-serial=off,memory-backend=ram";
  const backend = `memory-backend-file,id=ram,size=64M,mem-path=${ram},${access}`;
  return ["-M", type, "-accel", "tcg", "-bios", fixture.qemu!.firmware, "-m", "64M", "-object", backend, "-S"];
}

async function bake(mode: Mode, ram: string, state: string): Promise<void> {
  const files = [{ path: ram, access: "rw" as const }, { path: state, access: "rw" as const }];
  await using child = await startQemu(mode, machine(ram, "share=on"), files);
  const qmp = new TestQmp(child.pipes[0]!);
  await qmp.connect();
  await qmp.execute("migrate-set-capabilities", { capabilities: [{ capability: "x-ignore-shared", state: true }] });
  await qmp.execute("migrate", { uri: `file:${state}` });
  await untilStatus(qmp, "query-migrate", ["completed"]);
  await qmp.execute("quit");
  assert.equal((await child.exited).code, 0);
  assert.ok((await fs.stat(state)).size > 1_000, "the state was written");
}

async function clone(mode: Mode, ram: string, state: string): Promise<void> {
  const files = [{ path: ram, access: "ro" as const }, { path: state, access: "ro" as const }];
  await using child = await startQemu(mode, [...machine(ram, "share=off,readonly=on,rom=off"), "-incoming", "defer"], files);
  const qmp = new TestQmp(child.pipes[0]!);
  await qmp.connect();
  await qmp.execute("migrate-set-capabilities", { capabilities: [{ capability: "x-ignore-shared", state: true }] });
  await qmp.execute("migrate-incoming", { uri: `file:${state}` });
  await untilStatus(qmp, "query-status", ["paused", "prelaunch"]);
  await qmp.execute("cont"); // The firmware runs and writes to its memory, which stays private.
  await new Promise((resolve) => setTimeout(resolve, 200));
  await qmp.execute("quit");
  assert.equal((await child.exited).code, 0);
}

async function untilStatus(qmp: TestQmp, command: string, wanted: readonly string[]): Promise<void> {
  for (let tries = 0; tries < 3000; tries++) {
    const { status } = await qmp.execute(command) as { status: string };
    if (wanted.includes(status)) return;
    assert.notEqual(status, "failed");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail(`${command} never said ${wanted}`);
}

async function hashOf(file: string): Promise<string> {
  return (await run(["sha256sum", file])).stdout.slice(0, 64);
}
