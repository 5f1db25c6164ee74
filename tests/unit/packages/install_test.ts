/** Installations: what is run in a workshop, and how much of its disk is a layer. */
import assert from "node:assert/strict";
import test from "node:test";
import { GuestAgentError } from "../../../src/base/errors.ts";
import { freezeSteps, type InstallJob, installSteps, LAYER_HEAD_BYTES, layerBytes, showFilesStep } from "../../../src/packages/install.ts";
import { noLeftovers } from "../../support/leftovers.ts";

const PYTHON: InstallJob = {
  language: "python",
  packages: [{ name: "requests", version: "2.32.5", extras: ["socks"] }],
  registry: "https://index.example.com/simple",
  areScriptsRun: false,
};
const JAVASCRIPT: InstallJob = {
  language: "javascript",
  packages: [{ name: "@scope/x", version: "1.0.0", extras: [] }],
  registry: "https://registry.example.com/",
  areScriptsRun: false,
};

test("Python's set is resolved with hashes, wheels first, and nothing but that set is installed", () => {
  const [resolve, install, ...others] = installSteps(PYTHON);
  assert.deepEqual(others, []);
  const script = resolve?.argv[2] ?? "";
  assert.ok(script.indexOf("--only-binary :all:") < script.lastIndexOf("uv pip compile"), "sources come second");
  assert.match(script, /--generate-hashes/);
  assert.deepEqual(resolve?.argv.slice(-1), ["requests[socks]==2.32.5"], "a package is an argument, never a part of the script");
  assert.ok(install?.argv.includes("--require-hashes") && install.argv.includes("--compile-bytecode"));
  for (const step of [resolve, install]) assert.deepEqual([step?.env["UV_DEFAULT_INDEX"], step?.isOnline], [PYTHON.registry, true]);
});

test("scripts of JavaScript's packages run only when asked for", () => {
  const argvOf = (job: InstallJob) => installSteps(job).find(({ argv }) => argv[0] === "bun")?.argv ?? [];
  assert.ok(argvOf(JAVASCRIPT).includes("--ignore-scripts") && !argvOf(JAVASCRIPT).includes("--trust"));
  const asked = argvOf({ ...JAVASCRIPT, areScriptsRun: true });
  assert.ok(asked.includes("--trust") && !asked.includes("--ignore-scripts"));
  assert.equal(asked.at(-1), "@scope/x@1.0.0");
});

test("a layer is made of what is installed, without what was used to install it, and offline", () => {
  const [clean, freeze] = freezeSteps();
  assert.deepEqual([clean?.argv[0], freeze?.argv[0], freeze?.argv.at(-2)], ["rm", "mkfs.erofs", "/dev/layer"]);
  assert.deepEqual([clean?.isOnline, freeze?.isOnline], [false, false]);
});

test("the registry is asked where files are, for a package by its own address", () => {
  const [python] = PYTHON.packages, [javascript] = JAVASCRIPT.packages;
  assert.ok(python && javascript);
  assert.equal(showFilesStep(PYTHON, python).argv[4], "https://index.example.com/simple/requests/");
  assert.equal(showFilesStep(JAVASCRIPT, javascript).argv[4], "https://registry.example.com/@scope%2fx/1.0.0");
});

function head({ magic = 0xe0f5e1e2, blockBits = 12, blocks = 3, bytes = LAYER_HEAD_BYTES } = {}): Uint8Array {
  const head = new Uint8Array(Math.max(bytes, LAYER_HEAD_BYTES)), view = new DataView(head.buffer);
  view.setUint32(1024, magic, true);
  view.setUint8(1036, blockBits);
  view.setUint32(1060, blocks, true);
  return head.subarray(0, bytes);
}

test("a layer is as long as its superblock says, and no longer than its disk", () => {
  assert.equal(layerBytes(head(), 1 << 20), 12_288);
  assert.equal(layerBytes(head({ blocks: 256 }), 1 << 20), 1 << 20);
  const wrong = [{ blocks: 257 }, { blocks: 0 }, { blocks: 0xffffffff }, { magic: 1 }, { blockBits: 13 }, { blockBits: 255 }, {
    bytes: 1100,
  }, {
    bytes: 0,
  }];
  for (const facts of wrong) assert.throws(() => layerBytes(head(facts), 1 << 20), GuestAgentError, JSON.stringify(facts));
});

noLeftovers();
