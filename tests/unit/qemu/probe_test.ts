/** Probe: which accelerators and CPU models are tried, from facts alone. */
import assert from "node:assert/strict";
import test from "node:test";
import { acceleratorCandidates, type AcceleratorFacts } from "../../../src/qemu/probe.ts";

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
