/** Doctor's checks of the real host. What one of them finds out is found out once, for all that build on it. */
import os from "node:os";
import path from "node:path";
import { CANARY_TIMEOUT_MS } from "../base/limits.ts";
import { AssetError, messageOf } from "../base/errors.ts";
import { silentLogger } from "../base/log.ts";
import { resolveConfig, type ResolvedConfig } from "../config/config.ts";
import { readPlatform } from "../host/platform.ts";
import { type Assets, defaultImagesDirectory, IMAGE_LANGUAGES, openAssets } from "../images/assets.ts";
import { type ConfinementLayers, LAYER_NAMES, type LayerName } from "../qemu/confine.ts";
import type { Candidate, Candidates, Qemu } from "../qemu/probe.ts";
import { candidatesOf, findCanaryHost } from "../run/find_hypervisor.ts";
import { bootCanary, type CanaryHost } from "../vm/canary.ts";
import { Journal } from "../vm/journal.ts";
import type { Check, CheckResult, DoctorChecks } from "./doctor_report.ts";

/** Software emulation is slow, but it must answer. */
const EMULATED_CANARY_TIMEOUT_MS = 50_000;
/** How the report names the layer that CONTRACT and users call cgroups. */
const CGROUP_LAYER: LayerName = "cgroup";

/** Every check, in the order of the report. The caller disposes them, which ends a canary that still boots. */
export function hostChecks(env: Readonly<Record<string, string | undefined>>): DoctorChecks {
  const findings = new HostFindings(env);
  const layers = LAYER_NAMES.filter((name) => name !== CGROUP_LAYER);
  const checks: Check[] = [
    { name: "platform", isRequired: true, run: () => Promise.resolve(platformResult()) },
    { name: "images", isRequired: true, run: async () => imagesResult(await findings.assets()) },
    dependent("qemu", true, async () => qemuResult((await findings.host()).qemu)),
    dependent("canary", true, async () => canaryResult(await findings.canary())),
    dependent("accelerator", false, async () => acceleratorResult(await findings.canary(), await findings.ladder())),
    ...layers.map((name) => dependent(`layer ${name}`, false, async () => layerResult((await findings.host()).confinement, name))),
    dependent("cgroups", false, async () => layerResult((await findings.host()).confinement, CGROUP_LAYER)),
    { name: "network", isRequired: false, run: () => Promise.resolve(networkResult()) },
  ];
  return { checks, [Symbol.asyncDispose]: () => findings[Symbol.asyncDispose]() };
}

/** A check that can find out nothing without the images; what is wrong with those is told once, by their own check. */
function dependent(name: string, isRequired: boolean, find: () => Promise<CheckResult>): Check {
  const run = async (): Promise<CheckResult> => {
    try {
      return await find();
    } catch (error) {
      if (!(error instanceof AssetError)) throw error;
      return { status: "missing", detail: "not known without the images" };
    }
  };
  return { name, isRequired, run };
}

/** A canary that answered, or why none did. */
interface CanaryVerdict {
  readonly candidate: Candidate | undefined;
  readonly bootMs: number;
  /** What was tried before, each with its reason. */
  readonly refused: readonly string[];
}

/** Facts about this host, each found out when it is first asked for. */
class HostFindings implements AsyncDisposable {
  readonly #env: Readonly<Record<string, string | undefined>>;
  readonly #known = new Map<string, Promise<unknown>>();
  #journal: Journal | undefined;

  constructor(env: Readonly<Record<string, string | undefined>>) {
    this.#env = env;
  }

  config(): Promise<ResolvedConfig> {
    return this.#once("config", () => Promise.resolve(resolveConfig({}, this.#env)));
  }

  assets(): Promise<Assets> {
    return this.#once("assets", async () => {
      const { imagesDir, cacheDir } = await this.config(), { arch } = readPlatform();
      return await openAssets(imagesDir ?? defaultImagesDirectory(cacheDir, arch), { arch });
    });
  }

  host(): Promise<CanaryHost> {
    return this.#once("host", async () => {
      const [config, assets, log] = [await this.config(), await this.assets(), silentLogger()];
      this.#journal = await Journal.open(path.join(config.cacheDir, "run"), log);
      return await findCanaryHost({ config, platform: readPlatform(), assets, ownerToken: this.#journal.token, log });
    });
  }

  ladder(): Promise<Candidates> {
    return this.#once("ladder", async () => {
      const [config, assets] = [await this.config(), await this.assets()];
      return await candidatesOf({ config, platform: readPlatform(), assets, ownerToken: "", log: silentLogger() });
    });
  }

  canary(): Promise<CanaryVerdict> {
    return this.#once("canary", async () => bootFirst(await this.host(), await this.ladder(), await this.assets()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled(this.#known.values());
    await this.#journal?.[Symbol.asyncDispose]();
  }

  #once<T>(name: string, find: () => Promise<T>): Promise<T> {
    const found = this.#known.get(name) as Promise<T> | undefined ?? find();
    this.#known.set(name, found);
    return found;
  }
}

/** Boots a canary on each candidate until one answers, whatever an earlier process has found. */
async function bootFirst(host: CanaryHost, ladder: Candidates, assets: Assets): Promise<CanaryVerdict> {
  const refused = ladder.reason === "" ? [] : [ladder.reason];
  const language = assets.languages.includes("raw") ? "raw" : assets.languages[0] ?? "raw";
  for (const candidate of ladder.candidates) {
    const timeoutMs = candidate.accelerator === "tcg" ? EMULATED_CANARY_TIMEOUT_MS : CANARY_TIMEOUT_MS;
    try {
      return { candidate, bootMs: Math.ceil(await bootCanary(host, candidate, { language, timeoutMs })), refused };
    } catch (error) {
      refused.push(`${candidate.accelerator} with -cpu ${candidate.cpu}: ${messageOf(error).split("\n", 1)[0]}`);
    }
  }
  return { candidate: undefined, bootMs: 0, refused };
}

function platformResult(): CheckResult {
  const { os: system, arch, kernelRelease, cpus, memoryBytes } = readPlatform();
  const gib = (memoryBytes / 2 ** 30).toFixed(1);
  return { status: "ok", detail: `${system} ${kernelRelease} on ${arch}, ${cpus} CPUs, ${gib} GiB of memory` };
}

function imagesResult({ version, directory, languages }: Assets): CheckResult {
  const absent = IMAGE_LANGUAGES.filter((language) => !languages.includes(language));
  const detail = `version ${version} in ${directory}, with ${languages.join(", ") || "no language"}`;
  if (languages.length > 0) return { status: "ok", detail: absent.length === 0 ? detail : `${detail}; without ${absent.join(", ")}` };
  return { status: "missing", detail, hint: "sbx images build" };
}

function qemuResult({ path: file, version, isOwn }: Qemu): CheckResult {
  return { status: "ok", detail: `${version}, ${isOwn ? "sbx's own build" : "the host's own"}: ${file}` };
}

function canaryResult({ candidate, bootMs, refused }: CanaryVerdict): CheckResult {
  if (candidate !== undefined) return { status: "ok", detail: `a guest answered ${bootMs} ms after its start (${candidate.accelerator})` };
  return { status: "missing", detail: `no guest answers: ${refused.join("; ")}`, hint: "sbx images verify; then sbx run --debug 1" };
}

function acceleratorResult({ candidate, refused }: CanaryVerdict, { isForced }: Candidates): CheckResult {
  if (candidate !== undefined && candidate.accelerator !== "tcg") {
    return { status: "ok", detail: `${candidate.accelerator} with -cpu ${candidate.cpu}` };
  }
  const detail = `software emulation, slower and with weaker isolation: ${refused.join("; ")}`;
  const hint = isForced
    ? "unset EXEC_SANDBOX_FORCE_EMULATION"
    : "Run on a host with hardware virtualization that this user may use (/dev/kvm).";
  return { status: "missing", detail, hint };
}

function layerResult(confinement: ConfinementLayers, name: LayerName): CheckResult {
  const layer = confinement.layers.find((candidate) => candidate.name === name);
  if (layer?.active) return { status: "ok", detail: LAYER_MEANINGS[name] };
  const detail = `${layer?.reason ?? "not probed"}; with it, ${LAYER_MEANINGS[name]}`;
  return { status: "missing", detail, ...(layer?.hint ? { hint: layer.hint } : {}) };
}

/** What each layer does for the isolation of QEMU. */
const LAYER_MEANINGS: Readonly<Record<LayerName, string>> = {
  pdeathsig: "QEMU dies with sbx",
  user_namespace: "QEMU is nobody on the host",
  mount_namespace: "QEMU sees only the files it needs",
  pid_namespace: "QEMU sees no other process",
  network_namespace: "QEMU has no network",
  ipc_namespace: "QEMU shares no memory or queue with the host",
  uts_namespace: "QEMU cannot rename the host",
  cgroup_namespace: "QEMU does not see the host's control groups",
  rlimits: "QEMU's memory, files and threads are bounded",
  own_uid: "each QEMU runs as a user of its own",
  capabilities: "QEMU has no capability",
  no_new_privs: "QEMU can gain no privilege",
  landlock: "the kernel confines QEMU to its files a second time",
  seccomp: "QEMU can make few system calls",
  cgroup: "each VM has a control group with bounds on memory and processes",
};

function networkResult(): CheckResult {
  const addresses = Object.entries(os.networkInterfaces()).flatMap(([name, list]) =>
    (list ?? []).filter((address) => !address.internal).map((address) => `${name} ${address.address}`)
  );
  if (addresses.length === 0) return { status: "missing", detail: "only loopback: code runs, but nothing can be downloaded" };
  return { status: "ok", detail: `host addresses: ${addresses.slice(0, 3).join(", ")}` };
}
