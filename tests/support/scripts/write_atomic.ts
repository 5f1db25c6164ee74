/** Script: writes a file atomically again and again until it is killed, each time one letter all over. Arguments: file, bytes. */
import process from "node:process";
import { writeFileAtomic } from "../../../src/host/files.ts";

const [file = "", bytes = "0"] = process.argv.slice(2);
for (let round = 0;; round++) {
  await writeFileAtomic(file, String.fromCharCode(97 + round % 26).repeat(Number(bytes)), 0o600);
  if (round === 0) process.stdout.write("written\n");
}
