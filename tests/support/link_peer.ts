/** Link peer: the wire boundary of the private socket, for clients and servers that do as a test says. */
import fs from "node:fs";
import net, { type Socket } from "node:net";
import type { TestContext } from "node:test";
import { VERSION } from "../../src/config/version.ts";
import type { ServerPlace } from "../../src/link/place.ts";
import { newNonce, prove, readSecret } from "../../src/link/secret.ts";
import { eventually, settled } from "./waiting.ts";

/** A connection of a client that says what it likes. */
export interface RawClient {
  readonly socket: Socket;
  /** Lines that came, as values. */
  readonly lines: ReadonlyArray<Record<string, unknown>>;
  readonly closed: Promise<void>;
  say(value: unknown): void;
  /** The first line that fits. */
  heard(fits: (line: Record<string, unknown>) => boolean): Promise<Record<string, unknown>>;
}

/** Connects and says nothing. */
export function connectRaw(t: TestContext, place: ServerPlace): RawClient {
  const socket = net.connect({ path: place.socket }), lines: Record<string, unknown>[] = [];
  let text = "";
  socket.on("data", (chunk) => {
    text += String(chunk);
    for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n")) {
      lines.push(JSON.parse(text.slice(0, at)));
      text = text.slice(at + 1);
    }
  });
  socket.on("error", () => {}); // It is closed then.
  t.after(() => void socket.destroy());
  return {
    socket,
    lines,
    closed: settled(new Promise<void>((resolve) => socket.once("close", () => resolve())), "the connection's end"),
    say: (value) => void socket.write(`${JSON.stringify(value)}\n`),
    async heard(fits) {
      await eventually("the line comes", () => lines.some(fits));
      return lines.find(fits) as Record<string, unknown>;
    },
  };
}

/** Connects and proves who it is. */
export async function meetRaw(t: TestContext, place: ServerPlace): Promise<RawClient> {
  const client = connectRaw(t, place), clientNonce = newNonce();
  client.closed.catch(() => {}); // Mostly nobody waits for it.
  client.say({ open: "control", version: VERSION, nonce: clientNonce });
  const { nonce: serverNonce } = await client.heard((line) => "proof" in line);
  const secret = await readSecret(place.secret);
  client.say({ proof: prove(secret, { role: "client", clientNonce, serverNonce: String(serverNonce) }) });
  return client;
}

/** A server that answers each connection's first line as `answer` says, in a place of the test's own. Resolves with all that it was told. */
export async function fakeServer(t: TestContext, place: ServerPlace, answer: (said: Record<string, unknown>) => string | undefined) {
  fs.mkdirSync(place.directory, { recursive: true, mode: 0o700 });
  const told: string[] = [], sockets = new Set<Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("data", (chunk) => told.push(String(chunk)));
    socket.once("data", (chunk) => {
      const said = answer(JSON.parse(String(chunk)));
      if (said === undefined) socket.destroy();
      else socket.write(said);
    });
  });
  await new Promise<void>((resolve) => server.listen(place.socket, resolve));
  t.after(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  return told;
}
