/** Script: takes a lock again and again until it is killed; says `overlap` when another holder is inside. Arguments: lock, witness. */
import { rmSync, writeFileSync } from "node:fs";
import process from "node:process";
import { FileLock } from "../../../src/host/files.ts";

const [lock = "", witness = ""] = process.argv.slice(2);
const own = `${witness}.${process.pid}`;
for (let round = 0;; round++) {
  await using _held = await FileLock.acquire(lock);
  try {
    // The witness can be there only when another living holder is inside: those that were killed are cleared by the test.
    writeFileSync(own, "");
    writeFileSync(witness, String(process.pid), { flag: "wx" });
  } catch {
    process.stdout.write("overlap\n");
  }
  await new Promise((resolve) => setTimeout(resolve, 1));
  rmSync(witness, { force: true });
  rmSync(own, { force: true });
  if (round === 0) process.stdout.write("started\n");
}
