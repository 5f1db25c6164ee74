/** Supply: the VMs of this process. Finds out once how this host runs machines, keeps templates, starts and ends VMs within the budget. */
import path from "node:path";
import process from "node:process";
import { budgetOf } from "../admission/budget.ts";
import { Gate } from "../admission/gate.ts";
import { abortable, Singleflight } from "../base/async.ts";
import { messageOf, SessionClosedError, SnapshotError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import { Scope } from "../base/scope.ts";
import type { ResolvedConfig } from "../config/config.ts";
import { type Platform, readPlatform } from "../host/platform.ts";
import type { Assets } from "../images/assets.ts";
import { verifyFile } from "../images/verify.ts";
import { Pins } from "../net/pins.ts";
import { sweepCgroups } from "../qemu/cgroup.ts";
import type { Layer } from "../packages/layer_store.ts";
import type { Hypervisor, LaunchRequest } from "../vm/hypervisor.ts";
import { Journal, reap } from "../vm/journal.ts";
import { CheckpointStore, machineFacts, type StoredCheckpoint } from "../vm/checkpoint_store.ts";
import { launch, spawnVm } from "../vm/launch.ts";
import { RawSave } from "../vm/save.ts";
import { type Template, templateIdentity, TemplateStore } from "../vm/template.ts";
import type { Vm } from "../vm/vm.ts";
import { type BakeProgress, ensureTemplate, warmUp } from "./bake.ts";
import { findAssets } from "./find_assets.ts";
import { findHypervisor } from "./find_hypervisor.ts";
import { type InstallProgress, Layers } from "./layers.ts";
import { LocalMachine, type LocalMachineParts } from "./local_machine.ts";
import type { MachineRequest, MachineSource } from "./machine.ts";
import { networkFinder, type NetworkSupport } from "./network.ts";
import { guarded } from "./output.ts";
import type { Language } from "./request.ts";
import { Spares } from "./spares.ts";
import { type Warm, WarmPool } from "./warm_pool.ts";
import { warmUpText } from "./warm_up.ts";

/** Where no template could be kept, it is tried again after this time. */
const RETRY_MS = 60_000;

/** Who hears of what the supply does. */
export interface SupplyHooks {
  readonly log: Logger;
  readonly onProgress?: (progress: BakeProgress) => void;
  readonly onInstall?: (progress: InstallProgress) => void;
  /** What the networks of installations share; default: this host's, with nothing pinned. */
  readonly networkSupport?: () => Promise<NetworkSupport>;
}

/** What a template is wanted for. */
interface TemplateWish {
  readonly language: Language;
  readonly memoryMb: number;
  readonly layer?: Layer | undefined;
  /** What it has imported. */
  readonly modules: readonly string[];
}

/** A machine that was started ahead would do: one without a console. */
const mayBeAhead = (request: MachineRequest) => request.onBootLog === undefined && !request.isFresh && !request.packages;

/** Owns every VM and everything they need. */
export class Supply implements MachineSource {
  readonly #platform: Platform;
  readonly #gate: Gate;
  readonly #config: ResolvedConfig;
  readonly #assets: Assets;
  readonly #hooks: SupplyHooks;
  readonly #templates: TemplateStore;
  readonly #spares: Spares;
  readonly #pool: WarmPool;
  readonly #layers: Layers;
  readonly checkpoints: CheckpointStore;
  readonly #found = new Map<string, Template>();
  readonly #flights = new Singleflight<Template | undefined>();
  readonly #ending = new Set<Promise<void>>();
  readonly #closing = new AbortController();
  readonly #owned = new Scope();
  #hypervisor: Promise<Hypervisor> | undefined;
  #journal: Journal | undefined;
  /** Templates that could not be kept, and when (`performance.now()`) they are tried again. */
  readonly #retryAt = new Map<string, number>();

  /** Reads which images there are; nothing is started before the first VM. Throws `AssetError`. */
  static async open(config: ResolvedConfig, hooks: SupplyHooks): Promise<Supply> {
    const platform = readPlatform();
    return new Supply(config, { platform, assets: await findAssets(config, platform, hooks.log) }, hooks);
  }

  private constructor(config: ResolvedConfig, found: { platform: Platform; assets: Assets }, hooks: SupplyHooks) {
    this.#platform = found.platform;
    this.#gate = new Gate(budgetOf(found.platform, config));
    this.#assets = found.assets;
    this.#config = config;
    this.#hooks = hooks;
    this.#templates = new TemplateStore(config.snapshotCacheDir);
    const common = { gate: this.#gate, log: hooks.log, closing: this.#closing.signal, end: (vm: Vm) => this.#release(vm) };
    this.#spares = new Spares({
      ...common,
      size: config.spareVms,
      cpus: found.platform.cpus,
      spawn: (template) => this.#spawnSpare(template),
    });
    this.#pool = new WarmPool({
      ...common,
      size: config.warmPoolSize,
      languages: found.assets.languages,
      memoryMb: config.defaultMemoryMb,
      make: (language, signal) => this.#makeWarm(language, signal),
      isIntact: async (template) => (await this.#templates.find(template))?.bakeId === template.bakeId,
    });
    this.#layers = new Layers({
      config,
      assets: found.assets,
      gate: this.#gate,
      log: hooks.log,
      closing: this.#closing.signal,
      hypervisor: () => this.#host(),
      networkSupport: hooks.networkSupport ?? networkFinder({ pins: new Pins(), env: { ...process.env }, log: hooks.log }),
      onInstall: hooks.onInstall,
    });
    const named = path.join(config.cacheDir, "checkpoints");
    this.checkpoints = new CheckpointStore({ named, private: () => path.join(this.#journal?.directory ?? named, "checkpoints") });
  }

  /** A warm machine where there is one. Else room first: a machine that bakes takes as much as the one that runs, and one that can never fit is not baked for. */
  async lease(request: MachineRequest): Promise<LocalMachine> {
    if (request.checkpoint) return await this.#restore(request, request.checkpoint);
    const { language, memoryMb, signal } = request;
    const warm = await this.#claimWarm(request);
    if (warm) return warm;
    // Before there is room for the VM: an installation needs some of its own.
    const { layer, modules } = await this.#packagesOf(request);
    await using stack = new AsyncDisposableStack();
    const room = stack.use(await this.#gate.hold(memoryMb, { signal })), slot = stack.use(await this.#gate.occupy({ signal }));
    await this.#dropTemplateOf(request.insteadOf);
    const template = await this.#template({ language, memoryMb, layer, modules }, signal);
    const spare = template && mayBeAhead(request) ? this.#spares.take(template) : undefined;
    const vm = spare ?? await launch(await this.#host(), {
      language,
      memoryMiB: memoryMb,
      origin: template ? { kind: "clone", files: template } : { kind: "cold" },
      ...diskOf(layer),
      isSavable: (request.isSavable ?? false) && !layer,
      hasNet: request.net !== undefined,
      ...await this.#bootLog(template, request),
    });
    stack.move();
    if (template && mayBeAhead(request)) this.#spares.used(template);
    const parts = this.#partsOf(vm, language);
    return new LocalMachine({ template, ahead: spare && "spare", room, slot, ...parts, ...(layer ? { save: cannotSavePackages } : {}) });
  }

  async ready(signal: AbortSignal): Promise<void> {
    await this.#pool.ready(signal);
  }

  async checkMemory(memoryMb: number): Promise<void> {
    this.#gate.checkMemory(memoryMb);
  }

  async prepare({ language, memoryMb, packages, signal }: Parameters<MachineSource["prepare"]>[0]): Promise<void> {
    const { layer, modules } = await this.#packagesOf({ packages, signal });
    using _room = await this.#gate.hold(memoryMb, { signal });
    using _slot = await this.#gate.occupy({ signal });
    await this.#template({ language, memoryMb, layer, modules }, signal);
  }

  async pinPackages(...[language, names, options]: Parameters<MachineSource["pinPackages"]>): ReturnType<MachineSource["pinPackages"]> {
    return await this.#layers.pin(language, names, options);
  }

  /** Ends what is being made, waits for every VM's death, and removes the journal's entry. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new SessionClosedError("Cannot make a template: the scheduler is closed"));
    await Promise.all([this.#flights.settled(), this.#layers[Symbol.asyncDispose]()]);
    await Promise.all([this.#pool.closed(), this.#spares.closed()]);
    await Promise.allSettled(this.#ending);
    await this.#owned[Symbol.asyncDispose]();
  }

  async #claimWarm(request: MachineRequest): Promise<LocalMachine | undefined> {
    const { language, memoryMb, signal } = request;
    if (!mayBeAhead(request) || !this.#pool.has(language, memoryMb)) return undefined;
    // Nobody who holds a slot waits for memory, so this is the only order that is free to try both.
    const free = this.#gate.occupy({ signal }), slot = free instanceof Promise ? await free : free;
    const warm = this.#pool.take(language, memoryMb);
    if (warm) return new LocalMachine({ ...warm, ahead: "warm", slot, ...this.#partsOf(warm.vm, language) });
    slot[Symbol.dispose]();
    return undefined;
  }

  /** A VM for the pool. It has executed what its template has, along the path that the next execution takes, and keeps no trace of it. */
  async #makeWarm(language: Language, signal: AbortSignal): Promise<Warm> {
    const template = await this.#template({ language, memoryMb: this.#config.defaultMemoryMb, modules: [] }, signal);
    if (!template) throw new SnapshotError(`Cannot keep ${language} VMs warm: no template can be kept`);
    // Whoever gets it may want a network.
    const origin = { kind: "clone", files: template } as const;
    const request = { language, memoryMiB: template.memoryMiB, origin, isSavable: true, hasNet: true } as const;
    const vm = await launch(await this.#host(), request);
    try {
      await abortable(vm.ready, signal);
      await warmUp(vm, language, AbortSignal.any([signal, vm.lost]));
      return { vm, template };
    } catch (error) {
      this.#release(vm);
      if (error instanceof SnapshotError && !signal.aborted) await this.#drop(template);
      throw error;
    }
  }

  /** The template for a VM, made when there is none; undefined where none can be kept: then VMs boot. */
  async #template(wish: TemplateWish, signal?: AbortSignal): Promise<Template | undefined> {
    const name = nameOf(wish);
    const known = this.#found.get(name);
    const found = known && await this.#templates.find(known);
    if (found) return found; // Not the known one: another process may have replaced it.
    if (performance.now() < (this.#retryAt.get(name) ?? 0)) return undefined;
    // The flight is shared: one caller's abort must not end it for the others.
    const flight = this.#flights.run(name, () => this.#findTemplate(wish));
    return await abortable(flight, signal);
  }

  /** The packages of a request: installed now where they are not, and what of them a template imports. */
  async #packagesOf({ packages, signal }: Pick<MachineRequest, "packages" | "signal">): Promise<Pick<TemplateWish, "layer" | "modules">> {
    if (!packages) return { modules: [] };
    const layer = await this.#layers.find(packages, signal), { modules } = layer.details;
    const isList = packages.isPreloaded && Array.isArray(modules) && modules.every((name) => typeof name === "string");
    return { layer, modules: isList ? modules : [] };
  }

  /** Drops the template that a machine could not start from: another is made. */
  async #dropTemplateOf(machine: MachineRequest["insteadOf"]): Promise<void> {
    if (machine instanceof LocalMachine && machine.template) await this.#drop(machine.template);
  }

  async #drop(template: Template): Promise<void> {
    this.#found.clear();
    this.#spares.clear();
    await this.#templates.drop(template);
  }

  /** Gets log lines to the caller: a clone's boot was its template's. */
  async #bootLog(template: Template | undefined, request: MachineRequest): Promise<Pick<LaunchRequest, "onConsole">> {
    const deliver = guarded(request.onBootLog, "onBootLog", this.#hooks.log);
    if (!deliver) return {};
    if (template) deliver(await this.#templates.bootLog(template));
    const decoder = new TextDecoder();
    return { onConsole: (bytes) => deliver(decoder.decode(bytes, { stream: true })) };
  }

  /** A VM that goes on from a checkpoint; one that takes another's place has its room and its slot. */
  async #restore(request: MachineRequest, checkpoint: StoredCheckpoint): Promise<LocalMachine> {
    const { language, memoryMb, replacing, signal } = request;
    using stack = new DisposableStack();
    const room = replacing ? undefined : stack.use(await this.#gate.hold(memoryMb, { signal }));
    const slot = replacing ? undefined : stack.use(await this.#gate.occupy({ signal }));
    const host = await this.#host();
    const files = await this.checkpoints.open(checkpoint, (of) => machineFacts(host, of));
    const bootLog = await this.#bootLog(undefined, request);
    const vm = await launch(host, {
      language,
      memoryMiB: memoryMb,
      origin: { kind: "restore", files },
      isSavable: true,
      hasNet: true,
      ...bootLog,
    });
    stack.move();
    return new LocalMachine({ template: undefined, isRestored: true, room, slot, ...this.#partsOf(vm, language) });
  }

  #partsOf(vm: Vm, language: Language): Pick<LocalMachineParts, "vm" | "save" | "occupy" | "onRelease"> {
    const { memoryMiB } = vm;
    return {
      vm,
      save: async (signal) => {
        const host = await this.#host(), facts = machineFacts(host, language);
        const save = await RawSave.take(vm, { memoryMiB, isLive: host.qemu.isOwn }, signal);
        return {
          keep: (name) => this.checkpoints.add(save, { name, language, memoryMiB, facts }),
          [Symbol.asyncDispose]: () => save[Symbol.asyncDispose](),
        };
      },
      occupy: (signal) => this.#gate.occupy({ signal }),
      onRelease: () => this.#release(vm),
    };
  }

  /** Kills a VM without making anybody wait for its death; disposing the supply waits. */
  #release(vm: Vm): void {
    const ending = vm[Symbol.asyncDispose]()
      .catch((error) => this.#hooks.log.error("a VM could not be ended", { id: vm.id, reason: messageOf(error) }))
      .finally(() => this.#ending.delete(ending));
    this.#ending.add(ending);
  }

  async #findTemplate(wish: TemplateWish): Promise<Template | undefined> {
    const { language, memoryMb, layer, modules } = wish, hypervisor = await this.#host();
    const disk = layer && { path: layer.layerFile, sha256: layer.sha256 };
    const warmUp = warmUpText(language) + (modules.length === 0 ? "" : JSON.stringify(modules));
    const identity = templateIdentity(hypervisor, { language, memoryMiB: memoryMb, warmUp, layer: disk });
    const { onProgress } = this.#hooks;
    const signal = this.#closing.signal;
    const verify = (until: AbortSignal) => this.#verify(language, until);
    const packages = { ...diskOf(layer), modules, log: this.#hooks.log };
    try {
      const template = await ensureTemplate(hypervisor, this.#templates, identity, {
        signal,
        verify,
        ...packages,
        ...(onProgress ? { onProgress } : {}),
      });
      this.#found.set(nameOf(wish), template);
      return template;
    } catch (error) {
      if (!(error instanceof SnapshotError)) throw error;
      // On a full disk an attempt takes as long as a boot: not before each of the next runs.
      this.#retryAt.set(nameOf(wish), performance.now() + RETRY_MS);
      this.#hooks.log.warning("no template can be kept here: every VM boots, which takes seconds", { reason: error.message });
      return undefined;
    }
  }

  /** Opening the images looked at sizes only; what a template is made of is hashed once, when it is made. */
  async #verify(language: Language, signal: AbortSignal): Promise<void> {
    const { kernel, initrd, firmware, qemu, jail } = this.#assets;
    const files = [kernel, initrd, firmware, qemu, jail, this.#assets.rootImage(language)].filter((file) => file !== undefined);
    await Promise.all(files.map((file) => verifyFile(file, signal)));
  }

  async #spawnSpare(template: Template): Promise<Vm> {
    const { language, memoryMiB } = template;
    return await spawnVm(await this.#host(), {
      language,
      memoryMiB,
      origin: { kind: "clone", files: template },
      isSavable: true,
      hasNet: true,
    });
  }

  #host(): Promise<Hypervisor> {
    this.#hypervisor ??= this.#findHost().catch((error) => {
      this.#hypervisor = undefined; // What was in the way, such as a host without room for a process, may have gone by the next run.
      throw error;
    });
    return this.#hypervisor;
  }

  async #findHost(): Promise<Hypervisor> {
    const root = path.join(this.#config.cacheDir, "run");
    const { log } = this.#hooks;
    const journal = this.#journal ??= this.#owned.use("journal", await Journal.open(root, log));
    void reap(root, log).catch((error) => log.warning("leftovers could not be looked for", { reason: messageOf(error) }));
    void this.#templates.sweep().catch((error) => log.debug("old templates could not be swept", { reason: messageOf(error) }));
    const hypervisor = await findHypervisor({
      config: this.#config,
      platform: this.#platform,
      assets: this.#assets,
      ownerToken: journal.token,
      log,
    });
    void sweepCgroups(hypervisor.confinement).catch((error) =>
      log.warning("old cgroups could not be removed", { reason: messageOf(error) })
    );
    return { ...hypervisor, savesRoot: path.join(journal.directory, "saves") };
  }
}

function nameOf({ language, memoryMb, layer, modules }: TemplateWish): string {
  return [language, memoryMb, ...(layer ? [layer.sha256, ...modules] : [])].join("-");
}

/** A checkpoint would have to keep its layer. */
function cannotSavePackages(): Promise<never> {
  return Promise.reject(new SnapshotError("Cannot save the VM: a VM with packages cannot be saved", { retry: "never" }));
}

/** What a launch is told of a layer. */
function diskOf(layer: Layer | undefined): Pick<LaunchRequest, "layer"> {
  return layer ? { layer: { kind: "packages", path: layer.layerFile } } : {};
}
