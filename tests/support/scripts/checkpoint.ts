/** Script: opens a shell session and makes checkpoints of it, one after the other, until it is killed; says `made` after the first. Arguments: name to begin with, or none. */
import process from "node:process";
import { silentLogger } from "../../../src/base/log.ts";
import { Scheduler } from "../../../src/run/scheduler.ts";

const [name] = process.argv.slice(2);
await using scheduler = await Scheduler.open({}, { log: silentLogger() });
await using session = await scheduler.session({ language: "raw" });
for (let count = 0;; count += 1) {
  const checkpoint = await session.checkpoint(name === undefined ? {} : { name: `${name}${count}` });
  if (count === 0) process.stdout.write("made\n");
  if (count > 0) await checkpoint.remove();
}
