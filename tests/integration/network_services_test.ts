/** Network, with real peers: nginx, PostgreSQL and OpenSSH on loopback; curl, Python, Bun and git in VMs that may reach nothing else. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import dgram from "node:dgram";
import https from "node:https";
import type { Socket } from "node:net";
import test, { type TestContext } from "node:test";
import type { NetworkEvent, NetworkHosts, RunRequest, Scheduler } from "../../src/mod.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { certificatesFor, withEnvironment } from "../support/net_services.ts";
import { missingPrograms, noSshServer, postgresService, secureNginx, sshService } from "../support/real_services.ts";
import { reasonToSkip, withScheduler } from "../support/scheduler.ts";

const options = (missing?: string) => {
  const skip = reasonToSkip() ?? missing;
  return skip === undefined ? { timeout: 300_000 } : { skip };
};

/** Runs code in VMs whose names lead to `hosts`; resolves with what it printed, its exit code, and what was told of the network. */
async function inVms(
  hosts: NetworkHosts,
  body: (run: (request: RunRequest) => Promise<{ out: string; err: string; code: number; events: NetworkEvent[] }>) => Promise<void>,
): Promise<void> {
  await withScheduler(
    async (scheduler: Scheduler) => {
      await body(async (request) => {
        const events: NetworkEvent[] = [];
        const onNetworkEvent = (event: NetworkEvent) => void events.push(event);
        const { stdout, stderr, exitCode } = await scheduler.run({ timeoutSeconds: 120, onNetworkEvent, ...request });
        return { out: stdout, err: stderr, code: exitCode, events };
      });
    },
    {},
    { networkHosts: hosts },
  );
}

/** nginx for these names, and guests that trust its authority. */
async function nginx(t: TestContext, names: readonly string[], fileBytes = 0): Promise<NetworkHosts> {
  const certificates = certificatesFor(t, names);
  withEnvironment(t, {
    SSL_CERT_FILE: certificates.authorityFile,
    NODE_EXTRA_CA_CERTS: undefined,
    HTTPS_PROXY: undefined,
    https_proxy: undefined,
  });
  const { port } = await secureNginx(t, certificates, { fileBytes });
  return Object.fromEntries(names.map((name) => [`${name}:443`, `127.0.0.1:${port}`]));
}

const FILE_BYTES = 4_000_000;

test(
  "services: nginx over TLS by HTTP/1.1 and HTTP/2, with many requests on a connection and many at once",
  options(missingPrograms("nginx")),
  async (t) => {
    const hosts = await nginx(t, ["api.example.com", "cdn.example.com"], FILE_BYTES);
    await inVms(hosts, async (run) => {
      const { out, err, code, events } = await run({
        language: "raw",
        allowedDomains: ["api.example.com", "cdn.example.com"],
        code: `set -e
curl -sS --http1.1 https://api.example.com/1 https://api.example.com/2
curl -sS --http2 https://api.example.com/3 https://cdn.example.com/4
curl -sS --http2 -Z --parallel-max 20 'https://api.example.com/all[1-40]' | cut -d ' ' -f 1-2 | sort | uniq -c | tr -s ' '
curl -sS --http2 https://cdn.example.com/file | tee >(wc -c) >(sha256sum) > /dev/null | sort; wait`,
      });
      const sha256 = createHash("sha256").update(new Uint8Array(FILE_BYTES)).digest("hex");
      assert.deepEqual([err, code], ["", 0]);
      assert.deepEqual(out.trim().split("\n").map((line) => line.trim()).slice(0, 5), [
        "HTTP/1.1 api.example.com /1 1",
        "HTTP/1.1 api.example.com /2 2",
        "HTTP/2.0 api.example.com /3 1",
        "HTTP/2.0 cdn.example.com /4 1",
        "40 HTTP/2.0 api.example.com",
      ]);
      assert.deepEqual(out.trim().split("\n").slice(5).sort(), [String(FILE_BYTES), `${sha256}  -`].sort());
      assert.deepEqual(events.filter(({ verdict }) => verdict !== "allowed"), []);
    });
  },
);

/** A client of PostgreSQL's protocol, version 3, as far as a simple query goes. */
const POSTGRES_CLIENT = `
import socket, struct
def message(kind, body): return kind + struct.pack('!i', len(body) + 4) + body
class Postgres:
    def __init__(self, host, port):
        self.file = socket.create_connection((host, port), 20).makefile('rwb')
        self.file.write(message(b'', struct.pack('!i', 196608) + b'user\\0sbx\\0database\\0postgres\\0\\0'))
        self.rows()
    def rows(self):
        self.file.flush()
        found = []
        while True:
            kind, size = struct.unpack('!ci', self.file.read(5))
            body = self.file.read(size - 4)
            if kind == b'D':
                at, row = 2, []
                for _ in range(struct.unpack('!h', body[:2])[0]):
                    size = struct.unpack('!i', body[at:at + 4])[0]
                    row.append(body[at + 4:at + 4 + size].decode()); at += 4 + size
                found.append(row)
            elif kind == b'E': raise RuntimeError(body)
            elif kind == b'Z': return found
    def query(self, text):
        self.file.write(message(b'Q', text.encode() + b'\\0'))
        return self.rows()
`;

test(
  "services: PostgreSQL through a rule with its port, and through no other",
  options(missingPrograms("initdb", "postgres")),
  async (t) => {
    const { port } = await postgresService(t);
    await inVms({ "db.example.com": `127.0.0.1:${port}` }, async (run) => {
      const { out, err, events } = await run({
        language: "python",
        allowedDomains: ["db.example.com:5432"],
        code: `${POSTGRES_CLIENT}
db = Postgres('db.example.com', 5432)
db.query('create table numbers as select n, repeat(n::text, 20) as text from generate_series(1, 20000) n')
print(db.query('select count(*), sum(n), sum(length(text)) from numbers'))
rows = db.query('select * from numbers order by n')
print(len(rows), rows[-1][0], all(text == n * 20 for n, text in rows))
for other in (5433, 80, 443):
    try: Postgres('db.example.com', other)
    except ConnectionRefusedError: print('refused', other)
`,
      });
      assert.deepEqual([err, out], [
        "",
        "[['20000', '200010000', '1777880']]\n20000 20000 True\nrefused 5433\nrefused 80\nrefused 443\n",
      ]);
      assert.deepEqual(events.filter(({ verdict }) => verdict === "refused").map(({ kind, reason, port }) => [kind, reason, port]), [
        ["tcp", "port", 5433],
        ["tcp", "port", 80],
        ["tcp", "port", 443],
      ]);
    });
  },
);

test("services: an ssh server is greeted, and offers its keys, through a rule with its port", options(noSshServer()), async (t) => {
  const { port } = await sshService(t);
  await inVms({ "git.example.com:22": `127.0.0.1:${port}` }, async (run) => {
    const { out, err } = await run({
      language: "python",
      allowedDomains: ["git.example.com:22"],
      // No image has a client of ssh: what both sides say before they have keys.
      code: `
import os, socket, struct
file = socket.create_connection(('git.example.com', 22), 20).makefile('rwb')
print(file.readline().decode().split('-')[:2])
names = [b'curve25519-sha256', b'ssh-ed25519', b'aes256-ctr', b'aes256-ctr', b'hmac-sha2-256', b'hmac-sha2-256', b'none', b'none', b'', b'']
body = bytes([20]) + os.urandom(16) + b''.join(struct.pack('!I', len(name)) + name for name in names) + bytes(5)
padding = 8 - (len(body) + 5) % 8 + 8
file.write(b'SSH-2.0-test\\r\\n' + struct.pack('!IB', len(body) + padding + 1, padding) + body + bytes(padding)); file.flush()
size, padding, kind = struct.unpack('!IBB', file.read(6))
offer = file.read(size - 2)
print(kind, b'curve25519-sha256' in offer, b'ssh-ed25519' in offer)
`,
    });
    assert.deepEqual([err, out], ["", "['SSH', '2.0']\n20 True True\n"]);
  });
});

test("services: datagrams come back, with a full network; an allowlist has none", options(), async (t) => {
  const server = dgram.createSocket("udp4");
  server.on("message", (bytes, { port, address }) => server.send(bytes, port, address));
  await new Promise<void>((resolve) => server.bind(0, "127.0.0.1", resolve));
  t.after(() => new Promise<void>((resolve) => server.close(() => resolve())));
  await inVms({ "udp.example.com": `127.0.0.1:${server.address().port}` }, async (run) => {
    const code = `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); s.connect(('udp.example.com', 7000))
for size in (0, 1, 1472, 9000, 30000):
    try:
        s.send(bytes([size % 251]) * size)
        print(size, s.recv(65535) == bytes([size % 251]) * size)
    except OSError as error: print(size, type(error).__name__)
`;
    const full = await run({ language: "python", allowNetwork: true, code });
    assert.deepEqual([full.err, full.out], ["", "0 True\n1 True\n1472 True\n9000 True\n30000 True\n"]);
    const listed = await run({ language: "python", allowedDomains: ["udp.example.com:7000"], code });
    assert.match(listed.out, /^0 (?:True|ConnectionRefusedError)\n/);
    assert.ok(!listed.out.includes("1 True"), listed.out);
    assert.deepEqual(
      [...new Set(listed.events.filter(({ kind }) => kind === "udp").map(({ verdict, reason }) => `${verdict} ${reason}`))],
      [
        "refused udp",
      ],
    );
  });
});

test("services: a WebSocket of Bun over TLS carries what is large and small both ways", options(), async (t) => {
  const certificates = certificatesFor(t, ["api.example.com"]);
  withEnvironment(t, {
    SSL_CERT_FILE: certificates.authorityFile,
    NODE_EXTRA_CA_CERTS: undefined,
    HTTPS_PROXY: undefined,
    https_proxy: undefined,
  });
  const server = https.createServer({ key: certificates.key, cert: certificates.cert });
  server.on("upgrade", (request, socket: Socket) => {
    const key = createHash("sha1").update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${key}\r\n\r\n`);
    echoFrames(socket);
    t.after(() => socket.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => new Promise<void>((resolve) => server.close(() => resolve())));
  const address = server.address();
  const hosts = { "api.example.com:443": `127.0.0.1:${typeof address === "object" ? address?.port : 0}` };
  await inVms(hosts, async (run) => {
    const { out, err } = await run({
      language: "javascript",
      allowedDomains: ["api.example.com"],
      code: `const sizes = [1, 125, 126, 65535, 65536, 1000000], socket = new WebSocket("wss://api.example.com/chat");
socket.binaryType = "arraybuffer";
const send = () => socket.send(new Uint8Array(sizes[0]).fill(sizes[0] % 251));
socket.onopen = send;
socket.onmessage = ({ data }) => {
  const size = sizes.shift();
  console.log(size, data.byteLength === size && new Uint8Array(data).every((byte) => byte === size % 251));
  if (sizes.length > 0) send(); else process.exit(0);
};
socket.onerror = (event) => { console.log("error", event.message); process.exit(1); };`,
    });
    assert.deepEqual([err, out], ["", "1 true\n125 true\n126 true\n65535 true\n65536 true\n1000000 true\n"]);
  });
});

/** Sends each binary message back, unmasked (RFC 6455). */
function echoFrames(socket: Socket): void {
  let held = new Uint8Array(0);
  socket.on("error", () => {}); // The VM ends with it open.
  socket.on("data", (chunk: Uint8Array) => {
    held = joined(held, chunk);
    for (;;) {
      const view = new DataView(held.buffer, held.byteOffset, held.length), short = held.length < 2 ? 0 : view.getUint8(1) & 127;
      const head = short === 126 ? 4 : short === 127 ? 10 : 2;
      if (held.length < head + 4) return;
      const size = short === 126 ? view.getUint16(2) : short === 127 ? Number(view.getBigUint64(2)) : short;
      if (held.length < head + 4 + size) return;
      const mask = held.subarray(head, head + 4), body = held.subarray(head + 4, head + 4 + size);
      const answer = Uint8Array.from([...held.subarray(0, 1), short, ...held.subarray(2, head)]);
      socket.write(joined(answer, body.map((byte, at) => byte ^ (mask[at % 4] ?? 0))));
      held = held.slice(head + 4 + size);
    }
  });
}

function joined(first: Uint8Array, second: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

noLeftovers();
