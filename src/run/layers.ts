/** Layers: the packages of requests, installed when they are first asked for and kept. */
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import type { Gate } from "../admission/gate.ts";
import { abortable, Singleflight } from "../base/async.ts";
import type { Logger } from "../base/log.ts";
import type { ResolvedConfig } from "../config/config.ts";
import { StagedDirectory } from "../host/files.ts";
import type { Assets } from "../images/assets.ts";
import { Catalog } from "../packages/catalog.ts";
import { type LayerInputs, layerInputs } from "../packages/layer_key.ts";
import type { Layer, LayerPlace, LayerStore } from "../packages/layer_store.ts";
import type { ResolvedSet } from "../packages/layer_files.ts";
import { openLayerStore } from "../packages/open_layers.ts";
import { findRegistry, type Registry, type RegistryHost } from "../packages/registries.ts";
import { type PackageLanguage, type PackageName, packageText } from "../packages/spec.ts";
import type { Hypervisor } from "../vm/hypervisor.ts";
import { install, type InstallParts, within } from "./install.ts";
import type { NetworkSupport } from "./network.ts";
import type { PackageSet } from "./package_request.ts";
import { parsePins, PinFile, type PinnedVersion, pinStep } from "./pins.ts";
import { WORKSHOP_MEMORY_MIB } from "./workshop.ts";

/** A step of an installation, as it begins. */
export interface InstallProgress {
  /** Of the packages. */
  readonly language: "python" | "javascript";
  /** What is installed, as it was asked for. */
  readonly packages: readonly string[];
  /** What begins now; `waiting`: another process installs the same; `fetch`: they are looked for in the remote cache. */
  readonly phase: "waiting" | "fetch" | "boot" | "resolve" | "download" | "freeze" | "done";
  /** What the installer says, a line without control characters. */
  readonly detail?: string | undefined;
  /** Since the installation began, in milliseconds. */
  readonly elapsedMs: number;
}

/** What is used of the supply. */
export interface LayersParts {
  readonly config: ResolvedConfig;
  readonly assets: Assets;
  readonly gate: Gate;
  readonly log: Logger;
  /** Aborts when the supply closes. */
  readonly closing: AbortSignal;
  readonly hypervisor: () => Promise<Hypervisor>;
  readonly networkSupport: () => Promise<NetworkSupport>;
  readonly onInstall?: ((progress: InstallProgress) => void) | undefined;
}

/** Layers of packages for the VMs of one supply. */
export class Layers implements AsyncDisposable {
  readonly #parts: LayersParts;
  readonly #store: LayerStore;
  /** Of the host, as it was when the supply was opened. */
  readonly #host: RegistryHost = { env: { ...process.env }, home: os.homedir() };
  readonly #flights = new Singleflight<Layer>();
  readonly #catalogs = new Map<PackageLanguage, Promise<Catalog | undefined>>();

  /** Nothing is read before the first request. */
  constructor(parts: LayersParts) {
    this.#parts = parts;
    this.#store = openLayerStore(parts.config, parts.log);
  }

  /**
   * The layer with these packages, installed now where there is none. Throws `PackageNotAllowedError` before anything starts,
   * `PackageInstallError`, what starting a VM throws, and the signal's reason: the installation goes on then, for whoever asks next.
   */
  async find(set: PackageSet, signal: AbortSignal | undefined): Promise<Layer> {
    await this.#check(set);
    signal?.throwIfAborted();
    const registry = await this.#registry(set.language), inputs = this.#inputsOf(set, registry);
    const known = await this.#store.find(inputs);
    if (known) return known;
    const name = JSON.stringify(inputs);
    return await abortable(this.#flights.run(name, () => this.#make(set, inputs, registry)), signal);
  }

  /**
   * The newest stable versions of packages that were named without one: those that were found before, or all anew where `isFresh`. Throws as
   * `find`.
   */
  async pin(
    language: PackageLanguage,
    names: readonly string[],
    { isFresh, signal: asked }: { readonly isFresh: boolean; readonly signal: AbortSignal | undefined },
  ): Promise<ReadonlyMap<string, PinnedVersion>> {
    await this.#check({ language, packages: names.map((name) => ({ name, version: undefined, extras: [] })) });
    const { config, closing } = this.#parts, registry = await this.#registry(language);
    const file = new PinFile(path.join(config.cacheDir, "packages"), { language, registry: registry.url });
    const kept = isFresh ? new Map<string, string>() : await file.read();
    const wanted = [...new Set(names)].filter((name) => !kept.has(name));
    const found = wanted.length === 0
      ? new Map<string, string>()
      : await this.#lookUp({ language, names: wanted, registry }, asked ? AbortSignal.any([asked, closing]) : closing);
    if (found.size > 0) await file.add(found);
    return new Map(names.map((name) => [name, { version: found.get(name) ?? kept.get(name) ?? "", isNew: found.has(name) }]));
  }

  /** Removes a layer that does not do, so that it is made anew. */
  async drop(layer: Layer, reason: string): Promise<void> {
    await this.#store.drop(layer, reason);
  }

  /** Waits until nothing is being installed any more, and closes the store. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#flights.settled();
    await this.#store[Symbol.asyncDispose]();
  }

  /** Throws `PackageNotAllowedError` for a package that is not in the catalog. */
  async #check({ language, packages }: { readonly language: PackageLanguage; readonly packages: readonly PackageName[] }): Promise<void> {
    if (!this.#parts.config.enablePackageValidation) return;
    const catalog = this.#catalogs.get(language) ?? this.#readCatalog(language);
    this.#catalogs.set(language, catalog);
    (await catalog)?.check(packages);
  }

  async #readCatalog(language: PackageLanguage): Promise<Catalog | undefined> {
    const file = this.#parts.assets.catalog(language);
    if (file) return new Catalog(language, await fs.readFile(file.path, "utf8"));
    this.#parts.log.warning("the images have no catalog of packages: any may be installed", { language });
    return undefined;
  }

  async #registry(language: PackageLanguage): Promise<Registry> {
    return await findRegistry(language, this.#host, this.#parts.assets.rootImage(language).registry);
  }

  #inputsOf({ language, packages }: PackageSet, registry: Registry): LayerInputs {
    const { assets, config } = this.#parts, image = assets.rootImage(language);
    const runtime = Object.entries(image.versions).filter(([name]) => name === "python" || name === "bun");
    return layerInputs({
      language,
      arch: assets.arch,
      image: image.sha256,
      runtime: Object.fromEntries(runtime),
      packages,
      index: registry.isSet ? registry.url : undefined,
      options: language === "javascript" ? { scripts: config.packageScripts } : {},
    });
  }

  async #make(set: PackageSet, inputs: LayerInputs, registry: Registry): Promise<Layer> {
    const { closing: signal } = this.#parts, { language } = set;
    const packages = set.packages.map((spec) => packageText(language, spec)), report = this.#reporter(language, packages);
    const { layer, origin } = await this.#store.obtain(inputs, {
      signal,
      onWait: () => report("waiting"),
      ...(this.#parts.config.s3Bucket === undefined ? {} : { onFetch: () => report("fetch") }),
      make: (place) => this.#install(set, { registry, place, report, title: packages.join(", ") }),
    });
    if (origin !== "disk") report("done");
    return layer;
  }

  async #lookUp(
    { language, names, registry }: { readonly language: PackageLanguage; readonly names: readonly string[]; readonly registry: Registry },
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, string>> {
    const report = this.#reporter(language, names);
    await using staged = await StagedDirectory.create(path.join(this.#parts.config.cacheDir, "packages"));
    const [scratch, result] = ["scratch", "result"].map((name) => path.join(staged.path, name)) as [string, string];
    const parts = await this.#workshopParts({ registry, report, title: names.join(", ") });
    using _room = await this.#parts.gate.hold(WORKSHOP_MEMORY_MIB, { signal });
    using _slot = await this.#parts.gate.occupy({ signal });
    const { stdout } = await within(
      { ...parts, language, scratch, result, registry: registry.url },
      signal,
      async (work) => await work.run(pinStep(language, names, registry.url)),
    );
    const found = parsePins(language, stdout, names);
    report("done");
    return found;
  }

  #reporter(language: PackageLanguage, packages: readonly string[]): (phase: InstallProgress["phase"], detail?: string) => void {
    const startedAt = performance.now(), { onInstall } = this.#parts;
    return (phase, detail) => onInstall?.({ language, packages, phase, detail, elapsedMs: Math.ceil(performance.now() - startedAt) });
  }

  /** What every workshop of this supply is told. */
  async #workshopParts(
    { registry, report, title }: {
      readonly registry: Registry;
      readonly report: (phase: InstallProgress["phase"], detail?: string) => void;
      readonly title: string;
    },
  ): Promise<InstallParts> {
    const { config, log, hypervisor, networkSupport } = this.#parts;
    return {
      hypervisor: await hypervisor(),
      diskBytes: config.packageLayerMaxMb * 1_048_576,
      areHostsTrusted: registry.isSet,
      timeoutSeconds: config.packageInstallTimeoutSeconds,
      ...{ networkSupport, log, report, title },
    };
  }

  async #install(
    { language, packages }: PackageSet,
    { registry, place, report, title }: {
      readonly registry: Registry;
      readonly place: LayerPlace;
      readonly report: (phase: InstallProgress["phase"], detail?: string) => void;
      readonly title: string;
    },
  ): Promise<ResolvedSet> {
    const { config, gate, closing: signal } = this.#parts;
    using _room = await gate.hold(WORKSHOP_MEMORY_MIB, { signal });
    using _slot = await gate.occupy({ signal });
    const job = { language, packages, registry: registry.url, areScriptsRun: config.packageScripts };
    return await install(job, place, await this.#workshopParts({ registry, report, title }), signal);
  }
}
