/** Canary: an accelerator is used only when a guest really answered on it, and a host that lies costs three seconds once. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { CANARY_TIMEOUT_MS } from "../../src/base/limits.ts";
import type { Logger } from "../../src/base/log.ts";
import { resolveConfig } from "../../src/config/config.ts";
import { readPlatform } from "../../src/host/platform.ts";
import { openAssets } from "../../src/images/assets.ts";
import { noConfinement } from "../../src/qemu/confine.ts";
import { type Candidate, type Candidates } from "../../src/qemu/probe.ts";
import { findCanaryHost } from "../../src/run/find_hypervisor.ts";
import { bootCanary, type CanaryHost, chooseCandidate } from "../../src/vm/canary.ts";
import { launch } from "../../src/vm/launch.ts";
import { noLeftovers, processesWith, temporaryDirectory } from "../support/leftovers.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { settled } from "../support/waiting.ts";

const skip = reasonToSkip() ?? false;
const EMULATION: Candidate = { accelerator: "tcg", cpu: "max" };
const KVM: Candidate = { accelerator: "kvm", cpu: "host,-svm,-vmx" };
const LADDER: Candidates = { candidates: [KVM, EMULATION], reason: "", isForced: false };
const OWNER = "ca7a7700000000ff";

/** This machine, with its log kept. */
async function findHost(): Promise<{ host: CanaryHost; warnings: string[] }> {
  const warnings: string[] = [];
  const note = (message: string, fields?: Readonly<Record<string, unknown>>) => void warnings.push(`${message} ${JSON.stringify(fields)}`);
  const log: Logger = { debug() {}, info() {}, warning: note, error: note };
  const assets = await openAssets(imagesDirectory());
  return { host: await findCanaryHost({ config: resolveConfig(), platform: readPlatform(), assets, ownerToken: OWNER, log }), warnings };
}

/** A QEMU that starts and then does nothing, as on a host whose `/dev/kvm` never runs a guest. */
function silentQemu(t: TestContext): Pick<CanaryHost, "qemu" | "confinement"> {
  const file = path.join(temporaryDirectory(t), "qemu-silent");
  writeFileSync(file, "#!/bin/sh\nexec sleep 300\n", { mode: 0o755 });
  return { qemu: { path: file, version: "10.0.0", fingerprint: "f", isOwn: false }, confinement: noConfinement("a test") };
}

test("a guest answers under emulation, and its machine is gone afterwards", { skip }, async () => {
  const { host } = await findHost();
  assert.ok(await bootCanary(host, EMULATION, { language: "raw", timeoutMs: 60_000 }) > 0);
  assert.deepEqual(processesWith(`vm-${OWNER}`), []);
});

test("an accelerator that hangs is given up after its deadline, with one warning that says why", { skip }, async (t) => {
  const { host, warnings } = await findHost(), startedAt = performance.now();
  const verdict = await chooseCandidate({ ...host, ...silentQemu(t) }, LADDER, { language: "raw", cacheDirectory: temporaryDirectory(t) });
  assert.ok(performance.now() - startedAt >= CANARY_TIMEOUT_MS - 50, "it was tried");
  assert.deepEqual(verdict.candidate, EMULATION);
  assert.match(verdict.refused.join(), /^kvm with -cpu host,-svm,-vmx: .*no answer from the guest after 3000 ms/);
  assert.equal(warnings.filter((line) => line.startsWith("no hardware acceleration")).length, 1, warnings.join("\n"));
  assert.deepEqual(processesWith("qemu-silent"), [], "what hung is dead");
});

test("whatever this host's KVM is, the ladder ends with a candidate on which a guest answers", { skip }, async (t) => {
  const { host } = await findHost();
  const { candidate, refused } = await chooseCandidate(host, LADDER, { language: "raw", cacheDirectory: temporaryDirectory(t) });
  assert.equal(refused.length, candidate.accelerator === "tcg" ? 1 : 0, refused.join());
  assert.ok(await bootCanary(host, candidate, { language: "raw", timeoutMs: 60_000 }) > 0);
});

test("a verdict is kept for the next process, not for another host, and one that is damaged is found anew", { skip }, async (t) => {
  const { host, warnings } = await findHost(), cacheDirectory = temporaryDirectory(t), options = { language: "raw", cacheDirectory };
  const forced: Candidates = { candidates: [EMULATION], reason: "somebody said so", isForced: false };
  const verdict = await chooseCandidate(host, forced, options);
  assert.deepEqual(verdict, { candidate: EMULATION, refused: ["somebody said so"] });
  const [name = ""] = readdirSync(cacheDirectory), file = path.join(cacheDirectory, name);
  writeFileSync(file, JSON.stringify({ ...verdict, refused: ["kept"] }));
  assert.deepEqual((await chooseCandidate(host, forced, options)).refused, ["kept"]);
  assert.equal(warnings.length, 1, "only the first process is told");
  const rebooted = { ...host, platform: { ...host.platform, bootId: "another" } };
  assert.deepEqual((await chooseCandidate(rebooted, forced, options)).refused, ["somebody said so"]);
  const garbage = [
    "",
    "{",
    "null",
    '{"candidate":{"accelerator":"xen","cpu":"x"},"refused":[]}',
    '{"candidate":{"accelerator":"kvm","cpu":""}}',
  ];
  for (const damage of garbage) {
    writeFileSync(file, damage);
    assert.deepEqual(await chooseCandidate(host, forced, options), verdict, damage);
    assert.deepEqual(JSON.parse(readFileSync(file, "utf8")), verdict);
  }
});

test("emulation that was asked for is no reason to warn, and a cache that cannot be written no reason to fail", { skip }, async (t) => {
  const { host, warnings } = await findHost(), file = path.join(temporaryDirectory(t), "file");
  writeFileSync(file, "");
  const forced: Candidates = { candidates: [EMULATION], reason: "EXEC_SANDBOX_FORCE_EMULATION is set", isForced: true };
  const { candidate } = await chooseCandidate(host, forced, { language: "raw", cacheDirectory: path.join(file, "below") });
  assert.deepEqual([candidate, warnings], [EMULATION, []]);
});

test("a guest powers off by itself when its host has let go of the channel", { skip }, async () => {
  const { host } = await findHost();
  await using vm = await launch({ ...host, candidate: EMULATION }, { language: "raw", memoryMiB: 128, origin: { kind: "cold" } });
  await vm.ready;
  const [, control] = vm.child.pipes;
  control?.destroy();
  const { code, signal } = await settled(vm.child.exited, "the machine's end");
  assert.deepEqual([code, signal], [0, null], "nobody killed it");
});

noLeftovers();
