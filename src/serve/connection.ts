/** Connection: one of the server's, from its first line to the end of what it turned out to be for. */
import process from "node:process";
import type { Socket } from "node:net";
import { VERSION } from "../config/version.ts";
import { LineError, LineReader, writeLine } from "../link/lines.ts";
import { type Opening, openingSchema, proofSchema, readMessage, type SharedConfig, type Welcome } from "../link/messages.ts";
import { isProven, newNonce, prove } from "../link/secret.ts";
import { Client, type ServerParts } from "./client.ts";

/** A peer has proven who it is by then, or is not waited for. */
const HANDSHAKE_TIMEOUT_MS = 5_000;

/** What connections need of their server. */
export interface ConnectionParts extends ServerParts {
  readonly secret: Uint8Array;
  readonly shared: SharedConfig;
  /** Those who have proven who they are. */
  readonly clients: Set<Client>;
}

/** One connection. It ends with `end`, which is to be called when its socket is closed. */
export class Connection {
  readonly #socket: Socket;
  readonly #parts: ConnectionParts;
  readonly #reader: LineReader;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** What takes the next line. */
  #next: (value: unknown) => void = (value) => this.#open(value);
  #client: Client | undefined;

  /** Reads `socket` at once. */
  constructor(socket: Socket, parts: ConnectionParts) {
    this.#socket = socket;
    this.#parts = parts;
    this.#timer = setTimeout(() => this.#refuse(`no proof of who it is within ${HANDSHAKE_TIMEOUT_MS} ms`), HANDSHAKE_TIMEOUT_MS);
    this.#reader = new LineReader(socket, (value) => this.#next(value), (error) => this.#refuse(error.message));
    socket.on("error", () => {}); // That it is over is what counts, and comes with "close".
  }

  /** Nobody knows yet who is at its other end. */
  get isStranger(): boolean {
    return this.#timer !== undefined;
  }

  /** Cuts it off, with all that its client has; resolves when the VMs are dead. */
  async end(reason: unknown): Promise<void> {
    this.#known();
    this.#socket.destroy();
    const client = this.#client;
    if (client) this.#parts.clients.delete(client);
    await client?.end(reason);
  }

  #known(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #refuse(reason: string): void {
    this.#parts.log.warning("a connection was closed: the peer broke the protocol", { reason });
    void this.end(new LineError(reason));
  }

  #open(value: unknown): void {
    const opening = readMessage(openingSchema, value, "the first line");
    if (opening.open === "control") this.#meet(opening);
    else this.#attach(opening.token);
  }

  /** Says who we are, and waits for the client to do the same. */
  #meet({ version, nonce: clientNonce }: Extract<Opening, { open: "control" }>): void {
    const { secret, shared, clients, log } = this.#parts, serverNonce = newNonce(), nonces = { clientNonce, serverNonce };
    const proof = prove(secret, { role: "server", ...nonces });
    const welcome: Welcome = { version: VERSION, pid: process.pid, nonce: serverNonce, proof, config: shared };
    writeLine(this.#socket, welcome);
    this.#next = (value) => {
      if (!isProven(secret, { role: "client", ...nonces }, readMessage(proofSchema, value, "the second line").proof)) {
        throw new LineError("the proof is wrong: the peer does not know the secret");
      }
      if (version !== VERSION) throw new LineError(`the peer must be of version ${VERSION}, got ${version}`);
      this.#known();
      const client = this.#client = new Client(this.#socket, this.#parts);
      clients.add(client);
      this.#next = (request) => client.take(request);
    };
    if (version !== VERSION) log.debug("a client of another version came", { theirs: version, ours: VERSION });
  }

  /** Who knows the token is the client that was told it. From here on the bytes are the guest's. */
  #attach(token: string): void {
    const attach = this.#parts.doors.get(token);
    if (!this.#parts.doors.delete(token) || attach === undefined) throw new LineError("the token must be that of a lease");
    this.#known();
    const said = this.#reader.stop();
    if (!attach(this.#socket, said)) this.#socket.destroy();
  }
}
