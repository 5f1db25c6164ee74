/** Server: the process behind `sbx serve`. Owns one supply of VMs and lends them to clients over a private socket. */
import { chmodSync, lstatSync } from "node:fs";
import fs from "node:fs/promises";
import net, { type Server as Listener, type Socket } from "node:net";
import process from "node:process";
import { CommunicationError, messageOf, SocketAuthError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import { Scope } from "../base/scope.ts";
import type { ResolvedConfig } from "../config/config.ts";
import { VERSION } from "../config/version.ts";
import type { LeaseProgress, ServerStatus } from "../link/messages.ts";
import { makePlace, placeOf, type ServerPlace } from "../link/place.ts";
import { makeSecret } from "../link/secret.ts";
import { sharedConfig } from "../run/shared_config.ts";
import { Supply } from "../run/supply.ts";
import type { Client } from "./client.ts";
import { Connection, type ConnectionParts } from "./connection.ts";
import { lockPlace } from "./running.ts";

/**
 * Connections that have not proven who they are. Many commands may come at once; but a flood must not take the descriptors of those who have, of which some
 * systems give a process no more than 1,024, nor all of them: where there is none left Deno (2.9) stops listening for good.
 */
const STRANGERS_MAX = 256;
/** More than may wait for room, so that a client is told of that as by a supply of its own. */
const REQUESTS_MAX = 16_384;
const MIB = 1_048_576;
const LEFT = new CommunicationError("Cannot start a VM: the client has gone");

/** What a server is started with. */
export interface ServerOptions {
  readonly config: ResolvedConfig;
  readonly log: Logger;
  /** Default: that of the configuration's cache directory. */
  readonly place?: ServerPlace;
  /** How many requests of a client may wait for their answer. Default 16,384. */
  readonly requestsMax?: number;
}

/** A server that runs. Disposing ends its VMs, waits for their death and leaves no file but its directory. */
export class Server implements AsyncDisposable {
  readonly place: ServerPlace;
  readonly #listener: Listener;
  readonly #log: Logger;
  readonly #owned: Scope;
  readonly #parts: ConnectionParts;
  readonly #clients: Set<Client>;
  readonly #connections = new Set<Connection>();
  readonly #startedAt = performance.now();
  #closed: Promise<void> | undefined;

  private constructor(
    parts: Omit<ConnectionParts, "status" | "doors">,
    { place, listener, owned }: { readonly place: ServerPlace; readonly listener: Listener; readonly owned: Scope },
  ) {
    this.place = place;
    this.#listener = listener;
    listener.on("connection", (socket) => this.#accept(socket));
    listener.on("error", (error) => this.#log.warning("a connection could not be accepted", { reason: messageOf(error) }));
    this.#log = parts.log;
    this.#owned = owned;
    this.#clients = parts.clients;
    this.#parts = { ...parts, doors: new Map(), status: () => this.#status() };
  }

  /**
   * Starts a server. Throws `ServerRunningError` when one runs at that place, `SocketAuthError` when its directory cannot be trusted, `AssetError`
   * when the images are missing. The caller owns it.
   */
  static async start({ config, log, place = placeOf(config.cacheDir), requestsMax = REQUESTS_MAX }: ServerOptions): Promise<Server> {
    await using scope = new Scope();
    await makePlace(place);
    scope.use("lock", await lockPlace(place));
    const clients = new Set<Client>();
    const onProgress = (progress: LeaseProgress) => clients.forEach((client) => client.tell(progress));
    const machines = scope.use("VMs", await Supply.open(config, { log, onProgress }));
    await removeStale(place, log);
    scope.defer("files", async () => {
      for (const file of [place.socket, place.secret]) await fs.rm(file, { force: true });
    });
    const secret = await makeSecret(place.secret), shared = await sharedConfig(config);
    const listener = net.createServer();
    await listen(listener, place);
    return new Server({ machines, log, secret, shared, clients, requestsMax }, { place, listener, owned: scope.move() });
  }

  /** Resolves when as many VMs are kept ready as were asked for. */
  async ready(signal: AbortSignal): Promise<void> {
    await this.#parts.machines.ready(signal);
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= (async () => {
      const reason = new CommunicationError("Cannot start a VM: the server is being stopped");
      this.#listener.close();
      await Promise.all([...this.#connections].map((connection) => connection.end(reason)));
      await this.#owned[Symbol.asyncDispose]();
    })();
    return this.#closed;
  }

  #accept(socket: Socket): void {
    if (this.#closed) {
      socket.on("error", () => {}); // It is cut off.
      socket.destroy();
      return;
    }
    const connection = new Connection(socket, this.#parts);
    this.#connections.add(connection);
    this.#boundStrangers();
    // Until the VMs are dead: who stops the server waits for them, whoever has left by then.
    socket.once("close", () => void connection.end(LEFT).finally(() => this.#connections.delete(connection)));
  }

  /** Whoever has said nothing for longest makes room: those who mean it say who they are at once. */
  #boundStrangers(): void {
    if (this.#connections.size <= STRANGERS_MAX) return;
    const strangers = [...this.#connections].filter((connection) => connection.isStranger);
    if (strangers.length <= STRANGERS_MAX) return;
    this.#log.warning("a connection was closed: too many have not said who they are", { strangers: strangers.length });
    void strangers[0]?.end(LEFT);
  }

  #status(): ServerStatus {
    const counts = [...this.#clients].map(({ counts }) => counts);
    const sum = (name: "waiting" | "vms") => counts.reduce((total, each) => total + each[name], 0);
    return {
      version: VERSION,
      pid: process.pid,
      uptimeSeconds: (performance.now() - this.#startedAt) / 1000,
      clients: this.#clients.size,
      vms: sum("vms"),
      waiting: sum("waiting"),
      memoryMb: process.memoryUsage().rss / MIB,
    };
  }
}

/** The lock is ours, so what lies in the socket's place is nobody's: a socket of a dead server. Anything else is not ours to remove. */
async function removeStale(place: ServerPlace, log: Logger): Promise<void> {
  const found = lstatSync(place.socket, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) {
    throw new SocketAuthError(`Cannot serve at ${place.socket}: there must be nothing or a socket, got something else`, {
      hint: `Look at it, and remove it: \`rm ${place.socket}\`.`,
    });
  }
  log.info("the socket of a server that has died is replaced", { socket: place.socket });
  await fs.rm(place.socket, { force: true });
}

function listen(listener: Listener, place: ServerPlace): Promise<void> {
  return new Promise((resolve, reject) => {
    const onError = (cause: Error) => {
      reject(new CommunicationError(`Cannot listen at ${place.socket}: ${messageOf(cause)}`, { cause, retry: "never" }));
    };
    listener.once("error", onError);
    listener.listen(place.socket, () => {
      listener.off("error", onError);
      chmodSync(place.socket, 0o600);
      resolve();
    });
  });
}
