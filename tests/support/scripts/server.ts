/** Serves at the socket given, with as many warm VMs as given (default 0); says `serving` when it does, and `ready` when they are there. Lives until it is killed. */
import process from "node:process";
import { resolveConfig } from "../../../src/config/config.ts";
import { placeOfSocket } from "../../../src/link/place.ts";
import { Server } from "../../../src/serve/server.ts";

const [socket = "", warmPoolSize = "0"] = process.argv.slice(2);
const log = { debug() {}, info() {}, warning() {}, error() {} };
const server = await Server.start({ config: resolveConfig({ warmPoolSize: Number(warmPoolSize) }), log, place: placeOfSocket(socket) });
process.on("SIGTERM", () => process.exit(0)); // As the command does.
console.log("serving");
await server.ready(new AbortController().signal).then(() => console.log("ready"), () => {});
setInterval(() => {}, 1000);
