/** The guest's side of the network, against a gateway of the test: flows, refusals, ends, datagrams, the resolver, exposed ports. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import test, { after, before } from "node:test";
import type { Flow } from "../support/net_gateway.ts";
import { dnsAnswer, NetVm } from "../support/net_vm.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

const text = new TextEncoder();
const CONNECT = `import socket, errno, hashlib
def connect(port, address="93.184.216.34"):
    s = socket.create_connection((address, port), timeout=60)
    return s
def read(s):
    parts = []
    while part := s.recv(65536):
        parts.append(part)
    return b"".join(parts)
def code(port):
    try:
        connect(port).close()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
`;
let vms: TestScheduler, machine: NetVm, onFlow: (flow: Flow) => void = () => {};
before(async () => {
  vms = await openTestScheduler();
  machine = await NetVm.start(vms, "python", (flow) => onFlow(flow));
  await machine.output(CONNECT);
});
after(async () => {
  await machine[Symbol.asyncDispose]();
  await vms.close(); // No child is left, and no file.
});

test("without a network there is no route, and with ports alone neither", async () => {
  const opened: unknown[] = [];
  onFlow = (flow) => opened.push(flow.open);
  assert.equal(await machine.output("print(code(80))"), "ENETUNREACH");
  await machine.vm.guest.network({ outbound: false });
  assert.equal(await machine.output("print(code(80))"), "ENETUNREACH");
  assert.match(await machine.output("print(open('/proc/net/route').read())"), /^Iface[^\n]*$/, "no route at all");
  assert.deepEqual(opened, []);
});

/** The network is there from here on. */
test("a connection is the host's to allow: accepted, refused, unreachable", async () => {
  await machine.vm.guest.network({ outbound: true });
  const opened: unknown[] = [];
  onFlow = (flow) => {
    opened.push(flow.open);
    if (flow.open.port === 80) flow.accept();
    else flow.refuse(flow.open.port === 81 ? "refused" : "unreachable");
  };
  assert.equal(await machine.output("print(code(80), code(81), code(82))"), "None ECONNREFUSED EHOSTUNREACH");
  const plain = opened.map((open) => ({ ...open as Flow["open"], source: 0 }));
  assert.deepEqual(plain, [80, 81, 82].map((port) => ({ flow: "tcp", address: "93.184.216.34", port, source: 0 })));
});

test("bytes arrive whole both ways, and each side ends its half", async () => {
  const bytes = randomBytes(3_000_000), flows: Flow[] = [];
  onFlow = (flow) => {
    flow.accept();
    flows.push(flow);
  };
  const running = machine.output(`
s = connect(80)
data = read(s)
s.sendall(data[::-1])
s.shutdown(socket.SHUT_WR)
print(hashlib.sha256(data).hexdigest(), len(data))
s.close()`);
  await machine.gateway.until(() => flows.length === 1);
  const [flow] = flows as [Flow];
  await flow.send(bytes);
  flow.end();
  const received = createHash("sha256");
  for (let part = await flow.read(); part; part = await flow.read()) received.update(part);
  assert.equal(await running, `${createHash("sha256").update(bytes).digest("hex")} ${bytes.length}`);
  assert.equal(received.digest("hex"), createHash("sha256").update(bytes.toReversed()).digest("hex"));
});

test("a reset is carried both ways", async () => {
  const flows: Flow[] = [];
  onFlow = (flow) => {
    flow.accept();
    flows.push(flow);
  };
  const running = machine.output(`
s = connect(80)
s.sendall(b"x")
try:
    print(s.recv(1))
except ConnectionResetError:
    print("reset")`);
  await machine.gateway.until(() => flows[0]?.receivedBytes === 1);
  flows[0]?.refuse("reset");
  assert.equal(await running, "reset");
  await machine.output(`
import struct
s = connect(80)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.close()`);
  await machine.gateway.until(() => flows[1]?.failure !== undefined);
  assert.equal(flows[1]?.failure, "reset");
});

test("datagrams keep their borders, and a refused one is told", async () => {
  onFlow = (flow) => {
    if (flow.open.port === 9) return flow.refuse("refused");
    assert.equal(flow.open.flow, "udp");
    void (async () => {
      for (let part = await flow.read(); part; part = await flow.read()) flow.sendWhole(part.toReversed());
    })().catch(() => {}); // The machine's end.
  };
  assert.equal(
    await machine.output(`
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(60)
u.connect(("93.184.216.34", 7))
for payload in [b"abc", b"x" * 20000, b""]:
    u.send(payload)
    assert u.recv(65536) == payload[::-1]
u.connect(("93.184.216.34", 9))
u.send(b"anybody")
try:
    u.recv(1)
except ConnectionRefusedError:
    print("refused")`),
    "refused",
  );
});

test("names are asked for at the host, over udp and tcp", async () => {
  const questions: unknown[] = [];
  onFlow = (flow) => {
    if (flow.open.flow !== "dns") return flow.refuse("refused");
    questions.push(flow.open["transport"]);
    void (async () => {
      for (let part = await flow.read(); part; part = await flow.read()) flow.sendWhole(dnsAnswer(part, [93, 184, 216, 34]));
    })().catch(() => {}); // The machine's end.
  };
  assert.equal(await machine.output(`print(socket.gethostbyname("anything.test"))`), "93.184.216.34");
  assert.equal(
    await machine.output(`
import struct
query = b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\4test\\0\\0\\1\\0\\1"
s = connect(53, "10.83.0.1")
s.sendall(struct.pack("!H", len(query)) + query + struct.pack("!H", len(query))[:1])
s.sendall(struct.pack("!H", len(query))[1:] + query)
answers = b""
while len(answers) < 2 * (2 + len(query) + 16):
    answers += s.recv(65536)
print(answers.count(bytes([93, 184, 216, 34])))
s.close()`),
    "2",
  );
  assert.deepEqual([...new Set(questions)].sort(), ["tcp", "udp"]);
});

test("a port of the guest's loopback is reached, refused while nobody listens, and datagrams with it", async () => {
  const early = machine.gateway.expose("tcp", 8080);
  await machine.gateway.until(() => early.failure !== undefined);
  assert.equal(early.failure, "refused");
  await machine.output(`
import threading
listener = socket.create_server(("127.0.0.1", 8080))
def serve():
    while True:
        s, _ = listener.accept()
        s.sendall(read(s)[::-1])
        s.close()
threading.Thread(target=serve, daemon=True).start()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 8081))
def reply():
    while True:
        data, source = datagrams.recvfrom(65536)
        datagrams.sendto(data + b"!", source)
threading.Thread(target=reply, daemon=True).start()`);
  const flow = machine.gateway.expose("tcp", 8080);
  await machine.gateway.until(() => flow.isAccepted || flow.failure !== undefined);
  assert.equal(flow.failure, undefined);
  await flow.send(text.encode("stressed"));
  flow.end();
  assert.equal(await flow.readAll(), "desserts");
  const datagrams = machine.gateway.expose("udp", 8081);
  datagrams.sendWhole(text.encode("hi"));
  assert.equal(new TextDecoder().decode(await datagrams.read()), "hi!");
});

test("two thousand connections at once are nothing special, and leave nothing", async () => {
  let count = 0;
  onFlow = (flow) => {
    count += 1;
    flow.accept();
    void flow.read().then((part) => {
      if (part) flow.sendWhole(part);
      flow.end();
    }).catch(() => {}); // The machine's end.
  };
  assert.equal(
    await machine.output(`
sockets = [connect(1 + n % 50) for n in range(2000)]
for n, s in enumerate(sockets):
    s.sendall(bytes([n % 251]))
print(sum(read(s) == bytes([n % 251]) for n, s in enumerate(sockets)))
for s in sockets:
    s.close()`),
    "2000",
  );
  assert.equal(count, 2000);
  const isOver = (flow: Flow) => flow.open.flow !== "tcp" || flow.hasEnded || !flow.isOpen || flow.failure !== undefined;
  await machine.gateway.until(() => [...machine.gateway.flows.values()].every(isOver));
});

test("user code reaches neither the interface, nor the port, nor the process between them, and nobody answers a ping", async () => {
  const said = await machine.output(`
import os, glob, fcntl, struct
def attempt(what, action):
    try:
        action()
        print(what, "worked")
    except OSError as error:
        print(what, errno.errorcode.get(error.errno))
attempt("tun", lambda: open("/dev/net/tun", "r+b", 0))
attempt("ping", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
attempt("packet", lambda: socket.socket(17, socket.SOCK_RAW))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
attempt("down", lambda: fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"sbx0", 0)))
print("ports", glob.glob("/dev/vport*") + glob.glob("/dev/hvc*"))
seen = [pid for pid in range(2, 3000) if os.path.exists(f"/proc/{pid}") and os.stat(f"/proc/{pid}").st_uid != 1000]
print("seen", seen)
def kill_all():
    for pid in range(2, 3000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            pass
        except PermissionError:
            return True
print("signal refused", kill_all())`);
  assert.deepEqual(said.split("\n"), [
    "tun ENOENT",
    "ping EACCES",
    "raw EPERM",
    "packet EAFNOSUPPORT",
    "down EPERM",
    "ports []",
    "seen []",
    "signal refused True",
  ]);
});

test("a broken frame ends the guest's process for the network, and its successor starts with no flow", async () => {
  const flows: Flow[] = [];
  onFlow = (flow) => {
    flow.accept();
    flows.push(flow);
  };
  await machine.output("s = connect(80)");
  const before = machine.gateway.hellos;
  // Half of a frame comes first, so that the successor does not begin at a border.
  machine.gateway.raw(new Uint8Array([0, 0, 0, 0, 2, 0, 0, 0, 99, 0, 0, 0, 255, 255, 3]));
  await machine.gateway.until(() => machine.gateway.hellos === before + 1);
  assert.match(machine.log, /network: protocol error: unknown_kind/);
  assert.equal(
    await machine.output(`
try:
    s.sendall(b"x")
    print(s.recv(1))
except ConnectionResetError:
    print("reset")
connect(80).close()`),
    "reset",
  );
  assert.equal(flows.length, 2);
  assert.equal(machine.gateway.violation, undefined);
});

test("the network can be taken away again", async () => {
  await machine.vm.guest.network({ outbound: false });
  assert.equal(await machine.output("print(code(80))"), "ENETUNREACH");
  await machine.vm.guest.network({ outbound: true });
  assert.equal(await machine.output("print(code(80))"), "None");
});
