/** The server of `sbx serve` with real VMs: one at each place, peers that cannot be trusted or do as they like, and the end of either side. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import process from "node:process";
import test, { after, before, type TestContext } from "node:test";
import { resolveConfig } from "../../src/config/config.ts";
import { cacheDirectory } from "../../src/host/platform.ts";
import { VERSION } from "../../src/config/version.ts";
import { LINE_MAX_BYTES } from "../../src/link/lines.ts";
import { placeOfSocket } from "../../src/link/place.ts";
import { makeSecret, newNonce, prove } from "../../src/link/secret.ts";
import {
  CommunicationError,
  OutcomeUnknownError,
  SandboxDependencyError,
  Scheduler,
  SessionClosedError,
  SocketAuthError,
  VmCapacityError,
  VmConfigError,
} from "../../src/mod.ts";
import { ServerRunningError } from "../../src/serve/running.ts";
import { Server } from "../../src/serve/server.ts";
import { noLeftovers, processesWith, temporaryDirectory } from "../support/leftovers.ts";
import { connectRaw, fakeServer, meetRaw } from "../support/link_peer.ts";
import { startScript } from "../support/subprocess.ts";
import { openTestServer } from "../support/vm.ts";
import { eventually, settled } from "../support/waiting.ts";

let shared: Awaited<ReturnType<typeof openTestServer>>;
before(async () => void (shared = await openTestServer()));
after(() => shared.close());

const silent = { debug() {}, info() {}, warning() {}, error() {} };
const ownPlace = (t: TestContext) => placeOfSocket(path.join(temporaryDirectory(t), "d", "sbx.sock"));
const serve = (place: ReturnType<typeof ownPlace>) => Server.start({ config: resolveConfig(), log: silent, place });
const LEASE = { id: 1, method: "lease", language: "raw", memoryMb: 256, wantsLog: false };
const isAnswer = (id: number) => (line: Record<string, unknown>) => line["id"] === id && !("progress" in line);

/** Serves one run: whatever came before has not hurt it. */
async function stillServes(): Promise<void> {
  await using scheduler = await shared.connect();
  assert.equal((await scheduler.run({ language: "raw", code: "echo on" })).stdout, "on\n");
}

test("clients share a server, each ends what it started, and the server goes on", async () => {
  const first = await shared.connect(), second = await shared.connect();
  const sessions = await Promise.all([first, first, second].map((scheduler) => scheduler.session({ language: "raw" })));
  assert.equal(new Set(sessions.map(({ id }) => id)).size, 3);
  await first.close();
  assert.deepEqual(sessions.map(({ closed }) => closed), [true, true, false]);
  assert.deepEqual(sessions.map(({ id }) => processesWith(id).length > 0), [false, false, true], "dead when close has returned");
  assert.equal((await sessions[2]!.exec("echo $((6 * 7))")).stdout, "42\n");
  await second.close();
  await assert.rejects(second.run({ language: "raw", code: "echo" }), SessionClosedError);
  await stillServes();
});

test("what connect is asked is checked, and where nobody serves it says so", async (t) => {
  const nowhere = ownPlace(t);
  // deno-lint-ignore no-explicit-any -- callers in plain JavaScript pass anything.
  const connect = (options: any) => Scheduler.connect(options, { log: silent });
  await assert.rejects(connect({ socketPath: 7 }), VmConfigError);
  await assert.rejects(connect({ socketPath: "" }), VmConfigError);
  await assert.rejects(connect({ warmPoolSize: 1 }), VmConfigError, "the pool is the server's");
  await assert.rejects(connect({ defaultMemoryMb: 1 }), VmConfigError);
  await assert.rejects(connect({ socketPath: nowhere.socket }), SocketAuthError, "there is no directory");
  mkdirSync(nowhere.directory, { mode: 0o700 });
  await assert.rejects(connect({ socketPath: nowhere.socket }), (error: Error) => {
    return error instanceof CommunicationError && /none runs there/.test(error.message);
  });
  const reason = new Error("enough");
  await assert.rejects(connect({ socketPath: shared.place.socket, signal: AbortSignal.abort(reason) }), (error) => error === reason);
});

test("the server's budget is every client's: what can never fit is refused, and a request that is given up leaves the line", async () => {
  await using scheduler = await shared.connect();
  await assert.rejects(scheduler.run({ language: "raw", code: "echo", memoryMb: 1e9 }), VmCapacityError);
  const controller = new AbortController(), reason = new Error("enough");
  const running = scheduler.run({ language: "raw", code: "sleep 1000", signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(running, (error) => error === reason);
  await stillServes();
});

test("a place has one server: another is refused, and may follow when the first has ended", async (t) => {
  const place = ownPlace(t), first = await serve(place);
  await assert.rejects(serve(place), (error: Error) => error instanceof ServerRunningError && error.message.includes(String(process.pid)));
  assert.ok(existsSync(place.socket), "the first is not disturbed");
  await using scheduler = await Scheduler.connect({ socketPath: place.socket }, { log: silent });
  await scheduler.ready();
  await scheduler.close();
  await first[Symbol.asyncDispose]();
  assert.deepEqual(readdirSync(place.directory), []);
  await using _second = await serve(place);
});

test("servers that start at the same moment: one serves", async (t) => {
  const place = ownPlace(t);
  const started = await Promise.allSettled(Array.from({ length: 5 }, () => serve(place)));
  const servers = started.filter((each) => each.status === "fulfilled").map(({ value }) => value);
  for (const server of servers) await server[Symbol.asyncDispose]();
  assert.equal(servers.length, 1);
  assert.deepEqual(readdirSync(place.directory), []);
});

test("a dead server's socket is replaced; anything else in its place stays, and is told", async (t) => {
  const place = ownPlace(t);
  mkdirSync(place.directory, { mode: 0o700 });
  // What a killed server leaves: its socket, its secret, and a lock of a process that does not run.
  const dead = net.createServer();
  await new Promise<void>((resolve) => dead.listen(`${place.socket}.old`, resolve));
  const { renameSync } = await import("node:fs");
  renameSync(`${place.socket}.old`, place.socket);
  await new Promise((resolve) => dead.close(resolve));
  await makeSecret(place.secret);
  writeFileSync(place.lock, JSON.stringify({ pid: 999_999_999, startTicks: 1, token: "x" }));
  await assert.rejects(Scheduler.connect({ socketPath: place.socket }, { log: silent }), /none runs there/);
  const server = await serve(place);
  await using scheduler = await Scheduler.connect({ socketPath: place.socket }, { log: silent });
  await scheduler.ready();
  await scheduler.close();
  await server[Symbol.asyncDispose]();
  writeFileSync(place.socket, "precious");
  await assert.rejects(serve(place), (error: Error) => error instanceof SocketAuthError && /got something else/.test(error.message));
  assert.deepEqual(readdirSync(place.directory), ["sbx.sock"]);
});

test("a client tells a server that is none of ours, or another version's, and says nothing more to it", async (t) => {
  const connect = (place: ReturnType<typeof ownPlace>) =>
    settled(Scheduler.connect({ socketPath: place.socket }, { log: silent }), "connect");
  const welcome = (more: Record<string, unknown>) => {
    const all = { version: VERSION, pid: 1, nonce: newNonce(), proof: "0".repeat(64), config: {}, ...more };
    return () => `${JSON.stringify(all)}\n`;
  };
  const cases: ReadonlyArray<[() => string | undefined, new (...args: never[]) => Error, RegExp]> = [
    [welcome({}), SocketAuthError, /does not know the secret/],
    [welcome({ version: "0.0.1" }), SandboxDependencyError, /must be of version .*, got 0\.0\.1/],
    [() => '{"version":"99","all":"new"}\n', SandboxDependencyError, /got 99/],
    [welcome({ nonce: "short" }), CommunicationError, /welcome is not as it should be/],
    [() => "HTTP/1.1 400 Bad Request\r\n\r\n", CommunicationError, /a line is JSON/],
    [() => "x".repeat(LINE_MAX_BYTES + 1), CommunicationError, /a line has at most/],
    [() => undefined, CommunicationError, /closed the connection/],
  ];
  for (const [answer, type, says] of cases) {
    const place = ownPlace(t), told = await fakeServer(t, place, answer);
    await makeSecret(place.secret);
    await assert.rejects(connect(place), (error: Error) => error instanceof type && says.test(error.message), String(says));
    assert.equal(told.length, 1, "the opening alone");
  }
});

test("peers that speak garbage, nothing, too much or with a wrong proof are cut off, and hurt nobody", async (t) => {
  const { place } = shared, opening = { open: "control", version: VERSION, nonce: newNonce() };
  const texts = ["GET / HTTP/1.1\r\n\r\n", "\0".repeat(100) + "\n", "{}\n", "null\n", "x".repeat(LINE_MAX_BYTES + 1)];
  for (const text of [...texts, `${JSON.stringify({ open: "vm", token: newNonce() })}\n`]) {
    const client = connectRaw(t, place);
    client.socket.write(text);
    await client.closed;
    assert.deepEqual(client.lines, [], text.slice(0, 20));
  }
  const liar = connectRaw(t, place);
  liar.say(opening);
  const { nonce } = await liar.heard((line) => "nonce" in line);
  liar.say({ proof: prove(new Uint8Array(32), { role: "client", clientNonce: opening.nonce, serverNonce: String(nonce) }) });
  liar.say(LEASE);
  await liar.closed;
  assert.equal(liar.lines.length, 1, "nothing but the welcome");
  const old = connectRaw(t, place);
  old.say({ ...opening, version: "0.0.1" });
  assert.equal((await old.heard((line) => "nonce" in line))["version"], VERSION, "it can tell the versions apart");
  old.socket.end();
  await old.closed;
  await stillServes();
});

test("clients we know are held to the rules: ids, sizes, and how much may wait", async (t) => {
  const broken: ReadonlyArray<readonly [string, (say: (value: unknown) => void) => void]> = [
    ["no method of ours", (say) => say({ id: 1, method: "shutdown" })],
    ["no memory of this world", (say) => say({ ...LEASE, memoryMb: 1e300 })],
    ["a name that leads elsewhere", (say) => say({ id: 1, method: "checkpoint_named", name: "../x" })],
    ["a checkpoint by its path", (say) => say({ ...LEASE, checkpoint: { id: "x", name: "/tmp/x" } })],
    ["an id used twice", (say) => [LEASE, LEASE].forEach(say)],
  ];
  for (const [name, speak] of broken) {
    const client = await meetRaw(t, shared.place);
    speak(client.say);
    await settled(client.closed, name);
  }
  const polite = await meetRaw(t, shared.place);
  for (const [id, method] of ["release", "occupy", "vacate"].entries()) polite.say({ id, method, lease: 77 });
  assert.ok("result" in await polite.heard(isAnswer(0)), "what is gone is given back");
  for (const id of [1, 2]) assert.ok("error" in await polite.heard(isAnswer(id)));
  polite.say({ id: 3, method: "cancel" });
  polite.say({ id: 4, method: "status" });
  await polite.heard(isAnswer(4));
  await stillServes();
});

test("what a client asks of checkpoints and leases that are not its own is refused", async (t) => {
  await using scheduler = await shared.connect();
  await using session = await scheduler.session({ language: "raw" });
  await using theirs = await session.checkpoint();
  const client = await meetRaw(t, shared.place), ref = { id: theirs.id, name: null };
  client.say(LEASE);
  await client.heard(isAnswer(1));
  const refused: ReadonlyArray<Record<string, unknown>> = [
    { ...LEASE, checkpoint: ref },
    { ...LEASE, replacing: 77 },
    { method: "keep", lease: 1, name: null },
    { method: "save", lease: 77 },
    { method: "keep", lease: 77, name: null },
    { method: "checkpoint_named", name: "never-made" },
    { method: "check_memory", memoryMb: Number.MAX_SAFE_INTEGER },
  ];
  for (const [at, request] of refused.entries()) {
    client.say({ ...request, id: 100 + at });
    assert.ok("error" in await client.heard(isAnswer(100 + at)), JSON.stringify(request));
  }
  client.say({ id: 200, method: "checkpoint_remove", checkpoint: ref });
  assert.ok("result" in await client.heard(isAnswer(200)), "what is gone for this client need not be removed");
  await using copy = await theirs.restore();
  assert.equal((await copy.exec("echo there")).stdout, "there\n", "it is there all the same");
});

test("a client that leaves while it is saved, or between save and keep, leaves nothing", async (t) => {
  const files = () =>
    readdirSync(path.join(cacheDirectory(), "run"), { recursive: true, withFileTypes: true }).filter((entry) =>
      entry.isFile() && !/^[0-9a-f]{16}$/.test(entry.name)
    ).length;
  const before = files();
  for (const isSaved of [false, true]) {
    const client = await meetRaw(t, shared.place);
    client.say({ ...LEASE, isSavable: true });
    await client.heard(isAnswer(1));
    client.say({ id: 2, method: "save", lease: 1 });
    if (isSaved) assert.ok("result" in await client.heard(isAnswer(2)));
    else await eventually("the save has begun", () => files() > before);
    client.socket.destroy();
    await eventually("no file is left", () => files() === before);
  }
  await stillServes();
});

test("a client that leaves while it waits, before it takes its VM, or in the middle of it leaves nothing", async (t) => {
  const status = async () => {
    const client = await meetRaw(t, shared.place);
    client.say({ id: 1, method: "status" });
    const { result } = await client.heard(isAnswer(1));
    client.socket.destroy();
    return result as { vms: number; waiting: number };
  };
  for (const moment of ["waiting", "lent", "taken", "half a frame"]) {
    const client = await meetRaw(t, shared.place);
    client.say(LEASE);
    if (moment !== "waiting") {
      const { result } = await client.heard(isAnswer(1)), { token } = result as { token: string };
      if (moment !== "lent") {
        const channel = connectRaw(t, shared.place);
        channel.say({ open: "vm", token });
        if (moment === "half a frame") channel.socket.write(new Uint8Array([255, 255, 0, 0, 9]));
        const second = connectRaw(t, shared.place);
        second.say({ open: "vm", token });
        await Promise.any([second.closed, channel.closed]);
      }
    }
    client.socket.destroy();
    await eventually(`nothing is left of one who left when it was ${moment}`, async () => {
      const { vms, waiting } = await status();
      return vms === 0 && waiting === 0;
    });
  }
  await stillServes();
});

test("a client that is killed takes its VMs along, and nobody else's", async (t) => {
  await using scheduler = await shared.connect();
  await using session = await scheduler.session({ language: "raw" });
  const script = startScript(t, "serve_client.ts", [shared.place.socket]);
  await settled(script.said("busy"), "the client is busy");
  const client = await meetRaw(t, shared.place);
  client.say({ id: 1, method: "status" });
  assert.equal(((await client.heard(isAnswer(1)))["result"] as { vms: number }).vms, 4);
  script.raw.kill("SIGKILL");
  let id = 2;
  await eventually("its VMs have ended", async () => {
    client.say({ id: ++id, method: "status" });
    return ((await client.heard(isAnswer(id)))["result"] as { vms: number }).vms === 1;
  });
  assert.equal((await session.exec("echo here")).stdout, "here\n");
});

test("a server that is stopped ends what runs with typed errors, and leaves no process and no file", async (t) => {
  const place = ownPlace(t), server = await serve(place);
  await using scheduler = await Scheduler.connect({ socketPath: place.socket }, { log: silent });
  const session = await scheduler.session({ language: "raw" });
  const running = scheduler.run({ language: "raw", code: "echo on; sleep 1000", onStdout: () => begun() });
  const { promise: hasBegun, resolve: begun } = Promise.withResolvers<void>();
  running.catch(() => {}); // It is awaited below.
  await settled(hasBegun, "the code has begun");
  await server[Symbol.asyncDispose]();
  await assert.rejects(settled(running, "the run"), OutcomeUnknownError);
  await eventually("the session knows", () => session.closed);
  await assert.rejects(session.exec("echo"), SessionClosedError);
  await assert.rejects(settled(scheduler.run({ language: "raw", code: "echo" }), "the next run"), CommunicationError);
  assert.deepEqual([processesWith(session.id), readdirSync(place.directory)], [[], []]);
});

test("checkpoints of a server's VMs: with a name they are any client's, without one they end with theirs", async () => {
  const name = `test-serve-${process.pid}`, root = path.join(cacheDirectory(), "run");
  // By its own name: other processes save here too.
  const isSaved = (id: string) => readdirSync(root).some((owner) => existsSync(path.join(root, owner, "checkpoints", id)));
  let forgotten: string;
  {
    await using scheduler = await shared.connect();
    await using session = await scheduler.session({ language: "raw" });
    await session.exec("x=1");
    await session.checkpoint({ name });
    const own = await session.checkpoint();
    await session.exec("x=2");
    await session.rollback(own);
    await using copy = await own.restore();
    assert.deepEqual([(await session.exec("echo $x")).stdout, (await copy.exec("echo $x")).stdout], ["1\n", "1\n"]);
    await assert.rejects(session.fork(100_000), VmCapacityError);
    forgotten = own.id;
    assert.ok(isSaved(forgotten));
  }
  await eventually("what had no name is gone", () => !isSaved(forgotten));
  await using other = await shared.connect();
  await using restored = await other.restore(name);
  assert.equal((await restored.exec("echo $x")).stdout, "1\n");
  await other.removeCheckpoint(name);
  await assert.rejects(other.restore(name), /there is none of that name/);
});

test("a boot log, and the steps of a bake, reach the client that asked", async (t) => {
  const own = await openTestServer({ snapshotCacheDir: temporaryDirectory(t) });
  let log = "";
  const phases: string[] = [];
  {
    await using scheduler = await own.connect({}, { onProgress: ({ language, phase }) => phases.push(`${language} ${phase}`) });
    await using other = await own.connect({}, { onProgress: () => assert.fail("it has asked for nothing") });
    await other.ready();
    await scheduler.run({ language: "raw", code: "echo", onBootLog: (text) => void (log += text) });
  }
  await own.close();
  assert.ok(log.length > 0);
  assert.deepEqual([phases.includes("raw booting"), phases.at(-1)], [true, "raw done"]);
});

noLeftovers();
