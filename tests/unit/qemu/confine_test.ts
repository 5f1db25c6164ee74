/** confine: probe's answer and command → the jail's command line. */
import assert from "node:assert/strict";
import test from "node:test";
import process from "node:process";
import { SandboxDependencyError } from "../../../src/base/errors.ts";
import {
  confine,
  type ConfinedCommand,
  type ConfinementLayers,
  isLayerActive,
  LAYER_NAMES,
  type LayerName,
  noConfinement,
  parseProbe,
} from "../../../src/qemu/confine.ts";

const JAIL = "/images/sbx-jail";
const COMMAND: ConfinedCommand = {
  program: "/images/qemu-sbx",
  args: ["-M", "none"],
  isStatic: true,
  needsKvm: false,
  files: [{ path: "/images/root.erofs", access: "ro" }],
  keepFds: [3, 4],
  memoryMiB: 256,
  parentPid: 77,
};

function answer(inactive: readonly LayerName[] = [], cgroup: unknown = null): string {
  const layers = LAYER_NAMES.map((name) => {
    const active = !inactive.includes(name);
    return { name, active, reason: active ? null : "not here", hint: null };
  });
  return JSON.stringify({ schema: 1, landlockAbi: 7, cgroup, layers }) + "\n";
}

function layers(inactive: readonly LayerName[] = [], cgroup: unknown = null): ConfinementLayers {
  return parseProbe(answer(inactive, cgroup), JAIL);
}

/** The values that follow `option`. */
function valuesOf(argv: readonly string[], option: string): string[] {
  return argv.slice(0, argv.indexOf("--")).flatMap((word, at, all) => word === option ? [all[at + 1] ?? ""] : []);
}

test("confine puts the jail first and leaves the command as it is", () => {
  const argv = confine(layers(), COMMAND);
  assert.equal(argv[0], JAIL);
  assert.deepEqual(argv.slice(argv.indexOf("--")), ["--", "/images/qemu-sbx", "-M", "none"]);
  assert.deepEqual(valuesOf(argv, "--parent-pid"), ["77"]);
  assert.deepEqual(valuesOf(argv, "--ro"), ["/images/root.erofs"]);
  assert.deepEqual(valuesOf(argv, "--exec"), ["/images/qemu-sbx"]);
  assert.deepEqual(valuesOf(argv, "--keep-fds"), ["3,4"]);
  assert.deepEqual(valuesOf(argv, "--skip"), []);
  assert.deepEqual(valuesOf(argv, "--dev"), []);
});

test("confine names this process as the parent unless told another", () => {
  const { parentPid: _, ...command } = COMMAND;
  assert.deepEqual(valuesOf(confine(layers(), command), "--parent-pid"), [String(process.pid)]);
});

test("confine skips exactly the layers that the host does not allow", () => {
  for (const name of LAYER_NAMES) assert.deepEqual(valuesOf(confine(layers([name]), COMMAND), "--skip"), [name]);
});

test("confine asks for an own user, and limits its threads, only where that layer is active", () => {
  const rooted = confine(layers(["user_namespace"]), COMMAND), ordinary = confine(layers(["own_uid"]), COMMAND);
  assert.deepEqual(valuesOf(rooted, "--uid"), ["auto"]);
  assert.deepEqual(valuesOf(ordinary, "--uid"), []);
  assert.ok(valuesOf(rooted, "--rlimit").some((limit) => limit.startsWith("nproc=")));
  assert.ok(!valuesOf(ordinary, "--rlimit").some((limit) => limit.startsWith("nproc=")));
});

test("confine bounds QEMU's memory above the guest's, and forbids core dumps", () => {
  for (const memoryMiB of [128, 256, 65_536]) {
    const limits = new Map(
      valuesOf(confine(layers(), { ...COMMAND, memoryMiB }), "--rlimit").map((limit) => limit.split("=") as [string, string]),
    );
    assert.equal(limits.get("core"), "0");
    // Guest memory, the translation buffer of 1 GiB, stacks of 64 threads, and room for QEMU itself.
    assert.ok(Number(limits.get("data")) >= (memoryMiB + 512 + 64 * 8 + 256) * 1_048_576);
  }
});

test("confine gives a distribution's QEMU its libraries, and no QEMU a device it does not need", () => {
  const argv = confine(layers(), { ...COMMAND, isStatic: false, needsKvm: true });
  assert.deepEqual(valuesOf(argv, "--exec-try"), ["/usr", "/bin", "/lib", "/lib64", "/nix/store"]);
  assert.deepEqual(valuesOf(argv, "--dev"), ["null", "urandom", "kvm"]);
  assert.deepEqual(valuesOf(confine(layers(), { ...COMMAND, needsKvm: true }), "--dev"), ["kvm"]);
});

test("confine uses a cgroup where one is delegated, with the controllers it has", () => {
  const delegated = layers([], { parent: "/sys/fs/cgroup/user", controllers: ["memory", "pids"] });
  const command = { ...COMMAND, cgroupDirectory: "/sys/fs/cgroup/user/sbx-1" };
  assert.deepEqual(valuesOf(confine(delegated, command), "--cgroup"), ["/sys/fs/cgroup/user/sbx-1"]);
  assert.deepEqual(valuesOf(confine(delegated, command), "--cgroup-set"), [`memory.max=${(256 + 512 + 1024) * 1_048_576}`, "pids.max=128"]);
  assert.deepEqual(valuesOf(confine(delegated, COMMAND), "--cgroup"), []);
  assert.deepEqual(valuesOf(confine(layers(["cgroup"]), command), "--cgroup"), []);
});

test("confine passes every file with its access, and paths of any characters as one word", () => {
  const files = [{ path: "/a b/x:y,z", access: "ro" }, { path: "/state", access: "rw" }, { path: "/lib/x", access: "exec" }] as const;
  const argv = confine(layers(), { ...COMMAND, files, keepFds: [] });
  assert.deepEqual(valuesOf(argv, "--ro"), ["/a b/x:y,z"]);
  assert.deepEqual(valuesOf(argv, "--rw"), ["/state"]);
  assert.deepEqual(valuesOf(argv, "--exec"), ["/lib/x", "/images/qemu-sbx"]);
  assert.deepEqual(valuesOf(argv, "--keep-fds"), []);
});

test("without a jail the command is unchanged and every layer is reported with the reason", () => {
  const none = noConfinement("macOS has no such thing", "brew install nothing");
  assert.deepEqual(confine(none, COMMAND), ["/images/qemu-sbx", "-M", "none"]);
  assert.deepEqual(none.layers.map((layer) => layer.name), [...LAYER_NAMES]);
  for (const layer of none.layers) {
    assert.deepEqual(layer, { name: layer.name, active: false, reason: "macOS has no such thing", hint: "brew install nothing" });
    assert.equal(isLayerActive(none, layer.name), false);
  }
});

test("parseProbe keeps the verdicts, and reports a layer that the jail does not mention as inactive", () => {
  const parsed = layers(["landlock"]);
  assert.deepEqual(parsed.layers.map((layer) => layer.name), [...LAYER_NAMES]);
  assert.equal(isLayerActive(parsed, "landlock"), false);
  assert.equal(isLayerActive(parsed, "seccomp"), true);
  assert.equal(parsed.landlockAbi, 7);
  const short = JSON.parse(answer());
  short.layers = short.layers.filter((layer: { name: string }) => layer.name !== "seccomp");
  const older = parseProbe(JSON.stringify(short), JAIL);
  assert.deepEqual(older.layers.find((layer) => layer.name === "seccomp")?.reason, "this sbx-jail does not know it");
});

test("parseProbe refuses anything else, and says what it got", () => {
  const bad = ["", "Segmentation fault", "{}", "null", '{"schema":2}', answer().replace('"pdeathsig"', '"bogus"'), answer().slice(0, -9)];
  for (const output of bad) {
    assert.throws(() => parseProbe(output, JAIL), (error: unknown) => {
      assert.ok(error instanceof SandboxDependencyError);
      assert.ok(error.message.includes(JAIL) && error.message.includes(output.trim().slice(0, 40)));
      return true;
    });
  }
});
