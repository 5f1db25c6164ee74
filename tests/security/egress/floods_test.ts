/** Egress that never ends: floods of connections, questions and bytes from real VMs; the host stays as it is, and so do other VMs. */
import assert from "node:assert/strict";
import type { Socket } from "node:net";
import process from "node:process";
import test from "node:test";
import type { NetworkEvent } from "../../../src/mod.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { echo, service } from "../../support/net_peer.ts";
import { httpService } from "../../support/net_services.ts";
import { reasonToSkip, withScheduler } from "../../support/scheduler.ts";
import { eventually } from "../../support/waiting.ts";

const options = () => {
  const skip = reasonToSkip();
  return skip === undefined ? { timeout: 300_000 } : { skip };
};

test("egress: a VM that floods the network harms neither the host nor another VM", options(), async (t) => {
  const echoPort = await service(t, echo), { port } = await httpService(t), events: NetworkEvent[] = [];
  await withScheduler(
    async (scheduler) => {
      const allowedDomains = ["api.example.com", "db.example.com:5432"];
      await using flooder = await scheduler.session({
        language: "python",
        allowedDomains,
        onNetworkEvent: (event) => void events.push(event),
      });
      await using other = await scheduler.session({ language: "raw", allowedDomains });
      assert.equal((await other.exec("curl -s http://api.example.com/")).stdout, "api.example.com /\n");
      const before = process.memoryUsage().rss;
      const flooding = flooder.exec(
        `
import socket, threading, struct
refused = answered = 0
for number in range(1500):
    with socket.socket() as s:
        s.setblocking(False)
        s.connect_ex(('203.0.113.%d' % (number % 250), 443))
name = b''.join(bytes([len(part)]) + part for part in (b'x' * 60, b'y' * 60, b'api', b'example', b'com')) + b'\\0'
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.setblocking(False)
    for number in range(2000):
        try: s.sendto(struct.pack('>HHHHHH', number, 256, 1, 0, 0, 0) + name + b'\\0\\1\\0\\1', ('10.83.0.1', 53))
        except BlockingIOError: pass
held = [socket.create_connection(('db.example.com', 5432), 20) for _ in range(200)]
for s in held[:50]:
    s.setblocking(False)
    try:
        while s.send(bytes(65536)): pass
    except BlockingIOError: pass
print(len(held))
`,
        { timeoutSeconds: 120 },
      );
      // Meanwhile the other works.
      for (let round = 0; round < 3; round++) {
        assert.equal((await other.exec("curl -s -m 60 http://api.example.com/")).stdout, "api.example.com /\n");
      }
      const { stdout, stderr } = await flooding;
      assert.deepEqual([stderr, stdout], ["", "200\n"]);
      const grownMb = (process.memoryUsage().rss - before) / 1_048_576;
      assert.ok(grownMb < 300, `the host grew by ${grownMb} MB`);
      assert.ok(
        events.some(({ reason }) => reason === "limit") || events.length > 0,
      );
    },
    {},
    { networkHosts: { "api.example.com": `127.0.0.1:${port}`, "db.example.com": `127.0.0.1:${echoPort}` } },
  );
});

test("egress: when a VM is killed with a thousand connections open, all of them end", options(), async (t) => {
  const open = new Set<Socket>();
  const port = await service(t, (socket) => {
    open.add(socket);
    socket.on("close", () => open.delete(socket));
    socket.resume();
  });
  await withScheduler(
    async (scheduler) => {
      const session = await scheduler.session({ language: "python", allowedDomains: ["db.example.com:5432"] });
      const { stdout, stderr } = await session.exec(
        `
import socket, resource
address = socket.gethostbyname('db.example.com')
held = [socket.create_connection((address, 5432), 60) for _ in range(1000)]
print(len(held))`,
        { timeoutSeconds: 120 },
      );
      assert.deepEqual([stderr, stdout], ["", "1000\n"]);
      await eventually("all are connected", () => open.size === 1000);
      await session.close();
      await eventually("all have ended", () => open.size === 0);
    },
    {},
    { networkHosts: { "db.example.com": `127.0.0.1:${port}` } },
  );
});

test("egress: with a full network special addresses are refused, and code cannot reach the port to the host", options(), async () => {
  const events: NetworkEvent[] = [];
  await withScheduler(async (scheduler) => {
    const { stdout } = await scheduler.run({
      language: "python",
      allowNetwork: true,
      timeoutSeconds: 60,
      onNetworkEvent: (event) => void events.push(event),
      code: `
import socket, glob
for address in ('127.0.0.1', '10.0.0.1', '10.83.0.1', '172.16.0.1', '192.168.1.1', '169.254.169.254', '100.64.0.1', '198.18.0.1'):
    try:
        socket.create_connection((address, 9), 20); print(address, 'open')
    except OSError: pass
for path in glob.glob('/dev/vport*') + glob.glob('/dev/net/*') + glob.glob('/sys/class/virtio-ports/*/dev'):
    try:
        open(path, 'r+b', 0); print(path, 'open')
    except OSError: pass
`,
    });
    assert.equal(stdout, "");
    assert.ok(events.filter(({ kind }) => kind === "tcp").length >= 5);
    assert.ok(events.every(({ verdict }) => verdict === "refused"), JSON.stringify(events.find(({ verdict }) => verdict !== "refused")));
  });
});

noLeftovers();
