/** Network options: what reaches the request, what is refused before anything is opened, and what is told. */
import assert from "node:assert/strict";
import { chmodSync, readFileSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import type { NetworkEvent } from "../../../src/net/events.ts";
import type { RunRequest } from "../../../src/run/request.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { resultOf, sbx } from "./fake_context.ts";

const EVENT: NetworkEvent = {
  time: "2026-01-01T00:00:00.000Z",
  vm: "vm-1",
  kind: "tcp",
  name: "api.example.com",
  address: "203.0.113.5",
  port: 443,
  verdict: "allowed",
  reason: null,
  sentBytes: 10,
  receivedBytes: 20,
  durationMs: 3,
};
const PORT = { internal: 8080, external: 52341, host: "127.0.0.1", protocol: "tcp", url: "http://127.0.0.1:52341" } as const;
const SHOWN = { internal: 8080, external: 52341, host: "127.0.0.1", url: "http://127.0.0.1:52341" };

/** A run that tells of `events` and ports. */
const telling = (events: readonly NetworkEvent[]) => (request: RunRequest) => {
  request.onExposedPorts?.([PORT]);
  for (const event of events) request.onNetworkEvent?.(event);
  return Promise.resolve(resultOf({ exposedPorts: request.exposePorts ? [PORT] : [] }));
};

test("network options reach the request", async () => {
  const { requests: [request] } = await sbx([
    "run",
    "--network",
    "--allow-domain",
    "api.example.com",
    "--allow-domain=db.example.com:5432",
    "--expose",
    "8080",
    "--expose",
    "53:5353/udp",
    "1",
  ]);
  assert.equal(request?.allowNetwork, true);
  assert.deepEqual(request?.allowedDomains, ["api.example.com", "db.example.com:5432"]);
  assert.deepEqual(request?.exposePorts, [{ internal: 8080 }, { internal: 53, external: 5353, protocol: "udp" }]);
  const { requests: [implied] } = await sbx(["run", "--allow-domain", "api.example.com", "1"]);
  assert.deepEqual([implied?.allowNetwork, implied?.allowedDomains, implied?.onNetworkEvent], [undefined, ["api.example.com"], undefined]);
  const { requests: [observing] } = await sbx(["run", "--network-observe", "1"]);
  assert.deepEqual([observing?.allowNetwork, observing?.allowedDomains], [true, undefined]);
});

test("network options that are none are refused before anything is opened", async () => {
  const wrong = [
    ...["*", "http://x", "a b.com", "", "10.0.0.1", "localhost", Array.from({ length: 300 }, () => "a").join("."), "example.com:0"].map((
      value,
    ) => ["--allow-domain", value]),
    ...["0", "65536", "1.5", "x", "", "80:", "80:0", "80:65536", "80/sctp", "80:80:80", "-1", "8080/tcp/udp"].map((
      value,
    ) => ["--expose", value]),
  ];
  for (const [option, value] of wrong) {
    const { code, stderr, opened } = await sbx(["run", `${option}=${value}`, "1"]);
    assert.deepEqual([code, opened], [2, 0], `${option} ${value}`);
    assert.match(stderr, /^sbx: Cannot .*got/s, `${option} ${value}`);
    const session = await sbx(["session", `${option}=${value}`]);
    assert.deepEqual([session.code, session.opened], [2, 0]);
  }
  for (
    const args of [
      ["--expose=80", "--expose=80"],
      ["--expose=80:8080", "--expose=81:8080"],
      Array.from({ length: 11 }, (_, at) => `--expose=${at + 1}`),
    ]
  ) {
    assert.deepEqual((({ code, opened }) => [code, opened])(await sbx(["run", ...args, "1"])), [2, 0]);
  }
  assert.equal((await sbx(["run", "--network-observe", "--allow-domain=a.example", "1"])).code, 2);
  assert.equal((await sbx(["run", "--expose=80:8080", "1", "2"])).code, 2, "one host port cannot be that of two machines");
  assert.equal((await sbx(["run", "--expose=80", "--expose=80/udp", "1", "2"])).code, 0);
});

test("ports are told at once: to people, or as a line of JSON; and are in the result", async () => {
  const plain = await sbx(["run", "--expose", "8080", "1"], { run: telling([]) });
  assert.equal(plain.stderr, "port 8080 → http://127.0.0.1:52341\n");
  const json = await sbx(["run", "--json", "--expose", "8080", "1"], { run: telling([]) });
  assert.deepEqual(JSON.parse(json.stderr), { event: "exposed_ports", exposed_ports: [SHOWN] });
  assert.deepEqual(JSON.parse(json.stdout).exposed_ports, [SHOWN]);
  const several = await sbx(["run", "--json", "--expose", "8080", "1", "2"], { run: telling([]) });
  assert.deepEqual(several.stderr.trim().split("\n").map((line) => JSON.parse(line).index), [0, 1]);
});

test("the network log has a line for each event, in the command line's words, behind what was there", async (t) => {
  const file = path.join(temporaryDirectory(t), "net.log");
  for (let round = 0; round < 2; round++) {
    assert.equal((await sbx(["run", "--network", "--network-log", file, "1"], { run: telling([EVENT]) })).code, 0);
  }
  const lines = readFileSync(file, "utf8").trim().split("\n").map((line) => JSON.parse(line));
  const { sentBytes: _s, receivedBytes: _r, durationMs: _d, ...others } = EVENT;
  assert.deepEqual(lines, Array.from({ length: 2 }, () => ({ ...others, sent_bytes: 10, received_bytes: 20, duration_ms: 3 })));
  assert.equal(statSync(file).mode & 0o777, 0o600);
});

test("a network log that cannot be written is refused before anything is opened", async (t) => {
  const directory = temporaryDirectory(t);
  for (const file of [directory, path.join(directory, "none", "net.log")]) {
    const { code, stderr, opened } = await sbx(["run", "--network-log", file, "1"]);
    assert.deepEqual([code, opened], [2, 0]);
    assert.match(stderr, /^sbx: Cannot set --network-log: the file must be one that can be written: /);
  }
  const file = path.join(directory, "mine");
  writeFileSync(file, "");
  chmodSync(file, 0o644);
  assert.equal((await sbx(["run", "--network-log", file, "1"])).code, 0);
  assert.equal(statSync(file).mode & 0o777, 0o644, "a file that is there keeps its mode");
});

test("what was observed is the smallest list that would have been enough", async () => {
  const at = (fields: Partial<NetworkEvent>): NetworkEvent => ({ ...EVENT, ...fields });
  const events = [
    at({}),
    at({ port: 80 }),
    at({ name: "example.org" }),
    at({ name: "www.example.org" }),
    at({ name: "db.example.com", port: 5432 }),
    at({ name: "a.db.example.com", port: 5432 }),
    at({ name: "db.example.net", port: 5433, verdict: "failed", reason: "timeout" }),
    at({ name: "refused.example", verdict: "refused", reason: "private" }),
    at({ name: "asked.example", kind: "dns", port: null }),
    at({ name: null }),
    at({ name: "q.example", kind: "udp" }),
    at({ name: null, kind: "udp", address: "2001:db8::1", port: 53 }),
    at({ kind: "expose", name: null, address: null, port: 8080 }),
  ];
  const wanted = ["api.example.com", "db.example.com:5432", "db.example.net:5433", "example.org"];
  const others = ["tcp 203.0.113.5:443", "udp 203.0.113.5:443", "udp [2001:db8::1]:53"];
  const plain = await sbx(["run", "--network-observe", "1"], { run: telling(events) });
  assert.equal(
    plain.stderr,
    `This was enough: ${wanted.map((domain) => `--allow-domain ${domain}`).join(" ")}\nNo allowlist gives: ${others.join(", ")}\n`,
  );
  const json = await sbx(["run", "--json", "--network-observe", "1"], { run: telling(events) });
  assert.deepEqual([JSON.parse(json.stdout).observed_domains, JSON.parse(json.stdout).observed_others], [wanted, others]);
  assert.equal(
    (await sbx(["run", "--network-observe", "1"], { run: telling([]) })).stderr,
    "No name was connected to: no --allow-domain is needed\n",
  );
});

noLeftovers();
