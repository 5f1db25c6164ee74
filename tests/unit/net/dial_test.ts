/** Dial: straight and through a proxy, and who is excepted from it. */
import assert from "node:assert/strict";
import test, { type TestContext } from "node:test";
import { InputValidationError } from "../../../src/base/errors.ts";
import { parseAddress } from "../../../src/net/address.ts";
import { lineLogger } from "../../../src/base/log.ts";
import { Proxy } from "../../../src/net/dial.ts";
import { hostNetwork } from "../../../src/net/environment.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { gatewayPeer, namesOf, service } from "../../support/net_peer.ts";
import { eventually } from "../../support/waiting.ts";

/** A proxy that answers every request as `answer` says, then echoes. */
async function proxyService(t: TestContext, answer: string): Promise<{ url: string; requests: string[] }> {
  const requests: string[] = [];
  const port = await service(t, (socket) => {
    let head = "";
    socket.on("data", (bytes) => {
      if (head.includes("\r\n\r\n")) return void socket.write(bytes);
      head += bytes;
      if (!head.includes("\r\n\r\n")) return;
      requests.push(head);
      socket.write(answer);
      if (!answer.includes(" 200 ")) socket.end();
    });
  });
  return { url: `http://user:p%40ss@127.0.0.1:${port}`, requests };
}

test("proxy: connections of allowed names go through it, by name, and what it says behind its answer is the far side's", async (t) => {
  const { url, requests } = await proxyService(t, "HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nbanner ");
  const { peer, told } = await gatewayPeer(t, {
    domains: ["api.example.com:1000", "known.example.com:1000"],
    proxy: { HTTPS_PROXY: url, NO_PROXY: "other.test" },
    names: namesOf({ "known.example.com": ["203.0.113.5"] }),
  });
  await peer.hello();
  // The host itself cannot resolve it: the proxy may.
  const { addresses: [address = ""] } = await peer.ask("api.example.com");
  assert.match(address, /^198\.18\./);
  const flow = await peer.tcp(address, 1000).accepted();
  flow.send("hello");
  await eventually("both came", () => flow.text === "banner hello");
  assert.equal(
    requests[0],
    `CONNECT api.example.com:1000 HTTP/1.1\r\nHost: api.example.com:1000\r\nProxy-Authorization: Basic ${btoa("user:p@ss")}\r\n\r\n`,
  );
  const { addresses: [known = ""] } = await peer.ask("known.example.com");
  assert.equal(known, "203.0.113.5");
  await peer.tcp(known, 1000).accepted();
  assert.match(requests[1] ?? "", /^CONNECT known\.example\.com:1000 /);
  assert.equal(await peer.tcp("203.0.113.6", 1000).refused(), "refused", "the policy is what it was");
  assert.equal((await peer.ask("other.test")).rcode, 3);
  assert.ok(told().every((line) => !line.includes("p%40ss")));
});

test("proxy: its refusal is the guest's, and told", async (t) => {
  for (
    const [answer, code, reason] of [["403 Forbidden", "unreachable", "proxy"], ["407 Authentication", "unreachable", "proxy"], [
      "502 Bad Gateway",
      "unreachable",
      "unreachable",
    ]]
  ) {
    const { url } = await proxyService(t, `HTTP/1.1 ${answer}\r\n\r\n`);
    const { peer, told } = await gatewayPeer(t, { domains: ["a.example.com:9"], proxy: { https_proxy: url }, names: namesOf({}) });
    await peer.hello();
    const { addresses: [address = ""] } = await peer.ask("a.example.com");
    assert.equal(await peer.tcp(address, 9).refused(), code);
    await eventually("it is told", () => told().some((line) => line === `tcp failed ${reason} a.example.com ${address}:9`));
  }
});

test("proxy: without one a name that the host cannot resolve is not found; one that is not there fails", async (t) => {
  const { peer } = await gatewayPeer(t, { domains: ["a.example.com:9"], proxy: { HTTPS_PROXY: "127.0.0.1:1", NO_PROXY: "example.com" } });
  await peer.hello();
  assert.equal((await peer.ask("a.example.com")).rcode, 3);
  const dead = await gatewayPeer(t, { domains: ["a.example.com:9"], proxy: { HTTPS_PROXY: "127.0.0.1:1" } });
  await dead.peer.hello();
  const { addresses: [address = ""] } = await dead.peer.ask("a.example.com");
  assert.equal(await dead.peer.tcp(address, 9).refused(), "unreachable");
});

test("proxy: exceptions by name, suffix, address, block and port", () => {
  const isFor = (exceptions: string, name: string | undefined, address: string | undefined, port = 443) =>
    Proxy.of({ HTTPS_PROXY: "http://proxy.test:3128", NO_PROXY: exceptions })?.isFor({
      name,
      address: address === undefined ? undefined : parseAddress(address),
      port,
    });
  const cases: Array<[string, string | undefined, string | undefined, boolean]> = [
    ["", "a.example.com", undefined, true],
    ["*", "a.example.com", undefined, false],
    ["example.com", "a.example.com", undefined, false],
    ["example.com", "example.com", undefined, false],
    [".example.com", "a.example.com", undefined, false],
    ["*.example.com", "a.example.com", undefined, false],
    ["example.com", "notexample.com", undefined, true],
    ["other.test, Example.COM", "a.example.com", undefined, false],
    ["203.0.113.5", undefined, "203.0.113.5", false],
    ["203.0.113.0/24", undefined, "203.0.113.5", false],
    ["203.0.113.0/24", undefined, "203.0.114.5", true],
    ["203.0.113.0/31", undefined, "203.0.113.2", true],
    ["2001:db8::/32", undefined, "2001:db8::5", false],
    ["2001:db8::5", undefined, "2001:db8::6", true],
    ["example.com:443", "example.com", undefined, false],
    ["example.com:8443", "example.com", undefined, true],
    ["203.0.113.5:443", undefined, "203.0.113.5", false],
    ["203.0.113.0/24:8443", undefined, "203.0.113.5", true],
    ["2001:db8::1", undefined, "2001:db8::1", false],
    ["2001:db8::5", undefined, "2001:db8::6", true],
    ["[2001:db8::1]:443", undefined, "2001:db8::1", false],
    ["[2001:db8::1]:8443", undefined, "2001:db8::1", true],
    ["0.0.0.0/0", undefined, "203.0.113.5", false],
    ["0.0.0.0/0", undefined, "2001:db8::1", true],
    ["203.0.113.5/32", undefined, "203.0.113.5", false],
  ];
  for (const [exceptions, name, address, expected] of cases) {
    assert.equal(isFor(exceptions, name, address), expected, `${exceptions} for ${name ?? address}`);
  }
  // A number of bits that is none would otherwise be zero, and except everything.
  const bad = ["x", "33", "99", "-1", "", " ", "1e1", "0x8", "8.0", "8/8"].map((bits) => `203.0.113.0/${bits}`);
  for (const entry of [...bad, "2001:db8::/129", "2001:db8::/", "203.0.113.0/24:99999", "example.com/8", "a..b", "203.0.113", "[::1"]) {
    assert.equal(isFor(entry, undefined, "203.0.113.5"), true, entry);
    assert.equal(isFor(entry, undefined, "198.51.100.1"), true, entry);
    assert.equal(isFor(entry, "a.example.com", "2001:db8::5"), true, entry);
    assert.equal(isFor(`${entry},203.0.113.5`, undefined, "203.0.113.5"), false, `the entry behind ${entry} counts`);
  }
  assert.equal(Proxy.of({}), undefined);
  assert.equal(Proxy.of({ HTTPS_PROXY: " " }), undefined);
  for (const bad of ["socks5://secret:1", "http:// secret", "::::"]) {
    assert.throws(
      () => Proxy.of({ HTTPS_PROXY: bad }),
      (error) => error instanceof InputValidationError && !error.message.includes("secret"),
    );
  }
});

test("proxy: entries of NO_PROXY that say nothing are told", () => {
  const lines: string[] = [], log = lineLogger("warning", (line) => lines.push(line));
  hostNetwork({ env: { HTTPS_PROXY: "proxy.test:3128", NO_PROXY: "10.0.0.0/x, example.com 10.0.0.0/8,*" }, log });
  assert.deepEqual(lines, [
    "sbx warning: an entry of NO_PROXY is neither a name, an address nor a block of addresses, and excepts nothing entry=10.0.0.0/x",
  ]);
  hostNetwork({ env: { NO_PROXY: "10.0.0.0/x" }, log });
  assert.equal(lines.length, 1, "without a proxy there is nothing to except");
});

noLeftovers();
