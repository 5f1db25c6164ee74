/** Exposed ports: listeners on loopback, servers that come late or never, ports that cannot be had. */
import assert from "node:assert/strict";
import dgram from "node:dgram";
import net, { type Socket } from "node:net";
import test, { type TestContext } from "node:test";
import { VmConfigError } from "../../../src/base/errors.ts";
import { KIND } from "../../../src/channel/wire.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { gatewayPeer, json } from "../../support/net_peer.ts";
import { eventually } from "../../support/waiting.ts";

const TCP = { internal: 8080, external: undefined, protocol: "tcp" } as const;

/** A client of an exposed port. */
function connect(t: TestContext, port: number) {
  const socket: Socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true }),
    seen = { text: "", hasEnded: false, error: "", isClosed: false };
  socket.on("data", (bytes) => seen.text += bytes);
  socket.on("end", () => seen.hasEnded = true);
  socket.on("error", (error: NodeJS.ErrnoException) => seen.error = error.code ?? "?");
  socket.on("close", () => seen.isClosed = true);
  t.after(() => socket.destroy());
  return { socket, seen };
}

test("expose: a connection reaches the guest's server, bytes and halves go both ways; the network is off", async (t) => {
  const { gateway, peer, events } = await gatewayPeer(t, { policy: { kind: "off" } });
  await peer.hello();
  const { external, ...exposed } = await gateway.expose(TCP);
  assert.deepEqual(exposed, { internal: 8080, host: "127.0.0.1", protocol: "tcp", url: `http://127.0.0.1:${external}` });
  assert.deepEqual(gateway.exposedPorts, [{ ...exposed, external }]);
  const { socket, seen } = connect(t, external);
  socket.write("ping");
  await eventually("the guest is asked", () => peer.flows.has(1));
  const flow = peer.flows.get(1);
  assert.deepEqual(flow?.message, { expose: "tcp", port: 8080 });
  await eventually("the guest reads", () => flow?.text === "ping");
  flow?.send("pong");
  await eventually("the client reads", () => seen.text === "pong");
  socket.end();
  await eventually("the guest sees the end", () => flow?.hasEnded === true);
  flow?.send("late");
  flow?.end();
  await eventually("the client sees the end", () => seen.text === "ponglate" && seen.hasEnded);
  await eventually("the event", () => events.some(({ kind }) => kind === "expose"));
  const { kind, verdict, port, sentBytes, receivedBytes } = events.at(-1) ?? {};
  assert.deepEqual([kind, verdict, port, sentBytes, receivedBytes], ["expose", "allowed", 8080, 8, 4]);
  assert.equal(await peer.tcp("203.0.113.5", 443).refused(), "refused", "nothing goes out");
});

test("expose: a server that comes late is waited for, also one whose machine is not there yet", async (t) => {
  const { gateway, peer } = await gatewayPeer(t, { policy: { kind: "off" } });
  const { external } = await gateway.expose(TCP);
  const { socket, seen } = connect(t, external);
  socket.write("early");
  let asked = 0;
  peer.onExpose = (flow) => (asked += 1) < 4 ? flow.reset("refused") : peer.send(flow.id, KIND.accept);
  await peer.hello();
  await eventually("the fourth attempt works", () => peer.flows.get(7)?.text === "early");
  assert.equal(asked, 4);
  peer.flows.get(7)?.send("hello");
  await eventually("the answer", () => seen.text === "hello");
  peer.flows.get(7)?.reset();
  await eventually("a reset is a reset", () => seen.error === "ECONNRESET");
});

test("expose: where nobody ever listens the connection is refused in the end", async (t) => {
  const { gateway, peer, events, advance } = await gatewayPeer(t, { policy: { kind: "off" } });
  await peer.hello();
  const { external } = await gateway.expose(TCP);
  let asked = 0;
  peer.onExpose = (flow) => {
    asked += 1;
    flow.reset("refused");
  };
  const { seen } = connect(t, external);
  await eventually("it is asked again and again", () => asked > 3);
  assert.equal(seen.isClosed, false);
  advance(5_001);
  await eventually("the client is refused", () => seen.error === "ECONNRESET" && seen.isClosed);
  assert.deepEqual([events.at(-1)?.verdict, events.at(-1)?.reason], ["failed", "refused"]);
});

test("expose: datagrams of several senders are kept apart", async (t) => {
  const { gateway, peer } = await gatewayPeer(t, { policy: { kind: "off" } });
  await peer.hello();
  const { external, url } = await gateway.expose({ internal: 53, external: undefined, protocol: "udp" });
  assert.equal(url, `udp://127.0.0.1:${external}`);
  const clients = [0, 1].map(() => {
    const socket = dgram.createSocket("udp4"), got: string[] = [];
    socket.on("message", (bytes) => got.push(bytes.toString()));
    t.after(() => new Promise<void>((resolve) => socket.close(() => resolve())));
    return { socket, got };
  });
  for (const [at, { socket }] of clients.entries()) {
    socket.send(`from ${at}`, external, "127.0.0.1");
    await eventually("the guest gets it", () => peer.flows.get(1 + 2 * at)?.text === `from ${at}`);
  }
  for (const [at, id] of [1, 3].entries()) {
    assert.deepEqual(peer.flows.get(id)?.message, { expose: "udp", port: 53 });
    peer.flows.get(id)?.send(`to ${at}`);
  }
  for (const [at, { got }] of clients.entries()) await eventually("the answer", () => got.length === 1 && got[0] === `to ${at}`);
  clients[0]?.socket.send("again", external, "127.0.0.1");
  await eventually("the same flow", () => peer.flows.get(1)?.text === "from 0again");
});

test("expose: a port that is taken, not allowed, or one too many is a typed error", async (t) => {
  const holder = net.createServer();
  await new Promise<void>((resolve) => holder.listen(0, "127.0.0.1", resolve));
  t.after(() => new Promise<void>((resolve) => holder.close(() => resolve())));
  const { port } = holder.address() as net.AddressInfo;
  const { gateway } = await gatewayPeer(t, {
    policy: { kind: "off" },
    environment: { holderOf: (taken, protocol) => `program ${taken}/${protocol}` },
  });
  await assert.rejects(gateway.expose({ ...TCP, external: port }), (error) => {
    assert.ok(error instanceof VmConfigError);
    assert.match(
      error.message,
      new RegExp(`^Cannot expose port 8080/tcp: port ${port} on 127\\.0\\.0\\.1 must be free, and is in use by program ${port}/tcp$`),
    );
    return true;
  });
  for (let count = 0; count < 10; count++) await gateway.expose(TCP);
  await assert.rejects(gateway.expose(TCP), VmConfigError);
  const [first] = gateway.exposedPorts;
  await gateway[Symbol.asyncDispose]();
  const { seen } = connect(t, first?.external ?? 0);
  await eventually("nobody listens any more", () => seen.error === "ECONNREFUSED");
});

test("expose: connections end with the gateway, those that wait and those that run", async (t) => {
  const { gateway, peer } = await gatewayPeer(t, { policy: { kind: "off" } });
  await peer.hello();
  const { external } = await gateway.expose(TCP);
  const running = connect(t, external);
  running.socket.write("x");
  await eventually("one runs", () => peer.flows.get(1)?.text === "x");
  peer.onExpose = (flow) => peer.send(flow.id, KIND.error, json({ code: "refused" }));
  const waiting = connect(t, external);
  await eventually("one waits", () => peer.flows.size > 1);
  await gateway[Symbol.asyncDispose]();
  await eventually("both are closed", () => running.seen.isClosed && waiting.seen.isClosed);
});

noLeftovers();
