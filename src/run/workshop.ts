/** Workshop: the VM in which packages are installed, and the programs in it. */
import { lookup } from "node:dns/promises";
import fs from "node:fs/promises";
import { abortable } from "../base/async.ts";
import { PackageInstallError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import { classOf, parseAddress } from "../net/address.ts";
import { type DomainRule, parseRule } from "../net/domain.ts";
import type { NetworkEvent } from "../net/events.ts";
import type { InstallStep } from "../packages/install.ts";
import type { Hypervisor } from "../vm/hypervisor.ts";
import { launch } from "../vm/launch.ts";
import type { Vm } from "../vm/vm.ts";
import { LocalMachine } from "./local_machine.ts";
import { MachineNetwork, type NetworkSupport } from "./network.ts";

/** Of the machine; what is unpacked beyond it goes to the scratch disk. */
export const WORKSHOP_MEMORY_MIB = 512;
/** What a program prints for us. */
const ANSWER_MAX_BYTES = 8 * 1_048_576;
/** What it says of itself: as much as fits into a message. */
const SAID_MAX_CHARS = 4_000;
/** QEMU runs as another user, and opens the disks through bind mounts. */
const DISK_MODE = 0o666;
/** Names that a message may tell of. */
const NAMES_MAX = 16;
/** Why a connection to a registry does not come about that may come about later. */
const NETWORK_REASONS: ReadonlySet<string> = new Set(["refused", "unreachable", "timeout", "reset", "not-found", "proxy"]);

/** What a workshop is made of. */
export interface WorkshopParts {
  readonly hypervisor: Hypervisor;
  readonly language: string;
  /** Two files to be made: memory beyond the machine's, and what the layer is written to. */
  readonly disks: { readonly scratch: string; readonly result: string };
  readonly diskBytes: number;
  /** Hosts that may be reached, as an allowlist names them. */
  readonly hosts: readonly string[];
  /** The host's user has named them: they may be anywhere. */
  readonly areHostsTrusted: boolean;
  readonly networkSupport: () => Promise<NetworkSupport>;
  readonly log: Logger;
}

/** How a program ended. */
export interface StepResult {
  readonly exitCode: number;
  readonly stdout: string;
  /** The end of what it printed, control characters left out. */
  readonly said: string;
  /** A connection that was allowed did not come about, meanwhile. */
  readonly hasNetworkFailed: boolean;
}

/** A VM that installs. Disposing kills it and waits until it is dead. */
export class Workshop implements AsyncDisposable {
  readonly #vm: Vm;
  readonly #network: MachineNetwork;
  readonly #watch: Watch;

  private constructor(vm: Vm, network: MachineNetwork, watch: Watch) {
    this.#vm = vm;
    this.#network = network;
    this.#watch = watch;
  }

  /** Boots one; resolves when its network is there. The caller owns it. */
  static async open(parts: WorkshopParts, signal: AbortSignal): Promise<Workshop> {
    const { hypervisor, language, disks, log } = parts;
    for (const file of [disks.scratch, disks.result]) await makeDisk(file, parts.diskBytes);
    await using stack = new AsyncDisposableStack();
    const vm = stack.use(
      await launch(hypervisor, {
        language,
        memoryMiB: WORKSHOP_MEMORY_MIB,
        origin: { kind: "cold" },
        layer: { kind: "workshop", ...disks },
        hasNet: true,
      }),
    );
    await abortable(vm.ready, signal);
    const machine = new LocalMachine({ vm, template: undefined, onRelease: () => {} }), watch = new Watch();
    const network = stack.use(
      await MachineNetwork.open({
        machine,
        request: {
          policy: { kind: "allowlist", rules: rulesOf(parts.hosts) },
          ports: [],
          onNetworkEvent: (event) => watch.hear(event),
          onExposedPorts: undefined,
        },
        support: parts.areHostsTrusted ? () => withPins(parts) : parts.networkSupport,
        log,
      }),
    );
    await abortable(network.answered(), signal);
    stack.move();
    return new Workshop(vm, network, watch);
  }

  /** Names that were asked for and that nobody allowed. */
  get refusedNames(): readonly string[] {
    return [...this.#watch.refusedNames];
  }

  /** From now on these hosts may be reached, and no others. */
  async allow(hosts: readonly string[]): Promise<void> {
    await this.#network.update({ kind: "allowlist", rules: rulesOf(hosts) });
  }

  /** Runs a program to its end; `onLine` hears each line it says of itself. Rejects with the signal's reason: the workshop is of no use then. */
  async run(step: InstallStep, options: { readonly signal: AbortSignal; readonly onLine?: (line: string) => void }): Promise<StepResult> {
    const failuresBefore = this.#watch.failures, until = AbortSignal.any([options.signal, this.#vm.lost]);
    const answer = new Bounded(ANSWER_MAX_BYTES), said = new Said(options.onLine);
    const { argv, env } = step;
    const request = { argv, env, cwd: "/home/user", hasStdin: false, pty: null, isBackground: false };
    const program = await this.#vm.guest.processes.spawn(request, (name, bytes) => {
      if (name === "stdout") answer.add(bytes);
      said.add(name, bytes);
    }, until);
    const exitCode = await abortable(program.ended, until);
    const stdout = answer.text();
    return { exitCode, stdout, said: said.end(), hasNetworkFailed: this.#watch.failures > failuresBefore };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#network[Symbol.asyncDispose]();
    await this.#vm[Symbol.asyncDispose]();
  }
}

/** Notes what happens on a workshop's network. */
class Watch {
  readonly refusedNames = new Set<string>();
  failures = 0;

  hear({ verdict, reason, name }: NetworkEvent): void {
    if (verdict === "failed" && reason !== null && NETWORK_REASONS.has(reason)) this.failures += 1;
    if (verdict === "refused" && reason === "name" && name !== null && this.refusedNames.size < NAMES_MAX) this.refusedNames.add(name);
  }
}

/** Takes what a program prints for us, up to a bound. */
class Bounded {
  readonly #maxBytes: number;
  readonly #chunks: Uint8Array[] = [];
  #byteCount = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  add(bytes: Uint8Array): void {
    this.#byteCount += bytes.length;
    if (this.#byteCount <= this.#maxBytes) this.#chunks.push(bytes.slice());
  }

  /** Throws `PackageInstallError` where that was more than may be. */
  text(): string {
    if (this.#byteCount > this.#maxBytes) {
      throw new PackageInstallError(
        `Cannot install packages: a program must print at most ${this.#maxBytes} bytes, got ${this.#byteCount}`,
      );
    }
    const decoder = new TextDecoder();
    return this.#chunks.map((chunk) => decoder.decode(chunk, { stream: true })).join("") + decoder.decode();
  }
}

/** Takes what a program says, line by line, and keeps the end. */
class Said {
  readonly #onLine: ((line: string) => void) | undefined;
  readonly #decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  readonly #rest = { stdout: "", stderr: "" };
  #tail = "";

  constructor(onLine: ((line: string) => void) | undefined) {
    this.#onLine = onLine;
  }

  add(name: "stdout" | "stderr", bytes: Uint8Array): void {
    const lines = (this.#rest[name] + this.#decoders[name].decode(bytes, { stream: true })).split(/\r?\n|\r/);
    this.#rest[name] = (lines.pop() ?? "").slice(-SAID_MAX_CHARS);
    for (const line of lines) this.#take(line);
  }

  end(): string {
    for (const name of ["stdout", "stderr"] as const) this.#take(this.#rest[name]);
    return this.#tail.trim();
  }

  #take(line: string): void {
    const clean = cleanLine(line);
    if (clean.trim() === "") return;
    this.#tail = `${this.#tail}${clean}\n`.slice(-SAID_MAX_CHARS);
    this.#onLine?.(clean.trim());
  }
}

/** A line of a guest without what would steer a terminal. */
function cleanLine(line: string): string {
  // deno-lint-ignore no-control-regex
  return line.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "").replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, "").slice(0, SAID_MAX_CHARS);
}

function rulesOf(hosts: readonly string[]): DomainRule[] {
  return hosts.map((host) => parseRule(host, "install packages"));
}

/** Hosts that the host's user has named may be in networks that guests never reach otherwise. */
async function withPins({ hosts, networkSupport }: WorkshopParts): Promise<NetworkSupport> {
  const support = await networkSupport(), pinned: Record<string, string> = {};
  for (const { name } of rulesOf(hosts)) {
    if (support.environment.pins.has(name)) continue;
    const found = await lookup(name).catch(() => undefined); // The guest is told that there is no such name, and says so.
    const address = found && parseAddress(found.address);
    if (address && classOf(address) !== undefined) pinned[name] = address.text;
  }
  return { ...support, environment: { ...support.environment, pins: support.environment.pins.with(pinned) } };
}

/** Takes no room before something is written to it. */
async function makeDisk(file: string, sizeBytes: number): Promise<void> {
  await using handle = await fs.open(file, "wx", DISK_MODE);
  await handle.chmod(DISK_MODE); // The umask took part of it.
  await handle.truncate(sizeBytes);
}
