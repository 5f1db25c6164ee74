/** Find the hypervisor: everything about this host that decides how its machines are started, in one value. */
import { createHash } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { messageOf } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import type { ResolvedConfig } from "../config/config.ts";
import { ask } from "../host/ask.ts";
import { writeFileAtomic } from "../host/files.ts";
import type { Platform } from "../host/platform.ts";
import type { Assets } from "../images/assets.ts";
import { type ConfinementLayers, noConfinement, parseProbe } from "../qemu/confine.ts";
import { confinementFacts } from "../qemu/confinement_facts.ts";
import { acceleratorCandidates, type Candidates, findQemu, type Qemu, readAcceleratorFacts } from "../qemu/probe.ts";
import { type CanaryHost, chooseCandidate } from "../vm/canary.ts";
import type { Hypervisor } from "../vm/hypervisor.ts";

/** What is known before anything is tried. */
export interface HostInputs {
  readonly config: ResolvedConfig;
  readonly platform: Platform;
  readonly assets: Assets;
  readonly ownerToken: string;
  readonly log: Logger;
}

/** Tries what has not been tried on this boot of the host yet. Throws `SandboxDependencyError` when there is no usable QEMU. */
export async function findHypervisor(inputs: HostInputs): Promise<Hypervisor> {
  const host = await findCanaryHost(inputs);
  const { candidate } = await chooseCandidate(host, await candidatesOf(inputs), {
    language: inputs.assets.languages[0] ?? "raw",
    cacheDirectory: probeDirectory(inputs.config),
  });
  return { ...host, candidate };
}

/** QEMU, files and confinement, without a verdict on accelerators. */
export async function findCanaryHost({ config, platform, assets, ownerToken, log }: HostInputs): Promise<CanaryHost> {
  const [qemu, confinement] = await Promise.all([
    findQemu({
      explicit: config.qemuPath,
      own: ownQemu(assets, platform),
      arch: platform.arch,
      searchPath: process.env["PATH"] ?? "",
    }),
    probeConfinement(assets, platform, config),
  ]);
  if (confinement.jail === null) {
    log.warning("QEMU runs without sbx-jail: fewer layers of confinement", { reason: confinement.layers[0]?.reason });
  }
  return { platform, files: assets, qemu, confinement, ownerToken, log };
}

/** What may be tried on this host. */
export async function candidatesOf({ config, platform }: HostInputs): Promise<Candidates> {
  return acceleratorCandidates(await readAcceleratorFacts(platform, config.isEmulationForced));
}

/** Which layers this host allows: asked of the jail once per boot of the host and set of rights, then remembered. */
export async function probeConfinement(assets: Assets, platform: Platform, config: ResolvedConfig): Promise<ConfinementLayers> {
  if (platform.os !== "linux") return noConfinement(`sbx-jail needs Linux, this is ${platform.os}`);
  const jail = assets.jail;
  if (jail === undefined) return noConfinement("the images directory has no sbx-jail", "sbx images build");
  const inputs = [jail.path, jail.sha256, platform.kernelRelease, platform.bootId, confinementFacts()];
  const key = createHash("sha256").update(JSON.stringify(inputs)).digest("hex").slice(0, 32);
  const file = path.join(probeDirectory(config), `confinement-${key}.json`);
  try {
    return parseProbe(await fs.readFile(file, "utf8"), jail.path);
  } catch {
    // Not asked yet, or the answer is damaged: asked now.
  }
  const { stdout } = await ask("Cannot find out which confinement this host allows", [jail.path, "--probe"]);
  const layers = parseProbe(stdout, jail.path);
  await fs.mkdir(path.dirname(file), { recursive: true, mode: 0o700 })
    .then(() => writeFileAtomic(file, stdout, 0o600))
    .catch((error) => messageOf(error)); // An unwritable cache: asked again by the next process.
  return layers;
}

/** Our own QEMU runs on Linux hosts of the images' architecture. */
function ownQemu({ qemu }: Assets, platform: Platform): Omit<Qemu, "isOwn"> | undefined {
  if (platform.os !== "linux" || !qemu) return undefined;
  return { path: qemu.path, version: qemu.versions["qemu"] ?? "of unknown version", fingerprint: qemu.sha256 };
}

function probeDirectory(config: ResolvedConfig): string {
  return path.join(config.cacheDir, "probe");
}
