/** Packages of the registries that this machine reaches: installed once, cloned from then on, found in every way in which programs look for them. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import test, { before } from "node:test";
import { PackageInstallError, PackageNotAllowedError, SnapshotError } from "../../src/base/errors.ts";
import { Scheduler } from "../../src/run/scheduler.ts";
import { withEnv } from "../support/environment.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { sbx } from "./cli_terminal.ts";

const imagesDir = imagesDirectory(), skip = reasonToSkip(), options = skip === undefined ? { timeout: 600_000 } : { skip };
const cache = mkdtempSync(path.join(os.tmpdir(), "sbx-test-packages-"));
const phases: string[] = [];
let scheduler: Scheduler;

before(async () => {
  if (skip !== undefined) return;
  const open = () =>
    Scheduler.open({ imagesDir, autoDownloadAssets: false }, {
      onInstall: ({ phase, detail }) => void (detail === undefined && phases.push(phase)),
    });
  scheduler = await withEnv({ EXEC_SANDBOX_CACHE_DIR: cache }, open);
});

const REQUESTS = ["requests[socks]==2.32.5"];

test("a Python package with an extra is installed once, by phases, with all that it needs; later runs clone", options, async () => {
  const code = "import requests, socks, urllib3; print(requests.__version__)";
  const first = await scheduler.run({ code, language: "python", packages: REQUESTS });
  assert.deepEqual([first.stdout, first.stderr, first.exitCode], ["2.32.5\n", "", 0]);
  assert.deepEqual(phases, ["boot", "resolve", "download", "freeze", "done"]);
  const second = await scheduler.run({ code, language: "python", packages: ["Requests[SOCKS]==2.32.5"] });
  assert.deepEqual([second.stdout, second.start], ["2.32.5\n", "template"]);
  assert.equal(phases.length, 5, "nothing is installed again");
  const [layer, ...others] = readdirSync(path.join(cache, "layers")).filter((name) => !name.startsWith("."));
  assert.deepEqual(others, []);
  const { packages } = JSON.parse(readFileSync(path.join(cache, "layers", layer ?? "", "packages.json"), "utf8"));
  const names = packages.map(({ name }: { name: string }) => name);
  for (const name of ["certifi", "charset-normalizer", "idna", "pysocks", "requests", "urllib3"]) assert.ok(names.includes(name), name);
  for (const { name, hashes } of packages) {
    assert.ok(hashes.length > 0 && hashes.every((hash: string) => /^sha256:[0-9a-f]{64}$/.test(hash)), name);
  }
  assert.equal(statSync(path.join(cache, "layers", layer ?? "", "layer.erofs")).mode & 0o222, 0);
});

test("packages are there in subprocesses, for python -m, and with their console scripts; nobody can write to them", options, async () => {
  const code = `
import subprocess, sys
run = lambda *argv: subprocess.run(argv, capture_output=True, text=True).stdout.strip()
print(run(sys.executable, "-c", "import requests; print(requests.__version__)"))
print(run("python3", "-m", "idna", "--version") or "idna")
print(run("sh", "-c", "command -v normalizer idna"))
try:
    open("/opt/packages/requests/x", "w")
except OSError as error:
    print(error.strerror)
`;
  const { stdout, stderr } = await scheduler.run({ code, language: "python", packages: REQUESTS });
  const lines = stdout.trim().split("\n");
  assert.deepEqual([lines[0], lines.at(-1), stderr], ["2.32.5", "Read-only file system", ""]);
  assert.ok(lines.includes("/opt/packages/bin/normalizer"), stdout);
});

test("modules are imported ahead, unless the request has an environment or does not want it", options, async () => {
  const code = "import sys; print('requests' in sys.modules)";
  const run = async (fields: object) => (await scheduler.run({ code, language: "python", packages: REQUESTS, ...fields })).stdout;
  assert.equal(await run({}), "True\n");
  assert.equal(await run({ preload: false }), "False\n");
  assert.equal(await run({ env: { A: "1" } }), "False\n");
});

test("sbx session -p has them, from the layer that is there", options, async () => {
  const env = { ...process.env, EXEC_SANDBOX_CACHE_DIR: cache, EXEC_SANDBOX_IMAGES_DIR: imagesDir };
  const stdin = "import requests, socks\n\nrequests.__version__\n";
  const { code, stdout, stderr } = await sbx(["session", "-q", "-p", REQUESTS.join()], { stdin, env });
  assert.deepEqual([code, stdout, stderr], [0, "'2.32.5'\n", ""]);
});

test("a session has its packages from its first execution on, with a network beside them, and cannot be saved", options, async () => {
  await using session = await scheduler.session({ language: "python", packages: REQUESTS, allowedDomains: ["example.com"] });
  await session.exec("import requests");
  assert.equal((await session.exec("requests.__name__")).value, "'requests'");
  const refused = await session.exec(`
try:
    requests.get("https://other.example.org", timeout=20)
except requests.ConnectionError:
    print("refused")`);
  assert.equal(refused.stdout, "refused\n");
  await assert.rejects(session.checkpoint(), (error) => error instanceof SnapshotError && /with packages/.test(error.message));
  assert.equal((await session.exec("requests.__version__")).value, "'2.32.5'");
});

test("a compiled package is imported ahead, and its random numbers differ in each clone", options, async () => {
  const code = "import sys; ahead = 'numpy' in sys.modules; import numpy; print(ahead, numpy.random.rand(), numpy.arange(4).sum())";
  const request = { code, language: "python", packages: ["numpy==2.3.5"] } as const;
  const outputs = [(await scheduler.run(request)).stdout, (await scheduler.run(request)).stdout];
  for (const output of outputs) assert.match(output, /^True 0\.\d+ 6\n$/);
  assert.notEqual(outputs[0], outputs[1]);
});

test("JavaScript packages, of a scope and with native parts, are found by imports, subprocesses and bunx", options, async () => {
  const packages = ["@node-rs/crc32@1.10.6", "semver@7.7.2"];
  await using unchecked = await withEnv(
    { EXEC_SANDBOX_CACHE_DIR: cache },
    () => Scheduler.open({ imagesDir, autoDownloadAssets: false, enablePackageValidation: false }),
  );
  const code = `
import { crc32 } from "@node-rs/crc32";
import semver from "semver";
console.log(crc32("hello"), semver.inc("1.2.3", "minor"));
const run = (...argv) => Bun.spawnSync(argv).stdout.toString().trim();
console.log(run("semver", "-i", "patch", "1.2.3"), run("bunx", "semver", "1.2.3"));
await Bun.write("other.mjs", 'import semver from "semver"; console.log(semver.major("4.0.0"))');
console.log(run("bun", "other.mjs"));
`;
  const result = await unchecked.run({ code, language: "javascript", packages });
  assert.deepEqual([result.stdout, result.stderr], ["907060870 1.3.0\n1.2.4 1.2.3\n4\n", ""]);
});

test("what is not in the catalog is refused before anything starts, with what was perhaps meant", options, async () => {
  const count = phases.length;
  await assert.rejects(scheduler.run({ code: "1", language: "python", packages: ["reqeusts==2.32.5"] }), (error) => {
    assert.ok(error instanceof PackageNotAllowedError);
    assert.match(error.hint ?? "", /Did you mean requests/);
    return true;
  });
  assert.equal(phases.length, count);
});

test("a version that there is not, and versions that exclude each other, are told in the installer's words", options, async () => {
  const rejects = (packages: readonly string[], words: RegExp) =>
    assert.rejects(scheduler.run({ code: "1", language: "python", packages }), (error) => {
      assert.ok(error instanceof PackageInstallError, String(error));
      assert.match(error.message, words);
      assert.equal(error.retry, "never");
      return true;
    });
  await rejects(["requests==999.0"], /no version of requests==999\.0/);
  await rejects(["requests==2.32.5", "urllib3==1.20"], /urllib3/);
  await assert.rejects(
    scheduler.run({ code: "1", language: "javascript", packages: ["lodash@999.0.0"] }),
    (error) => error instanceof PackageInstallError && /lodash/.test(error.message),
  );
});

test("names without a version are looked up once", options, async () => {
  const [python, javascript] = await Promise.all([
    scheduler.pinPackages("python", ["requests"]),
    scheduler.pinPackages("javascript", ["lodash"]),
  ]);
  assert.match(python.get("requests")?.version ?? "", /^\d+\.\d+/);
  assert.match(javascript.get("lodash")?.version ?? "", /^\d+\.\d+\.\d+$/);
  const again = await scheduler.pinPackages("python", ["requests"]);
  assert.deepEqual(again.get("requests"), { version: python.get("requests")?.version, isNew: false });
});

test("the scheduler closes", async () => {
  await scheduler?.close();
  rmSync(cache, { recursive: true });
});

noLeftovers();
