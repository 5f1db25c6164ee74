/** Confinement: a command → the same command behind `sbx-jail`. Pure; what the host allows comes from the jail's own probe. */
import process from "node:process";
import { z } from "zod";
import { ONCE } from "../base/schema.ts";
import { SandboxDependencyError } from "../base/errors.ts";
import { TRANSLATION_BUFFER_MIB } from "./machine.ts";

/** The layers, in the order in which they are put on. */
export const LAYER_NAMES = [
  "pdeathsig",
  "user_namespace",
  "mount_namespace",
  "pid_namespace",
  "network_namespace",
  "ipc_namespace",
  "uts_namespace",
  "cgroup_namespace",
  "rlimits",
  "own_uid",
  "capabilities",
  "no_new_privs",
  "landlock",
  "seccomp",
  "cgroup",
] as const;

/** One layer of confinement, as the jail and `sbx doctor` name it. */
export type LayerName = typeof LAYER_NAMES[number];

/** What the probe found about one layer. */
export interface LayerVerdict {
  readonly name: LayerName;
  readonly active: boolean;
  /** Why it is not active; null when it is. */
  readonly reason: string | null;
  /** The command that mends it, where there is one. */
  readonly hint: string | null;
}

/** Which layers this host allows, and the program that puts them on. */
export interface ConfinementLayers {
  /** Path of `sbx-jail`; null where there is none: then every layer is inactive. */
  readonly jail: string | null;
  /** One verdict per layer, in the order of `LAYER_NAMES`. */
  readonly layers: readonly LayerVerdict[];
  /** Version of the kernel's Landlock, or null. */
  readonly landlockAbi: number | null;
  /** Where a cgroup (version 2) can be made for each VM, or null. */
  readonly cgroup: { readonly parent: string; readonly controllers: readonly string[] } | null;
}

/** A file or directory the program sees, under its own path. Everything else does not exist for it. */
export interface ConfinedFile {
  /** Absolute, without `..`. */
  readonly path: string;
  readonly access: "ro" | "rw" | "exec";
}

/** What is to run, and what it needs. */
export interface ConfinedCommand {
  /** Absolute path; need not be among `files`. */
  readonly program: string;
  readonly args: readonly string[];
  /** A static program needs no library of the host's. */
  readonly isStatic: boolean;
  readonly needsKvm: boolean;
  readonly files: readonly ConfinedFile[];
  /** Descriptors from 3 on that the program inherits; all others are closed. */
  readonly keepFds: readonly number[];
  /** Memory of the guest; what the program may use besides has fixed bounds. */
  readonly memoryMiB: number;
  /** A cgroup to create and enter, below `ConfinementLayers.cgroup.parent`; the caller removes it when the program has ended. */
  readonly cgroupDirectory?: string;
  /** The process that starts the command, and whose end ends it; default: this one. */
  readonly parentPid?: number;
}

/** Heap and device state of QEMU, about 20 MiB, and 8 MiB of stack for each of the 64 threads that read disks for a busy guest. */
const QEMU_OVERHEAD_MIB = 1024;
/** Open files; QEMU uses about 20. */
const OPEN_FILES_MAX = 512;
/** Threads: QEMU's pool has at most 64. */
const THREADS_MAX = 128;
/** Half of the default: what the user does himself goes first. */
const CPU_WEIGHT = 50;
const MIB = 1_048_576;
/** What a distribution's QEMU loads, which may be a script around it; what a host does not have is left out. */
const SHARED_LIBRARIES: readonly string[] = ["/usr", "/bin", "/lib", "/lib64", "/nix/store"];
const LOADER_CACHE = "/etc/ld.so.cache";

const probeSchema = z.object({
  schema: z.literal(1),
  landlockAbi: z.number().int().positive().nullable(),
  cgroup: z.object({ parent: z.string(), controllers: z.array(z.string()) }).nullable(),
  layers: z.array(z.object({ name: z.enum(LAYER_NAMES), active: z.boolean(), reason: z.string().nullable(), hint: z.string().nullable() })),
});

/** Reads what `sbx-jail --probe` printed. Throws `SandboxDependencyError` when that is no such answer. */
export function parseProbe(output: string, jail: string): ConfinementLayers {
  const answer = probeSchema.safeParse(parseJson(output), ONCE);
  if (!answer.success) {
    const shown = output.trim().slice(0, 200);
    throw new SandboxDependencyError(
      `Cannot read which confinement this host allows: ${jail} --probe must print its verdicts, got "${shown}"`,
      {
        cause: answer.error,
        hint: "Run `sbx images verify`.",
      },
    );
  }
  const found = new Map(answer.data.layers.map((layer) => [layer.name, layer]));
  const layers = LAYER_NAMES.map((name) =>
    found.get(name) ?? { name, active: false, reason: "this sbx-jail does not know it", hint: null }
  );
  return { jail, layers, landlockAbi: answer.data.landlockAbi, cgroup: answer.data.cgroup };
}

/** No layer at all: on macOS, or where there is no `sbx-jail`. */
export function noConfinement(reason: string, hint: string | null = null): ConfinementLayers {
  return {
    jail: null,
    layers: LAYER_NAMES.map((name) => ({ name, active: false, reason, hint })),
    landlockAbi: null,
    cgroup: null,
  };
}

/** True when the layer is put on. */
export function isLayerActive(confinement: ConfinementLayers, name: LayerName): boolean {
  return confinement.layers.some((layer) => layer.name === name && layer.active);
}

/** The command with every active layer around it. A layer that then fails ends it with status 125 and a line on standard error. */
export function confine(confinement: ConfinementLayers, command: ConfinedCommand): [string, ...string[]] {
  if (confinement.jail === null) return [command.program, ...command.args];
  return [
    confinement.jail,
    ...["--parent-pid", String(command.parentPid ?? process.pid)],
    ...confinement.layers.filter((layer) => !layer.active).flatMap(({ name }) => ["--skip", name]),
    ...(isLayerActive(confinement, "own_uid") ? ["--uid", "auto"] : []),
    ...cgroupOptions(confinement, command),
    ...command.files.flatMap(({ path, access }) => [`--${access}`, path]),
    ...["--exec", command.program],
    ...(command.isStatic ? [] : libraryOptions()),
    ...(command.needsKvm ? ["--dev", "kvm"] : []),
    ...limitOptions(confinement, command).flatMap(([name, value]) => ["--rlimit", `${name}=${value}`]),
    ...(command.keepFds.length === 0 ? [] : ["--keep-fds", command.keepFds.join(",")]),
    ...["--", command.program, ...command.args],
  ];
}

function libraryOptions(): string[] {
  return [...SHARED_LIBRARIES.flatMap((path) => ["--exec-try", path]), "--ro-try", LOADER_CACHE, "--dev", "null", "--dev", "urandom"];
}

/** Bounds that no well-behaved QEMU meets, on every host: a cgroup, where there is one, says it more precisely. */
function limitOptions(confinement: ConfinementLayers, { memoryMiB }: ConfinedCommand): Array<[name: string, value: number]> {
  // QEMU keeps about 1 byte per 100 of guest memory in tables of its own.
  const dataMiB = memoryMiB + Math.ceil(memoryMiB / 16) + TRANSLATION_BUFFER_MIB + QEMU_OVERHEAD_MIB;
  return [
    ["core", 0], // Would hold the guest's memory.
    ["data", dataMiB * MIB],
    ["fsize", dataMiB * MIB],
    ["nofile", OPEN_FILES_MAX],
    // Counted per user: for a user who has other processes it would be no limit of this one.
    ...(isLayerActive(confinement, "own_uid") ? [["nproc", THREADS_MAX] as [string, number]] : []),
  ];
}

function cgroupOptions(confinement: ConfinementLayers, command: ConfinedCommand): string[] {
  if (!confinement.cgroup || command.cgroupDirectory === undefined) return [];
  const values: Readonly<Record<string, readonly string[]>> = {
    memory: [`memory.max=${(command.memoryMiB + TRANSLATION_BUFFER_MIB + QEMU_OVERHEAD_MIB) * MIB}`],
    pids: [`pids.max=${THREADS_MAX}`],
    cpu: [`cpu.weight=${CPU_WEIGHT}`],
  };
  const settings = confinement.cgroup.controllers.flatMap((controller) => values[controller] ?? []);
  return ["--cgroup", command.cgroupDirectory, ...settings.flatMap((setting) => ["--cgroup-set", setting])];
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // Refused by the schema, with the text in the message.
  }
}
