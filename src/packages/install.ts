/** Install: what runs in a workshop to turn names of packages into a layer, and what is read back from it. Pure: the programs are run by others. */
import { GuestAgentError } from "../base/errors.ts";
import { type PackageLanguage, type PackageSpec, packageText } from "./spec.ts";

/** Where packages lie in every guest. */
const PLACE = "/opt/packages";
/** Where the workshop's user writes the layer to. */
const RESULT = "/dev/layer";
/** Beside the packages: the only place with room. Gone before the layer is made. */
const SCRATCH = `${PLACE}/.scratch`;
/** What was resolved, as the installer writes it. */
const LOCK = `${PLACE}/.resolved`;
const PYTHON = "/usr/bin/python3.14";

/** A part of an installation, as its progress names it. */
export type InstallPhase = "resolve" | "download" | "freeze";

/** A program of the workshop. */
export interface InstallStep {
  readonly phase: InstallPhase;
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** It uses the network, so that a failure may be the network's, and it may be run again. */
  readonly isOnline: boolean;
}

/** What is installed, and how. */
export interface InstallJob {
  readonly language: PackageLanguage;
  readonly packages: readonly PackageSpec[];
  /** URL of the index or registry. */
  readonly registry: string;
  /** npm life-cycle scripts are run; Python's source builds run code in any case. */
  readonly areScriptsRun: boolean;
}

/** What is run, one after the other, before the layer is looked at. */
export function installSteps(job: InstallJob): readonly InstallStep[] {
  const names = job.packages.map((spec) => packageText(job.language, spec));
  return job.language === "python" ? pythonSteps(names, job) : javascriptSteps(names, job);
}

/** Makes the layer of what is installed. */
export function freezeSteps(): readonly InstallStep[] {
  // The byte code is not told from its source by times, so all files have one: it takes half of an inode.
  const layer = ["mkfs.erofs", "-zlz4", "-C65536", "-x-1", "-T0", "--all-root", "--quiet", RESULT, PLACE];
  return [["rm", "-rf", SCRATCH, LOCK, `${PLACE}/.lock`], layer].map((argv) => ({ phase: "freeze", argv, env: {}, isOnline: false }));
}

/** Prints the resolved set. */
export function showLockStep(): InstallStep {
  return { phase: "freeze", argv: ["cat", LOCK], env: {}, isOnline: false };
}

const MODULES_PROGRAM = `
import importlib.metadata as metadata, json, re, sys
found = {}
for module, names in metadata.packages_distributions().items():
    for name in names:
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), []).append(module)
print(json.dumps({name: sorted(set(found.get(name, []))) for name in sys.argv[1:]}))
`;

/** Prints, as JSON, the modules that each of the Python packages has. */
export function showModulesStep(packages: readonly PackageSpec[]): InstallStep {
  return { phase: "freeze", argv: [PYTHON, "-c", MODULES_PROGRAM, ...packages.map(({ name }) => name)], env: {}, isOnline: false };
}

/** Prints the addresses that the registry gives for files of a package; they may be on another host than the registry. */
export function showFilesStep(
  { language, registry }: Pick<InstallJob, "language" | "registry">,
  { name, version }: PackageSpec,
): InstallStep {
  const base = registry.replace(/\/+$/, "");
  const [url, type, before] = language === "python"
    ? [`${base}/${name}/`, "application/vnd.pypi.simple.v1+json, text/html;q=0.5", '("url": ?"|href=")']
    : [`${base}/${name.replace("/", "%2f")}/${version}`, "application/json", '"tarball": ?"'];
  // What the index says of a package it does not have is the installer's to tell.
  const script = `curl -sSL --retry 2 --max-time 120 --header "Accept: $2" -- "$1" | ` +
    `grep -oE "$3"'https?://[^/"?#]+' | sed 's/.*"//' | sort -u || true`;
  return { phase: "resolve", argv: ["/bin/bash", "-uc", script, "sbx", url ?? "", type ?? "", before ?? ""], env: {}, isOnline: true };
}

/**
 * First the whole set is resolved, with hashes; then that set is installed and nothing else. Only where no set of wheels does are packages
 * built from their sources.
 */
function pythonSteps(names: readonly string[], { registry }: InstallJob): InstallStep[] {
  const env = {
    UV_CACHE_DIR: `${SCRATCH}/cache`,
    TMPDIR: SCRATCH,
    UV_NO_CONFIG: "1",
    UV_NO_PROGRESS: "1",
    // Failures that last are ours to try again, or to tell.
    UV_HTTP_RETRIES: "2",
    UV_PYTHON_DOWNLOADS: "never",
    UV_DEFAULT_INDEX: registry,
    // A layer is never written again: whether the sources are older need not be asked at each import.
    PYC_INVALIDATION_MODE: "UNCHECKED_HASH",
  };
  const compile =
    `uv pip compile --python ${PYTHON} --no-header --no-annotate --generate-hashes --output-file ${LOCK} ${SCRATCH}/wanted > ${SCRATCH}/out`;
  // uv ends with 1 where there is no such set, and with 2 where it could not look for one.
  const script = `mkdir -p ${SCRATCH}; printf '%s\\n' "$@" > ${SCRATCH}/wanted; status=0; ` +
    `${compile} --only-binary :all: 2> ${SCRATCH}/said || status=$?; ` +
    `if [ $status = 1 ]; then ${compile}; else cat ${SCRATCH}/said >&2; exit $status; fi`;
  return [
    shell("resolve", script, { env, args: names }),
    {
      phase: "download",
      argv: [
        "uv",
        "pip",
        "install",
        "--python",
        PYTHON,
        "--target",
        PLACE,
        "--compile-bytecode",
        "--require-hashes",
        "--requirements",
        LOCK,
      ],
      env,
      isOnline: true,
    },
  ];
}

function javascriptSteps(names: readonly string[], { registry, areScriptsRun }: InstallJob): InstallStep[] {
  const env = { BUN_INSTALL_CACHE_DIR: `${SCRATCH}/cache`, TMPDIR: SCRATCH, NPM_CONFIG_REGISTRY: registry, DO_NOT_TRACK: "1" };
  const options = ["--exact", "--no-progress", "--no-summary", "--cwd", PLACE, ...(areScriptsRun ? ["--trust"] : ["--ignore-scripts"])];
  return [
    shell("resolve", `mkdir -p ${SCRATCH} && echo '{"private":true}' > ${PLACE}/package.json`, { env, args: [] }),
    { phase: "download", argv: ["bun", "add", ...options, ...names], env, isOnline: true },
    shell("download", `mv ${PLACE}/bun.lock ${LOCK}`, { env, args: [] }),
  ];
}

function shell(
  phase: InstallPhase,
  script: string,
  { env, args }: { readonly env: Readonly<Record<string, string>>; readonly args: readonly string[] },
): InstallStep {
  return { phase, argv: ["/bin/bash", "-euc", script, "sbx", ...args], env, isOnline: phase === "resolve" };
}

const SUPERBLOCK = { offset: 1024, magic: 0xe0f5e1e2, blockBitsAt: 12, blocksAt: 36, bytes: 128 } as const;
/** So much of a workshop's disk says how large the layer on it is. */
export const LAYER_HEAD_BYTES = SUPERBLOCK.offset + SUPERBLOCK.bytes;

/** How many bytes of the workshop's disk are the layer, by its first `LAYER_HEAD_BYTES`. They come from the guest, so the disk's size bounds them. */
export function layerBytes(head: Uint8Array, diskBytes: number): number {
  const { offset, magic, blockBitsAt, blocksAt, bytes } = SUPERBLOCK;
  const view = head.length >= offset + bytes ? new DataView(head.buffer, head.byteOffset + offset, bytes) : undefined;
  const blockBits = view?.getUint8(blockBitsAt) ?? 0, byteCount = (view?.getUint32(blocksAt, true) ?? 0) * 2 ** blockBits;
  const isLayer = view?.getUint32(0, true) === magic && blockBits === 12 && byteCount > 0 && byteCount <= diskBytes;
  if (!isLayer) throw new GuestAgentError("Cannot make a layer: what the installation left is none");
  return byteCount;
}
