/** The server of `sbx serve` among many and hostile peers, and its end at any moment: who behaves is served, and nothing is left. */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { encodeCredit, encodeFrame, KIND } from "../../src/channel/wire.ts";
import { resolveConfig } from "../../src/config/config.ts";
import { cacheDirectory } from "../../src/host/platform.ts";
import { placeOf, type ServerPlace } from "../../src/link/place.ts";
import { newNonce } from "../../src/link/secret.ts";
import { Scheduler, type SchedulerConfig, SessionClosedError } from "../../src/mod.ts";
import { Server } from "../../src/serve/server.ts";
import { memoryFor } from "../support/ahead.ts";
import { withEnv } from "../support/environment.ts";
import { noLeftovers, openDescriptors, runs, temporaryDirectory } from "../support/leftovers.ts";
import { connectRaw, meetRaw, type RawClient } from "../support/link_peer.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";
import { startScript } from "../support/subprocess.ts";
import { descendants } from "../support/vm.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";

/** Found before any test moves the cache directory. */
const IMAGES = imagesDirectory(), SNAPSHOTS = process.env["EXEC_SANDBOX_SNAPSHOT_CACHE_DIR"] ?? path.join(cacheDirectory(), "snapshots");
const TIMEOUT_MS = 300_000;
const skip = reasonToSkip() ?? false;
const log = { debug() {}, info() {}, warning() {}, error() {} };
const LEASE = { id: 1, method: "lease", language: "raw", memoryMb: 256, wantsLog: false };
const RUN = { language: "raw", code: "echo on" } as const;
const isAnswer = (id: number) => (line: Record<string, unknown>) => line["id"] === id && !("progress" in line);

/** Declares a test that has a cache directory of its own, with the images and templates of this machine. */
function testIn(name: string, body: (t: TestContext, place: ServerPlace) => Promise<void>): void {
  test(name, { skip, timeout: TIMEOUT_MS }, async (t) => {
    const cache = path.join(temporaryDirectory(t), "c");
    mkdirSync(cache, { mode: 0o700 });
    const env = { EXEC_SANDBOX_CACHE_DIR: cache, EXEC_SANDBOX_IMAGES_DIR: IMAGES, EXEC_SANDBOX_SNAPSHOT_CACHE_DIR: SNAPSHOTS };
    await withEnv(env, () => body(t, placeOf(cache)));
  });
}

const serve = (place: ServerPlace, config: SchedulerConfig = {}) => Server.start({ config: resolveConfig(config), log, place });
const connect = (place: ServerPlace) => Scheduler.connect({ socketPath: place.socket }, { log });
/** What owners of VMs have left below the cache directory. */
const left = () => readdirSync(path.join(cacheDirectory(), "run"));

/** Serves one run: whatever came before has not hurt it. */
async function stillServes(place: ServerPlace): Promise<void> {
  await using scheduler = await connect(place);
  assert.equal((await scheduler.run(RUN)).stdout, "on\n");
}

testIn("two hundred clients that come at the same moment are met, every one", async (_t, place) => {
  await using _server = await serve(place);
  const clients = await Promise.all(Array.from({ length: 200 }, () => connect(place)));
  await Promise.all(clients.map((client) => client.ready()));
  await Promise.all(clients.map((client) => client.close()));
});

testIn("a crowd that says nothing keeps nobody out: whoever has been silent for longest makes room", async (t, place) => {
  await using _server = await serve(place);
  const crowd = Array.from({ length: 300 }, () => connectRaw(t, place));
  let closed = 0;
  for (const { closed: end } of crowd) end.then(() => closed++, () => {});
  await eventually("the first are closed", () => closed >= 300 - 256);
  await stillServes(place);
  for (const { socket } of crowd) socket.destroy();
  await Promise.all(crowd.map(({ closed }) => closed));
});

testIn("thousands of connections, silent, garbage or gone at once, leave the server as it was", async (t, place) => {
  await using _server = await serve(place);
  await stillServes(place);
  const before = openDescriptors();
  const garbage = ["", "\n", "GET / HTTP/1.1\r\n\r\n", "{}\n", `${JSON.stringify({ open: "vm", token: newNonce() })}\n`];
  for (let wave = 0; wave < 20; wave += 1) {
    const crowd = Array.from({ length: 100 }, () => connectRaw(t, place));
    crowd.forEach(({ socket }, at) => {
      socket.write(garbage[at % garbage.length] || "x");
      if (at % 2 === 0) socket.destroy();
      else socket.end();
    });
    await Promise.all(crowd.map(({ closed }) => closed));
  }
  await stillServes(place);
  if (before !== undefined) await eventually("every descriptor is closed", () => (openDescriptors() ?? 0) <= before);
});

testIn("as many calls may wait over a server as in one process, and those that are given up hurt no other", async (_t, place) => {
  await using _server = await serve(place, memoryFor(1));
  await using scheduler = await connect(place);
  const session = await scheduler.session({ language: "raw" });
  const controller = new AbortController(), reason = new Error("enough");
  const waiting = Array.from({ length: 2_000 }, () => scheduler.run({ ...RUN, signal: controller.signal }));
  const ends = Promise.allSettled(waiting);
  assert.equal((await settled(session.exec("echo alive"), "the session")).stdout, "alive\n");
  controller.abort(reason);
  assert.deepEqual(new Set((await settled(ends, "the end")).map((end) => end.status === "rejected" && end.reason)), new Set([reason]));
  assert.equal((await session.exec("echo alive")).stdout, "alive\n");
  await session.close();
  assert.equal((await settled(scheduler.run(RUN), "a run when there is room")).stdout, "on\n");
});

testIn("a client with more requests than may wait is cut off, with its VM, and another is served", async (t, place) => {
  await using _server = await Server.start({ config: resolveConfig(memoryFor(1)), log, place, requestsMax: 50 });
  const client = await meetRaw(t, place);
  client.say(LEASE);
  await client.heard(isAnswer(1));
  for (let id = 2; id < 52; id += 1) client.say({ ...LEASE, id });
  client.say({ id: 52, method: "status" });
  await client.closed;
  assert.ok(!client.lines.some(isAnswer(52)));
  await stillServes(place);
});

testIn("a client that reads neither its VM's bytes nor its answers holds up nobody, and is bounded", async (t, place) => {
  await using _server = await serve(place);
  const client = await meetRaw(t, place);
  client.say(LEASE);
  const { token } = (await client.heard(isAnswer(1)))["result"] as { token: string };
  const channel = net.connect({ path: place.socket });
  channel.on("error", () => {});
  t.after(() => void channel.destroy());
  channel.pause();
  channel.write(`${JSON.stringify({ open: "vm", token })}\n`);
  // All that the guest can say, at once, and nobody who takes it.
  const ask = new TextEncoder().encode(JSON.stringify({ method: "ping", sendBytes: 400_000_000 }));
  channel.write(encodeFrame({ stream: 1, kind: KIND.open, payload: ask }));
  channel.write(encodeFrame({ stream: 1, kind: KIND.credit, payload: encodeCredit(400_000_000) }));
  const before = process.memoryUsage().rss;
  await stillServes(place);
  await sleep(1_000); // In which it could say much more than is kept.
  const grown = process.memoryUsage().rss - before;
  assert.ok(grown < 100_000_000, `${grown} bytes more are held`);
  const silent = await meetRaw(t, place);
  silent.socket.pause();
  // Nobody reads the answers; once there are too many it is cut off.
  let id = 0;
  const flood = () => {
    for (let count = 0; count < 1_000; count += 1) silent.say({ id: id++, method: "status" });
    return silent.socket.destroyed || silent.socket.writableEnded || isCutOff;
  };
  let isCutOff = false;
  silent.socket.on("error", () => isCutOff = true);
  await eventually("it is cut off", flood);
  silent.socket.destroy();
  await stillServes(place);
  client.socket.destroy();
  await eventually("the VM of the first is dead", () => descendants().filter((line) => line.includes("qemu")).length === 0);
});

testIn("a server that is stopped while clients wait, start, work and save is gone with all of it when that returns", async (t, place) => {
  for (const ms of [0, 2, 5, 10, 20, 40, 80, 160]) {
    const server = await serve(place);
    const clients: RawClient[] = [];
    for (let count = 0; count < 4; count += 1) clients.push(await meetRaw(t, place));
    for (const client of clients) {
      for (const id of [1, 2]) client.say({ ...LEASE, id, isSavable: true });
      client.say({ id: 3, method: "save", lease: 1 });
      client.say({ id: 4, method: "keep", lease: 1, name: null });
    }
    clients[0]?.heard(isAnswer(1)).then(() => clients[0]?.say({ id: 5, method: "save", lease: 1 }), () => {}); // It may be over by then.
    await sleep(ms);
    clients[1]?.socket.destroy();
    await server[Symbol.asyncDispose]();
    assert.deepEqual([descendants(), left(), readdirSync(place.directory)], [[], [], []], `after ${ms} ms`);
  }
});

testIn("a server that is killed at any moment leaves no process, and the next one removes its files", async (t, place) => {
  for (const moment of ["serving", "filling", "ready", "working", "saving"]) {
    const script = startScript(t, "server.ts", [place.socket, moment === "filling" || moment === "ready" ? "1" : "0"]);
    await script.said(moment === "ready" ? "ready" : "serving");
    const qemus = () => descendants(script.pid).filter((line) => line.includes("qemu")).map((line) => Number.parseInt(line));
    if (moment === "filling") await eventually("a VM is being made", () => qemus().length > 0);
    await using scheduler = await connect(place);
    if (moment === "working" || moment === "saving") {
      const session = await scheduler.session({ language: "raw" });
      if (moment === "saving") {
        await session.checkpoint(); // Its owner is killed before it can remove it.
        session.checkpoint().catch(() => {});
      } else session.exec("while :; do :; done").catch(() => {});
    }
    const seen = qemus();
    script.raw.kill("SIGKILL");
    await script.ended;
    await eventually("no QEMU is left", () => seen.every((pid) => !runs(pid)));
    await assert.rejects(settled(scheduler.run(RUN), "a run without a server"), (error) => !(error instanceof SessionClosedError));
  }
  const server = await serve(place);
  await stillServes(place);
  await eventually("what the dead left is gone", () => left().length <= 2);
  await server[Symbol.asyncDispose]();
  assert.deepEqual([left(), readdirSync(place.directory)], [[], []]);
});

noLeftovers();
