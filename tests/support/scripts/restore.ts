/** Script: restores the checkpoint of a name and runs code on it; prints what it prints. Arguments: name, code. */
import process from "node:process";
import { silentLogger } from "../../../src/base/log.ts";
import { Scheduler } from "../../../src/run/scheduler.ts";

const [name = "", code = ""] = process.argv.slice(2);
await using scheduler = await Scheduler.open({}, { log: silentLogger() });
await using session = await scheduler.restore(name);
process.stdout.write((await session.exec(code)).stdout);
