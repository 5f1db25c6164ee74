/** Machine: a description of the virtual machine → QEMU's arguments. Pure: same description, same arguments. */
import type { Arch } from "../host/platform.ts";

/** What runs the guest's instructions. */
export type Accelerator = "kvm" | "hvf" | "tcg";

/** Descriptors QEMU inherits; each is one end of a socketpair, so that nobody else can connect. */
export const QMP_FD = 3;
/** The agent's control port. */
export const CONTROL_FD = 4;
/** Kernel and agent log, when somebody reads it. */
export const CONSOLE_FD = 5;

/** The net port's descriptor where the machine has a network: the next one that is free. */
export function netFd({ console }: Pick<MachineSpec, "console">): number {
  return console === "none" ? CONSOLE_FD : CONSOLE_FD + 1;
}

/** How the machine comes to life. */
export type Start =
  | {
    readonly kind: "boot";
    readonly kernel: string;
    readonly initrd: string;
    readonly commandLine: string;
  }
  /** Waits for `migrate-incoming`; kernel and initrd are in the RAM already. Paused: then also for `cont`. */
  | { readonly kind: "clone"; readonly isPaused: boolean };

/** Where the guest's memory lives. */
export type Memory =
  | { readonly kind: "anonymous" }
  /** A file, from `offset` on; writes go to it when shared, and stay private otherwise. */
  | { readonly kind: "file"; readonly path: string; readonly offset: number; readonly isShared: boolean };

/** What the guest's memory is called where it is in a file. */
export const RAM_NAME = "ram";

/** What the machine has besides its root: a disk with packages, or what a layer of packages is made with. */
export type Layer =
  /** Raw, read-only. */
  | { readonly kind: "packages"; readonly path: string }
  /** Where memory goes that is too much, and where the layer is written to. */
  | { readonly kind: "workshop"; readonly scratch: string; readonly result: string };

/** QEMU's buffer for translated code, which counts as data whether used or not. Saved translations only fit one of the same size. */
export const TRANSLATION_BUFFER_MIB = 512;

/** Everything that decides the arguments. Paths are as QEMU sees them, behind its confinement. */
export interface MachineSpec {
  /** Tells our QEMUs from all others in the process list. */
  readonly name: string;
  readonly arch: Arch;
  readonly accelerator: Accelerator;
  readonly cpu: string;
  /** What our own emulator begins with, or the file it saves when it stops for a migration; `id` says whose memory they are of. */
  readonly translations?: { readonly path: string; readonly id: string; readonly isSaved: boolean } | undefined;
  readonly memoryMiB: number;
  readonly memory: Memory;
  readonly firmware: string;
  /** Raw, read-only. */
  readonly rootImage: string;
  readonly layer?: Layer | undefined;
  readonly start: Start;
  /** `socket`: virtio console on `CONSOLE_FD`. `serial`: the same from the first instruction on, for diagnosis. `none`: dropped. */
  readonly console: "socket" | "serial" | "none";
  /** The net port leads to a descriptor, `netFd`. Without, it leads nowhere; the same template can be cloned either way. Default false. */
  readonly hasNet?: boolean;
}

/** The arguments after the program's name. */
export function machineArgs(spec: MachineSpec): string[] {
  return [
    ...["-name", spec.name],
    ...["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
    ...["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"],
    ...["-M", machineType(spec), "-accel", acceleratorOption(spec), "-cpu", spec.cpu],
    ...["-m", `${spec.memoryMiB}M`, ...memoryOptions(spec)],
    ...(spec.firmware === "" ? [] : ["-bios", spec.firmware]),
    ...startOptions(spec.start),
    ...["-chardev", `socket,id=qmp,fd=${QMP_FD}`, "-mon", "chardev=qmp,mode=control"],
    ...["-drive", `id=root,if=none,format=raw,readonly=on,file.locking=off,file=${escaped(spec.rootImage)}`],
    ...["-device", "virtio-blk-device,drive=root"],
    ...layerOptions(spec.layer),
    ...["-device", "virtio-serial-device,max_ports=3"],
    ...consoleOptions(spec.console),
    ...["-chardev", `socket,id=control,fd=${CONTROL_FD}`, "-device", "virtserialport,chardev=control,nr=1,name=sbx.control"],
    ...["-chardev", netOption(spec), "-device", "virtserialport,chardev=net,nr=2,name=sbx.net"],
  ];
}

/**
 * The command line of the guest's kernel. The timers' rates are given because measuring them is most of a boot under emulation: QEMU's
 * local APIC timer runs at 1 GHz with every accelerator (`lapic_timer_hz` is our kernel's own option), `lpj` only feeds delay loops that
 * no driver of ours enters, and `no_timer_check` skips a test of wiring that a virtual board cannot get wrong.
 */
export function kernelCommandLine(
  options: {
    readonly language: string;
    readonly console: MachineSpec["console"];
    readonly hasNanosecondTsc: boolean;
    /** Somebody wants the kernel's log: the agent repeats it on the console, which comes too late for most of it. */
    readonly isLogged: boolean;
    readonly layer?: Layer["kind"] | undefined;
  },
): string {
  const console = options.console === "serial" ? "console=ttyS0 ignore_loglevel" : "console=hvc0 quiet";
  const timers = "no_timer_check lapic_timer_hz=1000000000 lpj=13000000";
  // Our own QEMU's emulated counter runs at 1 GHz (images/qemu/patches); any other must be measured.
  const tsc = options.hasNanosecondTsc ? " tsc_early_khz=1000000 tsc=reliable" : "";
  const layer = options.layer === undefined ? "" : ` sbx.layer=${options.layer}`;
  return `${console} reboot=t panic=-1 ${timers}${tsc}${options.isLogged ? " sbx.log=1" : ""}${layer} sbx.language=${options.language}`;
}

function machineType(spec: MachineSpec): string {
  const memory = spec.memory.kind === "file" ? `,memory-backend=${RAM_NAME}` : "";
  if (spec.arch === "aarch64") return `virt,gic-version=max${memory}`;
  const serial = spec.console === "serial" ? "on" : "off";
  // Under TCG the kernel calibrates its timers against the PIT and hangs without it; KVM brings its own clock.
  const legacy = spec.accelerator === "tcg" ? "on" : "off";
  return `microvm,x-option-roms=off,acpi=off,auto-kernel-cmdline=${spec.start.kind === "boot" ? "on" : "off"},isa-serial=${serial},` +
    `pit=${legacy},pic=${legacy},rtc=${legacy}${memory}`;
}

function acceleratorOption({ accelerator, translations }: MachineSpec): string {
  if (accelerator !== "tcg") return accelerator;
  // One thread: with one CPU there is nothing to run beside it, and the locks of many are not taken.
  const option = `tcg,thread=single,tb-size=${TRANSLATION_BUFFER_MIB}`;
  if (!translations) return option;
  const role = translations.isSaved ? "save-translations" : "translations";
  return `${option},translations-id=${translations.id},${role}=${escaped(translations.path)}`;
}

function memoryOptions(spec: MachineSpec): string[] {
  if (spec.memory.kind === "anonymous") return [];
  // readonly: the file is opened for reading, the mapping stays private and writable (rom=off); a balloon cannot punch holes into it either.
  const access = spec.memory.isShared ? "share=on" : "share=off,readonly=on,rom=off";
  const place = `mem-path=${escaped(spec.memory.path)}${spec.memory.offset === 0 ? "" : `,offset=${spec.memory.offset}`}`;
  return ["-object", `memory-backend-file,id=${RAM_NAME},size=${spec.memoryMiB}M,${place},${access}`];
}

function startOptions(start: Start): string[] {
  if (start.kind === "clone") return ["-incoming", "defer", ...(start.isPaused ? ["-S"] : [])];
  return ["-kernel", start.kernel, "-initrd", start.initrd, "-append", start.commandLine];
}

function consoleOptions(console: MachineSpec["console"]): string[] {
  const backend = console === "none" ? "null,id=console" : `socket,id=console,fd=${CONSOLE_FD}`;
  if (console === "serial") return ["-chardev", backend, "-serial", "chardev:console"];
  return ["-chardev", backend, "-device", "virtconsole,chardev=console,nr=0"];
}

function layerOptions(layer: Layer | undefined): string[] {
  if (layer === undefined) return [];
  const disk = (id: string, path: string, access: string) => [
    ...["-drive", `id=${id},if=none,format=raw,file.locking=off,${access},file=${escaped(path)}`],
    ...["-device", `virtio-blk-device,drive=${id}`],
  ];
  if (layer.kind === "packages") return disk("packages", layer.path, "readonly=on");
  // Nothing of either is of use after the machine's end but what has been read back from it.
  return [...disk("scratch", layer.scratch, "cache=unsafe"), ...disk("result", layer.result, "cache=unsafe")];
}

function netOption(spec: MachineSpec): string {
  return spec.hasNet ? `socket,id=net,fd=${netFd(spec)}` : "null,id=net";
}

/** QEMU reads commas as separators; a doubled comma is one comma. */
function escaped(path: string): string {
  return path.replaceAll(",", ",,");
}
