/** Net services: what guests of tests reach on loopback: HTTP, HTTPS with an authority of its own, and the DNS server that the host asks. */
import { execFileSync } from "node:child_process";
import dgram from "node:dgram";
import dns from "node:dns/promises";
import { readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import type { AddressInfo, Server, Socket } from "node:net";
import path from "node:path";
import process from "node:process";
import type { TestContext } from "node:test";
import { temporaryDirectory } from "./leftovers.ts";

/** Requests that a service got, as `METHOD host path`. */
export interface HttpService {
  readonly port: number;
  readonly requests: string[];
}

/** A certificate, and who signed it. */
export interface Certificates {
  readonly authorityFile: string;
  readonly key: string;
  readonly cert: string;
}

/** Makes an authority, and a certificate of it for `names`. */
export function certificatesFor(t: TestContext, names: readonly string[]): Certificates {
  const directory = temporaryDirectory(t), at = (name: string) => path.join(directory, name);
  const openssl = (...args: string[]) => void execFileSync("openssl", args, { stdio: "ignore", cwd: directory });
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  openssl(
    "req",
    "-x509",
    ...key,
    "-keyout",
    "ca.key",
    "-out",
    "ca.pem",
    "-days",
    "2",
    "-subj",
    "/CN=sbx test authority",
    "-addext",
    "keyUsage=critical,keyCertSign,cRLSign",
  );
  openssl("req", ...key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=sbx test");
  writeFileSync(
    at("names"),
    `subjectAltName=${names.map((name) => `DNS:${name}`).join(",")}\nauthorityKeyIdentifier=keyid\nkeyUsage=digitalSignature\n`,
  );
  openssl(
    "x509",
    "-req",
    "-in",
    "request.pem",
    "-CA",
    "ca.pem",
    "-CAkey",
    "ca.key",
    "-CAcreateserial",
    "-days",
    "2",
    "-extfile",
    "names",
    "-out",
    "cert.pem",
  );
  return { authorityFile: at("ca.pem"), key: readFileSync(at("key.pem"), "utf8"), cert: readFileSync(at("cert.pem"), "utf8") };
}

/** Answers `host path` to everything; `/redirect?TO` leads to TO. Over TLS where there are certificates. */
export async function httpService(t: TestContext, certificates?: Certificates): Promise<HttpService> {
  const requests: string[] = [];
  const answer: http.RequestListener = (request, response) => {
    requests.push(`${request.method} ${request.headers.host} ${request.url}`);
    const [, to] = request.url?.split("/redirect?") ?? [];
    if (to !== undefined) response.writeHead(302, { location: to });
    response.end(`${request.headers.host} ${request.url}\n`);
  };
  const server = certificates ? https.createServer({ key: certificates.key, cert: certificates.cert }, answer) : http.createServer(answer);
  return { port: await listening(t, server), requests };
}

async function listening(t: TestContext, server: Server): Promise<number> {
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", () => {}); // Clients of tests break off.
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    return new Promise<void>((resolve) => server.close(() => resolve()));
  });
  return (server.address() as AddressInfo).port;
}

/** Makes this process ask a DNS server that knows `table` alone, until the test ends. */
export async function dnsService(t: TestContext, table: Readonly<Record<string, readonly string[]>>): Promise<{ asked: string[] }> {
  const socket = dgram.createSocket("udp4"), asked: string[] = [], before = dns.getServers();
  socket.on("message", (message, { port, address }) => {
    let at = 12;
    const labels: string[] = [];
    for (let length = message[at] ?? 0; length > 0; length = message[at] ?? 0) {
      labels.push(message.subarray(at + 1, at + 1 + length).toString("latin1"));
      at += 1 + length;
    }
    const name = labels.join("."), type = message.readUInt16BE(at + 1), known = table[name.toLowerCase()];
    asked.push(name);
    const answers = (type === 1 ? known ?? [] : []).map((text) =>
      Uint8Array.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...text.split(".").map(Number)])
    );
    const header = Uint8Array.from([message[0] ?? 0, message[1] ?? 0, 0x81, known ? 0x80 : 0x83, 0, 1, 0, answers.length, 0, 0, 0, 0]);
    socket.send([header, message.subarray(12, at + 5), ...answers], port, address);
  });
  await new Promise<void>((resolve) => socket.bind(0, "127.0.0.1", resolve));
  dns.setServers([`127.0.0.1:${socket.address().port}`]);
  t.after(() => {
    dns.setServers(before);
    return new Promise<void>((resolve) => socket.close(() => resolve()));
  });
  return { asked };
}

/** Sets variables of this process until the test ends; undefined removes one. */
export function withEnvironment(t: TestContext, values: Readonly<Record<string, string | undefined>>): void {
  for (const [name, value] of Object.entries(values)) {
    const before = process.env[name];
    const set = (to: string | undefined) => {
      if (to === undefined) delete process.env[name];
      else process.env[name] = to;
    };
    set(value);
    t.after(() => set(before));
  }
}
