/** The network of VMs that a server lends: the client decides and connects, the server passes bytes on; warm VMs have it too. */
import assert from "node:assert/strict";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { resolveConfig } from "../../src/config/config.ts";
import { placeOfSocket } from "../../src/link/place.ts";
import { newNonce } from "../../src/link/secret.ts";
import { type NetworkEvent, Scheduler } from "../../src/mod.ts";
import { Server } from "../../src/serve/server.ts";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { connectRaw, meetRaw } from "../support/link_peer.ts";
import { echo, service } from "../support/net_peer.ts";
import { httpService } from "../support/net_services.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";

const options = () => {
  const skip = reasonToSkip();
  return skip === undefined ? { timeout: 300_000 } : { skip };
};
const silent = { debug() {}, info() {}, warning() {}, error() {} };

/** A server with so many warm VMs, and a client for which `api.example.com` is a service on loopback. */
async function served(t: TestContext, warmPoolSize: number) {
  const place = placeOfSocket(path.join(temporaryDirectory(t), "d", "sbx.sock"));
  const config = resolveConfig({ imagesDir: imagesDirectory(), autoDownloadAssets: false, warmPoolSize });
  const { port, requests } = await httpService(t), raw = await service(t, echo);
  const server = await Server.start({ config, log: silent, place });
  const scheduler = await Scheduler.connect({ socketPath: place.socket }, {
    log: silent,
    networkHosts: { "api.example.com:80": `127.0.0.1:${port}`, "db.example.com:5432": `127.0.0.1:${raw}` },
  });
  return {
    place,
    scheduler,
    requests,
    [Symbol.asyncDispose]: async () => {
      await scheduler.close();
      await server[Symbol.asyncDispose]();
    },
  };
}

test("served: runs on warm VMs reach what they may, each by rules of its own", options(), async (t) => {
  await using own = await served(t, 1);
  await own.scheduler.ready();
  const events: NetworkEvent[] = [];
  const run = async (allowedDomains?: readonly string[]) => {
    await own.scheduler.ready();
    return await own.scheduler.run({
      language: "raw",
      timeoutSeconds: 60,
      code: "curl -s -m 40 http://api.example.com/; echo $?",
      onNetworkEvent: (event) => void events.push(event),
      ...(allowedDomains ? { allowedDomains } : {}),
    });
  };
  const allowed = await run(["api.example.com"]);
  assert.deepEqual([allowed.stdout, allowed.warmPoolHit], ["api.example.com /\n0\n", true]);
  const other = await run(["other.example.com"]);
  assert.deepEqual([other.stdout, other.warmPoolHit], ["6\n", true]);
  const none = await run();
  assert.deepEqual([none.stdout, none.warmPoolHit], ["6\n", true]);
  assert.deepEqual(events.map(({ kind, verdict }) => `${kind} ${verdict}`), ["dns allowed", "tcp allowed", "dns refused"]);
  assert.deepEqual(own.requests, ["GET api.example.com /"]);
});

test("served: a session's network changes while it lives, its ports are reached, and copies have their own", options(), async (t) => {
  await using own = await served(t, 0);
  const session = await own.scheduler.session({ language: "python" });
  const read =
    "import urllib.request, urllib.error\ndef get():\n    try: print(urllib.request.urlopen('http://api.example.com/', timeout=40).read())\n    except urllib.error.URLError as error: print(type(error.reason).__name__)\n";
  const get = async (of = session) => (await of.exec("get()")).stdout;
  await session.exec(read);
  assert.equal(await get(), "gaierror\n");
  await session.updateNetwork({ allowedDomains: ["api.example.com", "db.example.com:5432"] });
  assert.equal(await get(), "b'api.example.com /\\n'\n");
  const exposed = await session.expose(8080);
  await session.exec(`import http.server, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'from within')
    def log_message(self, *args): pass
threading.Thread(target=http.server.HTTPServer(('127.0.0.1', 8080), Handler).serve_forever, daemon=True).start()`);
  assert.equal(await (await fetch(exposed.url)).text(), "from within");
  const [copy] = await session.fork(1);
  assert.equal(await get(copy), "b'api.example.com /\\n'\n");
  await copy?.close();
  const checkpoint = await session.checkpoint();
  await session.rollback(checkpoint);
  assert.equal(await get(), "b'api.example.com /\\n'\n");
  assert.equal(await (await fetch(exposed.url)).text(), "from within", "the server was saved as it ran");
  const large = `import socket
s = socket.create_connection(('db.example.com', 5432), 40); size = 0
import threading
threading.Thread(target=lambda: (s.sendall(bytes(8_000_000)), s.shutdown(socket.SHUT_WR))).start()
while data := s.recv(65536): size += len(data)
print(size)`;
  assert.equal((await session.exec(large)).stdout, "8000000\n");
  await session.updateNetwork({ allowNetwork: false });
  assert.equal(await get(), "gaierror\n");
  await session.close();
  await assert.rejects(fetch(exposed.url));
});

test("served: the token of a net port opens it once, and is told only to who asks for it", options(), async (t) => {
  await using own = await served(t, 0);
  const client = await meetRaw(t, own.place);
  const lease = async (id: number, hasNet: boolean) => {
    client.say({ id, method: "lease", language: "raw", memoryMb: 256, wantsLog: false, hasNet });
    const { result } = await client.heard((line) => line["id"] === id && !("progress" in line));
    return result as Readonly<Record<string, string | null>>;
  };
  assert.equal((await lease(1, false))["netToken"], null);
  const { netToken, token } = await lease(2, true);
  assert.ok(typeof netToken === "string" && netToken !== token);
  let hasFirstEnded = false;
  const [first, second, third] = [netToken, netToken, newNonce()].map((token) => {
    const door = connectRaw(t, own.place);
    door.say({ open: "vm", token });
    return door;
  });
  void first?.closed.then(() => hasFirstEnded = true);
  await second?.closed;
  await third?.closed;
  assert.ok(!hasFirstEnded);
  client.socket.destroy();
  await first?.closed;
});

noLeftovers();
