/** Runs a stage whose program says `started` and sleeps. Argument: build directory. */
import { writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { FileLock } from "../../../src/host/files.ts";
import { findEnclosure, runStage } from "../../../src/images/stage.ts";

const [, , buildDir = ""] = process.argv;
const stop = new AbortController();
process.on("SIGINT", () => stop.abort(new Error("interrupted")));
await using _lock = await FileLock.acquire(path.join(buildDir, "lock"), { onWait: () => process.stdout.write("waiting\n") });
await runStage({
  name: "slow",
  inputs: [],
  build: async ({ out, exec }) => {
    writeFileSync(path.join(out, "half"), "half");
    await exec(["sh", "-c", "echo started; exec sleep 61357"], { onLine: (line) => process.stdout.write(`${line}\n`) });
    return { versions: {} };
  },
}, { buildDir, signal: stop.signal, onProgress: () => {}, isForced: false, enclosure: await findEnclosure(process.getuid?.() === 0) })
  .catch((error) => process.stdout.write(`${error.message}\n`));
