/** Gateway against a guest that has been taken over: bytes that are no frames, frames that may not come, floods. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { concat, encodeCredit, encodeFrame, KIND, type Kind } from "../../../src/channel/wire.ts";
import { FREE_CHARS, LOOKUPS_MAX } from "../../../src/net/resolver.ts";
import { FIRST_CREDIT_BYTES, FLOWS_MAX } from "../../../src/net/port.ts";
import { fromHex, fuzzRuns, mutations } from "../../support/fuzz.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { echo, gatewayPeer, json, namesOf, question, service } from "../../support/net_peer.ts";
import { eventually } from "../../support/waiting.ts";

const text = (value: string) => new TextEncoder().encode(value);
const TCP = json({ flow: "tcp", address: "203.0.113.5", port: 443 });
const frame = (stream: number, kind: Kind, payload: Uint8Array = new Uint8Array(0), flags = 0) =>
  encodeFrame({ stream, kind, payload, flags });
const hello = (message: unknown = { protocol: 1, nonce: "00" }) => frame(0, KIND.hello, json(message));

const VIOLATIONS: Record<string, Uint8Array> = {
  "garbage": text("GET / HTTP/1.1\r\n\r\n"),
  "a frame of 65,537 bytes": fromHex("010001000200000003000000"),
  "an unknown kind": fromHex("000000000200000063000000"),
  "a RESULT": frame(2, KIND.result, text("{}")),
  "a CANCEL of a flow that is there": concat(frame(2, KIND.open, json({ flow: "dns" })), frame(2, KIND.cancel)),
  "an OPEN of an odd id": frame(1, KIND.open, TCP),
  "an OPEN of a used id": concat(frame(2, KIND.open, TCP), frame(2, KIND.open, TCP)),
  "an OPEN of an id that goes back": concat(frame(8, KIND.open, TCP), frame(4, KIND.open, TCP)),
  "an OPEN without JSON": frame(2, KIND.open, text("tcp")),
  "an OPEN with an array": frame(2, KIND.open, text("[]")),
  "an OPEN of no kind of flow": frame(2, KIND.open, json({ flow: "icmp", address: "203.0.113.5" })),
  "an OPEN with a name for an address": frame(2, KIND.open, json({ flow: "tcp", address: "api.example.com", port: 443 })),
  "an OPEN with a number for an address": frame(2, KIND.open, json({ flow: "tcp", address: 2130706433, port: 443 })),
  "an OPEN with an address in another form": frame(2, KIND.open, json({ flow: "tcp", address: "0x7f.1", port: 443 })),
  "an OPEN with a zone": frame(2, KIND.open, json({ flow: "udp", address: "fe80::1%lo", port: 443 })),
  "an OPEN of port 65,536": frame(2, KIND.open, json({ flow: "tcp", address: "203.0.113.5", port: 65536 })),
  "an OPEN of port 1.5": frame(2, KIND.open, json({ flow: "tcp", address: "203.0.113.5", port: 1.5 })),
  "an OPEN of no port": frame(2, KIND.open, json({ flow: "tcp", address: "203.0.113.5", port: "443" })),
  "DATA of a flow that never was": frame(6, KIND.data, text("x")),
  "DATA of a host's flow that never was": frame(3, KIND.data, text("x")),
  "ACCEPT of the guest's own flow": concat(frame(2, KIND.open, json({ flow: "dns" })), frame(2, KIND.accept)),
  "credit beyond all measure": concat(frame(2, KIND.open, json({ flow: "dns" })), frame(2, KIND.credit, encodeCredit(0xffffffff))),
  "a HELLO of another protocol": hello({ protocol: 2 }),
  "a HELLO of 2,000 bytes": hello({ protocol: 1, nonce: "0".repeat(2000) }),
  "a HELLO without JSON": frame(0, KIND.hello, text("hello")),
  "data with flags": concat(frame(2, KIND.open, json({ flow: "dns" })), frame(2, KIND.data, text("x"), 1)),
};

for (const [what, bytes] of Object.entries(VIOLATIONS)) {
  test(`gateway: after ${what} the port is closed, and told`, async (t) => {
    const { peer, told } = await gatewayPeer(t, { domains: ["example.com"] });
    await peer.hello();
    peer.raw(bytes);
    await eventually("the port is closed", () => peer.isClosed);
    assert.equal(told().at(-1), "gateway refused malformed - -:-");
  });
}

test("gateway: before HELLO nothing is heard", async (t) => {
  const { peer } = await gatewayPeer(t, { domains: ["example.com"] });
  peer.send(2, KIND.open, TCP);
  await eventually("the port is closed", () => peer.isClosed);
  assert.deepEqual(peer.received, []);
});

test("gateway: data beyond its credit, after its end, or a second end closes the port", async (t) => {
  const port = await service(t, () => {}); // It never reads.
  for (const attack of ["credit", "after", "twice"]) {
    const { peer } = await gatewayPeer(t, { domains: ["x.example.com:9"], hosts: { "x.example.com": `127.0.0.1:${port}` } });
    await peer.hello();
    const { addresses: [x = ""] } = await peer.ask("x.example.com");
    const flow = await peer.tcp(x, 9).accepted();
    if (attack === "credit") {
      // Whatever was granted for what the system's own buffers took: soon no more.
      for (let round = 0; round < 4_000 && !peer.isClosed; round++) {
        flow.send(new Uint8Array(32_000));
        if (round % 50 === 0) await eventually("a turn", () => true);
      }
    } else {
      flow.end();
      if (attack === "after") flow.send("x");
      else flow.end();
    }
    await eventually(`${attack}: the port is closed`, () => peer.isClosed);
  }
});

test("gateway: a guest's side that starts anew ends the flows of the old one, and goes on", async (t) => {
  const sockets: Array<{ destroyed: boolean }> = [];
  const port = await service(t, (socket) => {
    sockets.push(socket);
    echo(socket);
  });
  const { peer } = await gatewayPeer(t, { domains: ["x.example.com:9"], hosts: { "x.example.com": `127.0.0.1:${port}` } });
  await peer.hello();
  const { addresses: [x = ""] } = await peer.ask("x.example.com");
  await peer.tcp(x, 9).accepted();
  await peer.hello("ff");
  await eventually("the old connection is gone", () => sockets[0]?.destroyed === true);
  const flow = await peer.tcp(x, 9).accepted();
  flow.send("again");
  await eventually("the new one works", () => flow.text === "again");
});

test(`gateway: no more than ${FLOWS_MAX} flows, ${LOOKUPS_MAX} look-ups and a bounded number of questions`, async (t) => {
  let waiting = 0;
  const never = { find: () => (waiting += 1, new Promise<never>(() => {})) };
  const { peer, events } = await gatewayPeer(t, { domains: ["example.com"], names: never });
  await peer.hello();
  const flows = Array.from({ length: FLOWS_MAX + 5 }, () => peer.open({ flow: "dns", transport: "udp" }));
  for (const flow of flows.slice(-5)) assert.equal(await flow.refused(), "limit");
  for (const flow of flows.slice(0, 400)) flow.send(question("example.com"));
  await eventually("the rest is answered", () => events.filter(({ reason }) => reason === "limit").length === 400 - LOOKUPS_MAX);
  assert.equal(waiting, LOOKUPS_MAX);
  for (const flow of flows.slice(400, 1400)) flow.send(question("other.test"));
  await eventually(
    "questions too fast are refused without a look",
    () => events.some(({ reason, name }) => reason === "limit" && name === null),
  );
});

test("gateway: what names below an allowed one can carry out is bounded", async (t) => {
  const asked: string[] = [];
  const { peer, told, advance } = await gatewayPeer(t, {
    domains: ["example.com"],
    names: namesOf({ "api.example.com": ["203.0.113.5"] }, (name) => asked.push(name)),
  });
  await peer.hello();
  const label = (at: number) => `${String(at).padStart(4, "0")}${"x".repeat(56)}`;
  for (let at = 0; at < 100; at++) await peer.ask(`${label(at)}.${label(at)}.example.com`);
  const left = asked.reduce((sum, name) => sum + name.length - "example.com".length, 0);
  assert.ok(left <= FREE_CHARS.burst + 500, `${left} characters left`);
  assert.ok(told().some((line) => line.startsWith("dns refused limit")));
  advance(10_000);
  const before = asked.length;
  assert.deepEqual((await peer.ask("api.example.com")).addresses, ["203.0.113.5"]);
  for (let at = 0; at < 50; at++) assert.equal((await peer.ask("api.example.com")).rcode, 0, "a name that is known costs nothing");
  assert.equal(asked.length, before + 51);
});

test("gateway: refusals that come too fast are counted, not told one by one", async (t) => {
  const { peer, events, gateway } = await gatewayPeer(t, { domains: ["example.com"] });
  await peer.hello();
  const flows = Array.from({ length: 5_000 }, () => peer.tcp("203.0.113.5", 443));
  await flows.at(-1)?.refused();
  assert.ok(events.length < 4_000, `${events.length} events`);
  await gateway[Symbol.asyncDispose]();
  const told = events.filter(({ kind }) => kind === "tcp").length, counted = events.reduce((sum, { count = 0 }) => sum + count, 0);
  assert.equal(told + counted, 5_000);
});

test("gateway: a guest that does not read what it causes is not heard either, and takes no memory", async (t) => {
  const { peer } = await gatewayPeer(t, { domains: ["example.com"] });
  await peer.hello();
  peer.socket.pause();
  let id = 2, isStuck = false;
  // Each OPEN of 80 bytes is answered by 30.
  for (let round = 0; round < 3_000 && !isStuck; round++) {
    const opens = Array.from({ length: 200 }, () => frame(id += 2, KIND.open, TCP));
    isStuck = !await new Promise<boolean>((resolve) => {
      const timer = setTimeout(() => resolve(false), 1_000);
      peer.socket.write(concat(...opens), () => (clearTimeout(timer), resolve(true)));
    });
  }
  assert.ok(isStuck, "the guest's own pipe is full");
  peer.socket.resume();
  await eventually("it is heard again once it reads", () => peer.received.filter(({ kind }) => kind === KIND.error).length >= (id - 2) / 2);
});

test("gateway: any mix of frames is either understood or closes the port, and never ends the process", async (t) => {
  const port = await service(t, echo);
  const good = [
    concat(
      frame(2, KIND.open, json({ flow: "dns", transport: "udp" })),
      frame(2, KIND.data, question("x.example.com")),
      frame(2, KIND.end),
    ),
    concat(
      frame(2, KIND.open, json({ flow: "tcp", address: "198.18.0.1", port: 9 })),
      frame(2, KIND.data, text("hello")),
      frame(2, KIND.end),
    ),
    concat(
      frame(2, KIND.open, json({ flow: "udp", address: "203.0.113.5", port: 9 })),
      frame(2, KIND.error, json({ code: "reset" })),
      hello(),
    ),
    concat(frame(2, KIND.open, TCP), frame(2, KIND.credit, encodeCredit(FIRST_CREDIT_BYTES)), frame(4, KIND.open, TCP)),
    ...Object.values(VIOLATIONS),
  ];
  await fc.assert(
    fc.asyncProperty(fc.array(mutations(good), { minLength: 1, maxLength: 3 }), async (inputs) => {
      const { gateway, peer } = await gatewayPeer(t, { domains: ["x.example.com:9"], hosts: { "x.example.com": `127.0.0.1:${port}` } });
      await peer.hello();
      await peer.ask("x.example.com");
      peer.raw(concat(...inputs));
      peer.socket.end();
      await eventually("the port is closed", () => peer.isClosed);
      await gateway[Symbol.asyncDispose]();
      peer.socket.destroy();
    }),
    fuzzRuns(60),
  );
});

noLeftovers();
