/** Gateway: flows of a guest that keeps to the protocol: names, verdicts, bytes both ways, ends of every kind. */
import assert from "node:assert/strict";
import dgram from "node:dgram";
import { readFileSync } from "node:fs";
import type { Socket } from "node:net";
import test from "node:test";
import { FIRST_CREDIT_BYTES } from "../../../src/net/port.ts";
import { policyOf } from "../../../src/net/policy.ts";
import { fromHex } from "../../support/fuzz.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { echo, gatewayPeer, namesOf, question, service } from "../../support/net_peer.ts";
import { eventually } from "../../support/waiting.ts";

const captured: Array<{ name: string; hex: string }> = JSON.parse(
  readFileSync(new URL("../../fixtures/net/client_hellos.json", import.meta.url), "utf8"),
);
const HELLO = fromHex(captured.find(({ name }) => name === "curl 7.88")?.hex ?? "");
const GET = (host: string) => `GET / HTTP/1.1\r\nHost: ${host}\r\n\r\n`;

test("gateway: only allowed names resolve; everything else does not exist, and is told", async (t) => {
  const names = namesOf({
    "api.example.com": ["203.0.113.5", "2001:db8::5"],
    "bad.example.com": ["127.0.0.1"],
    "mixed.example.com": ["10.0.0.1", "203.0.113.6"],
    "meta.example.com": ["169.254.169.254"],
    "own.example.com": ["192.0.2.77"],
    "v6.example.com": ["::1", "::ffff:10.0.0.1"],
  });
  const { peer, told } = await gatewayPeer(t, { domains: ["example.com"], names });
  await peer.hello();
  assert.deepEqual(await peer.ask("API.example.com"), { rcode: 0, addresses: ["203.0.113.5"], ttl: 60 });
  assert.deepEqual(await peer.ask("api.example.com", 28), { rcode: 0, addresses: ["2001:db8:0:0:0:0:0:5"], ttl: 60 });
  assert.deepEqual(await peer.ask("mixed.example.com"), { rcode: 0, addresses: ["203.0.113.6"], ttl: 60 });
  for (
    const [name, type] of [["other.test", 1], ["bad.example.com", 1], ["meta.example.com", 1], ["own.example.com", 1], [
      "v6.example.com",
      28,
    ], ["none.example.com", 1]] as const
  ) {
    assert.deepEqual(await peer.ask(name, type), { rcode: 3, addresses: [], ttl: 0 }, name);
  }
  // Other types say nothing: no keys for encrypted hellos (65), no text (16), no pointers (12), no ANY (255).
  for (const type of [2, 5, 12, 15, 16, 33, 64, 65, 255]) {
    assert.deepEqual(await peer.ask("api.example.com", type), { rcode: 0, addresses: [], ttl: 0 }, String(type));
  }
  assert.deepEqual(told().filter((line) => !line.includes("allowed")), [
    "dns refused name other.test -:-",
    "dns refused loopback bad.example.com -:-",
    "dns refused metadata meta.example.com -:-",
    "dns refused own own.example.com -:-",
    "dns refused loopback v6.example.com -:-",
    "dns failed not-found none.example.com -:-",
  ]);
});

test("gateway: a connection goes to the service of an allowed name, with bytes and halves both ways", async (t) => {
  const port = await service(t, (socket) => {
    socket.on("data", (bytes) => socket.write(`<${bytes}>`));
    socket.on("end", () => socket.end("late"));
  });
  const { peer, events } = await gatewayPeer(t, {
    domains: ["db.example.com:5432"],
    hosts: { "db.example.com:5432": `127.0.0.1:${port}` },
  });
  await peer.hello();
  const { addresses: [address = ""] } = await peer.ask("db.example.com");
  assert.match(address, /^198\.18\./, "the guest never learns an address of the host's");
  const flow = await peer.tcp(address, 5432).accepted();
  flow.send("one");
  await eventually("the echo", () => flow.text === "<one>");
  flow.end();
  await eventually("what came after our end", () => flow.text === "<one>late" && flow.hasEnded);
  await eventually("the event", () => events.some(({ kind }) => kind === "tcp"));
  const { vm, kind, name, verdict, reason, port: to, sentBytes, receivedBytes } = events.find(({ kind }) => kind === "tcp") ?? {};
  assert.deepEqual([vm, kind, name, verdict, reason, to, sentBytes, receivedBytes], [
    "vm-test",
    "tcp",
    "db.example.com",
    "allowed",
    null,
    5432,
    3,
    9,
  ]);
  assert.equal(flow.code, undefined);
});

test("gateway: addresses that were not handed out, or for other ports, are refused at once and told", async (t) => {
  const names = namesOf({ "api.example.com": ["203.0.113.5"], "git.example.com": ["203.0.113.9"] });
  const { peer, told } = await gatewayPeer(t, { domains: ["api.example.com", "git.example.com:22"], names });
  await peer.hello();
  await peer.ask("api.example.com");
  await peer.ask("git.example.com");
  const attempts: Array<[string, number, string]> = [
    ["203.0.113.6", 443, "not-resolved"],
    ["93.184.216.34", 443, "not-resolved"],
    ["203.0.113.5", 22, "port"],
    ["203.0.113.9", 443, "port"],
    ["10.83.0.1", 80, "private"],
    ["127.0.0.1", 443, "loopback"],
    ["169.254.169.254", 80, "metadata"],
    ["::1", 443, "loopback"],
    ["::ffff:203.0.113.5", 443, "translated"],
    ["198.18.0.1", 443, "reserved"],
    ["192.0.2.77", 443, "own"],
  ];
  for (const [address, port, reason] of attempts) {
    // No kernel believes a packet that comes from a reserved address.
    assert.equal(await peer.tcp(address, port).refused(), reason === "reserved" ? "unreachable" : "refused", address);
  }
  for (const message of [{ flow: "udp", address: "203.0.113.5", port: 443 }, { flow: "udp", address: "8.8.8.8", port: 53 }]) {
    const flow = peer.open(message);
    flow.send(question("api.example.com"));
    assert.equal(await flow.refused(), "refused");
  }
  assert.deepEqual(told().filter((line) => !line.startsWith("dns")).map((line) => line.split(" ")[2]), [
    ...attempts.map(([, , reason]) => reason),
    "udp",
    "udp",
  ]);
});

test("gateway: an answer that is too old opens nothing", async (t) => {
  const { peer, told, advance } = await gatewayPeer(t, {
    domains: ["example.com"],
    names: namesOf({ "api.example.com": ["203.0.113.5"] }),
  });
  await peer.hello();
  await peer.ask("api.example.com");
  advance(60_000 + 60_001);
  assert.equal(await peer.tcp("203.0.113.5", 443).refused(), "refused");
  assert.equal(told().at(-1), "tcp refused expired - 203.0.113.5:443");
});

test("gateway: on 443 the hello must ask for the name, on 80 each request; whatever else is cut off before a byte of it leaves", async (t) => {
  const got: string[] = [];
  const port = await service(t, (socket) => {
    const at = got.push("") - 1;
    socket.on("data", (bytes) => got[at] += String.fromCharCode(...bytes));
  });
  const to = `127.0.0.1:${port}`;
  const { peer, told } = await gatewayPeer(t, {
    domains: ["api.example.com", "b.example.com"],
    hosts: { "api.example.com": to, "b.example.com": to },
  });
  await peer.hello();
  const { addresses: [a = ""] } = await peer.ask("api.example.com"), { addresses: [b = ""] } = await peer.ask("b.example.com");
  const good = await peer.tcp(a, 443).accepted();
  good.send(HELLO.subarray(0, 30));
  good.send(HELLO.subarray(30));
  await eventually("the hello arrives", () => got[0]?.length === HELLO.length);
  const foreign = await peer.tcp(b, 443).accepted();
  foreign.send(HELLO);
  assert.equal(await foreign.refused(), "refused");
  for (const text of ["SSH-2.0-x\r\n", GET("api.example.com"), "\0"]) {
    const flow = await peer.tcp(a, 443).accepted();
    flow.send(text);
    assert.equal(await flow.refused(), "refused");
  }
  const kept = await peer.tcp(a, 80).accepted();
  kept.send(GET("api.example.com"));
  await eventually("the first request", () => got.at(-1) === GET("api.example.com"));
  kept.send(GET("b.example.com"));
  assert.equal(await kept.refused(), "refused");
  const tls = await peer.tcp(a, 80).accepted();
  tls.send(HELLO);
  assert.equal(await tls.refused(), "refused");
  await eventually("all are told", () => told().filter((line) => line.startsWith("tcp")).length === 6);
  assert.deepEqual(got.filter((text) => text !== ""), [String.fromCharCode(...HELLO), GET("api.example.com")]);
  assert.deepEqual(told().filter((line) => line.startsWith("tcp")).map((line) => line.split(" ").slice(1, 4).join(" ")), [
    "refused server-name api.example.com",
    ...Array.from({ length: 3 }, () => "refused not-tls api.example.com"),
    "refused host b.example.com",
    "refused not-http api.example.com",
  ]);
});

test("gateway: a far side that refuses, resets or closes is seen as such", async (t) => {
  const sockets: Socket[] = [];
  const port = await service(t, (socket) => sockets.push(socket));
  const { peer, told } = await gatewayPeer(t, {
    domains: ["x.example.com:1000", "y.example.com:1000"],
    hosts: { "x.example.com": `127.0.0.1:${port}`, "y.example.com": "127.0.0.1:1" },
  });
  await peer.hello();
  const { addresses: [x = ""] } = await peer.ask("x.example.com"), { addresses: [y = ""] } = await peer.ask("y.example.com");
  assert.equal(await peer.tcp(y, 1000).refused(), "refused");
  const reset = await peer.tcp(x, 1000).accepted();
  await eventually("the connection", () => sockets.length === 1);
  sockets[0]?.resetAndDestroy();
  assert.equal(await reset.refused(), "reset");
  const aborted = await peer.tcp(x, 1000).accepted();
  await eventually("the connection", () => sockets.length === 2);
  let code = "";
  sockets[1]?.on("error", (error: NodeJS.ErrnoException) => code = error.code ?? "");
  aborted.reset();
  await eventually("the reset arrives", () => code === "ECONNRESET" || sockets[1]?.destroyed === true);
  const closed = await peer.tcp(x, 1000).accepted();
  await eventually("the connection", () => sockets.length === 3);
  sockets[2]?.end("bye");
  await eventually("the end", () => closed.hasEnded && closed.text === "bye");
  closed.send("still heard");
  await eventually("our half goes on", () => sockets[2]?.readableLength === 11 || sockets[2]?.bytesRead === 11);
  closed.end();
  sockets[2]?.resume();
  await eventually("all are told", () => told().filter((line) => line.startsWith("tcp")).length === 4);
  assert.deepEqual(told().filter((line) => line.startsWith("tcp")).map((line) => line.split(" ").slice(1, 3).join(" ")), [
    "failed refused",
    "failed reset",
    "allowed reset",
    "allowed -",
  ]);
});

test("gateway: neither side holds more than its credit, however fast the other is; 20 MB arrive whole each way", async (t) => {
  const total = 20_000_000, port = await service(t, echo);
  const { peer } = await gatewayPeer(t, { domains: ["x.example.com:1000"], hosts: { "x.example.com": `127.0.0.1:${port}` } });
  await peer.hello();
  const { addresses: [x = ""] } = await peer.ask("x.example.com");
  const flow = await peer.tcp(x, 1000).accepted();
  flow.isReading = false;
  let sent = 0;
  const block = new Uint8Array(32_000).fill(65);
  const pump = () => {
    while (sent < total && sent + block.length <= FIRST_CREDIT_BYTES + flow.grantedBytes) {
      flow.send(block);
      sent += block.length;
    }
  };
  pump();
  await eventually("a reader that does not read is sent what it granted", () => (pump(), flow.bytes.length === FIRST_CREDIT_BYTES));
  flow.isReading = true;
  peer.send(flow.id, 4, Uint8Array.of(0, 0, 1, 0));
  await eventually("all of it", () => {
    pump();
    return flow.chunks.reduce((sum, { length }) => sum + length, 0) === total;
  });
  flow.end();
  await eventually("the end", () => flow.hasEnded);
});

test("gateway: a policy that changes cuts what it no longer allows, and nothing else", async (t) => {
  const port = await service(t, echo), to = `127.0.0.1:${port}`;
  const { gateway, peer, told } = await gatewayPeer(t, {
    domains: ["a.example.com:1000", "b.example.com:1000"],
    hosts: { "a.example.com": to, "b.example.com": to },
  });
  await peer.hello();
  const { addresses: [a = ""] } = await peer.ask("a.example.com"), { addresses: [b = ""] } = await peer.ask("b.example.com");
  const first = await peer.tcp(a, 1000).accepted(), second = await peer.tcp(b, 1000).accepted();
  gateway.updatePolicy(policyOf({ allowedDomains: ["b.example.com:1000", "c.example.com"] }, "run"));
  assert.equal(await first.refused(), "refused");
  second.send("still");
  await eventually("the other goes on", () => second.text === "still");
  assert.equal((await peer.ask("a.example.com")).rcode, 3);
  assert.equal(await peer.tcp(a, 1000).refused(), "refused");
  gateway.updatePolicy({ kind: "off" });
  assert.equal(await second.refused(), "refused");
  assert.equal((await peer.ask("b.example.com")).rcode, 3);
  assert.deepEqual(told().filter((line) => line.startsWith("tcp")).map((line) => line.split(" ")[2]), ["name", "name", "off"]);
});

test("gateway: with a full network any name and address but special ones; datagrams too", async (t) => {
  const socket = dgram.createSocket("udp4");
  socket.on("message", (bytes, from) => socket.send(bytes, from.port, from.address));
  await new Promise<void>((resolve) => socket.bind(0, "127.0.0.1", resolve));
  t.after(() => new Promise<void>((resolve) => socket.close(() => resolve())));
  const { peer, told } = await gatewayPeer(t, {
    policy: { kind: "full" },
    names: namesOf({ "any.test": ["203.0.113.5"], "lo.test": ["127.0.0.1"] }),
    hosts: { "echo.test": `127.0.0.1:${socket.address().port}` },
  });
  await peer.hello();
  assert.deepEqual((await peer.ask("any.test")).addresses, ["203.0.113.5"]);
  assert.equal((await peer.ask("lo.test")).rcode, 3);
  const { addresses: [address = ""] } = await peer.ask("echo.test");
  const flow = peer.open({ flow: "udp", address, port: 7 });
  flow.send("ping");
  await eventually("the datagram comes back", () => flow.text === "ping");
  flow.end();
  await eventually("the event", () => told().some((line) => line.startsWith("udp")));
  assert.match(told().at(-1) ?? "", /^udp allowed - echo\.test 198\.18\./);
  for (const address of ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "224.0.0.251", "192.0.2.77"]) {
    assert.equal(await peer.tcp(address, 80).refused(), address === "224.0.0.251" ? "unreachable" : "refused", address);
    assert.equal(await peer.open({ flow: "udp", address, port: 53 }).refused(), "refused", address);
  }
});

noLeftovers();
