/** Egress with an allowlist: everything that hostile code tries from a real VM is refused, told, and has reached nobody. */
import assert from "node:assert/strict";
import test, { type TestContext } from "node:test";
import type { NetworkEvent } from "../../../src/mod.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { service } from "../../support/net_peer.ts";
import { certificatesFor, dnsService, httpService, withEnvironment } from "../../support/net_services.ts";
import { reasonToSkip, withScheduler } from "../../support/scheduler.ts";

/** Python of the guest that every attack may use. `attempt` prints its name, how it ended, and whether that took long. */
const TOOLS = `
import socket, ssl, struct, time, errno, select
def attempt(name, work):
    began = time.monotonic()
    try:
        outcome = work()
    except socket.gaierror as error:
        outcome = 'no such name' if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_AGAIN) else repr(error)
    except ConnectionRefusedError:
        outcome = 'refused'
    except (ConnectionResetError, BrokenPipeError):
        outcome = 'cut'
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        outcome = 'cut'
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, repr(error))
    print(name, '|', outcome, '|', 'slow' if time.monotonic() - began > SLOW else 'fast')
def tcp(address, port, payload=None, more=None):
    def work():
        with socket.create_connection((address, port), 20) as s:
            s.settimeout(20)
            if payload is None: return 'connected'
            for part in payload if isinstance(payload, list) else [payload]:
                s.sendall(part)
                time.sleep(0.02)
            got = s.recv(4096)
            if more is None or not got: return 'answer' if got else 'cut'
            s.sendall(more)
            got = s.recv(4096)
            return 'answer' if got else 'cut'
    return work
def udp(address, port, payload):
    def work():
        with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(2)
            s.connect((address, port))
            for _ in range(3):
                s.send(payload)
                time.sleep(0.1)
            try:
                return 'answer' if s.recv(2048) else 'empty'
            except TimeoutError:
                return 'silence'
    return work
def hello(name, ech=False):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    session = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try: session.do_handshake()
    except ssl.SSLWantReadError: pass
    bytes_ = outgoing.read()
    if not ech: return bytes_
    extra = struct.pack('>HH', 0xfe0d, 8) + b'\\0\\0\\1\\0\\1\\5\\0\\0'
    body = bytes_[9:]; at = 34; at += 1 + body[at]; at += 2 + struct.unpack('>H', body[at:at+2])[0]; at += 1 + body[at]
    size = struct.unpack('>H', body[at:at+2])[0]
    body = body[:at] + struct.pack('>H', size + len(extra)) + body[at+2:] + extra
    return b'\\x16\\x03\\x01' + struct.pack('>H', len(body) + 4) + b'\\1' + struct.pack('>I', len(body))[1:] + body
def records(hello_, size):
    body = hello_[5:]
    return [b'\\x16\\x03\\x01' + struct.pack('>H', len(body[at:at+size])) + body[at:at+size] for at in range(0, len(body), size)]
def address(name): return socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0]
def http(host, line='GET / HTTP/1.1', fields='', body=''): return (line + '\\r\\nHost: ' + host + '\\r\\n' + fields + '\\r\\n' + body).encode()
`;

/** What an attempt is to end as: its name, then any of the outcomes. */
type Expected = Readonly<Record<string, readonly string[]>>;

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
        code: `SLOW = 5\n${TOOLS}\n${code}`,
      }),
    {},
    { networkHosts },
  );
  assert.equal(stderr, "");
  const outcomes = Object.fromEntries(
    stdout.trim().split("\n").map((line) => line.split(" | ")).map(([name, outcome, speed]) => [name, `${outcome}, ${speed}`]),
  );
  for (const [name, accepted] of Object.entries(expected)) {
    assert.ok(
      accepted.some((outcome) => outcomes[name] === `${outcome}, fast`),
      `${name}: ${outcomes[name]}, wanted ${accepted.join(" or ")}, fast`,
    );
  }
  assert.deepEqual(Object.keys(outcomes).sort(), Object.keys(expected).sort());
  got.push(...plain.requests);
  return { events, got };
}
const reasons = (events: readonly NetworkEvent[]) =>
  new Set(events.filter(({ verdict }) => verdict !== "allowed").map(({ kind, reason }) => `${kind} ${reason}`));

test("egress: addresses, names and ports that were not given", options(), async (t) => {
  const { events, got } = await attack(
    t,
    `
address('api.example.com'); address('public.example.com')
for name, to, port in [('literal', '93.184.216.34', 443), ('foreign address', '203.0.113.66', 443), ('private', '10.0.0.1', 80), ('loopback of the host', '10.83.0.1', 22),
                       ('metadata', '169.254.169.254', 80), ('host name port', address('api.example.com'), 22), ('database port', address('db.example.com'), 443),
                       ('name on another port', '203.0.113.5', 443), ('carrier', '100.64.0.1', 443), ('multicast', '224.0.0.1', 80), ('broadcast', '255.255.255.255', 80), ('benchmarks', '198.19.0.1', 80)]:
    attempt(name, tcp(to, port, b'x'))
for name in ['other.test', 'evil.test', 'rebind4.example.com', 'rebind10.example.com', 'rebindmeta.example.com', 'example.com.evil.test', 'none.example.com']:
    attempt(name, lambda: address(name))
for name in ['::1', 'fe80::1%sbx0', '::ffff:203.0.113.66', '2001:db8::1', '64:ff9b::7f00:1']:
    attempt(name, tcp(name, 443, b'x'))
`,
    {
      ...Object.fromEntries(
        [
          "literal",
          "foreign address",
          "private",
          "loopback of the host",
          "metadata",
          "host name port",
          "database port",
          "name on another port",
          "carrier",
        ].map((name) => [name, ["refused"]]),
      ),
      multicast: ["refused", "ENETUNREACH", "EINVAL", "EHOSTUNREACH"],
      benchmarks: ["EHOSTUNREACH", "ENETUNREACH", "refused"],
      broadcast: ["refused", "EACCES", "ENETUNREACH", "EHOSTUNREACH"],
      ...Object.fromEntries(
        [
          "other.test",
          "evil.test",
          "rebind4.example.com",
          "rebind10.example.com",
          "rebindmeta.example.com",
          "example.com.evil.test",
          "none.example.com",
        ].map((name) => [name, ["no such name"]]),
      ),
      "::1": NO_IPV6,
      "fe80::1%sbx0": [...NO_IPV6, "EINVAL", "ENODEV", "no such name"],
      "::ffff:203.0.113.66": NO_IPV6,
      "2001:db8::1": NO_IPV6,
      "64:ff9b::7f00:1": NO_IPV6,
    },
  );
  assert.deepEqual(got, []);
  for (
    const reason of [
      "tcp not-resolved",
      "tcp private",
      "tcp metadata",
      "tcp port",
      "tcp carrier-nat",
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
      ...Object.fromEntries(
        [
          "foreign name",
          "allowed name at another address",
          "no name",
          "encrypted hello",
          "foreign name in pieces",
          "foreign name in records",
          "oversized",
          "malformed",
          "http on 443",
          "ssh on 443",
          "tls on 80",
          "numeric name",
        ].map((name) => [name, ["cut"]]),
      ),
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
      ...Object.fromEntries(
        [
          "foreign host",
          "second request",
          "pipelined",
          "connect",
          "absolute",
          "two hosts",
          "folded",
          "length and chunks",
          "two lengths",
          "odd encoding",
          "chunk extension",
          "http2",
          "no host",
        ].map((name) => [name, ["cut"]]),
      ),
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
attempt('sctp', lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).connect((a, 80)) or 'open')
import urllib.request
def redirect():
    try: urllib.request.urlopen('http://api.example.com/redirect?http://evil.test/', timeout=20); return 'followed'
    except urllib.error.URLError as error: return 'no such name' if isinstance(error.reason, socket.gaierror) else repr(error)
attempt('redirect', redirect)
open_ports = []
def scan():
    for port in list(range(1, 60)) + [80, 443, 3306, 5432, 6379, 8080]:
        with socket.socket() as s:
            s.settimeout(5)
            if s.connect_ex(('10.83.0.1', port)) == 0: open_ports.append(port)
    return str(open_ports)
attempt('scan of the gateway', scan)
`,
    {
      ...Object.fromEntries(
        ["dns to another", "quic", "ntp", "a datagram to the gateway"].map((
          name,
        ) => [name, ["refused", "silence", "EHOSTUNREACH", "ENETUNREACH"]]),
      ),
      "dns to another over tcp": ["refused"],
      "dns over tls": ["refused"],
      "dns over https": ["refused"],
      "raw ip": ["EPERM", "EACCES"],
      icmp: ["EPERM", "EACCES"],
      packet: ["EPERM", "EACCES", "EAFNOSUPPORT"],
      sctp: ["EPERM", "EACCES", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"],
      redirect: ["no such name"],
      "scan of the gateway": ["[]", "[53]"],
    },
  );
  assert.deepEqual(got, ["GET api.example.com /redirect?http://evil.test/"]);
  for (const reason of ["udp udp", "tcp not-resolved", "dns name"]) {
    assert.ok(reasons(events).has(reason), `${reason}; ${[...reasons(events)].join(", ")}`);
  }
});

noLeftovers();
