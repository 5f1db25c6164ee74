/** S3: a real server on loopback, and a proxy of ours in front of it that injects faults. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import http from "node:http";
import net, { type AddressInfo } from "node:net";
import path from "node:path";
import process from "node:process";
import type { TestContext } from "node:test";
import { cacheDirectory } from "../../src/host/platform.ts";
import { temporaryDirectory } from "./leftovers.ts";
import { eventually } from "./waiting.ts";

/** The server, as `.ci/run` builds it. */
const PROGRAM = process.env["SBX_TEST_VERSITYGW"] ?? path.join(cacheDirectory(), "tools", "versitygw-1.8.0", "versitygw");
/** Why tests of S3 are left out; false where they are not. */
export const skipS3: string | false = existsSync(PROGRAM) ? false : `there is no ${PROGRAM}; .ci/run builds it where Go is to be had`;

/** The one bucket that a server has at first. */
export const BUCKET = "layers";
const CREDENTIALS = { AWS_ACCESS_KEY_ID: "test", AWS_SECRET_ACCESS_KEY: "testtest", AWS_EC2_METADATA_DISABLED: "true" };

/** A request on its way to the server. */
export interface PassingRequest {
  readonly method: string;
  /** Of the object, without bucket and prefix of the path. */
  readonly key: string;
  readonly query: string;
}

/** What the proxy does with a request, or with the answer to it. */
export type Fault =
  | { readonly kind: "answer"; readonly status: number; readonly code: string }
  | { readonly kind: "hang" }
  | { readonly kind: "reset" }
  /** The answer's body stops after so many bytes: `cut` ends the connection, `stall` keeps it open, `truncate` promises no more than it sends. */
  | { readonly kind: "cut" | "stall" | "truncate"; readonly atByte: number }
  | { readonly kind: "corrupt"; readonly atByte: number };

/** A server with a proxy in front of it. */
export interface TestS3 {
  /** Of the proxy. */
  readonly endpoint: string;
  /** Where the server keeps its buckets. */
  readonly data: string;
  /** All requests so far, as `GET layers/v1/….json`. */
  readonly requests: string[];
  /** Names of the objects in the bucket. */
  objects(): string[];
  /** Decides on each request from now on; undefined lets it pass. */
  inject(fault: (request: PassingRequest) => Fault | undefined): void;
  /** Ends the server behind the proxy. */
  stop(): Promise<void>;
}

/** Starts both; they end with the test. The credentials are in the environment until then. */
export async function startS3(t: TestContext): Promise<TestS3> {
  const directory = temporaryDirectory(t), data = path.join(directory, "data"), iam = path.join(directory, "iam");
  mkdirSync(path.join(data, BUCKET), { recursive: true });
  mkdirSync(iam);
  setEnvironment(t);
  const port = await freePort();
  // It changes its directory: every path must be absolute.
  const server = spawn(PROGRAM, ["-q", "-p", `127.0.0.1:${port}`, "--iam-dir", iam, "posix", data], {
    stdio: "ignore",
    env: { ...process.env, ROOT_ACCESS_KEY: CREDENTIALS.AWS_ACCESS_KEY_ID, ROOT_SECRET_KEY: CREDENTIALS.AWS_SECRET_ACCESS_KEY },
  });
  const stop = () => ended(server);
  t.after(stop);
  await eventually("the S3 server listens", () => listens(port));
  const proxy = new Proxy(port);
  const endpoint = await proxy.listen();
  t.after(() => proxy.close());
  return {
    endpoint,
    data,
    requests: proxy.requests,
    objects: () => filesBelow(path.join(data, BUCKET)),
    inject: (fault) => proxy.fault = fault,
    stop,
  };
}

class Proxy {
  readonly requests: string[] = [];
  fault: (request: PassingRequest) => Fault | undefined = () => undefined;
  readonly #server = http.createServer((incoming, outgoing) => this.#pass(incoming, outgoing));
  readonly #target: number;
  readonly #sockets = new Set<net.Socket>();

  constructor(target: number) {
    this.#target = target;
    this.#server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  async listen(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #pass(incoming: http.IncomingMessage, outgoing: http.ServerResponse): void {
    const url = new URL(incoming.url ?? "/", "http://s3");
    const request = { method: incoming.method ?? "", key: decodeURIComponent(url.pathname).replace(/^\/[^/]+\//, ""), query: url.search };
    this.requests.push(`${request.method} ${request.key}${request.query.includes("uploads") ? " begin" : ""}`);
    const fault = this.fault(request);
    outgoing.on("error", () => {}); // Who asked has gone.
    incoming.on("error", () => {}); // As above.
    if (fault?.kind === "hang") return void incoming.resume();
    if (fault?.kind === "reset") return void incoming.socket.destroy();
    if (fault?.kind === "answer") {
      incoming.resume();
      const text = request.method === "HEAD" ? "" : `<?xml version="1.0"?><Error><Code>${fault.code}</Code><Message>no</Message></Error>`;
      outgoing.writeHead(fault.status, { "content-type": "application/xml", "content-length": text.length });
      return void outgoing.end(text);
    }
    const { method, url: target, rawHeaders } = incoming;
    const onward = http.request({
      host: "127.0.0.1",
      port: this.#target,
      method,
      path: target,
      headers: rawHeaders as unknown as string[],
    });
    onward.on("error", () => incoming.socket.destroy());
    onward.on("response", (answer) => answerWith(answer, outgoing, fault));
    incoming.pipe(onward);
  }
}

function answerWith(
  answer: http.IncomingMessage,
  outgoing: http.ServerResponse,
  fault: Exclude<Fault, { kind: "answer" }> | undefined,
): void {
  const headers: Record<string, string | string[] | undefined> = { ...answer.headers };
  delete headers["transfer-encoding"];
  if (fault?.kind === "truncate") headers["content-length"] = String(fault.atByte);
  outgoing.writeHead(answer.statusCode ?? 502, headers as http.OutgoingHttpHeaders);
  if (!fault || !("atByte" in fault)) return void answer.pipe(outgoing);
  if (fault.kind === "truncate" && fault.atByte === 0) {
    answer.resume();
    return void outgoing.end();
  }
  let at = 0;
  answer.on("data", (chunk: Uint8Array) => {
    const start = at;
    at += chunk.length;
    if (fault.kind === "corrupt") {
      const bytes = new Uint8Array(chunk);
      if (fault.atByte >= start && fault.atByte < at) bytes[fault.atByte - start] = (bytes[fault.atByte - start] ?? 0) ^ 0xff;
      return void outgoing.write(bytes);
    }
    if (start >= fault.atByte) return;
    outgoing.write(chunk.subarray(0, fault.atByte - start));
    if (at < fault.atByte) return;
    // Once what was written has left.
    if (fault.kind === "truncate") outgoing.end();
    else if (fault.kind === "cut") outgoing.write("", () => outgoing.socket?.destroy());
  });
  answer.on("end", () => fault.kind === "corrupt" ? outgoing.end() : undefined);
}

function setEnvironment(t: TestContext): void {
  const before = Object.keys(CREDENTIALS).map((name) => [name, process.env[name]] as const);
  Object.assign(process.env, CREDENTIALS);
  t.after(() => {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  });
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const end = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGKILL");
  await end;
}

function filesBelow(directory: string): string[] {
  const entries = readdirSync(directory, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => path.relative(directory, path.join(entry.parentPath, entry.name)));
  return files.filter((name) => !name.startsWith(".sgwtmp")).sort();
}

async function freePort(): Promise<number> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect(port, "127.0.0.1");
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    }).once("error", () => resolve(false));
  });
}
