/** Exposed ports of real VMs: servers in the guest, clients on the host, the network off. */
import assert from "node:assert/strict";
import dgram from "node:dgram";
import net from "node:net";
import process from "node:process";
import type { ExposedPort } from "../../src/mod.ts";
import { VmConfigError } from "../../src/base/errors.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { testWithScheduler } from "../support/scheduler.ts";
import { eventually, settled } from "../support/waiting.ts";

const SERVER = `
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'hello ' + self.path.encode())
    def log_message(self, *args): pass
`;

testWithScheduler(
  "expose: a server in the guest answers the host, from before it listens, and its code still cannot get out",
  async (scheduler) => {
    let answer: Promise<string> | undefined, told: readonly ExposedPort[] = [];
    const result = await scheduler.run({
      language: "python",
      timeoutSeconds: 60,
      exposePorts: [8080],
      onExposedPorts: (ports) => {
        told = ports;
        // The code has not even been sent: the connection waits for its server.
        answer = fetch(`${ports[0]?.url}/x`).then((response) => response.text());
      },
      code: `${SERVER}
server = http.server.HTTPServer(('127.0.0.1', 8080), Handler)
server.handle_request()
import socket
try:
    socket.create_connection(('203.0.113.5', 80), 5)
    print('out')
except OSError as error:
    print('kept in')
`,
    });
    assert.deepEqual([result.stderr, result.stdout], ["", "kept in\n"]);
    assert.equal(await settled(answer ?? Promise.reject(new Error("never asked")), "the answer"), "hello /x");
    assert.deepEqual(result.exposedPorts, told);
    const [port] = told;
    assert.deepEqual([port?.internal, port?.host, port?.protocol, port?.url], [
      8080,
      "127.0.0.1",
      "tcp",
      `http://127.0.0.1:${port?.external}`,
    ]);
    await assert.rejects(fetch(`${port?.url}/`), "nobody listens when the VM has gone");
  },
);

testWithScheduler("expose: sessions, fixed ports, udp, and ports that are asked for later", async (scheduler) => {
  const free = await freePort();
  await using session = await scheduler.session({
    language: "python",
    exposePorts: [{ internal: 9000, external: free }, { internal: 5300, protocol: "udp" }],
  });
  assert.deepEqual(session.exposedPorts.map(({ internal, protocol }) => [internal, protocol]), [[9000, "tcp"], [5300, "udp"]]);
  assert.equal(session.exposedPorts[0]?.external, free);
  await session.exec(`${SERVER}
import threading, socket
for port in (9000, 9001):
    threading.Thread(target=http.server.ThreadingHTTPServer(('0.0.0.0', port), Handler).serve_forever, daemon=True).start()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(('127.0.0.1', 5300))
def echo():
    while True:
        data, peer = udp.recvfrom(2048); udp.sendto(b'<' + data + b'>', peer)
threading.Thread(target=echo, daemon=True).start()
`);
  assert.equal(await (await fetch(`http://127.0.0.1:${free}/a`)).text(), "hello /a");
  const later = await session.expose(9001);
  assert.equal(await (await fetch(`${later.url}/b`)).text(), "hello /b");
  assert.equal(session.exposedPorts.length, 3);
  const client = dgram.createSocket("udp4"), got: string[] = [];
  client.on("message", (bytes) => got.push(bytes.toString()));
  client.send("ping", session.exposedPorts[1]?.external ?? 0, "127.0.0.1");
  await eventually("the datagram comes back", () => got[0] === "<ping>");
  await new Promise<void>((resolve) => client.close(() => resolve()));
  assert.deepEqual((await session.exec("1")).exposedPorts, session.exposedPorts);
  await assert.rejects(session.expose({ internal: 1, external: free }), VmConfigError);
  await assert.rejects(session.expose(0), VmConfigError);
});

testWithScheduler("expose: a port that is taken names who may hold it, and the VM is given back", async (scheduler) => {
  const holder = net.createServer();
  await new Promise<void>((resolve) => holder.listen(0, "127.0.0.1", resolve));
  const { port } = holder.address() as net.AddressInfo;
  try {
    await assert.rejects(scheduler.run({ code: "1", language: "python", exposePorts: [{ internal: 80, external: port }] }), (error) => {
      assert.ok(error instanceof VmConfigError);
      assert.match(
        error.message,
        new RegExp(`port ${port} on 127\\.0\\.0\\.1 must be free, and is in use by .+ \\(process ${process.pid}\\)`),
      );
      return true;
    });
  } finally {
    await new Promise<void>((resolve) => holder.close(() => resolve()));
  }
});

async function freePort(): Promise<number> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise<void>((resolve) => server.close(() => resolve()));
  return port;
}

noLeftovers();
