/** Network requests: every field checked before anything starts, and the host's certificates for the guest. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import tls from "node:tls";
import { InputValidationError, VmConfigError } from "../../../src/base/errors.ts";
import { lineLogger } from "../../../src/base/log.ts";
import { extraCertificates, selectCertificates } from "../../../src/net/extra_ca.ts";
import { Pins } from "../../../src/net/pins.ts";
import { checkNetwork, checkPorts } from "../../../src/run/network_request.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

test("ports: numbers and objects, each with its protocol", () => {
  const specs = checkPorts("run", [8080, { internal: 53, protocol: "udp" }, { internal: 53, external: 53 }, {
    internal: 1,
    external: 65535,
    protocol: "tcp",
  }]);
  assert.deepEqual(specs, [
    { internal: 8080, external: undefined, protocol: "tcp" },
    { internal: 53, external: undefined, protocol: "udp" },
    { internal: 53, external: 53, protocol: "tcp" },
    { internal: 1, external: 65535, protocol: "tcp" },
  ]);
  assert.deepEqual(checkPorts("run", undefined), []);
});

test("ports: what is none, twice or one too many is a VmConfigError", () => {
  const bad: unknown[] = [
    ...[0, -1, 65536, 1.5, NaN, Infinity, "80", null, true].map((port) => [port]),
    ...[{ internal: 0 }, { internal: 80, external: 0 }, { internal: 80, external: 65536 }, { internal: 80, protocol: "sctp" }, {}, {
      external: 80,
    }, { internal: 80, extra: 1 }].map((port) => [port]),
    [80, 80],
    [80, { internal: 80 }],
    [{ internal: 80, external: 9000 }, { internal: 81, external: 9000 }],
    Array.from({ length: 11 }, (_, at) => at + 1),
  ];
  for (const ports of bad) assert.throws(() => checkPorts("run", ports), VmConfigError, JSON.stringify(ports));
  for (const ports of [80, "80", {}]) assert.throws(() => checkPorts("run", ports), InputValidationError);
});

test("network: domains and callbacks are checked", () => {
  assert.throws(() => checkNetwork("run", { allowedDomains: ["*"] }), InputValidationError);
  assert.throws(() => checkNetwork("run", { onNetworkEvent: "x" as never }), InputValidationError);
  assert.throws(() => checkNetwork("run", { onExposedPorts: 1 as never }), InputValidationError);
  assert.equal(checkNetwork("run", { allowNetwork: true }).policy.kind, "full");
});

test("pins: names and ports, addresses and ports", () => {
  const pins = new Pins({
    "API.example.com": "127.0.0.1",
    "db.example.com:5432": "127.0.0.1:15432",
    "six.example.com:443": "[::1]:8443",
    "bare.example.com": "::1",
  });
  const found = (name: string, port: number) => {
    const pin = pins.find(name, port);
    return pin && [pin.address.text, pin.port];
  };
  assert.deepEqual(found("api.example.com", 80), ["127.0.0.1", undefined]);
  assert.deepEqual(found("db.example.com", 5432), ["127.0.0.1", 15432]);
  assert.equal(found("db.example.com", 80), undefined);
  assert.deepEqual(found("six.example.com", 443), ["::1", 8443]);
  assert.deepEqual(found("bare.example.com", 443), ["::1", undefined]);
  assert.deepEqual([pins.has("db.example.com"), pins.has("example.com")], [true, false]);
  for (
    const hosts of [{ "a b": "127.0.0.1" }, { "a.example": "b.example" }, { "a.example": "127.0.0.1:0" }, { "a.example": "127.1" }, {
      "a.example:x": "127.0.0.1",
    }]
  ) {
    assert.throws(() => new Pins(hosts as Record<string, string>), InputValidationError, JSON.stringify(hosts));
  }
});

const pem = (body: string) => `-----BEGIN CERTIFICATE-----\n${body}\n-----END CERTIFICATE-----\n`;

test("certificates: each once, none that everybody has, whole ones only", () => {
  const { pem: selected, leftOut } = selectCertificates([`# x\n${pem("AAAA")}junk${pem("BBBB")}`, pem("AA\nAA"), "none"], [pem("BBBB")]);
  assert.deepEqual([selected, leftOut], [pem("AAAA"), 0]);
  const many = selectCertificates([Array.from({ length: 300 }, (_, at) => pem(String(at).padStart(1000, "A"))).join("")], []);
  assert.ok(many.pem.length <= 262_144 && many.pem.endsWith("-----END CERTIFICATE-----\n"));
  assert.equal(many.pem.match(/BEGIN/g)?.length, 300 - many.leftOut);
});

test("certificates: the files that the environment names are read; one that cannot be is told", async (t) => {
  const directory = temporaryDirectory(t), file = path.join(directory, "ca.pem"), lines: string[] = [];
  const log = lineLogger("warning", (line) => lines.push(line));
  writeFileSync(file, pem("AAAA") + (tls.rootCertificates[0] ?? ""));
  const read = async (env: Record<string, string>) => new TextDecoder().decode(await extraCertificates(env, log));
  assert.equal(await read({ SSL_CERT_FILE: file, NODE_EXTRA_CA_CERTS: file }), pem("AAAA"));
  assert.equal(await read({}), "");
  assert.deepEqual(lines, []);
  assert.equal(await read({ NODE_EXTRA_CA_CERTS: path.join(directory, "none") }), "");
  assert.equal(lines.length, 1);
});

noLeftovers();
