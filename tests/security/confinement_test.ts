/** Confinement: what a taken-over QEMU could reach from behind the jail, tried by a program in its place. */
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import net from "node:net";
import path from "node:path";
import process from "node:process";
import test, { after, before, describe } from "node:test";
import { type Child, run, type RunOutput } from "../../src/host/process.ts";
import { type ConfinedFile, isLayerActive } from "../../src/qemu/confine.ts";
import { confinedPid, JailFixture, type Mode, skipReason, statusOf } from "../fixtures/jail.ts";

const MODES: readonly Mode[] = ["root", "unprivileged"];
const PERL = "/usr/bin/perl";
const SLEEP = { program: "/bin/sleep", args: ["60"] };
const NAMESPACES = ["mnt", "pid_for_children", "net", "ipc", "uts", "cgroup"];
/** Own users lie above this number. */
const UID_BASE = 1_900_000_000;
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

/** Runs Perl code behind the jail: it has every system call at hand. */
async function perl(mode: Mode, code: string, files: readonly ConfinedFile[] = []): Promise<RunOutput> {
  return await run(await fixture.argv(mode, { program: PERL, args: ["-e", `use strict; use Socket; ${code}`], files }));
}

for (const mode of MODES) {
  describe(`as ${mode}`, { skip: skipReason(mode) }, () => {
    test("every layer that this mode can have is active", async () => {
      const confinement = await fixture.probe(mode);
      const impossible = mode === "root" ? ["user_namespace", "cgroup"] : ["own_uid", "cgroup"];
      const missing = confinement.layers.filter(({ name, active }) => !active && !impossible.includes(name));
      // A host that allows less must say why; sbx works there, these tests need all of it.
      assert.deepEqual(missing, []);
    });

    test("has no capability, no group, no way to new privileges", async () => {
      await using child = await fixture.start(mode, SLEEP);
      const pid = await confinedPid(child.pid);
      for (const set of ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]) {
        assert.deepEqual(await statusOf(pid, set), ["0000000000000000"], set);
      }
      assert.deepEqual(await statusOf(pid, "NoNewPrivs"), ["1"]);
      assert.deepEqual(await statusOf(pid, "Seccomp"), ["2"]);
      if (mode === "root") assert.deepEqual(await statusOf(pid, "Groups"), []);
    });

    test("lives in namespaces of its own", async () => {
      await using child = await fixture.start(mode, SLEEP);
      const pid = await confinedPid(child.pid);
      const wanted = mode === "root" ? NAMESPACES : [...NAMESPACES, "user"];
      for (const name of wanted) {
        const [own, confined] = await Promise.all(["self", pid].map((of) => fs.readlink(`/proc/${of}/ns/${name}`)));
        assert.notEqual(confined, own, name);
      }
    });

    test("two at once share neither user nor namespace", { skip: mode === "root" ? false : "own users need root" }, async () => {
      await using one = await fixture.start(mode, SLEEP);
      await using other = await fixture.start(mode, SLEEP);
      const pids = [await confinedPid(one.pid), await confinedPid(other.pid)];
      const uids = await Promise.all(pids.map(async (pid) => Number((await statusOf(pid, "Uid"))[0])));
      assert.ok(uids.every((uid) => uid > UID_BASE), String(uids));
      assert.notEqual(uids[0], uids[1]);
    });

    test("sees only the files it was given", async () => {
      const given = await fixture.file(mode, "given", "content");
      const hidden = await fixture.file(mode, "hidden", "secret");
      const output = await perl(
        mode,
        `sub show { my $d = shift; opendir(my $h, $d) or return "closed"; join ",", sort grep { !/^\\.\\.?$/ } readdir $h }
         print show("/"), "\\n", show("${path.dirname(given)}"), "\\n";
         print((-e "${hidden}" ? "hidden seen" : "hidden unseen"), "\\n");
         for my $f ("/etc/passwd", "/root", "/home", "/proc/self", "/sys/kernel", "/tmp/.", "/dev/kvm") { print "$f " if -e $f }
         open(my $h, "<", "${given}") or die; print "[", <$h>, "]\\n";`,
        [{ path: given, access: "ro" }],
      );
      const [root, directory, unseen, rest] = output.stdout.split("\n");
      // Landlock closes directories that were not given, even empty ones.
      assert.ok(root === "closed" || root === "dev,etc,lib,lib64,tmp,usr", `root shows ${root}; ${output.stderr}`);
      assert.ok(directory === "closed" || directory === "given", directory);
      assert.equal(unseen, "hidden unseen");
      assert.equal(rest?.replace("/tmp/. ", ""), "[content]"); // The fixture's own directory lies in /tmp.
    });

    test("writes to what was given for writing, and to nothing else", async () => {
      const readable = await fixture.file(mode, "readable", "old", 0o666), writable = await fixture.file(mode, "writable", "old", 0o666);
      const output = await perl(
        mode,
        `for my $f ("${readable}", "${writable}", "/new", "/usr/new", "/dev/new", "${path.dirname(readable)}/new") {
           my $h; if (open($h, ">", $f)) { print $h "new"; print "$f written\\n" } else { print "$f refused\\n" }
         }
         print "unlinked\\n" if unlink "${writable}", "${readable}"; print "chmod\\n" if chmod 0777, "${readable}";`,
        [{ path: readable, access: "ro" }, { path: writable, access: "rw" }],
      );
      const lines = output.stdout.trim().split("\n");
      assert.equal(lines.filter((line) => line.endsWith(" refused")).length, 5, output.stdout);
      assert.equal(lines.length, 6, output.stdout);
      assert.equal(await fs.readFile(writable, "utf8"), "new");
      assert.equal(await fs.readFile(readable, "utf8"), "old");
    });

    test("runs only what was given for running", async () => {
      const program = await fixture.file(mode, "program", "#!/usr/bin/perl\nprint qq(ran\\n);\n", 0o755);
      const refused = await perl(mode, `exec "${program}" or print "refused: $!\\n"`, [{ path: program, access: "ro" }]);
      assert.equal(refused.stdout, "refused: Permission denied\n", refused.stderr);
      const allowed = await perl(mode, `exec "${program}" or print "refused: $!\\n"`, [{ path: program, access: "exec" }]);
      assert.equal(allowed.stdout, "ran\n", allowed.stderr);
    });

    test("reaches no process outside", async () => {
      const output = await perl(
        mode,
        `print "own number $$, parent ", getppid(), "\\n";
         for my $pid (${process.pid}, ${process.ppid}, 2 .. 300) { print "reached $pid\\n" if kill 0, $pid }
         print "ended\\n";`,
      );
      assert.equal(output.stdout, "own number 1, parent 0\nended\n", output.stderr);
    });

    test("reaches no network, not even this host", async () => {
      const server = net.createServer().listen(0, "127.0.0.1");
      await new Promise((resolve) => server.once("listening", resolve));
      let isReached = false;
      server.on("connection", () => (isReached = true));
      const { port } = server.address() as net.AddressInfo;
      try {
        const code = `for my $family (AF_INET, AF_INET6, AF_UNIX, 16, 17, 40) {
            my $s; print "family $family opens\\n" if socket($s, $family, SOCK_STREAM, 0) || socket($s, $family, SOCK_DGRAM, 0);
          }
          my ($near, $far); socketpair($near, $far, AF_UNIX, SOCK_STREAM, 0) or die; print "pair works\\n";`;
        assert.equal((await perl(mode, code)).stdout, "pair works\n");
        // The namespace alone, without the filter: there is no route and no listener.
        const bare = await fixture.argv(mode, {
          program: PERL,
          args: [
            "-e",
            `use Socket; socket(my $s, AF_INET, SOCK_STREAM, 0) or die "no socket";
            print connect($s, pack_sockaddr_in(${port}, inet_aton("127.0.0.1"))) ? "connected" : "refused"`,
          ],
        });
        const at = bare.indexOf(fixture.jail) + 1;
        const output = await run([...bare.slice(0, at), "--skip", "seccomp", ...bare.slice(at)] as unknown as [string]);
        assert.equal(output.stdout, "refused", output.stderr);
        assert.equal(isReached, false);
      } finally {
        server.close();
      }
    });

    test("gets no dangerous system call", { skip: process.arch === "x64" ? false : "numbers are those of x86-64" }, async () => {
      const calls = {
        ptrace: 101,
        mount: 165,
        umount2: 166,
        pivot_root: 155,
        chroot: 161,
        unshare: 272,
        setns: 308,
        bpf: 321,
        perf_event_open: 298,
        userfaultfd: 323,
        io_uring_setup: 425,
        io_uring_enter: 426,
        keyctl: 250,
        add_key: 248,
        request_key: 249,
        process_vm_readv: 310,
        pidfd_getfd: 438,
        open_by_handle_at: 304,
        kexec_load: 246,
        init_module: 175,
        finit_module: 313,
        reboot: 169,
        open_tree: 428,
        move_mount: 429,
        fsopen: 430,
        mount_setattr: 442,
        mknodat: 259,
        syslog: 103,
      };
      const table = Object.entries(calls).map(([name, number]) => `${name} => ${number}`).join(", ");
      const code = `my %c = (${table}); for (sort keys %c) { $! = 0; my $r = syscall($c{$_}, 0, 0, 0, 0, 0);
          print "$_ gave $r $!\\n" unless $r == -1 && $!{EPERM} }
        my $r = syscall(56, 0x10000000 | 17, 0, 0, 0, 0); print "clone gave $r $!\\n" unless $r == -1 && $!{EPERM};
        $r = syscall(435, 0, 0); print "clone3 gave $r $!\\n" unless $r == -1 && $!{ENOSYS};
        my $key = "x"; $r = ioctl(STDIN, 0x5412, $key); print "TIOCSTI\\n" if defined $r; print "done\\n";`;
      const output = await perl(mode, `use Errno; ${code}`);
      assert.equal(output.stdout, "done\n", output.stderr);
    });

    test("a forbidden architecture's call ends it", { skip: process.arch === "x64" ? false : "x32 is of x86-64" }, async () => {
      const output = await perl(mode, `syscall(0x40000000 + 39); print "survived\\n"`);
      assert.deepEqual([output.stdout, output.signal], ["", "SIGSYS"]);
    });

    test("file systems stay closed by Landlock alone, where no mount namespace can be had", async (t) => {
      if (!isLayerActive(await fixture.probe(mode), "landlock")) return t.skip("this kernel has no Landlock");
      const given = await fixture.file(mode, "landlock-given", "content"), hidden = await fixture.file(mode, "landlock-hidden", "secret");
      const code = `for ("${given}", "${hidden}", "/etc/passwd", "/proc/self/status") { print open(my $h, "<", $_) ? 1 : 0 } print "\\n"`;
      const argv = await fixture.argv(mode, { program: PERL, args: ["-e", code], files: [{ path: given, access: "ro" }] });
      const at = argv.indexOf(fixture.jail) + 1;
      const own = argv.indexOf("--uid"); // Another user would not get into the directory at all.
      if (own > 0) argv.splice(own, 2);
      argv.splice(at, 0, "--skip", "mount_namespace");
      const output = await run(argv);
      assert.equal(output.stdout, "1000\n", output.stderr);
    });
  });
}

test("a file that the own user cannot read is named", { skip: skipReason("root") }, async () => {
  const secret = await fixture.file("root", "secret", "x", 0o400);
  const output = await perl("root", "print 1", [{ path: secret, access: "ro" }]);
  assert.equal(output.code, 125);
  assert.match(output.stderr, /^sbx-jail: own_uid: cannot use .*\/secret as user 19\d{8}: Permission denied/);
});

test("QEMU itself runs with its own filter on top of the jail's", { skip: skipReason("unprivileged") }, async (t) => {
  if (!fixture.qemu) return t.skip("this host has no QEMU");
  const { path: program, isStatic } = fixture.qemu;
  const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
  const args = ["-nodefaults", "-no-user-config", "-display", "none", "-M", "none", "-sandbox", sandbox];
  await using child: Child = await fixture.start("unprivileged", { program, args, isStatic });
  const pid = await confinedPid(child.pid);
  for (let tries = 0; tries < 3000 && (await statusOf(pid, "Seccomp_filters"))[0] !== "2"; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.deepEqual(await statusOf(pid, "Seccomp_filters"), ["2"]);
});
