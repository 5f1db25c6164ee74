/** Nearest machines: those of the server while there is one, else those of this process. */
import { CommunicationError, messageOf, SandboxDependencyError, SandboxError, SocketAuthError } from "../base/errors.ts";
import type { ResolvedConfig } from "../config/config.ts";
import type { ServerPlace } from "../link/place.ts";
import type { CheckpointIndex, MachineRequest, MachineSource } from "./machine.ts";
import { RemoteMachine } from "./remote_machine.ts";
import { RemoteMachines } from "./remote_machines.ts";
import { configDifference, sharedConfig } from "./shared_config.ts";
import type { SupplyHooks } from "./supply.ts";

/** A server that has gone refuses at once; one that is there answers in a millisecond or two, on a host with ten times its load in some 200. Only one that hangs takes longer. */
const MEET_TIMEOUT_MS = 1_000;

/** What the choice depends on. */
export interface NearestOptions {
  readonly place: ServerPlace;
  readonly config: ResolvedConfig;
  readonly hooks: SupplyHooks;
  /** Opens the source of this process. */
  openSupply(): Promise<MachineSource>;
}

/** The server's machines when it answers and shares our configuration; those of this process otherwise. The log tells which, and why. */
export async function nearestMachines(options: NearestOptions): Promise<MachineSource> {
  const { place, config, hooks: { log } } = options;
  try {
    const remote = await RemoteMachines.connect(place, options.hooks, { timeoutMs: MEET_TIMEOUT_MS });
    const { pid, version, config: theirs } = remote.link.welcome, difference = configDifference(theirs, await sharedConfig(config));
    if (difference === undefined) {
      log.debug("using the server's VMs", { pid, version, socket: place.socket });
      return new NearestMachines(remote, options);
    }
    await remote[Symbol.asyncDispose]();
    log.debug("not using the server: its configuration is another", { pid, difference });
  } catch (error) {
    if (!SandboxError.is(error)) throw error;
    // Whatever it is, this process can do the same by itself. A place that somebody may have tampered with is worth a word all the same.
    log[error instanceof SocketAuthError ? "warning" : "debug"]("not using the server", { reason: error.message });
  }
  return await options.openSupply();
}

/** The server's machines until it has gone or turns us away; from then on those of this process. */
class NearestMachines implements MachineSource {
  /** Both have the same with a name; those without are in one directory each, which either can remove. */
  readonly checkpoints: CheckpointIndex = {
    checkFree: (name) => this.#fromEither((source) => source.checkpoints.checkFree(name)),
    named: (name) => this.#fromEither((source) => source.checkpoints.named(name)),
    list: () => this.#fromEither((source) => source.checkpoints.list()),
    remove: (checkpoint) => this.#fromEither((source) => source.checkpoints.remove(checkpoint)),
  };
  readonly #remote: RemoteMachines;
  readonly #options: NearestOptions;
  #own: Promise<MachineSource> | undefined;
  #hasTurnedAway = false;

  constructor(remote: RemoteMachines, options: NearestOptions) {
    this.#remote = remote;
    this.#options = options;
  }

  async checkMemory(memoryMb: number): Promise<void> {
    await this.#fromEither((source) => source.checkMemory(memoryMb));
  }

  /** What takes the place of a server's VM, and comes from this process, has room of its own. Packages are had from VMs of this process only. */
  async lease(request: MachineRequest): ReturnType<MachineSource["lease"]> {
    const { replacing, ...alone } = request;
    const ask = (source: MachineSource) => {
      const isForeign = replacing instanceof RemoteMachine && source !== this.#remote;
      return source.lease(isForeign ? alone : request);
    };
    return await (request.packages ? ask(await this.#ownSupply()) : this.#fromEither(ask));
  }

  async ready(signal: AbortSignal): Promise<void> {
    await this.#fromEither((source) => source.ready(signal));
  }

  async prepare(request: Parameters<MachineSource["prepare"]>[0]): Promise<void> {
    await (request.packages ? (await this.#ownSupply()).prepare(request) : this.#fromEither((source) => source.prepare(request)));
  }

  async pinPackages(...given: Parameters<MachineSource["pinPackages"]>): ReturnType<MachineSource["pinPackages"]> {
    return await (await this.#ownSupply()).pinPackages(...given);
  }

  /** Waits for the deaths of this process's VMs. Those of the server are its own: it ends what we have when we leave, and a command need not wait for that. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#remote.link[Symbol.dispose]();
    const own = await this.#own?.catch(() => undefined); // Whoever asked it for a machine has seen why there is none.
    await own?.[Symbol.asyncDispose]();
  }

  /** Nothing has been asked of a machine yet, so nothing is lost by asking again. */
  async #fromEither<T>(ask: (source: MachineSource) => Promise<T>): Promise<T> {
    if (!this.#hasTurnedAway) {
      try {
        return await ask(this.#remote);
      } catch (error) {
        const isServers = error instanceof CommunicationError || error instanceof SandboxDependencyError;
        if (!isServers && !this.#remote.link.gone.aborted) throw error;
        this.#hasTurnedAway = true;
        this.#options.hooks.log.debug("the server lends no VM: this process starts its own", { reason: messageOf(error) });
      }
    }
    return await ask(await this.#ownSupply());
  }

  #ownSupply(): Promise<MachineSource> {
    return this.#own ??= this.#options.openSupply();
  }
}
