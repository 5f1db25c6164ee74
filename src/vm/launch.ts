/** Launch: the one pipeline for cold boot, bake and clone. Acquire in order, hand over on success. */
import { randomBytes } from "node:crypto";
import { chmodSync, mkdirSync } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import { BOOT_TIMEOUT_MS, CLONE_TIMEOUT_MS } from "../base/limits.ts";
import { Scope } from "../base/scope.ts";
import { GuestChannel } from "../channel/guest.ts";
import { spawnError } from "../host/ask.ts";
import { Child } from "../host/process.ts";
import { VmCgroup } from "../qemu/cgroup.ts";
import { confine, type ConfinedFile } from "../qemu/confine.ts";
import {
  CONSOLE_FD,
  CONTROL_FD,
  type Layer,
  machineArgs,
  type MachineSpec,
  type Memory,
  netFd,
  QMP_FD,
  type Start,
} from "../qemu/machine.ts";
import { Qmp } from "../qemu/qmp.ts";
import { Console } from "./console.ts";
import {
  commandLineFor,
  type Hypervisor,
  isBooting,
  isOwnEmulator,
  type LaunchRequest,
  type Origin,
  type TemplateFiles,
} from "./hypervisor.ts";
import { Vm } from "./vm.ts";

/** The user QEMU runs as opens the files in it. */
const SAVES_MODE = 0o777;

/**
 * Starts a VM and returns as soon as QEMU's process exists: requests may be written at once, they wait in the channel; `vm.ready` tells
 * when the guest has answered. Throws `SandboxDependencyError` when QEMU cannot be started, `VmCapacityError` when the host has no room for it. The caller owns the VM.
 */
export async function launch(hypervisor: Hypervisor, request: LaunchRequest): Promise<Vm> {
  const vm = await spawnVm(hypervisor, request);
  vm.greet();
  return vm;
}

/** The first half of `launch`: QEMU alone. `vm.greet()` is the second; until then a clone has not loaded its state. Throws as `launch`. */
export async function spawnVm(hypervisor: Hypervisor, request: LaunchRequest): Promise<Vm> {
  await using scope = new Scope();
  const startedAt = performance.now();
  const id = `vm-${hypervisor.ownerToken}-${randomBytes(6).toString("hex")}`;
  const hasConsole = request.onConsole !== undefined || isBooting(request.origin), hasNet = request.hasNet ?? false;
  const group = VmCgroup.of(hypervisor.confinement, id);
  if (group) scope.use("cgroup", group);
  const savesDirectory = request.isSavable ? makeSavesDirectory(hypervisor, request, id) : undefined;
  if (savesDirectory !== undefined) scope.defer("saves", () => fs.rm(savesDirectory, { recursive: true, force: true }));
  const argv = commandOf(hypervisor, request, { id, hasConsole, savesDirectory, ...(group ? { cgroupDirectory: group.directory } : {}) });
  // Nothing in a QEMU is worth saving: it is killed at once.
  const child = scope.barrier(
    "qemu",
    await Child.spawn(argv, {
      pipes: 2 + Number(hasConsole) + Number(hasNet),
      stderr: "pipe",
      isTermFirst: false,
      isGoneWithPipes: true,
      env: {},
    }).catch((cause) => {
      throw spawnError("Cannot start a VM", argv[0], cause);
    }),
  );
  const [qmpPipe, controlPipe, ...others] = child.pipes;
  if (!qmpPipe || !controlPipe) throw new Error("Internal error: QEMU has no pipes");
  return new Vm({
    id,
    request,
    child,
    qmp: new Qmp(qmpPipe),
    guest: new GuestChannel(controlPipe),
    console: new Console(hasConsole ? others[0] : undefined, child.stderr, request.onConsole),
    net: hasNet ? others.at(-1) : undefined,
    savesDirectory,
    startedAt,
    readyTimeoutMs: request.readyTimeoutMs ?? (isBooting(request.origin) ? BOOT_TIMEOUT_MS : CLONE_TIMEOUT_MS),
    owned: scope.move(),
  });
}

interface VmNames {
  readonly id: string;
  readonly hasConsole: boolean;
  readonly savesDirectory: string | undefined;
  readonly cgroupDirectory?: string;
}

/**
 * Where QEMU can write the machine to while it runs. It is there from the start, because nothing can be added to what a confined QEMU sees; the
 * files in it are made by us, one for each save, and taken out of QEMU's sight afterwards.
 */
function makeSavesDirectory({ savesRoot }: Hypervisor, { origin }: LaunchRequest, id: string): string | undefined {
  if (savesRoot === undefined || isBooting(origin)) return undefined;
  const directory = path.join(savesRoot, id);
  try {
    mkdirSync(directory, { recursive: true });
    chmodSync(directory, SAVES_MODE); // The umask took part of it.
    return directory;
  } catch {
    return undefined; // A machine that cannot be saved runs all the same; saving it tells why.
  }
}

/** The whole command, confinement outermost. */
function commandOf(hypervisor: Hypervisor, request: LaunchRequest, vm: VmNames): [string, ...string[]] {
  const { files, qemu } = hypervisor;
  const rootImage = files.rootImage(request.language).path;
  const spec: MachineSpec = {
    name: vm.id,
    arch: hypervisor.platform.arch,
    accelerator: hypervisor.candidate.accelerator,
    cpu: hypervisor.candidate.cpu,
    translations: translationsOf(hypervisor, request),
    memoryMiB: request.memoryMiB,
    memory: memoryOf(request.origin),
    firmware: files.firmware.path,
    rootImage,
    layer: request.layer,
    start: startOf(hypervisor, request),
    console: !vm.hasConsole ? "none" : request.isDiagnostic ? "serial" : "socket",
    hasNet: request.hasNet ?? false,
  };
  return confine(hypervisor.confinement, {
    program: qemu.path,
    args: machineArgs(spec),
    isStatic: qemu.isOwn,
    needsKvm: spec.accelerator === "kvm",
    files: [
      { path: files.firmware.path, access: "ro" },
      { path: rootImage, access: "ro" },
      ...layerFiles(request.layer),
      ...originFiles(hypervisor, request),
      ...(vm.savesDirectory === undefined ? [] : [{ path: vm.savesDirectory, access: "rw" } as const]),
    ],
    keepFds: [QMP_FD, CONTROL_FD, ...(vm.hasConsole ? [CONSOLE_FD] : []), ...(spec.hasNet ? [netFd(spec)] : [])],
    memoryMiB: request.memoryMiB,
    ...(vm.cgroupDirectory === undefined ? {} : { cgroupDirectory: vm.cgroupDirectory }),
  });
}

function layerFiles(layer: Layer | undefined): ConfinedFile[] {
  if (layer === undefined) return [];
  if (layer.kind === "packages") return [{ path: layer.path, access: "ro" }];
  return [layer.scratch, layer.result].map((path) => ({ path, access: "rw" }));
}

function originFiles(hypervisor: Hypervisor, { origin }: LaunchRequest): ConfinedFile[] {
  const boot: ConfinedFile[] = [
    { path: hypervisor.files.kernel.path, access: "ro" },
    { path: hypervisor.files.initrd.path, access: "ro" },
  ];
  switch (origin.kind) {
    case "cold":
      return boot;
    case "bake":
      return [...boot, ...templateFiles(origin.files, "rw")];
    case "clone":
      return templateFiles(origin.files, "ro");
    case "restore":
      return [origin.files.ramFile, origin.files.stateFile].map((path) => ({ path, access: "ro" }));
  }
}

function memoryOf(origin: Origin): Memory {
  if (origin.kind === "cold") return { kind: "anonymous" };
  const offset = origin.kind === "restore" ? origin.files.ramOffset : 0;
  return { kind: "file", path: origin.files.ramFile, offset, isShared: origin.kind === "bake" };
}

function templateFiles({ ramFile, stateFile, translationsFile }: TemplateFiles, access: "ro" | "rw"): ConfinedFile[] {
  return [ramFile, stateFile, translationsFile].map((path) => ({ path, access }));
}

function translationsOf(hypervisor: Hypervisor, { origin }: LaunchRequest): MachineSpec["translations"] {
  if (origin.kind === "cold" || origin.kind === "restore" || !isOwnEmulator(hypervisor)) return undefined;
  const { translationsFile, bakeId } = origin.files;
  return { path: translationsFile, id: bakeId, isSaved: origin.kind === "bake" };
}

function startOf(hypervisor: Hypervisor, request: LaunchRequest): Start {
  if (!isBooting(request.origin)) return { kind: "clone", isPaused: request.origin.kind === "restore" };
  return {
    kind: "boot",
    kernel: hypervisor.files.kernel.path,
    initrd: hypervisor.files.initrd.path,
    commandLine: commandLineFor(hypervisor, request),
  };
}
