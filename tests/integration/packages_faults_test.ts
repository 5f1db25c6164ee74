/** Installations that go wrong, against an index on loopback whose packages are built from sources that the tests write. */
import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { PackageInstallError } from "../../src/base/errors.ts";
import type { Logger } from "../../src/base/log.ts";
import type { SchedulerConfig } from "../../src/config/config.ts";
import { Scheduler } from "../../src/run/scheduler.ts";
import { withEnv } from "../support/environment.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { type IndexFault, type PackageIndex, type SourcePackage, startPackageIndex } from "../support/package_index.ts";
import { imagesDirectory, reasonToSkipTwice } from "../support/scheduler.ts";

const imagesDir = imagesDirectory(), skip = reasonToSkipTwice(), options = skip === undefined ? { timeout: 600_000 } : { skip };
const cache = mkdtempSync(path.join(os.tmpdir(), "sbx-test-package-faults-"));

interface Bench {
  readonly index: PackageIndex;
  readonly phases: string[];
  readonly warnings: string[];
  readonly scheduler: Scheduler;
}

/** A scheduler whose Python packages come from an index of the test's own. */
async function withIndex(
  t: TestContext,
  packages: readonly SourcePackage[],
  config: SchedulerConfig,
  body: (bench: Bench) => Promise<void>,
) {
  const index = await startPackageIndex(t, packages), phases: string[] = [], warnings: string[] = [];
  await using scheduler = await openOn(index, config, { phases, warnings });
  await body({ index, phases, warnings, scheduler });
}

async function openOn(index: PackageIndex, config: SchedulerConfig, heard: Pick<Bench, "phases" | "warnings">): Promise<Scheduler> {
  const ignore = () => {};
  const log: Logger = { debug: ignore, info: ignore, error: ignore, warning: (message) => void heard.warnings.push(message) };
  return await withEnv(
    { EXEC_SANDBOX_CACHE_DIR: cache, UV_DEFAULT_INDEX: index.url },
    () =>
      Scheduler.open({ imagesDir, autoDownloadAssets: false, enablePackageValidation: false, ...config }, {
        log,
        networkHosts: index.hosts,
        onInstall: ({ phase, detail }) => void (detail === undefined && heard.phases.push(phase)),
      }),
  );
}

const valueOf = async ({ scheduler }: Pick<Bench, "scheduler">, name: string) =>
  (await scheduler.run({ code: `import ${name}; print(${name}.value)`, language: "python", packages: [`${name}==1.0`] })).stdout;

async function refused({ scheduler }: Pick<Bench, "scheduler">, name: string): Promise<PackageInstallError> {
  const error = await scheduler.run({ code: "1", language: "python", packages: [`${name}==1.0`] }).then(() => undefined, (error) => error);
  assert.ok(error instanceof PackageInstallError, String(error));
  return error;
}

test("a package without a wheel is built as an ordinary user, away from everything but the index", options, async (t) => {
  const build = `
import os, urllib.request
assert os.getuid() == 1000, os.getuid()
try:
    urllib.request.urlopen("http://other.example.org/", timeout=30)
except OSError as error:
    print("could not:", error)
else:
    raise SystemExit("it could")
`;
  await withIndex(t, [{ name: "curious", build }], {}, async (bench) => {
    assert.equal(await valueOf(bench, "curious"), "42\n");
    assert.ok(bench.warnings.some((warning) => warning.includes("asked for hosts that are no registry")), bench.warnings.join("\n"));
  });
});

test("a build that fails is told in its own words, and may be tried again when it is mended", options, async (t) => {
  await withIndex(t, [{ name: "broken", build: 'raise SystemExit("the flux is not compensated")' }], {}, async (bench) => {
    const error = await refused(bench, "broken");
    assert.match(error.message, /^Cannot install broken==1\.0: [^]*the flux is not compensated/);
    assert.equal(error.retry, "never");
    assert.ok(!bench.phases.includes("freeze"));
  });
  await withIndex(t, [{ name: "broken" }], {}, async (bench) => assert.equal(await valueOf(bench, "broken"), "42\n"));
});

test("a build that never ends is ended, and one that fills the disk", options, async (t) => {
  const endless = { name: "endless", build: "while True: pass" };
  await withIndex(t, [endless], { packageInstallTimeoutSeconds: 60 }, async (bench) => {
    const error = await refused(bench, "endless");
    assert.match(error.message, /must be done within 60 s, and was not/);
    assert.match(error.hint ?? "", /packageInstallTimeoutSeconds/);
  });
  const huge = {
    name: "huge",
    build: 'import os\nwith open(os.environ["TMPDIR"] + "/x", "wb") as file:\n    while True: file.write(os.urandom(1 << 20))',
  };
  await withIndex(t, [huge], { packageLayerMaxMb: 64 }, async (bench) => {
    const error = await refused(bench, "huge");
    assert.match(error.message, /must fit into 64 MB, and does not/);
  });
});

test("an index that fails for a while is asked again, one that stays away is told", options, async (t) => {
  let failures = 0;
  const unavailable: IndexFault = (_, response) => {
    failures += 1;
    response.statusCode = 503;
    response.end();
    return true;
  };
  await withIndex(t, [{ name: "late" }], {}, async (bench) => {
    bench.index.fault = unavailable;
    const error = await refused(bench, "late");
    assert.deepEqual([error.retry, /cannot be reached/.test(error.message)], ["safe", true], error.message);
    assert.ok(failures >= 3, `it was asked ${failures} times`);
    bench.index.fault = (request, response) => failures++ % 3 !== 0 && unavailable(request, response);
    assert.equal(await valueOf(bench, "late"), "42\n");
  });
});

test("a file that is cut off is fetched again", options, async (t) => {
  let cuts = 0;
  await withIndex(t, [{ name: "torn" }], {}, async (bench) => {
    bench.index.fault = ({ url }, response) => {
      if (!url?.startsWith("/files/") || cuts >= 2) return false;
      cuts += 1;
      response.setHeader("content-length", "100000");
      response.write("half", () => response.destroy());
      return true;
    };
    assert.equal(await valueOf(bench, "torn"), "42\n");
    assert.equal(cuts, 2);
  });
});

test("of two that want the same packages one installs, the other waits for it", options, async (t) => {
  await withIndex(t, [{ name: "shared" }], {}, async (bench) => {
    const phases: string[] = [];
    await using other = await openOn(bench.index, {}, { phases, warnings: [] });
    const outputs = await Promise.all([valueOf(bench, "shared"), valueOf({ scheduler: other }, "shared")]);
    assert.deepEqual(outputs, ["42\n", "42\n"]);
    assert.equal([...bench.phases, ...phases].filter((phase) => phase === "freeze").length, 1);
    assert.equal([...bench.phases, ...phases].filter((phase) => phase === "waiting").length, 1);
  });
});

test("an installation that is ended leaves nothing, and the next begins anew", options, async (t) => {
  await withIndex(t, [{ name: "ended" }], {}, async (bench) => {
    bench.index.fault = () => {
      void bench.scheduler.close();
      return true;
    };
    await assert.rejects(valueOf(bench, "ended"));
    await bench.scheduler.close();
    assert.deepEqual(readdirSync(path.join(cache, "layers")).filter((name) => name.startsWith(".tmp") || name.startsWith(".lock")), []);
    await using next = await openOn({ ...bench.index, fault: undefined }, {}, { phases: [], warnings: [] });
    bench.index.fault = undefined;
    assert.equal(await valueOf({ scheduler: next }, "ended"), "42\n");
  });
});

test("a layer that somebody has changed is not used: it is told, and installed again", options, async (t) => {
  await withIndex(t, [{ name: "changed" }], {}, async (bench) => {
    const before = new Set(readdirSync(path.join(cache, "layers")));
    assert.equal(await valueOf(bench, "changed"), "42\n");
    const [key] = readdirSync(path.join(cache, "layers")).filter((name) => !before.has(name));
    const file = path.join(cache, "layers", key ?? "", "layer.erofs"), bytes = readFileSync(file);
    bytes[bytes.length - 1] = (bytes.at(-1) ?? 0) ^ 1;
    chmodSync(file, 0o644);
    writeFileSync(file, bytes);
    assert.equal(await valueOf(bench, "changed"), "42\n");
    assert.equal(bench.phases.filter((phase) => phase === "freeze").length, 2);
    assert.ok(bench.warnings.some((warning) => warning.includes("package layer was not what it should be")), bench.warnings.join("\n"));
  });
});

test("modules that cannot be imported ahead are told, and imported by the code as ever", options, async (t) => {
  const modules = {
    fails: 'import sys\nif not hasattr(sys, "again"):\n    sys.again = 1\n    raise RuntimeError("not yet")\nvalue = 42\n',
    threads: "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\nvalue = 42\n",
    opens: "import socket\nkept = socket.socket()\nvalue = 42\n",
    quits: 'import os, sys\nif os.path.exists("/opt/packages") and not os.environ.get("A"): os._exit(3)\nvalue = 42\n',
    good: "value = 42\n",
  };
  const packages = Object.entries(modules).map(([name, module]) => ({ name, module }));
  await withIndex(t, packages, {}, async (bench) => {
    const names = Object.keys(modules).map((name) => `${name}==1.0`);
    const code = `import sys; print(sorted(set(${JSON.stringify(Object.keys(modules))}) & set(sys.modules)))`;
    const { stdout } = await bench.scheduler.run({ code, language: "python", packages: names });
    assert.equal(stdout, "['good']\n");
    assert.equal(bench.warnings.filter((warning) => warning.includes("not imported ahead of time")).length, 4, bench.warnings.join("\n"));
    const use = await bench.scheduler.run({ code: "import opens, threads; print(opens.value)", language: "python", packages: names });
    assert.equal(use.stdout, "42\n");
  });
});

test("what was installed is removed", () => rmSync(cache, { recursive: true }));

noLeftovers();
