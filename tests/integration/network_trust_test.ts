/** Further certificate authorities reach every program of the guest, although its root disk is read-only and its REPL has started before. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import net from "node:net";
import test, { after, before } from "node:test";
import tls from "node:tls";
import type { Language } from "../../src/mod.ts";
import type { Flow } from "../support/net_gateway.ts";
import { dnsAnswer, NetVm } from "../support/net_vm.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

const fixture = (name: string) => readFileSync(new URL(`../fixtures/tls/${name}`, import.meta.url));
const AUTHORITY = fixture("authority.pem");
const ANSWER = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecure";
const server = tls.createServer({ key: fixture("server_key.pem"), cert: fixture("server.pem") }, (socket) => {
  socket.on("error", () => {}); // A client that trusts nobody leaves.
  socket.once("data", () => socket.end(ANSWER));
});
server.on("tlsClientError", () => {}); // The same.

let vms: TestScheduler, port: number;
before(async () => {
  vms = await openTestScheduler();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  port = (server.address() as net.AddressInfo).port;
});
after(async () => {
  await new Promise((resolve) => server.close(resolve));
  await vms.close(); // No child is left, and no file.
});

/** Every name is the server. */
function onFlow(flow: Flow): void {
  const serve = flow.open.flow === "dns" ? answerQuestions : connectToServer;
  serve(flow).catch(() => {}); // The machine's end.
}

async function answerQuestions(flow: Flow): Promise<void> {
  for (let part = await flow.read(); part; part = await flow.read()) flow.sendWhole(dnsAnswer(part, [93, 184, 216, 34]));
}

async function connectToServer(flow: Flow): Promise<void> {
  flow.accept();
  const socket = net.connect(port, "127.0.0.1");
  socket.on("error", () => {}); // Its end follows.
  socket.on("data", (bytes) => void flow.send(bytes));
  socket.on("end", () => flow.end());
  for (let part = await flow.read(); part; part = await flow.read()) socket.write(part);
  socket.end();
}

const CLIENTS: ReadonlyArray<{ readonly language: Language; readonly code: string; readonly says: string }> = [
  { language: "raw", code: "curl -sS https://secure.test/; git ls-remote https://secure.test/x && echo ' listed'", says: "secure listed" },
  {
    language: "python",
    code: `
import os, urllib.request
print(urllib.request.urlopen("https://secure.test/").read().decode(), os.environ["REQUESTS_CA_BUNDLE"])`,
    says: "secure /etc/ssl/certs/ca-certificates.crt",
  },
  {
    language: "javascript",
    code: `
const get = "await (await fetch('https://secure.test/')).text()";
console.log(await (await fetch("https://secure.test/")).text());
console.log(Bun.spawnSync(["bun", "-p", get]).stdout.toString().trim());`,
    says: "secure\nsecure",
  },
];

for (const { language, code, says } of CLIENTS) {
  test(`${language}: programs trust an authority that came with the network, and none without`, async () => {
    await using trusting = await NetVm.start(vms, language, onFlow);
    await trusting.vm.guest.network({ outbound: true, ca: AUTHORITY });
    assert.equal(await trusting.output(code), says);
    await using plain = await NetVm.start(vms, language, onFlow);
    await plain.vm.guest.network({ outbound: true });
    const { output } = await plain.run(code);
    assert.doesNotMatch(output, /^secure/m);
    assert.match(output, /certificate/i);
  });
}

test("what holds no certificate is refused, and the network is not set up", async () => {
  await using machine = await NetVm.start(vms, "raw", onFlow);
  await assert.rejects(machine.vm.guest.network({ outbound: true, ca: new TextEncoder().encode("no certificate") }), /certificates in PEM/);
  assert.match(await machine.output("cat /proc/net/route"), /^Iface[^\n]*$/);
});
