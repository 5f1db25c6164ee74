/**
 * Script: makes a template in a real VM and kills itself before one of the calls that publish it. Arguments: cache directory, number of the
 * call. Says `killing before CALL`, or `survived N` when there were only N calls.
 */
import fs from "node:fs/promises";
import { writeSync } from "node:fs";
import process from "node:process";
import { Scheduler } from "../../../src/mod.ts";

const [cache = "", fatal = ""] = process.argv.slice(2);
const say = (line: string) => writeSync(1, `${line}\n`);
let count = 0, isPublishing = false;

/** Counts the calls of the file system while a template is published, and dies before the one that was asked for. */
function watch(name: string, call: (...args: unknown[]) => unknown): (...args: unknown[]) => unknown {
  return (...args) => {
    if (isPublishing && String(args[0]).startsWith(cache) && count++ === Number(fatal)) {
      say(`killing before ${name} ${String(args[0]).slice(cache.length)}`);
      process.kill(process.pid, "SIGKILL");
    }
    return call.apply(fs, args);
  };
}

const table = fs as unknown as Record<string, unknown>;
for (const [name, call] of Object.entries(table)) {
  if (typeof call === "function") table[name] = watch(name, call as (...args: unknown[]) => unknown);
}
const log = { debug() {}, info() {}, warning() {}, error() {} };
const scheduler = await Scheduler.open({ snapshotCacheDir: cache }, {
  log,
  onProgress: ({ phase }) => void (isPublishing = phase === "done"),
});
await scheduler.prepare("raw");
say(`survived ${count}`);
await scheduler.close();
