/** Script: takes a lock, says `held`, and keeps it until it is told anything. Arguments: lock. */
import process from "node:process";
import { FileLock } from "../../../src/host/files.ts";

{
  await using _held = await FileLock.acquire(process.argv[2] ?? "");
  process.stdout.write("held\n");
  await new Promise((resolve) => process.stdin.once("data", resolve));
}
process.stdout.write("released\n", () => process.exit(0));
