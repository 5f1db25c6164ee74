/** Templates: memory and device state of a machine that has booted and warmed up, kept on disk and cloned for every start. */
import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { ONCE } from "../base/schema.ts";
import { PROTOCOL_VERSION } from "../base/limits.ts";
import { FileLock, LOCK_PREFIX, StagedDirectory, sweepLocks, sweepTemporaries, writeFileAtomic } from "../host/files.ts";
import { type AssetFile, commandLineFor, type Hypervisor, type TemplateFiles } from "./hypervisor.ts";

/** Raised when what is in a template changes without any of its other inputs doing so. */
const TEMPLATE_VERSION = 3;
/** The directory is this user's alone; behind its confinement QEMU is another user and reads the files through bind mounts. */
const SAVED_MODE = 0o444, BAKING_MODE = 0o666;
/** Disk that the templates of one directory may take: some 40 of the usual size. */
const TEMPLATES_MAX_BYTES = 4 * 2 ** 30;
const TEMPLATE_NAME = /^(python|javascript|raw)-\d+-[0-9a-f]{32}$/;
const RAM = "ram", STATE = "state", TRANSLATIONS = "translations", CONSOLE_LOG = "console.log", META = "meta.json";

/** What decides a template's content. */
export interface TemplateIdentity {
  readonly language: string;
  readonly memoryMiB: number;
  /** Lower-case hex; equal keys mean equal templates. */
  readonly key: string;
}

/** A template on disk, ready to be cloned. */
export interface Template extends TemplateIdentity, TemplateFiles {
  readonly directory: string;
}

const metaSchema = z.object({
  key: z.string(),
  bakeId: z.string(),
  ramBytes: z.number().int().positive(),
  stateBytes: z.number().int().positive(),
  translationsBytes: z.number().int().nonnegative(),
});

/** The identity of the template for `language` with `memoryMiB` on this host. */
export function templateIdentity(
  hypervisor: Hypervisor,
  request: {
    readonly language: string;
    readonly memoryMiB: number;
    readonly warmUp: string;
    /** The packages it has, by their layer's hash. */
    readonly layer?: AssetFile | undefined;
  },
): TemplateIdentity {
  const { files, qemu, candidate } = hypervisor, { layer } = request;
  const disk = layer === undefined ? undefined : { kind: "packages", path: layer.path } as const;
  const inputs = {
    version: TEMPLATE_VERSION,
    protocol: PROTOCOL_VERSION,
    language: request.language,
    memoryMiB: request.memoryMiB,
    warmUp: request.warmUp,
    kernel: files.kernel.sha256,
    initrd: files.initrd.sha256,
    firmware: files.firmware.sha256,
    rootImage: files.rootImage(request.language).sha256,
    layer: layer?.sha256,
    commandLine: commandLineFor(hypervisor, { language: request.language, origin: { kind: "bake" }, layer: disk }),
    qemu: { version: qemu.version, fingerprint: qemu.fingerprint },
    candidate,
    // Under emulation QEMU makes the CPU, so the same template starts on any host; with an accelerator the host's CPU shows through.
    hostCpu: candidate.accelerator === "tcg" ? "" : hostCpu(),
  };
  const key = createHash("sha256").update(JSON.stringify(inputs)).digest("hex");
  return { language: request.language, memoryMiB: request.memoryMiB, key };
}

/** Templates of one directory, shared by all processes of the user. */
export class TemplateStore {
  readonly #root: string;
  readonly #maxBytes: number;

  /** `root` is created when the first template is saved; at most `maxBytes` of disk are kept in it. */
  constructor(root: string, maxBytes: number = TEMPLATES_MAX_BYTES) {
    this.#root = root;
    this.#maxBytes = maxBytes;
  }

  /** The template, or undefined when there is none or what is there is not whole. */
  async find(identity: TemplateIdentity): Promise<Template | undefined> {
    const place = this.#at(identity);
    try {
      const meta = await readMeta(place.directory);
      const [ramBytes, stateBytes, translationsBytes] = await Promise.all(
        [place.ramFile, place.stateFile, place.translationsFile].map(sizeOf),
      );
      const isWhole = meta.key === identity.key && ramBytes === meta.ramBytes && stateBytes === meta.stateBytes &&
        translationsBytes === meta.translationsBytes;
      if (!isWhole) return undefined;
      const now = new Date();
      void fs.utimes(path.join(place.directory, META), now, now).catch(() => {}); // A store that cannot be written is never pruned either.
      return { ...place, bakeId: meta.bakeId };
    } catch {
      return undefined; // Missing, half deleted or unreadable: made anew.
    }
  }

  /** Kernel and agent log of the template's boot. */
  async bootLog(template: Template): Promise<string> {
    return await fs.readFile(path.join(template.directory, CONSOLE_LOG), "utf8").catch(() => ""); // Only for people to read.
  }

  /**
   * The template, made by `bake` when there is none. One process bakes, others wait (`onWait`). `bake` fills the files it is given, the
   * RAM file being there in its full size, and returns the boot log.
   */
  async findOrBake(
    identity: TemplateIdentity,
    bake: (files: TemplateFiles) => Promise<string>,
    options: { readonly signal?: AbortSignal; readonly onWait?: (holderPid: number) => void } = {},
  ): Promise<Template> {
    const found = await this.find(identity);
    if (found) return found;
    await using _lock = await FileLock.acquire(path.join(this.#root, `${LOCK_PREFIX}${identity.key.slice(0, 32)}`), options);
    const meanwhile = await this.find(identity);
    if (meanwhile) return meanwhile;
    await sweepTemporaries(this.#root);
    await using staged = await StagedDirectory.create(this.#root);
    const bakeId = randomUUID(), files = filesIn(staged.path);
    const { ramFile, stateFile, translationsFile } = files;
    const ramBytes = identity.memoryMiB * 1_048_576;
    await createFile(ramFile, ramBytes);
    await createFile(stateFile, 0);
    await createFile(translationsFile, 0);
    const log = await bake({ ...files, bakeId });
    await fs.writeFile(path.join(staged.path, CONSOLE_LOG), log, { mode: 0o400 });
    const stateBytes = await sizeOf(stateFile), translationsBytes = await sizeOf(translationsFile);
    if (stateBytes === 0) throw new Error("the machine's state is empty");
    const meta = { key: identity.key, bakeId, ramBytes, stateBytes, translationsBytes, language: identity.language };
    await writeFileAtomic(path.join(staged.path, META), JSON.stringify(meta), 0o400);
    for (const file of Object.values(files)) await fs.chmod(file, SAVED_MODE);
    const place = this.#at(identity);
    await fs.rm(place.directory, { recursive: true, force: true }); // Only something broken can be there: `find` refused it.
    await staged.publish(place.directory);
    await this.#prune();
    return { ...place, bakeId };
  }

  /** Removes what processes left that died while they made a template. */
  async sweep(): Promise<void> {
    await sweepTemporaries(this.#root);
    await sweepLocks(this.#root);
  }

  /** Removes a template that did not start, unless somebody replaced it. */
  async drop(template: Template): Promise<void> {
    const current = await readMeta(template.directory).catch(() => undefined); // Not readable: whatever is there starts nobody.
    if (current && current.bakeId !== template.bakeId) return;
    await fs.rm(template.directory, { recursive: true, force: true });
  }

  /** Removes the templates that were not used for longest until the rest is within the bound. Running clones keep their files. */
  async #prune(): Promise<void> {
    const names = (await fs.readdir(this.#root)).filter((name) => TEMPLATE_NAME.test(name));
    const found = await Promise.all(names.map((name) => measureTemplate(path.join(this.#root, name))));
    let keptBytes = 0;
    for (const [index, { directory, byteCount }] of found.sort((a, b) => b.usedAtMs - a.usedAtMs).entries()) {
      keptBytes += byteCount;
      // The newest is the one just made: it stays, whatever its size.
      if (index > 0 && keptBytes > this.#maxBytes) await fs.rm(directory, { recursive: true, force: true });
    }
  }

  #at(identity: TemplateIdentity): Omit<Template, "bakeId"> {
    const directory = path.join(this.#root, `${identity.language}-${identity.memoryMiB}-${identity.key.slice(0, 32)}`);
    const { language, memoryMiB, key } = identity;
    return { language, memoryMiB, key, directory, ...filesIn(directory) };
  }
}

/** What a template takes, blocks that were never written not counted, and when it was last used; one without meta.json goes first. */
async function measureTemplate(directory: string): Promise<{ directory: string; byteCount: number; usedAtMs: number }> {
  const stat = (name: string) => fs.stat(path.join(directory, name)).catch(() => undefined); // Being removed by somebody else.
  const [meta, ...files] = await Promise.all([META, RAM, STATE, TRANSLATIONS].map(stat));
  const blockCount = files.reduce((sum, file) => sum + (file?.blocks ?? 0), 0);
  return { directory, byteCount: blockCount * 512, usedAtMs: meta?.mtimeMs ?? 0 };
}

function filesIn(directory: string): Omit<TemplateFiles, "bakeId"> {
  const at = (name: string) => path.join(directory, name);
  return { ramFile: at(RAM), stateFile: at(STATE), translationsFile: at(TRANSLATIONS) };
}

async function sizeOf(file: string): Promise<number> {
  return (await fs.stat(file)).size;
}

async function readMeta(directory: string): Promise<z.infer<typeof metaSchema>> {
  return metaSchema.parse(JSON.parse(await fs.readFile(path.join(directory, META), "utf8")), ONCE);
}

async function createFile(file: string, sizeBytes: number): Promise<void> {
  const handle = await fs.open(file, "wx", BAKING_MODE);
  try {
    await handle.chmod(BAKING_MODE); // The umask took part of it.
    await handle.truncate(sizeBytes);
  } finally {
    await handle.close();
  }
}

/** Model and features of the host's CPU, as far as a guest with an accelerator can see them. */
export function hostCpu(): string {
  try {
    const lines = readFileSync("/proc/cpuinfo", "utf8").split("\n\n", 1)[0]?.split("\n") ?? [];
    return lines.filter((line) => /^(vendor_id|cpu family|model|stepping|flags|Features|CPU \w+)\s*:/.test(line)).join("\n");
  } catch {
    return ""; // No /proc: one kind of machine per host, and the asset hashes still tell apart what matters.
  }
}
