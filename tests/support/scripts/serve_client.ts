/** Connects to the server at the socket given, opens three sessions, runs code in each, and says so; lives until it is killed. */
import process from "node:process";
import { Scheduler } from "../../../src/mod.ts";

const scheduler = await Scheduler.connect({ socketPath: process.argv[2] });
const sessions = await Promise.all([1, 2, 3].map(() => scheduler.session({ language: "raw" })));
for (const session of sessions) session.exec("sleep 1000").catch(() => {});
await sessions[0]?.ping();
console.log("busy");
setInterval(() => {}, 1000);
