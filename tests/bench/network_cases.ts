/** Network cases: bytes, connections and requests through a VM's network, beside the bare port, and beside the same server without a VM. */
import { spawn } from "node:child_process";
import http from "node:http";
import process from "node:process";
import { createInterface } from "node:readline";
import type { TestContext } from "node:test";
import { type NetworkHosts, Scheduler, type Session } from "../../src/mod.ts";
import { parseAddress } from "../../src/net/address.ts";
import { Names } from "../../src/net/names.ts";
import { decideTcp, policyOf } from "../../src/net/policy.ts";
import { certificatesFor } from "../support/net_services.ts";
import { missingPrograms, secureNginx } from "../support/real_services.ts";
import { type Bench, clone, silent } from "./cases.ts";
import { measure, type Measurement, quantile, timed } from "./measure.ts";
import { hostMemory, zeros } from "./session_cases.ts";

const MIB = 1_048_576;
const STREAM_BYTES = 100 * MIB;
const STREAMS = 64;
const GIGABYTE = 1_000_000_000;
const IDLE_FLOWS = 1_000;
const REQUESTS = 1_000;
const REQUESTS_AT_ONCE = 100;
/** A connection each: fewer than on one, as each takes a handshake of an emulated machine. */
const CONNECTIONS = 50;
const HTTP_BODY = "x".repeat(1_000);

/** Sends as many bytes as its first line says, or takes all that comes and says so; in a process of its own, as peers are. */
const PEER = `
import socket, threading
chunk = bytes(1 << 20)
def serve(peer):
    try:
        line = b''
        while not line.endswith(b'\\n'): line += peer.recv(1) or b'\\n'
        if line.startswith(b'pour'):
            left = int(line.split()[1])
            while left > 0: left -= peer.send(chunk[:left])
        elif line.startswith(b'take'):
            buffer = bytearray(1 << 20)
            while peer.recv_into(buffer): pass
            peer.sendall(b'.')
        else: peer.recv(1)
    except OSError: pass
    peer.close()
listener = socket.create_server(('127.0.0.1', 0), backlog=1024)
print(listener.getsockname()[1], flush=True)
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
`;

/** What the guest's side is: each function returns seconds, or a list of them. */
const CLIENT = `
import selectors, socket, time
address = socket.gethostbyname('peer.example.com'), 9000
buffer, chunk = bytearray(1 << 20), bytes(1 << 20)
def opened(first):
    s = socket.create_connection(address); s.sendall(first + b'\\n'); return s
def pour(streams, size):
    start, selector = time.perf_counter(), selectors.DefaultSelector()
    for _ in range(streams): selector.register(opened(b'pour %d' % (size // streams)), selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            if not key.fileobj.recv_into(buffer): selector.unregister(key.fileobj); key.fileobj.close()
    return time.perf_counter() - start
def take(streams, size):
    start, selector = time.perf_counter(), selectors.DefaultSelector()
    for _ in range(streams):
        s = opened(b'take'); s.setblocking(False); selector.register(s, selectors.EVENT_WRITE, [size // streams])
    while selector.get_map():
        for key, events in selector.select():
            s, left = key.fileobj, key.data
            if events & selectors.EVENT_READ: s.recv(1); selector.unregister(s); s.close(); continue
            left[0] -= s.send(chunk[:left[0]])
            if not left[0]: s.shutdown(socket.SHUT_WR); selector.modify(s, selectors.EVENT_READ, left)
    return time.perf_counter() - start
def connect(count):
    times = []
    for _ in range(count):
        start = time.perf_counter(); s = socket.create_connection(address); times.append(time.perf_counter() - start); s.close()
    return times
held = []
def hold(count): held.extend(opened(b'wait') for _ in range(count)); return 0
`;

/** One stream and many each way, in turns with the bare port; connections; what an idle one costs the host. */
export async function networkStreams(bench: Bench, count: number): Promise<Measurement[]> {
  await using peer = await startProgram("python3", ["-c", PEER]);
  return await withSession({ "peer.example.com": `127.0.0.1:${peer.port}` }, "python", async (session) => {
    const run = async (code: string) => {
      const { stdout, stderr, externalCpuTimeMs } = await session.exec(`import json; print(json.dumps(${code}))`, { timeoutSeconds: 300 });
      if (stderr !== "") throw new Error(stderr);
      return { found: [JSON.parse(stdout)].flat() as number[], cpuTimeMs: externalCpuTimeMs ?? NaN };
    };
    const ask = async (code: string) => (await run(code)).found;
    await session.exec(CLIENT);
    await using bare = await clone(bench, "python");
    const samples = new Map<string, { readonly unit: "MB/s" | "ms"; readonly values: number[] }>();
    const note = (name: string, { ms, cpuTimeMs }: { readonly ms: number; readonly cpuTimeMs: number }) => {
      for (
        const [title, unit, value] of [[name, "MB/s", STREAM_BYTES / MIB / ms * 1000], [
          `${name}, QEMU's CPU time`,
          "ms",
          cpuTimeMs,
        ]] as const
      ) {
        const series = samples.get(title) ?? { unit, values: [] };
        series.values.push(value);
        samples.set(title, series);
      }
    };
    const overBare = async (body: ReadableStream<Uint8Array> | AsyncIterable<Uint8Array> | undefined) => {
      const before = bare.usage().cpuTimeMs ?? NaN;
      const ms = await timed(() => bare.guest.exchange(body ? { body } : { receiveBytes: STREAM_BYTES }));
      return { ms, cpuTimeMs: (bare.usage().cpuTimeMs ?? NaN) - before };
    };
    const overNetwork = async (code: string) => {
      const { found: [seconds = NaN], cpuTimeMs } = await run(code);
      return { ms: seconds * 1000, cpuTimeMs };
    };
    for (let round = 0; round <= count; round++) {
      const found = [
        ["bare port, to the guest", await overBare(zeros(STREAM_BYTES))],
        ["network: one stream to the guest", await overNetwork(`pour(1, ${STREAM_BYTES})`)],
        [`network: ${STREAMS} streams to the guest`, await overNetwork(`pour(${STREAMS}, ${STREAM_BYTES})`)],
        ["bare port, from the guest", await overBare(undefined)],
        ["network: one stream from the guest", await overNetwork(`take(1, ${STREAM_BYTES})`)],
        [`network: ${STREAMS} streams from the guest`, await overNetwork(`take(${STREAMS}, ${STREAM_BYTES})`)],
      ] as const;
      if (round > 0) { for (const [name, taken] of found) note(name, taken); }
    }
    const connects = await ask(`connect(${20 * count})`), before = hostMemory();
    const [seconds = NaN] = await ask(`pour(1, ${GIGABYTE})`), grown = hostMemory() - before;
    const idleBefore = hostMemory();
    await ask(`hold(${IDLE_FLOWS})`);
    const perFlow = (hostMemory() - idleBefore) * 1024 / IDLE_FLOWS;
    return [
      ...[...samples].map(([name, { unit, values }]): Measurement => ({ name, unit, samples: values })),
      { name: "network: a connection", unit: "ms", samples: connects.map((each) => each * 1000) },
      { name: "network: a gigabyte to the guest", unit: "MB/s", samples: [GIGABYTE / MIB / seconds] },
      { name: "network: growth of the host over it", unit: "MB", samples: [Math.max(0, grown)] },
      { name: "network: host memory of an idle connection", unit: "KB", samples: [Math.max(0, perFlow)] },
    ];
  });
}

/** HTTPS of a guest: one after the other on one connection, one each, and many at once. */
export async function networkRequests(count: number): Promise<Measurement[]> {
  if (missingPrograms("nginx") !== undefined) return [];
  await using stack = new AsyncDisposableStack();
  const t = { after: (done: () => Promise<void> | void) => void stack.defer(async () => await done()) } as unknown as TestContext;
  const before = process.env["SSL_CERT_FILE"], certificates = certificatesFor(t, ["api.example.com"]);
  process.env["SSL_CERT_FILE"] = certificates.authorityFile;
  stack.defer(() => {
    if (before === undefined) delete process.env["SSL_CERT_FILE"];
    else process.env["SSL_CERT_FILE"] = before;
  });
  const { port } = await secureNginx(t, certificates, { fileBytes: 0 });
  return await withSession({ "api.example.com:443": `127.0.0.1:${port}` }, "python", async (session) => {
    const seconds = async (code: string) => {
      const { stdout, stderr } = await session.exec(`start = time.perf_counter()\n${code}\nprint(time.perf_counter() - start)`, {
        timeoutSeconds: 300,
      });
      if (stderr !== "") throw new Error(stderr);
      return Number(stdout);
    };
    await session.exec("import http.client, ssl, subprocess, time\ncontext = ssl.create_default_context()");
    const get = "c.request('GET', '/'); c.getresponse().read()",
      connection = "c = http.client.HTTPSConnection('api.example.com', context=context)";
    const atOnce =
      `subprocess.run(['curl', '-sS', '--fail', '-Z', '--parallel-immediate', '--parallel-max', '${REQUESTS_AT_ONCE}', '-o', '/dev/null', 'https://api.example.com/[1-${REQUESTS_AT_ONCE}]'], check=True)`;
    const each = (name: string, requests: number, code: string) =>
      measure(name, { count, warmUps: 1 }, async () => await seconds(code) * 1000 / requests);
    return [
      await each("network: an HTTPS request, one of 1,000 on a connection", REQUESTS, `${connection}\nfor _ in range(${REQUESTS}): ${get}`),
      await each(
        "network: an HTTPS request with its connection",
        CONNECTIONS,
        `for _ in range(${CONNECTIONS}):\n  ${connection}; ${get}; c.close()`,
      ),
      await each("network: 100 HTTPS requests at once, all of them", 1, atOnce),
    ];
  });
}

const SERVER = `const server = Bun.serve({ hostname: "127.0.0.1", port: Number(PORT), fetch: () => new Response("${HTTP_BODY}") });`;

/** An HTTP server in a VM, and the same without one. */
export async function exposedRequests(count: number): Promise<Measurement[]> {
  const outside = await startProgram("bun", ["-e", `${SERVER.replace("PORT", "0")} console.log(server.port);`]).catch(() => undefined);
  await using _outside = outside;
  await using scheduler = await Scheduler.open({}, { log: silent });
  await using session = await scheduler.session({ language: "javascript", exposePorts: [8080] });
  const { stderr } = await session.exec(SERVER.replace("PORT", "8080"));
  if (stderr !== "") throw new Error(stderr);
  const servers = [["exposed", session.exposedPorts[0]?.external], ["outside", outside?.port]] as const;
  const found: Measurement[] = [];
  for (const [name, port] of servers) {
    if (port === undefined) continue;
    const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });
    const one = () => timed(() => get(port, agent));
    const requests = await measure(`${name} HTTP server: a request`, { count: 50 * count, warmUps: 50 }, one);
    const slow = {
      name: `${name} HTTP server: a request, 99th percentile`,
      unit: "ms",
      samples: [quantile(requests.samples, 0.99)],
    } as const;
    found.push(requests, slow);
    const rate = async () => 400 / (await timed(() => Promise.all(Array.from({ length: 400 }, () => get(port, agent)))) / 1000);
    found.push(await measure(`${name} HTTP server: requests, 16 at once`, { count, warmUps: 1, unit: "/s" }, rate));
    agent.destroy();
  }
  return found;
}

/** What the policy costs: a connection's verdict under the longest list that is common, where the last rule is the one. */
export function policyDecision(count: number): Promise<Measurement> {
  const names = new Names(() => performance.now()), address = parseAddress("203.0.113.5");
  if (!address) throw new Error("an address");
  const policy = policyOf({ allowedDomains: Array.from({ length: 100 }, (_, at) => `host${at}.example.com`) }, "measure");
  names.record("host99.example.com", [address], 300);
  const rounds = 10_000;
  return measure("network: a verdict, 100 rules", { count, warmUps: 2, unit: "µs" }, () => {
    const startedAt = performance.now();
    for (let round = 0; round < rounds; round++) {
      const known = names.find(address);
      const verdict = decideTcp(policy, { address, port: 443, names: known.names, hasExpired: known.hasExpired, isPinned: false });
      if (!verdict.isAllowed) throw new Error(verdict.reason);
    }
    return (performance.now() - startedAt) * 1000 / rounds;
  });
}

async function withSession<T>(networkHosts: NetworkHosts, language: "python", body: (session: Session) => Promise<T>): Promise<T> {
  await using scheduler = await Scheduler.open({}, { log: silent, networkHosts });
  await using session = await scheduler.session({ language, memoryMb: 512, allowNetwork: true });
  return await body(session);
}

/** Starts a server that prints its port. The caller owns it. */
async function startProgram(program: string, args: readonly string[]): Promise<{ readonly port: number } & AsyncDisposable> {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  const port = await new Promise<number>((resolve, reject) => {
    child.once("error", reject);
    createInterface({ input: child.stdout }).once("line", (line) => resolve(Number(line)));
  });
  return {
    port,
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

function get(port: number, agent: http.Agent): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = http.get({ host: "127.0.0.1", port, agent }, (response) => response.resume().once("end", () => resolve()));
    request.once("error", reject);
  });
}
