/** Install: one installation of packages in a workshop of its own, from the names to the layer. */
import fs from "node:fs/promises";
import path from "node:path";
import { delay } from "../base/async.ts";
import { PackageInstallError } from "../base/errors.ts";
import { freezeSteps, type InstallJob, type InstallPhase, type InstallStep, installSteps } from "../packages/install.ts";
import { LAYER_HEAD_BYTES, layerBytes, showFilesStep, showLockStep, showModulesStep } from "../packages/install.ts";
import { parseHosts, parseLock, parseModules, ruleOf } from "../packages/installed.ts";
import type { LayerPlace } from "../packages/layer_store.ts";
import type { ResolvedSet } from "../packages/layer_files.ts";
import { type StepResult, Workshop, type WorkshopParts } from "./workshop.ts";

/** A program that failed because of the network is run again after these times. */
const RETRY_DELAYS_MS = [2_000, 8_000];
/** How the installers tell of a network that does not do what it should. */
const NETWORK_WORDS =
  /error sending request|dns error|tcp connect|connection (?:re(?:set|fused)|closed|timed out)|timed? ?out|Connection(?:Refused|Reset|Closed|Timeout)|EAI_AGAIN|ENOTFOUND|ECONNRE|\b(?:429|50[0-4])\b|TooManyRequests|incomplete message|unexpected end of file|body from connection/i;
const FULL_WORDS = /no space left|ENOSPC|NoSpaceLeft|disk quota/i;
const COMPILER_WORDS =
  /(?:g\+\+|c\+\+|cmake|rustc|cargo|gfortran|ninja|make)['"]?:? ?(?:not found|No such file|is not installed|command not found)|command '?(?:g\+\+|c\+\+|gfortran|cmake|cargo|rustc)|No such file or directory: '?(?:g\+\+|c\+\+|cmake|cargo)/i;
/** Of what the installer said, in a message. */
const WORDS_MAX_CHARS = 1_500;

/** What an installation needs to be told. */
export interface InstallParts extends Pick<WorkshopParts, "hypervisor" | "diskBytes" | "areHostsTrusted" | "networkSupport" | "log"> {
  /** Told of each phase, and of what the installer says. */
  report(phase: InstallPhase | "boot", detail?: string): void;
  /** What `PackageInstallError` calls the packages. */
  readonly title: string;
  readonly timeoutSeconds: number;
}

/** Installs, and leaves the layer at `place.layerFile`. Throws `PackageInstallError`, what starting a VM throws, or the signal's reason. */
export async function install(job: InstallJob, place: LayerPlace, parts: InstallParts, signal: AbortSignal): Promise<ResolvedSet> {
  const set = await installIn(job, place, parts, signal);
  // The machine is dead: nothing writes to its disks any more.
  await using disk = await fs.open(place.layerFile, "r+");
  const { buffer, bytesRead } = await disk.read(new Uint8Array(LAYER_HEAD_BYTES), 0, LAYER_HEAD_BYTES, 0);
  await disk.truncate(layerBytes(buffer.subarray(0, bytesRead), parts.diskBytes));
  return set;
}

async function installIn(job: InstallJob, place: LayerPlace, parts: InstallParts, signal: AbortSignal): Promise<ResolvedSet> {
  const { language, packages } = job, scratch = path.join(place.directory, "scratch");
  return await within({ ...parts, language, scratch, result: place.layerFile, registry: job.registry }, signal, async (work) => {
    await allowFiles(job, work);
    for (const step of installSteps(job)) await work.run(step);
    const lock = parseLock(language, (await work.run(showLockStep())).stdout);
    const modules = language === "python" ? parseModules((await work.run(showModulesStep(packages))).stdout) : [];
    for (const step of freezeSteps()) await work.run(step);
    if (work.shop.refusedNames.length > 0) {
      parts.log.warning("an installation asked for hosts that are no registry", {
        packages: parts.title,
        names: work.shop.refusedNames.join(" "),
      });
    }
    return { packages: lock, details: { modules } };
  });
}

/** Files of packages may lie on another host than the index that names them. */
async function allowFiles(job: InstallJob, work: Work): Promise<void> {
  const [first] = job.packages;
  if (!first) return;
  const { stdout } = await work.run(showFilesStep(job, first));
  const hosts = new Set([ruleOf(job.registry), ...parseHosts(stdout)]);
  if (hosts.size > 1) await work.shop.allow([...hosts]);
}

/** A workshop at work. */
export interface Work {
  readonly shop: Workshop;
  /** Runs a step until it succeeds: again where the network was in the way. Throws `PackageInstallError`. */
  run(step: InstallStep): Promise<StepResult>;
}

/** What `within` needs beside what every installation has. */
export interface WithinOptions extends InstallParts {
  readonly language: string;
  readonly scratch: string;
  readonly result: string;
  readonly registry: string;
}

/** Does `body` in a workshop whose network is the registry alone, within the time that there is. */
export async function within<T>(options: WithinOptions, signal: AbortSignal, body: (work: Work) => Promise<T>): Promise<T> {
  const { timeoutSeconds, title, report, registry } = options;
  const overdue = AbortSignal.timeout(timeoutSeconds * 1000), until = AbortSignal.any([signal, overdue]);
  report("boot");
  let phase: InstallPhase | "boot" = "boot";
  try {
    const disks = { scratch: options.scratch, result: options.result };
    await using shop = await Workshop.open({ ...options, disks, hosts: [ruleOf(registry)] }, until);
    return await body({
      shop,
      async run(step) {
        if (step.phase !== phase) report(phase = step.phase);
        return await runStep(shop, step, { ...options, until });
      },
    });
  } catch (error) {
    if (!overdue.aborted || signal.aborted) throw error;
    throw new PackageInstallError(
      `Cannot install ${title}: it must be done within ${timeoutSeconds} s, and was not (at: ${phase})`,
      { hint: "packageInstallTimeoutSeconds gives it more time." },
    );
  }
}

async function runStep(
  shop: Workshop,
  step: InstallStep,
  { title, report, log, diskBytes, until }: InstallParts & { readonly until: AbortSignal },
): Promise<StepResult> {
  for (let attempt = 0;; attempt++) {
    const asked = shop.refusedNames.length;
    const result = await shop.run(step, { signal: until, onLine: (line) => report(step.phase, line) });
    if (result.exitCode === 0) return result;
    // A host that is no registry stays out of reach.
    const isNetwork = step.isOnline && shop.refusedNames.length === asked && (result.hasNetworkFailed || NETWORK_WORDS.test(result.said)) &&
      !FULL_WORDS.test(result.said);
    const pauseMs = isNetwork ? RETRY_DELAYS_MS[attempt] : undefined;
    if (pauseMs === undefined) throw installError(result, { title, diskBytes, isNetwork, refusedNames: shop.refusedNames });
    log.debug("an installation is tried again", { packages: title, attempt, said: result.said.slice(-200) });
    report(step.phase, `the network failed; again in ${pauseMs / 1000} s`);
    await delay(pauseMs, until);
  }
}

/** Why a step failed, in the installer's own words. */
export function installError(
  { said, exitCode }: Pick<StepResult, "said" | "exitCode">,
  facts: {
    readonly title: string;
    readonly diskBytes: number;
    readonly isNetwork: boolean;
    readonly refusedNames: readonly string[];
  },
): PackageInstallError {
  const { title, diskBytes, isNetwork, refusedNames } = facts;
  const words = said === "" ? `the installer ended with status ${exitCode}` : said.slice(-WORDS_MAX_CHARS);
  if (FULL_WORDS.test(said)) {
    return new PackageInstallError(
      `Cannot install ${title}: it must fit into ${Math.round(diskBytes / 1_048_576)} MB, and does not: ${words}`,
      {
        hint: "packageLayerMaxMb gives it more room.",
      },
    );
  }
  if (isNetwork) {
    return new PackageInstallError(`Cannot install ${title}: the registry cannot be reached: ${words}`, {
      retry: "safe",
      hint:
        "The registry is that of the host's own package managers (UV_DEFAULT_INDEX, PIP_INDEX_URL, npm_config_registry, or their files).",
    });
  }
  const hint = COMPILER_WORDS.test(said)
    ? "It is built from its sources, for which the image has a C compiler and nothing else: ask for a version that has a wheel."
    : refusedNames.length > 0
    ? `It asked for ${refusedNames.join(", ")}; an installation reaches the registry alone.`
    : undefined;
  return new PackageInstallError(`Cannot install ${title}: ${words}`, hint === undefined ? {} : { hint });
}
