/** Builds that end badly: killed or interrupted at any moment, two at once; and what a reader sees meanwhile. */
import assert from "node:assert/strict";
import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test from "node:test";
import { AssetError } from "../../src/base/errors.ts";
import { FileLock, sweepTemporaries } from "../../src/host/files.ts";
import { openAssets } from "../../src/images/assets.ts";
import { buildImages } from "../../src/images/build.ts";
import { sweepSets } from "../../src/images/publish.ts";
import { verifyAssets } from "../../src/images/verify.ts";
import { noLeftovers, processesWith, runs, temporaryDirectory } from "../support/leftovers.ts";
import { startScript } from "../support/subprocess.ts";
import { eventually, sleep } from "../support/waiting.ts";
import { smallFiles, writeImages } from "../unit/images/support.ts";

test("readers always find a whole set, and a publisher that is killed at any moment leaves one", async (t) => {
  const parent = temporaryDirectory(t);
  const images = path.join(parent, "images");
  for (const mark of ["one", "two"]) writeImages(path.join(parent, mark), smallFiles(mark));
  let opened = 0;
  for (let round = 0; round < 6; round++) {
    const script = startScript(t, "images_publish.ts", [images, path.join(parent, "one"), path.join(parent, "two")]);
    await script.said("publishing");
    for (const end = performance.now() + 60 + round * 7; performance.now() < end;) {
      await openAssets(images).catch((error) => {
        // Opened while the set after next was published: that set is gone, the next open finds a whole one.
        if (!(error instanceof AssetError && error.message.includes("must exist"))) throw error;
      });
      opened += 1;
    }
    script.raw.kill("SIGKILL");
    await script.ended;
    await verifyAssets(images);
  }
  assert.ok(opened > 20);
  await sweepSets(images);
  const rest = readdirSync(parent, { recursive: true, encoding: "utf8" }).filter((name) => path.basename(name).startsWith(".tmp-"));
  assert.deepEqual(rest, []);
});

test("an interrupted build ends its programs and leaves nothing", async (t) => {
  const buildDir = temporaryDirectory(t);
  const script = startScript(t, "images_stage.ts", [buildDir]);
  await script.said("started");
  script.raw.kill("SIGINT");
  const { stdout } = await script.ended;
  assert.match(stdout, /interrupted/);
  for (const part of ["stages", "work"]) assert.deepEqual(readdirSync(path.join(buildDir, part)), []);
  assert.ok(!existsSync(path.join(buildDir, "lock")));
});

test("what a killed build left is swept by the next one, which gets the lock at once", async (t) => {
  const buildDir = temporaryDirectory(t);
  const before = processesWith("sleep\u000061357");
  const programs = () => processesWith("sleep\u000061357").filter((pid) => !before.includes(pid));
  const script = startScript(t, "images_stage.ts", [buildDir]);
  await script.said("started");
  await eventually("its program runs", () => programs().length > 0);
  script.raw.kill("SIGKILL");
  await script.ended;
  assert.equal(readdirSync(path.join(buildDir, "stages")).length, 1);
  await using _lock = await FileLock.acquire(path.join(buildDir, "lock"));
  for (const part of ["stages", "work"]) {
    await sweepTemporaries(path.join(buildDir, part));
    assert.deepEqual(readdirSync(path.join(buildDir, part)), []);
  }
  if (process.getuid?.() === 0) await eventually("its programs have ended with it", () => programs().length === 0);
  for (const pid of programs()) process.kill(pid, "SIGKILL");
});

test("a second build says whom it waits for, and gives up when it is told to", async (t) => {
  const cacheDir = temporaryDirectory(t);
  const script = startScript(t, "images_stage.ts", [path.join(cacheDir, "build")]);
  await script.said("started");
  const stop = new AbortController(), reason = new Error("enough");
  let message = "";
  const second = buildImages({
    version: "0.1.0",
    cacheDir,
    signal: stop.signal,
    onProgress: (progress) => message ||= progress.message ?? "",
  });
  const failed = assert.rejects(second, (error) => error === reason);
  await eventually("it says whom it waits for", () => message !== "");
  assert.equal(message, `waiting for the build of process ${script.pid}`);
  await sleep(100);
  assert.ok(runs(script.pid));
  stop.abort(reason);
  await failed;
  script.raw.kill("SIGINT");
  await script.ended;
});

test("a build without sources is refused before anything is made", async (t) => {
  const cacheDir = temporaryDirectory(t);
  await assert.rejects(
    buildImages({ version: "0.1.0", cacheDir, sourceDir: cacheDir }),
    (error) => String(error).includes("versions.lock"),
  );
  assert.ok(!existsSync(path.join(cacheDir, "images")));
});

noLeftovers();
