/** Net VM: a clone with its net port connected to a gateway of the tests. */
import type { Duplex } from "node:stream";
import { resolveConfig } from "../../src/config/config.ts";
import { readPlatform } from "../../src/host/platform.ts";
import { defaultImagesDirectory, openAssets } from "../../src/images/assets.ts";
import type { Language } from "../../src/mod.ts";
import { findHypervisor } from "../../src/run/find_hypervisor.ts";
import { warmUpText } from "../../src/run/warm_up.ts";
import { launch } from "../../src/vm/launch.ts";
import { templateIdentity, TemplateStore } from "../../src/vm/template.ts";
import type { Vm } from "../../src/vm/vm.ts";
import { type Flow, Gateway } from "./net_gateway.ts";
import type { TestScheduler } from "./vm.ts";

const MEMORY_MIB = 256;
const silent = { debug() {}, info() {}, warning() {}, error() {} };

/** A clone of the template of `language`, which `vms` bakes if it must, with a net port that nobody serves yet. The caller owns it. */
export async function cloneWithNet(vms: TestScheduler, language: Language, onConsole: (text: string) => void = () => {}): Promise<Vm> {
  await vms.scheduler.prepare(language, { memoryMb: MEMORY_MIB });
  const config = resolveConfig(), platform = readPlatform();
  const assets = await openAssets(config.imagesDir ?? defaultImagesDirectory(config.cacheDir, platform.arch));
  const hypervisor = await findHypervisor({ config, platform, assets, ownerToken: "0000000000009e70", log: silent });
  const identity = templateIdentity(hypervisor, { language, memoryMiB: MEMORY_MIB, warmUp: warmUpText(language) });
  const files = await new TemplateStore(config.snapshotCacheDir).find(identity);
  if (!files) throw new Error(`there is no template of ${language}`);
  return await launch(hypervisor, {
    language,
    memoryMiB: MEMORY_MIB,
    origin: { kind: "clone", files },
    hasNet: true,
    onConsole: (bytes) => onConsole(new TextDecoder().decode(bytes)),
  });
}

/** Our end of a machine's net port. */
export function netOf(vm: Vm): Duplex {
  if (!vm.net) throw new Error("the machine has no net port");
  return vm.net;
}

/** Runs `code`; resolves with what it printed and its exit code. */
export async function runIn(vm: Vm, code: string): Promise<{ readonly output: string; readonly exitCode: number }> {
  let output = "";
  const decoder = new TextDecoder();
  const onOutput = (_: string, bytes: Uint8Array) => void (output += decoder.decode(bytes, { stream: true }));
  const { exitCode } = await vm.guest.exec({ code, env: {}, timeoutMs: 120_000 }, { onOutput });
  return { output: output.trim(), exitCode };
}

/** A running machine and the host's end of its network. Disposing ends it. */
export class NetVm implements AsyncDisposable {
  readonly vm: Vm;
  readonly gateway: Gateway;
  readonly #log: () => string;

  private constructor(vm: Vm, gateway: Gateway, log: () => string) {
    this.vm = vm;
    this.gateway = gateway;
    this.#log = log;
  }

  /** What kernel and agent said. */
  get log(): string {
    return this.#log();
  }

  /** Clones the template of `language`, which `vms` bakes if it must. `onFlow` decides about each flow of the guest. */
  static async start(vms: TestScheduler, language: Language, onFlow: (flow: Flow) => void = () => {}): Promise<NetVm> {
    let log = "";
    const vm = await cloneWithNet(vms, language, (text) => void (log += text));
    return new NetVm(vm, new Gateway(netOf(vm), onFlow), () => log);
  }

  /** Runs `code`; resolves with what it printed and its exit code. */
  run(code: string): Promise<{ readonly output: string; readonly exitCode: number }> {
    return runIn(this.vm, code);
  }

  /** The same for code that must succeed. */
  async output(code: string): Promise<string> {
    const { output, exitCode } = await this.run(code);
    if (exitCode !== 0) throw new Error(`exit code ${exitCode}: ${output}`);
    return output;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.vm[Symbol.asyncDispose]();
  }
}

/** What a resolver says to a question for an address of IPv4; to any other that there is none. */
export function dnsAnswer(question: Uint8Array, address: readonly [number, number, number, number]): Uint8Array {
  let at = 12;
  while (question[at] !== 0) at += (question[at] ?? 0) + 1;
  const isAddress = question[at + 2] === 1;
  const answer = [...question.slice(0, at + 5)];
  answer.splice(2, 10, 0x81, 0x80, 0, 1, 0, isAddress ? 1 : 0, 0, 0, 0, 0);
  if (isAddress) answer.push(0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...address);
  return new Uint8Array(answer);
}
