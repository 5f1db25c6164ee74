/** Probe: which accelerators and CPU models are tried, from facts alone; and which QEMU is taken. */
import assert from "node:assert/strict";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { SandboxDependencyError } from "../../../src/base/errors.ts";
import { acceleratorCandidates, type AcceleratorFacts, findQemu, isAtLeast, readAcceleratorFacts } from "../../../src/qemu/probe.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

const CAPABLE: AcceleratorFacts = {
  platform: { os: "linux", arch: "x86_64" },
  isEmulationForced: false,
  kvmProblem: undefined,
  hasVirtualizationFlag: true,
  isPvm: false,
};
const cpus = (facts: Partial<AcceleratorFacts>) =>
  acceleratorCandidates({ ...CAPABLE, ...facts }).candidates.map(({ accelerator, cpu }) => `${accelerator} ${cpu}`);

test("acceleratorCandidates: emulation is always the last, and the first where there is a reason", () => {
  const emulated = "tcg max,-erms,-fsrm,-fsrs,-fzrm";
  assert.deepEqual(cpus({}), ["kvm host,-svm,-vmx", "kvm host,-svm,-vmx,-arch-capabilities", emulated]);
  for (const facts of [{ isEmulationForced: true }, { kvmProblem: "it is absent" }, { isPvm: true }, { hasVirtualizationFlag: false }]) {
    assert.deepEqual(cpus(facts), [emulated]);
    assert.notEqual(acceleratorCandidates({ ...CAPABLE, ...facts }).reason, "");
  }
});

test("acceleratorCandidates: the flags that are left out under emulation are x86's alone", () => {
  assert.deepEqual(cpus({ platform: { os: "linux", arch: "aarch64" } }), ["kvm host", "tcg max"]);
  assert.deepEqual(cpus({ platform: { os: "macos", arch: "aarch64" } }), ["hvf host", "tcg max"]);
});

test("acceleratorCandidates: each sign that /dev/kvm is of no use is told as the reason", () => {
  const signs: Array<[Partial<AcceleratorFacts>, RegExp]> = [
    [{ kvmProblem: "this host has no /dev/kvm" }, /no \/dev\/kvm/],
    [{ isPvm: true }, /kvm-pvm/],
    [{ hasVirtualizationFlag: false }, /neither vmx nor svm/],
    [{ isEmulationForced: true }, /EXEC_SANDBOX_FORCE_EMULATION/],
  ];
  for (const [fact, reason] of signs) {
    const found = acceleratorCandidates({ ...CAPABLE, ...fact });
    assert.match(found.reason, reason);
    assert.equal(found.isForced, fact.isEmulationForced === true);
  }
});

test("facts of this host are read, whatever they are", async () => {
  const facts = await readAcceleratorFacts({ os: "linux", arch: "x86_64" } as never, true);
  assert.equal(facts.isEmulationForced, true);
  assert.ok(facts.kvmProblem === undefined || /\/dev\/kvm/.test(facts.kvmProblem), facts.kvmProblem);
});

test("versions are compared number by number", () => {
  for (const [version, wanted] of [["8.2", "8.2"], ["8.2.1", "8.2"], ["8.10.0", "8.2"], ["10.0.13", "8.2"], ["9", "8.2"]] as const) {
    assert.ok(isAtLeast(version, wanted), `${version} >= ${wanted}`);
  }
  for (const [version, wanted] of [["8.1.9", "8.2"], ["7.2.22", "8.2"], ["8", "8.2"], ["0.99", "8.2"]] as const) {
    assert.ok(!isAtLeast(version, wanted), `${version} < ${wanted}`);
  }
});

function program(t: TestContext, name: string, says: string): string {
  const directory = temporaryDirectory(t), file = path.join(directory, name);
  writeFileSync(file, `#!/bin/sh\necho '${says}'\n`, { mode: 0o755 });
  return file;
}

test("the explicit QEMU beats our own, and our own the one in PATH", async (t) => {
  const inPath = program(t, "qemu-system-x86_64", "QEMU emulator version 9.2.1 (Debian 1:9.2.1)");
  const explicit = program(t, "mine", "QEMU emulator version 8.2.0");
  const own = { path: "/images/qemu-sbx", version: "10.0.13", fingerprint: "f" };
  const search = { arch: "x86_64", searchPath: `relative:/no/such/directory:${path.dirname(inPath)}` } as const;
  const found = await findQemu({ ...search, explicit, own });
  assert.deepEqual([found.path, found.version, found.isOwn], [explicit, "8.2.0", false]);
  assert.deepEqual(await findQemu({ ...search, explicit: undefined, own }), { ...own, isOwn: true });
  const third = await findQemu({ ...search, explicit: undefined, own: undefined });
  assert.deepEqual([third.path, third.version, third.isOwn], [inPath, "9.2.1", false]);
});

test("another build of the same version has another fingerprint", async (t) => {
  const file = program(t, "q", "QEMU emulator version 9.0.0");
  const sources = { explicit: file, own: undefined, arch: "x86_64", searchPath: "" } as const;
  const before = await findQemu(sources);
  assert.deepEqual(await findQemu(sources), before);
  writeFileSync(file, "#!/bin/sh\n# rebuilt\necho 'QEMU emulator version 9.0.0'\n");
  const after = await findQemu(sources);
  assert.equal(after.version, before.version);
  assert.notEqual(after.fingerprint, before.fingerprint);
});

test("no QEMU at all, one that may not run and one that is a directory are told apart from a good one", async (t) => {
  const directory = temporaryDirectory(t), search = { own: undefined, arch: "x86_64" } as const;
  mkdirSync(path.join(directory, "sub"));
  const file = program(t, "qemu-system-x86_64", "QEMU emulator version 9.0.0");
  chmodSync(file, 0o644);
  const refused = async (explicit: string | undefined, searchPath: string, message: RegExp) =>
    await assert.rejects(
      findQemu({ ...search, explicit, searchPath }),
      (error) => error instanceof SandboxDependencyError && message.test(error.message),
      String(explicit),
    );
  await refused(undefined, "", /neither the images directory nor PATH has one \(qemu-system-x86_64\)/);
  await refused(undefined, path.dirname(file), /neither the images directory nor PATH/);
  await refused(file, "", /does not run/);
  await refused(path.join(directory, "sub"), "", /does not run/);
});

noLeftovers();
