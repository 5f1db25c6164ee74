/** Canary: boots a machine on each candidate until one answers. A device that opens proves nothing; a guest that answers does. */
import { createHash } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { ONCE } from "../base/schema.ts";
import { messageOf } from "../base/errors.ts";
import { CANARY_TIMEOUT_MS } from "../base/limits.ts";
import { writeFileAtomic } from "../host/files.ts";
import type { Candidate, Candidates } from "../qemu/probe.ts";
import type { Hypervisor } from "./hypervisor.ts";
import { launch } from "./launch.ts";

const CANARY_MEMORY_MIB = 128;

/** What is used, and why nothing better is. */
export interface Verdict {
  readonly candidate: Candidate;
  /** Each candidate that was refused, with its reason; empty when the first one works. */
  readonly refused: readonly string[];
}

const verdictSchema = z.object({
  candidate: z.object({ accelerator: z.enum(["kvm", "hvf", "tcg"]), cpu: z.string().min(1) }),
  refused: z.array(z.string()),
});

/** What a canary needs: everything of a hypervisor but the verdict itself. */
export type CanaryHost = Omit<Hypervisor, "candidate">;

/**
 * The verdict for this host, from the cache when host, QEMU and kernel are the same as then. Software emulation is the last candidate and is
 * taken without a boot. `language`: any whose image is there. A new verdict for emulation that nobody asked for is logged as a warning.
 */
export async function chooseCandidate(
  host: CanaryHost,
  ladder: Candidates,
  options: { readonly language: string; readonly cacheDirectory: string },
): Promise<Verdict> {
  const file = path.join(options.cacheDirectory, `${verdictKey(host, ladder)}.json`);
  const known = await readVerdict(file);
  if (known) return known;
  const verdict = await tryAll(host, ladder, options.language);
  // A verdict that cannot be kept is found again by the next process.
  await fs.mkdir(options.cacheDirectory, { recursive: true, mode: 0o700 })
    .then(() => writeFileAtomic(file, JSON.stringify(verdict), 0o600))
    .catch((error) => host.log.debug("the accelerator's verdict cannot be kept", { reason: messageOf(error) }));
  return verdict;
}

/** Boots one canary. Resolves with the milliseconds it took; rejects with the reason why it did not answer in time. */
export async function bootCanary(
  host: CanaryHost,
  candidate: Candidate,
  options: { language: string; timeoutMs: number },
): Promise<number> {
  await using vm = await launch({ ...host, candidate }, {
    language: options.language,
    memoryMiB: CANARY_MEMORY_MIB,
    origin: { kind: "cold" },
    isDiagnostic: true,
    onConsole: () => {},
    readyTimeoutMs: options.timeoutMs,
  });
  return await vm.ready;
}

async function tryAll(host: CanaryHost, ladder: Candidates, language: string): Promise<Verdict> {
  const refused = ladder.reason === "" ? [] : [ladder.reason];
  for (const candidate of ladder.candidates) {
    if (candidate.accelerator === "tcg") {
      const say = ladder.isForced ? host.log.debug : host.log.warning;
      say("no hardware acceleration: VMs run under software emulation, slower and with weaker isolation", { reason: refused.join("; ") });
      return { candidate, refused };
    }
    try {
      const bootMs = await bootCanary(host, candidate, { language, timeoutMs: CANARY_TIMEOUT_MS });
      host.log.debug("accelerator works", { accelerator: candidate.accelerator, cpu: candidate.cpu, bootMs: Math.ceil(bootMs) });
      return { candidate, refused };
    } catch (error) {
      refused.push(`${candidate.accelerator} with -cpu ${candidate.cpu}: ${messageOf(error).split("\n", 1)[0]}`);
    }
  }
  throw new Error("Internal error: a ladder without software emulation");
}

/** Everything whose change may change the verdict. */
function verdictKey(host: CanaryHost, ladder: Candidates): string {
  const inputs = [
    host.platform.kernelRelease,
    host.platform.bootId,
    host.platform.isRoot,
    host.qemu.path,
    host.qemu.fingerprint,
    host.files.kernel.sha256,
    host.files.initrd.sha256,
    ladder,
  ];
  return createHash("sha256").update(JSON.stringify(inputs)).digest("hex").slice(0, 32);
}

async function readVerdict(file: string): Promise<Verdict | undefined> {
  try {
    return verdictSchema.parse(JSON.parse(await fs.readFile(file, "utf8")), ONCE);
  } catch {
    return undefined; // Not tried yet, or damaged: tried again.
  }
}
