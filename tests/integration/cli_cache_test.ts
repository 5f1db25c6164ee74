/** `sbx cache` beside real machines: it lists the templates that runs made, and what it removes is made anew while machines go on. */
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import test from "node:test";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { openTestScheduler } from "../support/vm.ts";
import { sbx } from "./cli_terminal.ts";

const skip = reasonToSkip() ?? false;
const TIMEOUT_MS = 300_000;

test("what cache clear removes is made anew, and a session that runs from it goes on", { skip, timeout: TIMEOUT_MS }, async (t) => {
  const cache = temporaryDirectory(t), snapshots = path.join(cache, "snapshots");
  const env = { EXEC_SANDBOX_CACHE_DIR: cache, EXEC_SANDBOX_IMAGES_DIR: imagesDirectory() };
  const { scheduler, close } = await openTestScheduler({ snapshotCacheDir: snapshots, imagesDir: imagesDirectory() });
  try {
    const session = await scheduler.session({ language: "raw" });
    await session.exec("x=kept");
    const { entries } = JSON.parse((await sbx(["cache", "ls", "--json"], { env })).stdout);
    const found = entries.filter(({ kind }: { kind: string }) => kind === "template");
    assert.deepEqual(found.map((entry: Record<string, unknown>) => [entry["language"], entry["memory_mb"], entry["damaged"]]), [[
      "raw",
      256,
      false,
    ]]);
    assert.ok(found[0].size_bytes > 10e6, `${found[0].size_bytes} bytes: the memory that the guest has touched`);
    assert.deepEqual(entries.map(({ kind }: { kind: string }) => kind), ["template", "image"]);
    const cleared = await sbx(["cache", "clear"], { env });
    assert.deepEqual([cleared.code, fs.readdirSync(snapshots)], [0, []]);
    assert.equal((await session.exec("echo $x; ls / | wc -l")).stdout.split("\n")[0], "kept");
    const { stdout, start } = await scheduler.run({ language: "raw", code: "echo again" });
    assert.deepEqual([stdout, start], ["again\n", "template"]);
    assert.equal(fs.readdirSync(snapshots).length, 1);
    assert.ok(fs.existsSync(path.join(imagesDirectory(), "manifest.json")));
  } finally {
    await close();
  }
});

noLeftovers();
