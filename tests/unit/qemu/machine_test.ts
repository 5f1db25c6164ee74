/** Machine: what a QEMU is told, by what the machine is. */
import assert from "node:assert/strict";
import test from "node:test";
import { kernelCommandLine, machineArgs, type MachineSpec, netFd } from "../../../src/qemu/machine.ts";

const BOOT: MachineSpec = {
  name: "vm-1",
  arch: "x86_64",
  accelerator: "tcg",
  cpu: "max",
  memoryMiB: 256,
  memory: { kind: "anonymous" },
  firmware: "/images/qboot.rom",
  rootImage: "/images/root.erofs",
  start: { kind: "boot", kernel: "/images/vmlinux", initrd: "/images/initrd", commandLine: "quiet" },
  console: "socket",
};
const CLONE: MachineSpec = {
  ...BOOT,
  memory: { kind: "file", path: "/t/ram", offset: 0, isShared: false },
  start: { kind: "clone", isPaused: false },
  console: "none",
};
const BAKE: MachineSpec = { ...BOOT, memory: { kind: "file", path: "/t/ram", offset: 0, isShared: true } };
const NET: MachineSpec = { ...CLONE, hasNet: true };
const ALL = [BOOT, CLONE, BAKE, NET, { ...BOOT, hasNet: true }, { ...BOOT, console: "serial" }, { ...BOOT, arch: "aarch64" }, {
  ...CLONE,
  accelerator: "kvm",
}] as const;

/** The value after each `name`. */
const valuesOf = (spec: MachineSpec, name: string): string[] => {
  const args = machineArgs(spec);
  return args.flatMap((arg, at) => arg === name ? [args[at + 1] ?? ""] : []);
};

const PACKAGES = { ...CLONE, layer: { kind: "packages", path: "/layers/a,b.erofs" } } as const;
const WORKSHOP = { ...BOOT, layer: { kind: "workshop", scratch: "/w/scratch", result: "/w/result" } } as const;

test("a disk with packages follows the root, raw and read-only; without packages there is none", () => {
  assert.deepEqual(valuesOf(CLONE, "-drive").length, 1);
  const [root, packages, ...others] = valuesOf(PACKAGES, "-drive");
  assert.match(root ?? "", /^id=root,/);
  assert.match(packages ?? "", /^id=packages,if=none,format=raw,.*readonly=on.*,file=\/layers\/a,,b\.erofs$/);
  assert.deepEqual(others, []);
  assert.deepEqual(valuesOf(PACKAGES, "-device").slice(0, 2), ["virtio-blk-device,drive=root", "virtio-blk-device,drive=packages"]);
});

test("a workshop writes to its own two disks, never to its root", () => {
  const drives = valuesOf(WORKSHOP, "-drive");
  assert.deepEqual(drives.map((drive) => [/id=(\w+)/.exec(drive)?.[1], drive.includes("readonly=on")]), [
    ["root", true],
    ["scratch", false],
    ["result", false],
  ]);
  for (const drive of drives) assert.match(drive, /format=raw/);
});

test("the kernel is told of a layer, and of none where there is none", () => {
  const options = { language: "raw", console: "socket", hasNanosecondTsc: false, isLogged: false } as const;
  assert.doesNotMatch(kernelCommandLine(options), /sbx\.layer/);
  assert.match(kernelCommandLine({ ...options, layer: "workshop" }), / sbx\.layer=workshop sbx\.language=raw$/);
});

test("every machine is sandboxed, has no device of QEMU's own choice, no network, and a disk that cannot be written", () => {
  for (const spec of ALL) {
    const args = machineArgs(spec);
    for (const flag of ["-nodefaults", "-no-user-config", "-no-reboot"]) assert.ok(args.includes(flag), flag);
    assert.deepEqual(valuesOf(spec, "-sandbox"), ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    assert.deepEqual(valuesOf(spec, "-drive").map((drive) => /(^|,)readonly=on(,|$)/.test(drive) && /(^|,)format=raw(,|$)/.test(drive)), [
      true,
    ]);
    assert.doesNotMatch(args.join(" "), /net(dev|work)|virtio-net|-nic|virtfs|vsock|usb|pci/);
    const models = valuesOf(spec, "-device").map((device) => device.split(",")[0]);
    const known = ["virtio-blk-device", "virtio-serial-device", "virtconsole", "virtserialport"];
    assert.deepEqual(models.filter((model) => !known.includes(model ?? "")), []);
  }
});

test("nobody can connect to a machine: its channels are descriptors, and it has no monitor but QMP on one", () => {
  for (const spec of ALL) {
    const channels = valuesOf(spec, "-chardev");
    for (const channel of channels) assert.match(channel, /^(socket,id=\w+,fd=[3456]|null,id=\w+)$/);
    assert.deepEqual(valuesOf(spec, "-mon"), ["chardev=qmp,mode=control"]);
    const descriptors = channels.flatMap((channel) => /fd=(\d)/.exec(channel)?.[1] ?? []);
    assert.equal(new Set(descriptors).size, descriptors.length, "one descriptor each");
  }
});

test("a clone never writes to its template, a bake does, and only a boot has a kernel", () => {
  assert.deepEqual(valuesOf(CLONE, "-object"), ["memory-backend-file,id=ram,size=256M,mem-path=/t/ram,share=off,readonly=on,rom=off"]);
  assert.deepEqual(valuesOf(BAKE, "-object"), ["memory-backend-file,id=ram,size=256M,mem-path=/t/ram,share=on"]);
  assert.deepEqual(valuesOf(BOOT, "-object"), []);
  assert.deepEqual([valuesOf(CLONE, "-kernel"), valuesOf(CLONE, "-incoming")], [[], ["defer"]]);
  assert.deepEqual([valuesOf(BOOT, "-kernel"), valuesOf(BOOT, "-append"), valuesOf(BOOT, "-incoming")], [
    ["/images/vmlinux"],
    ["quiet"],
    [],
  ]);
});

test("a clone's net port leads to the next free descriptor where asked, and the devices are those of its template all the same", () => {
  assert.ok(valuesOf(CLONE, "-chardev").includes("null,id=net"));
  assert.ok(valuesOf(NET, "-chardev").includes("socket,id=net,fd=5"));
  assert.ok(valuesOf({ ...BOOT, hasNet: true }, "-chardev").includes("socket,id=net,fd=6"));
  assert.deepEqual([netFd(NET), netFd(BOOT)], [5, 6]);
  assert.deepEqual(valuesOf(NET, "-device"), valuesOf(CLONE, "-device"));
});

test("a comma in a path is no separator", () => {
  const spec = {
    ...BOOT,
    rootImage: "/a,readonly=off",
    memory: { kind: "file", path: "/b,share=on", offset: 0, isShared: false },
  } as const;
  assert.ok(valuesOf(spec, "-drive")[0]?.endsWith("file=/a,,readonly=off"));
  assert.match(valuesOf(spec, "-object")[0] ?? "", /mem-path=\/b,,share=on,share=off,/);
});

test("the legacy timers are there for emulation, which needs them, and for nobody else", () => {
  for (const [accelerator, setting] of [["tcg", "on"], ["kvm", "off"]] as const) {
    const [machine = ""] = valuesOf({ ...BOOT, accelerator }, "-M");
    assert.match(machine, new RegExp(`^microvm,.*pit=${setting},pic=${setting},rtc=${setting}$`));
  }
  assert.match(valuesOf({ ...BOOT, arch: "aarch64" }, "-M")[0] ?? "", /^virt,/);
});

test("clone and bake have the same devices in the same order: a state fits no other machine", () => {
  const devices = (spec: MachineSpec) => [...valuesOf(spec, "-device"), ...valuesOf(spec, "-m"), ...valuesOf(spec, "-cpu")];
  assert.deepEqual(devices(CLONE), devices(BAKE));
  const board = (spec: MachineSpec) => (valuesOf(spec, "-M")[0] ?? "").replace(/auto-kernel-cmdline=\w+,/, "");
  assert.equal(board(CLONE), board(BAKE));
});

test("the kernel is told its language, where its log goes, and what it need not measure", () => {
  const given = { language: "raw", console: "socket", hasNanosecondTsc: false, isLogged: false } as const;
  const words = kernelCommandLine(given).split(" ");
  for (const word of ["console=hvc0", "quiet", "panic=-1", "lapic_timer_hz=1000000000", "sbx.language=raw"]) {
    assert.ok(words.includes(word), word);
  }
  assert.ok(!words.some((word) => word.startsWith("tsc")), "a counter that is not ours is measured");
  assert.ok(kernelCommandLine({ ...given, hasNanosecondTsc: true }).includes(" tsc=reliable"));
  assert.ok(kernelCommandLine({ ...given, isLogged: true }).includes(" sbx.log=1"));
  assert.match(kernelCommandLine({ ...given, console: "serial" }), /^console=ttyS0 ignore_loglevel /);
});

test("translations are loaded by clones and saved by bakes, with buffers of one size, and by emulation alone", () => {
  const accel = (spec: MachineSpec) => valuesOf(spec, "-accel")[0] ?? "";
  const loaded = accel({ ...CLONE, translations: { path: "/t/a,b", id: "b1", isSaved: false } });
  const saved = accel({ ...BAKE, translations: { path: "/t/a,b", id: "b1", isSaved: true } });
  assert.match(loaded, /^tcg,thread=single,tb-size=\d+,translations-id=b1,translations=\/t\/a,,b$/);
  assert.equal(saved, loaded.replace(",translations=", ",save-translations="));
  assert.equal(accel(CLONE), loaded.replace(/,translations.*/, ""), "another QEMU knows no such option");
  assert.equal(accel({ ...CLONE, accelerator: "kvm", translations: { path: "/t/a", id: "b1", isSaved: false } }), "kvm");
});
