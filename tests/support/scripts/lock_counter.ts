/** Script: adds to a counter in a file, under a lock. Arguments: lock, counter, times. */
import { readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import { FileLock } from "../../../src/host/files.ts";

const [lock = "", counter = "", times = "0"] = process.argv.slice(2);
for (let round = 0; round < Number(times); round++) {
  await using _held = await FileLock.acquire(lock);
  const value = Number(readFileSync(counter, "utf8"));
  // A turn of the event loop between reading and writing: without mutual exclusion nearly every addition would be lost.
  await new Promise((resolve) => setTimeout(resolve, 1));
  writeFileSync(counter, String(value + 1));
}
