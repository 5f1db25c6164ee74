/** The guest's machine: its file systems, swap, limits, kernel and tools, as CONTRACT and the kernel's configuration promise them. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import type { Language, RunRequest } from "../../src/mod.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

const LANGUAGES: readonly Language[] = ["python", "javascript", "raw"];

async function output(language: Language, code: string, more: Partial<RunRequest> = {}): Promise<string> {
  const { stdout, stderr, exitCode } = await vms.scheduler.run({ language, code, timeoutSeconds: 60, ...more });
  assert.equal(exitCode, 0, stderr);
  return stdout;
}

/** Runs a shell script in the image of any language. */
function inShell(language: Language, script: string): Promise<string> {
  const text = JSON.stringify(script);
  switch (language) {
    case "python":
      return output(
        language,
        `import subprocess\nprint(subprocess.run(["bash", "-c", ${text}], stdout=-1, stderr=-2, text=True).stdout, end="")`,
      );
    case "javascript":
      return output(language, `process.stdout.write(require("child_process").spawnSync("bash", ["-c", ${text} + " 2>&1"]).stdout)`);
    case "raw":
      return output(language, `{ ${script}; } 2>&1`);
  }
}

for (const language of LANGUAGES) {
  test(`${language}: the common tools are there and work`, async () => {
    const script = [
      "cd /tmp && mkdir in && echo text > in/file && tar czf all.tgz in && rm -r in && tar xzf all.tgz && cat in/file",
      "gzip -k in/file && gzip -dc in/file.gz",
      // A zip archive with the one entry `file`, stored: "zipped\n".
      "echo UEsDBBQAAAAAAAAAIQCsADrHBwAAAAcAAAAEAAAAZmlsZXppcHBlZApQSwECFAMUAAAAAAAAACEArAA6xwcAAAAHAAAABAAAAAAAAAAAAAAAgAEAAAAAZmlsZVBLBQYAAAAAAQABADIAAAApAAAAAAA= | base64 -d > a.zip && unzip -qp a.zip",
      `echo '{"a": [1, 2]}' | jq -c '.a[1]'`,
      "file -b --mime-type all.tgz",
      "git init -q repo && cd repo && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m first && git log --format=%s",
      "curl --version | grep -c '^Protocols:.* https'",
      "grep -c 'BEGIN CERTIFICATE' /etc/ssl/certs/ca-certificates.crt | grep -cE '^[1-9][0-9]{1,}$'",
    ].join("; ");
    assert.equal(await inShell(language, script), "text\ntext\nzipped\n2\napplication/gzip\nfirst\n1\n1\n");
  });
}

test("python: uv, a C compiler and cloudpickle are there and work", async () => {
  const code = `
import cloudpickle, pickle, subprocess
n = 40
print(pickle.loads(cloudpickle.dumps(lambda x: x + n))(2))
print(subprocess.check_output(["uv", "--version"], text=True).split()[0])
open("main.c", "w").write("#include <stdio.h>\\n#include <math.h>\\nint main(int c, char **v) { printf(\\"%.0f\\\\n\\", pow(2, c)); }\\n")
subprocess.check_call(["cc", "-O1", "-o", "main", "main.c", "-lm"])
print(subprocess.check_output(["./main", "a", "b"], text=True), end="")
`;
  assert.equal(await output("python", code), "42\nuv\n8\n");
});

test("what can be written is a tmpfs with its size, nosuid, nodev and a quota for the user; the root disk is read-only", async () => {
  const mounts = new Map(
    (await output("raw", "cat /proc/self/mounts", { memoryMb: 512 })).trim().split("\n").map((line) => {
      const [, target = "", kind = "", options = ""] = line.split(" ");
      return [target, { kind, options: options.split(",") }] as const;
    }),
  );
  const kib = (target: string) =>
    Number(/^size=(\d+)k$/.exec(mounts.get(target)?.options.find((option) => option.startsWith("size=")) ?? "")?.[1]);
  for (const target of ["/tmp", "/dev/shm", "/home/user"]) {
    const { kind, options } = mounts.get(target) ?? assert.fail(`${target} is not mounted`);
    assert.equal(kind, "tmpfs", target);
    for (const wanted of ["rw", "nosuid", "nodev", "usrquota"]) assert.ok(options.includes(wanted), `${target}: ${options}`);
  }
  assert.deepEqual([kib("/tmp"), kib("/dev/shm")], [131_072, 65_536]);
  const total = Number(/MemTotal: +(\d+)/.exec(await output("raw", "cat /proc/meminfo", { memoryMb: 512 }))?.[1]);
  assert.ok(Math.abs(kib("/home/user") - total / 2) < 8, `${kib("/home/user")} of ${total}`);
  assert.ok(mounts.get("/tmp")?.options.includes("nr_inodes=16384"));
  assert.deepEqual([mounts.get("/")?.kind, mounts.get("/")?.options[0]], ["erofs", "ro"]);
  const writable = [...mounts].filter(([, { kind, options }]) =>
    options[0] === "rw" && !["tmpfs", "proc", "cgroup2", "devpts"].includes(kind)
  );
  assert.deepEqual(writable.map(([target]) => target), [], "nothing else can be written");
  for (const [target, { options }] of mounts) assert.ok(options.includes("nosuid"), target);
});

test("a quarter of the memory is swap, compressed by lz4, and used when memory is short", async () => {
  const [swap = "", algorithm = "", total = ""] =
    (await output("raw", "tail -1 /proc/swaps; cat /sys/block/zram0/comp_algorithm; grep MemTotal /proc/meminfo"))
      .split("\n");
  const [device, , size] = swap.split(/\s+/), memory = Number(/\d+/.exec(total));
  assert.match(device ?? "", /zram0$/);
  assert.ok(Math.abs(Number(size) - memory / 4) < 16, `${size} of ${memory}`);
  assert.match(algorithm, /\[lz4\]/);
  // More than there is memory, and of a kind that can be compressed.
  const fill = "x = [bytes([n % 256]) * 2**20 for n in range(225)]\nprint(len(x), int(open('/proc/swaps').read().split()[-2]) > 0)";
  assert.equal(await output("python", fill), "225 True\n");
});

test("limits of a process are those promised, soft and hard", async () => {
  const code = "import resource as r\nprint(r.getrlimit(r.RLIMIT_NPROC), r.getrlimit(r.RLIMIT_CORE))";
  assert.equal(await output("python", code), "(1024, 1024) (0, 0)\n");
  assert.match(
    await output("javascript", "console.log(require('fs').readFileSync('/proc/self/limits', 'utf8'))"),
    /^Max processes +1024 +1024 /m,
  );
  assert.equal(await output("raw", "ulimit -Su; ulimit -Hu; ulimit -Hc"), "1024\n1024\n0\n");
});

test("the kernel has nothing of what it is built without", async () => {
  const absent = "/proc/kallsyms /proc/modules /proc/kcore /proc/config.gz /proc/bus/pci /proc/acpi /proc/net/if_inet6 /proc/net/tcp6 " +
    "/proc/sys/kernel/core_pattern /proc/sys/kernel/kexec_load_disabled /proc/sys/kernel/modules_disabled /proc/sys/kernel/io_uring_disabled " +
    "/proc/sys/kernel/unprivileged_bpf_disabled /proc/sys/vm/unprivileged_userfaultfd /dev/mem /dev/kmem /dev/port /dev/kmsg /dev/hwrng " +
    "/dev/loop0 /dev/fuse /dev/net/tun /dev/vda /dev/zram0 /dev/hvc0 /dev/vport0p1 /sys/bus/pci /sys/firmware/acpi /sys/kernel/debug/x";
  assert.equal(await output("raw", `for file in ${absent}; do [ ! -e $file ] || echo $file; done; echo end`), "end\n");
});

test("system calls that reach deep into the kernel are refused, whether the kernel has them or not", async () => {
  // io_uring_setup, bpf, userfaultfd, kexec_load, init_module, perf_event_open, add_key, ptrace, mount, setns, unshare(NEWUSER), open_by_handle_at
  const code = `
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
calls = dict(io_uring_setup=(425, 8, 0), bpf=(321, 0, 0, 0), userfaultfd=(323, 1), kexec_load=(246, 0, 0, 0, 0), init_module=(175, 0, 0, 0),
  perf_event_open=(298, 0, 0, -1, -1, 0), add_key=(248, 0, 0, 0, 0, 0), mount=(165, 0, 0, 0, 0, 0), setns=(308, 0, 0),
  unshare=(272, 0x10000000), open_by_handle_at=(304, 0, 0, 0), reboot=(169, 0, 0, 0, 0), swapon=(167, 0, 0), iopl=(172, 3))
for name, args in calls.items():
  ctypes.set_errno(0)
  result = libc.syscall(*map(ctypes.c_long, args))
  if result != -1 or ctypes.get_errno() not in (1, 38): print(name, result, ctypes.get_errno())
print("end")
`;
  assert.equal(await output("python", code), "end\n");
});

test("a child whose parent has ended is reaped when it ends, however many there are", async () => {
  const code = `
import glob, os, time
for _ in range(200):
  if os.fork() == 0:
    if os.fork() == 0: os._exit(0)
    os._exit(0)
  os.wait()
def zombies(): return sum(open(f).read().rpartition(") ")[2][:1] == "Z" for f in glob.glob("/proc/[0-9]*/stat"))
until = time.monotonic() + 20
while zombies() and time.monotonic() < until: time.sleep(0.1)
print(zombies())
`;
  assert.equal(await output("python", code), "0\n");
});

noLeftovers();
