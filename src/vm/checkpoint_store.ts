/** Checkpoints on disk: those with a name are kept until they are removed, the others live no longer than their scheduler. */
import { createHash, randomUUID } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { messageOf, SnapshotError } from "../base/errors.ts";
import { PROTOCOL_VERSION } from "../base/limits.ts";
import { exists, StagedDirectory, sweepTemporaries, temporaryName, writeFileAtomic } from "../host/files.ts";
import type { CheckpointFiles, Hypervisor } from "./hypervisor.ts";
import { RAM_FILE, type RawSave, STATE_FILE, stateDigest } from "./save.ts";
import { hostCpu } from "./template.ts";

/** Raised when a checkpoint of before cannot be read any more. */
const FORMAT = 1;
const META_FILE = "meta.json";
/** Disk that all checkpoints of a kind may take, the named ones of a user and the others of a scheduler: what was saved last must not be what fills it. */
export const CHECKPOINTS_MAX_BYTES = 16 * 2 ** 30;
/** Of a name: it becomes that of a directory. */
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

/** What must be the same where a checkpoint is restored, in the order in which it is compared: words for people → value. */
export type MachineFacts = Readonly<Record<string, string>>;

const metaSchema = z.object({
  format: z.number().int(),
  id: z.string(),
  name: z.string().nullable(),
  language: z.enum(["python", "javascript", "raw"]),
  memoryMiB: z.number().int().positive(),
  createdAtMs: z.number(),
  files: z.object({
    ramOffset: z.number().int().positive(),
    ramFileBytes: z.number().int().positive(),
    stateFileBytes: z.number().int().positive(),
    stateSha256: z.string(),
    sizeBytes: z.number().int().nonnegative(),
  }),
  facts: z.record(z.string(), z.string()),
});

/** One checkpoint on disk. */
export interface StoredCheckpoint {
  /** No two are the same. */
  readonly id: string;
  readonly name: string | undefined;
  readonly language: "python" | "javascript" | "raw";
  readonly memoryMiB: number;
  readonly createdAtMs: number;
  /** Disk that it takes. */
  readonly sizeBytes: number;
  readonly directory: string;
}

/** What is saved. */
export interface CheckpointInput {
  readonly name: string | undefined;
  readonly language: StoredCheckpoint["language"];
  readonly memoryMiB: number;
  readonly facts: MachineFacts;
}

/** True for what may be the name of a checkpoint. */
export function isCheckpointName(name: string): boolean {
  return NAME.test(name);
}

/** What decides whether a machine that was saved can go on here. The agent is in its memory, kernel and root image are what it was made from. */
export function machineFacts({ files, qemu, candidate }: Hypervisor, language: string): MachineFacts {
  const image = files.rootImage(language);
  return {
    "sbx protocol": String(PROTOCOL_VERSION),
    "accelerator": candidate.accelerator,
    "CPU model": candidate.cpu,
    "QEMU version": qemu.version,
    "QEMU": qemu.fingerprint,
    "kernel": files.kernel.sha256,
    "agent": files.initrd.sha256,
    "firmware": files.firmware.sha256,
    "root image": image.sha256,
    // Under emulation QEMU makes the CPU; with an accelerator the host's shows through.
    "host CPU": candidate.accelerator === "tcg" ? "" : createHash("sha256").update(hostCpu()).digest("hex"),
  };
}

/** The checkpoints of one user and one scheduler. */
export class CheckpointStore {
  readonly #namedRoot: string;
  readonly #privateRoot: () => string;
  readonly #maxBytes: number;

  /** Both are created when something is saved in them; they must be on one file system with the directories that QEMU saves to. */
  constructor(roots: { readonly named: string; readonly private: () => string }, maxBytes: number = CHECKPOINTS_MAX_BYTES) {
    this.#namedRoot = roots.named;
    this.#privateRoot = roots.private;
    this.#maxBytes = maxBytes;
  }

  /** Throws `SnapshotError` when the name is taken: what was named is never replaced by what comes later. */
  async checkFree(name: string): Promise<void> {
    if (await this.#read(path.join(this.#namedRoot, name))) throw takenError(name);
  }

  /** Makes a checkpoint of what QEMU wrote. Throws `SnapshotError` when it cannot be kept; nothing of it is left then. */
  async add(save: RawSave, input: CheckpointInput): Promise<StoredCheckpoint> {
    const { name, language, memoryMiB, facts } = input;
    const root = name === undefined ? this.#privateRoot() : this.#namedRoot;
    const id = randomUUID(), directory = path.join(root, name ?? id);
    try {
      await sweepTemporaries(root);
      await using staged = await StagedDirectory.create(root);
      const files = await save.complete(staged.path);
      await this.#checkRoom(root, files.sizeBytes);
      const meta: z.infer<typeof metaSchema> = {
        format: FORMAT,
        id,
        name: name ?? null,
        language,
        memoryMiB,
        createdAtMs: Date.now(),
        files,
        facts: { ...facts },
      };
      if (name !== undefined) { for (const file of [RAM_FILE, STATE_FILE]) await flushToDisk(path.join(staged.path, file)); }
      await writeFileAtomic(path.join(staged.path, META_FILE), JSON.stringify(meta), 0o400);
      await rename(staged.path, directory, name);
      return { id, name, language, memoryMiB, createdAtMs: meta.createdAtMs, sizeBytes: files.sizeBytes, directory };
    } catch (cause) {
      if (cause instanceof SnapshotError) throw cause;
      throw new SnapshotError(`Cannot keep the checkpoint: ${messageOf(cause)}`, { cause });
    }
  }

  /** The files to restore it from. Throws `SnapshotError` when it is gone, not whole, or does not fit `factsOf` this host. */
  async open(
    checkpoint: StoredCheckpoint,
    factsOf: (language: string) => MachineFacts,
  ): Promise<CheckpointFiles> {
    const { directory } = checkpoint, what = shownCheckpoint(checkpoint);
    const meta = await this.#read(directory);
    if (!meta || meta.id !== checkpoint.id) {
      throw refusal(what, "it was removed", "Checkpoints of a scheduler end with it unless they have a name.");
    }
    if (meta.format !== FORMAT) throw refusal(what, `its format was ${meta.format} and is ${FORMAT}`, RENEW_HINT);
    const facts = factsOf(meta.language);
    for (const [name, is] of Object.entries(facts)) {
      const was = meta.facts[name] ?? "unknown";
      if (was !== is) throw refusal(what, `${name} was ${shortened(was)} and is ${shortened(is)}`, RENEW_HINT);
    }
    const { ramOffset, ramFileBytes, stateFileBytes, stateSha256 } = meta.files;
    const files = { ramFile: path.join(directory, RAM_FILE), ramOffset, stateFile: path.join(directory, STATE_FILE) };
    await checkSize(what, files.ramFile, ramFileBytes);
    await checkSize(what, files.stateFile, stateFileBytes);
    const digest = await stateDigest(files.stateFile, ramOffset, meta.memoryMiB).catch(messageOf);
    if (digest !== stateSha256) throw refusal(what, `${files.stateFile} was changed`, RENEW_HINT);
    return files;
  }

  /** The checkpoint of that name. Throws `SnapshotError` when there is none. */
  async named(name: string): Promise<StoredCheckpoint> {
    const directory = path.join(this.#namedRoot, name);
    const meta = await this.#read(directory);
    if (meta) return stored(meta, directory);
    const hint = "scheduler.checkpoints() lists those there are.";
    throw new SnapshotError(`Cannot find the checkpoint "${name}": there is none of that name in ${this.#namedRoot}`, {
      retry: "never",
      hint,
    });
  }

  /** Those with a name, the oldest first. */
  async list(): Promise<StoredCheckpoint[]> {
    return (await this.#in(this.#namedRoot)).sort((a, b) => a.createdAtMs - b.createdAtMs);
  }

  /** Removes it; what was restored from it runs on. */
  async remove(checkpoint: StoredCheckpoint): Promise<void> {
    const meta = await this.#read(checkpoint.directory);
    if (meta?.id === checkpoint.id) await removeWhole(checkpoint.directory, { isDescribed: true });
  }

  /** Throws when what is there and `addedBytes` are more than may be kept. */
  async #checkRoom(root: string, addedBytes: number): Promise<void> {
    const keptBytes = (await this.#in(root)).reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    if (keptBytes + addedBytes <= this.#maxBytes) return;
    throw new SnapshotError(
      `Cannot keep the checkpoint: all in ${root} may take ${this.#maxBytes} bytes, got ${keptBytes} and ${addedBytes} more`,
      {
        retry: "never",
        hint: "Remove checkpoints that are not needed: scheduler.removeCheckpoint(name), or dispose those without a name.",
      },
    );
  }

  async #in(root: string): Promise<StoredCheckpoint[]> {
    const names = (await fs.readdir(root).catch(() => [])).filter(isCheckpointName); // No such directory: nothing was saved yet.
    const found = await Promise.all(names.map(async (name) => {
      const directory = path.join(root, name), meta = await this.#read(directory);
      return meta && stored(meta, directory);
    }));
    return found.filter((checkpoint) => checkpoint !== undefined);
  }

  /** Undefined when there is nothing that could be read. */
  async #read(directory: string): Promise<z.infer<typeof metaSchema> | undefined> {
    try {
      return metaSchema.parse(JSON.parse(await fs.readFile(path.join(directory, META_FILE), "utf8")));
    } catch {
      return undefined; // Missing, half removed, or none of ours.
    }
  }
}

const RENEW_HINT = "Make it anew from a session of now.";

function stored(meta: z.infer<typeof metaSchema>, directory: string): StoredCheckpoint {
  const { id, name, language, memoryMiB, createdAtMs, files: { sizeBytes } } = meta;
  return { id, name: name ?? undefined, language, memoryMiB, createdAtMs, sizeBytes, directory };
}

function shownCheckpoint({ name, id }: StoredCheckpoint): string {
  return name === undefined ? id : `"${name}"`;
}

function refusal(what: string, why: string, hint: string): SnapshotError {
  return new SnapshotError(`Cannot restore the checkpoint ${what}: ${why}`, { retry: "never", hint });
}

function takenError(name: string): SnapshotError {
  const hint = `Take another name, or remove it first: scheduler.removeCheckpoint("${name}").`;
  return new SnapshotError(`Cannot name the checkpoint "${name}": there is one of that name`, { retry: "never", hint });
}

async function checkSize(what: string, file: string, wanted: number): Promise<void> {
  const got = await fs.stat(file).then(({ size }) => size, () => undefined); // Not there is as wrong as too short.
  if (got !== wanted) throw refusal(what, `${file} must have ${wanted} bytes, got ${got ?? "no file"}`, RENEW_HINT);
}

async function flushToDisk(file: string): Promise<void> {
  await using handle = await fs.open(file, "r");
  await handle.sync();
}

async function rename(from: string, to: string, name: string | undefined): Promise<void> {
  try {
    await fs.rename(from, to);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (name === undefined || (code !== "ENOTEMPTY" && code !== "EEXIST")) throw error;
    if (!await removeWhole(to, { isDescribed: false })) throw takenError(name);
    await rename(from, to, name);
  }
}

/**
 * Under another name first: who dies half-way leaves what the next sweep finds, and not half a checkpoint that has the name for ever. False for one that
 * has a description where none was to have one: what has none was never listed nor restored.
 */
async function removeWhole(directory: string, { isDescribed }: { readonly isDescribed: boolean }): Promise<boolean> {
  const moved = path.join(path.dirname(directory), temporaryName());
  try {
    if (!isDescribed && await exists(path.join(directory, META_FILE))) return false;
    await fs.rename(directory, moved);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return true; // Somebody else was first.
  }
  await fs.rm(moved, { recursive: true, force: true });
  return true;
}

/** Hashes are told apart by their beginning. */
function shortened(value: string): string {
  return /^[0-9a-f]{64}$/.test(value) ? value.slice(0, 12) : value === "" ? "none" : value;
}
