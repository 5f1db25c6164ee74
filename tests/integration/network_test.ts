/** Network: real clients in real VMs reach what was allowed, through every check, and nothing else. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import http from "node:http";
import net, { type AddressInfo, type Socket } from "node:net";
import test, { type TestContext } from "node:test";
import type { NetworkEvent, RunRequest } from "../../src/mod.ts";
import { InputValidationError } from "../../src/base/errors.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { echo, service } from "../support/net_peer.ts";
import { certificatesFor, httpService, withEnvironment } from "../support/net_services.ts";
import { reasonToSkip, withScheduler } from "../support/scheduler.ts";

const options = () => {
  const skip = reasonToSkip();
  return skip === undefined ? { timeout: 300_000 } : { skip };
};
const NAMES = ["api.example.com", "*.wild.example.com"];

/** A scheduler whose names lead to HTTP and HTTPS services on loopback, and whose guests trust their authority. */
async function withServices<T>(
  t: TestContext,
  body: (
    run: (
      request: Omit<RunRequest, "language"> & { language?: RunRequest["language"] },
    ) => Promise<{ out: string; err: string; code: number }>,
    seen: { events: NetworkEvent[]; requests: string[] },
  ) => Promise<T>,
): Promise<T> {
  const certificates = certificatesFor(t, NAMES),
    plain = await httpService(t),
    secure = await httpService(t, certificates),
    raw = await service(t, echo);
  withEnvironment(t, {
    SSL_CERT_FILE: certificates.authorityFile,
    NODE_EXTRA_CA_CERTS: undefined,
    HTTPS_PROXY: undefined,
    https_proxy: undefined,
  });
  const names = ["api.example.com", "a.wild.example.com"], events: NetworkEvent[] = [];
  const networkHosts = Object.fromEntries([
    ...names.flatMap((name) => [[`${name}:80`, `127.0.0.1:${plain.port}`], [`${name}:443`, `127.0.0.1:${secure.port}`]]),
    ["db.example.com:5432", `127.0.0.1:${raw}`],
  ]);
  return await withScheduler(
    async (scheduler) => {
      const run = async (request: Parameters<Parameters<typeof body>[0]>[0]) => {
        const result = await scheduler.run({
          language: "raw",
          timeoutSeconds: 60,
          onNetworkEvent: (event) => void events.push(event),
          ...request,
        });
        return { out: result.stdout, err: result.stderr, code: result.exitCode };
      };
      return await body(run, { events, requests: plain.requests });
    },
    {},
    { networkHosts },
  );
}

test("network: curl, Python, Bun and bash reach an allowed name over HTTP and HTTPS", options(), async (t) => {
  await withServices(t, async (run, { events }) => {
    const allowedDomains = ["api.example.com", "*.wild.example.com", "db.example.com:5432"];
    const curl = await run({
      allowedDomains,
      code:
        "curl -sS http://api.example.com/1 https://api.example.com/2 https://A.Wild.Example.com/3 http://api.example.com./4; exec 3<>/dev/tcp/db.example.com/5432; echo raw >&3; head -n 1 <&3",
    });
    assert.deepEqual([curl.err, curl.out], [
      "",
      "api.example.com /1\napi.example.com /2\nA.Wild.Example.com /3\napi.example.com. /4\nraw\n",
    ]);
    const python = await run({
      allowedDomains,
      language: "python",
      code:
        "import urllib.request\nfor url in ('http://api.example.com/p', 'https://a.wild.example.com/q'): print(urllib.request.urlopen(url, timeout=20).read().decode(), end='')",
    });
    assert.deepEqual([python.err, python.out], ["", "api.example.com /p\na.wild.example.com /q\n"]);
    const bun = await run({
      allowedDomains,
      language: "javascript",
      code:
        "for (const url of ['http://api.example.com/b', 'https://api.example.com/c']) process.stdout.write(await (await fetch(url)).text());",
    });
    assert.deepEqual([bun.err, bun.out], ["", "api.example.com /b\napi.example.com /c\n"]);
    assert.deepEqual(events.filter(({ verdict }) => verdict !== "allowed").map(({ kind, name, reason }) => [kind, name, reason]), []);
    assert.ok(events.every(({ kind, sentBytes, receivedBytes }) => kind === "dns" || (sentBytes > 0 && receivedBytes > 0)));
  });
});

test("network: what is not on the list does not exist or is refused, at once, and is told", options(), async (t) => {
  await withServices(t, async (run, { events, requests }) => {
    const { out } = await run({
      allowedDomains: ["api.example.com"],
      code:
        `for url in http://other.example.org/ http://203.0.113.5/ https://10.0.0.1/ http://169.254.169.254/ http://10.83.0.1/ http://127.0.0.1:1/; do
        curl -s -m 20 "$url"; echo "$url $?"; done; curl -s -m 20 -H 'Host: evil.test' http://api.example.com/; echo host $?`,
    });
    assert.deepEqual(out.trim().split("\n"), [
      "http://other.example.org/ 6",
      "http://203.0.113.5/ 7",
      "https://10.0.0.1/ 7",
      "http://169.254.169.254/ 7",
      "http://10.83.0.1/ 7",
      "http://127.0.0.1:1/ 7",
      "host 56",
    ]);
    const refused = events.filter(({ verdict }) => verdict === "refused").map(({ kind, reason }) => `${kind} ${reason}`);
    assert.deepEqual([...new Set(refused)], ["dns name", "tcp not-resolved", "tcp private", "tcp metadata", "tcp host"]);
    assert.deepEqual(requests, []);
  });
});

test("network: without it, and with an empty list, nothing leaves", options(), async (t) => {
  await withServices(t, async (run, { events }) => {
    const code =
      "getent hosts api.example.com; echo $?; curl -s -m 10 http://203.0.113.5/; echo $?; (echo x >/dev/udp/203.0.113.5/53) 2>/dev/null; echo $?";
    const off = await run({ code });
    assert.match(off.out, /^2\n7\n1\n$/);
    assert.deepEqual(events, []);
    const empty = await run({
      code: "getent hosts api.example.com; echo $?; curl -s -m 10 http://203.0.113.5/; echo $?",
      allowedDomains: [],
    });
    assert.equal(empty.out, "2\n7\n");
    assert.ok(events.every(({ verdict }) => verdict === "refused"));
    assert.ok(events.length >= 2);
  });
});

test("network: bad domains and ports are refused before anything starts", options(), async () => {
  await withScheduler(async (scheduler) => {
    const messages: string[] = [];
    for (const allowedDomains of [["*"], ["http://x"], ["a b"], ["10.0.0.1"]]) {
      await assert.rejects(
        scheduler.run({ code: "1", language: "python", allowedDomains, onBootLog: (text) => messages.push(text) }),
        InputValidationError,
      );
    }
    assert.deepEqual(messages, []);
  });
});

test("network: WebSocket passes once its server has agreed, and not without", options(), async (t) => {
  const server = http.createServer((_request, response) => void response.end("no"));
  server.on("upgrade", (request, socket: Socket) => {
    const key = createHash("sha1").update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${key}\r\n\r\n`);
    // One short masked frame from the client; the same text back, without a mask.
    socket.on("data", (frame) => {
      const size = (frame[1] ?? 0) & 127, mask = frame.subarray(2, 6);
      if (frame[0] === 0x81) {
        socket.write(Uint8Array.from([0x81, size, ...frame.subarray(6, 6 + size).map((byte, at) => byte ^ (mask[at % 4] ?? 0))]));
      }
    });
    socket.on("error", () => {}); // The VM ends with it open.
    t.after(() => socket.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => new Promise<void>((resolve) => server.close(() => resolve())));
  await withScheduler(
    async (scheduler) => {
      const { stdout, stderr } = await scheduler.run({
        language: "javascript",
        timeoutSeconds: 60,
        allowedDomains: ["api.example.com"],
        code: `const socket = new WebSocket("ws://api.example.com/chat");
socket.onopen = () => socket.send("hello");
socket.onmessage = ({ data }) => { console.log(data); socket.close(); process.exit(0); };
socket.onerror = (event) => { console.log("error", event.message); process.exit(1); };`,
      });
      assert.deepEqual([stderr, stdout], ["", "hello\n"]);
    },
    {},
    { networkHosts: { "api.example.com:80": `127.0.0.1:${(server.address() as AddressInfo).port}` } },
  );
});

test("network: through the host's proxy, by name, also to what only the proxy can resolve", options(), async (t) => {
  const asked: string[] = [], { port } = await httpService(t);
  const proxy = await service(t, (socket) => {
    socket.once("data", (head) => {
      asked.push(String(head).split("\r\n")[0] ?? "");
      const far = net.connect(port, "127.0.0.1", () => {
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        far.pipe(socket).pipe(far);
      });
      far.on("error", () => socket.destroy());
    });
  });
  withEnvironment(t, { HTTPS_PROXY: `http://127.0.0.1:${proxy}`, https_proxy: undefined, NO_PROXY: undefined, no_proxy: undefined });
  await withScheduler(async (scheduler) => {
    const { stdout } = await scheduler.run({
      language: "raw",
      timeoutSeconds: 60,
      allowedDomains: ["inside.example.com"],
      code: "curl -sS -m 40 http://inside.example.com/; curl -s -m 20 http://outside.example.org/; echo $?",
    });
    assert.equal(stdout, "inside.example.com /\n6\n");
    assert.deepEqual(asked, ["CONNECT inside.example.com:80 HTTP/1.1"]);
  });
});

test("network: a session's network changes while it lives", options(), async (t) => {
  const { port, requests } = await httpService(t);
  await withScheduler(
    async (scheduler) => {
      await using session = await scheduler.session({ language: "raw" });
      const get = async () => (await session.exec("curl -s -m 20 http://api.example.com/; echo $?")).stdout;
      assert.equal(await get(), "6\n");
      await session.updateNetwork({ allowedDomains: ["api.example.com"] });
      assert.equal(await get(), "api.example.com /\n0\n");
      await session.updateNetwork({ allowedDomains: ["other.example.com"] });
      assert.equal(await get(), "6\n");
      await session.updateNetwork({ allowNetwork: true });
      assert.equal(await get(), "api.example.com /\n0\n");
      await session.updateNetwork({ allowNetwork: false });
      assert.equal(await get(), "6\n");
      await assert.rejects(session.updateNetwork({ allowedDomains: ["*"] }), InputValidationError);
      assert.equal(requests.length, 2);
    },
    {},
    { networkHosts: { "api.example.com": `127.0.0.1:${port}` } },
  );
});

noLeftovers();
