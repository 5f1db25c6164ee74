/** Serve cases: what a run costs on a warm VM that a server lends, for a program and for the command line. */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { resolveConfig } from "../../src/config/config.ts";
import { run as runProgram } from "../../src/host/process.ts";
import { readPlatform } from "../../src/host/platform.ts";
import { defaultImagesDirectory } from "../../src/images/assets.ts";
import { Scheduler } from "../../src/mod.ts";
import { Server } from "../../src/serve/server.ts";
import { environment, PRINT, silent } from "./cases.ts";
import { measure, type Measurement, timed } from "./measure.ts";

/** For what the run before left to be gone. */
const PAUSE_MS = 100;

/** A server with a place of its own, the images and templates that are there, and a warm VM of each language. */
export async function runServed(count: number): Promise<Measurement[]> {
  const { cacheDir, imagesDir, snapshotCacheDir } = resolveConfig(), home = mkdtempSync(path.join(os.tmpdir(), "sbx-bench-"));
  const env = {
    ...environment(),
    EXEC_SANDBOX_CACHE_DIR: home,
    EXEC_SANDBOX_IMAGES_DIR: imagesDir ?? defaultImagesDirectory(cacheDir, readPlatform().arch),
    EXEC_SANDBOX_SNAPSHOT_CACHE_DIR: snapshotCacheDir,
  };
  try {
    await using server = await Server.start({ config: resolveConfig({ warmPoolSize: 1 }, env), log: silent });
    await using scheduler = await Scheduler.connect({ socketPath: server.place.socket }, { log: silent });
    const whenWarm = async (run: () => Promise<boolean>) => {
      await scheduler.ready();
      await sleep(PAUSE_MS);
      return await timed(async () => {
        if (!await run()) throw new Error("the server had no warm VM");
      });
    };
    const found = [
      await measure(
        "run(print) on a warm VM of a server, python",
        { count, warmUps: 3 },
        () => whenWarm(async () => (await scheduler.run({ code: PRINT.python, language: "python" })).warmPoolHit),
      ),
    ];
    const program = "dist/sbx";
    if (!existsSync(program)) return found;
    const run = async () => {
      const { code, stdout, stderr } = await runProgram([program, "run", "-q", "--json", PRINT.python], { env });
      if (code !== 0) throw new Error(`sbx run failed: ${stderr}`);
      return stdout.includes('"warm_pool_hit":true');
    };
    return [...found, await measure("sbx run -q print through sbx serve, wall", { count, warmUps: 3 }, () => whenWarm(run))];
  } finally {
    rmSync(home, { recursive: true });
  }
}
