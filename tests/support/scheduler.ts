/** Scheduler: tests that need a VM declare it here, and are skipped with a reason where the images are not there. */
import { existsSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import type { SchedulerConfig } from "../../src/config/config.ts";
import { cacheDirectory, readPlatform } from "../../src/host/platform.ts";
import { Scheduler, type SchedulerHooks } from "../../src/run/scheduler.ts";

/** Baking a template on a loaded, emulating machine takes a minute; only a hang takes longer than this. */
const VM_TEST_TIMEOUT_MS = 300_000;

/** Where the images are, by the same rules as the library's; they need not exist. */
export function imagesDirectory(): string {
  return process.env["EXEC_SANDBOX_IMAGES_DIR"] || path.join(cacheDirectory(), "images", readPlatform().arch);
}

/** Why VM tests cannot run here; undefined when they can. `SBX_TEST_REQUIRE_VM=1` makes them run and fail instead. */
export function reasonToSkip(): string | undefined {
  if (process.env["SBX_TEST_REQUIRE_VM"] === "1") return undefined;
  const manifest = path.join(imagesDirectory(), "manifest.json");
  return existsSync(manifest) ? undefined : `needs the images, and there is no ${manifest}`;
}

/** Opens a scheduler on the images found, gives it to `body` and closes it whatever happens. */
export async function withScheduler<T>(
  body: (scheduler: Scheduler) => Promise<T>,
  config: SchedulerConfig = {},
  hooks: SchedulerHooks = {},
): Promise<T> {
  await using scheduler = await Scheduler.open({ imagesDir: imagesDirectory(), autoDownloadAssets: false, ...config }, hooks);
  return await body(scheduler);
}

/** Declares a test that needs VMs. */
export function testWithScheduler(
  name: string,
  body: (scheduler: Scheduler, t: TestContext) => Promise<void>,
  config: SchedulerConfig = {},
): void {
  const skip = reasonToSkip();
  test(name, skip === undefined ? { timeout: VM_TEST_TIMEOUT_MS } : { skip }, async (t) => {
    await withScheduler((scheduler) => body(scheduler, t), config);
  });
}

/** As `reasonToSkip`, for tests that take minutes of an emulated machine and are the same under either runtime: Deno runs them. */
export function reasonToSkipTwice(): string | undefined {
  return process.versions["bun"] === undefined ? reasonToSkip() : "runs under Deno alone";
}
