/** Script: says its identity, waits to be told, and sweeps a directory. Arguments: directory. */
import process from "node:process";
import { ownIdentity, sweepTemporaries } from "../../../src/host/files.ts";

process.stdout.write(`${JSON.stringify(ownIdentity())}\nready\n`);
await new Promise((resolve) => process.stdin.once("data", resolve));
await sweepTemporaries(process.argv[2] ?? "");
process.stdout.write("swept\n", () => process.exit(0));
