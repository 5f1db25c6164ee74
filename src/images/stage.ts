/** Stages: one step of the image build, kept under the hash of what it is made from. */
import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { AssetError, messageOf } from "../base/errors.ts";
import { makePrivateDirectory, sha256File, StagedDirectory, writeFileAtomic } from "../host/files.ts";
import { describeExit, run } from "../host/process.ts";
import type { OnBuildProgress } from "./progress.ts";

const RECORD_NAME = "stage.json";
const FAILURE_TAIL_LINES = 20;

/** What a stage is told. */
export interface StageContext {
  /** Empty and private to this run; removed afterwards. */
  readonly work: string;
  /** Where the stage puts its files. */
  readonly out: string;
  readonly signal: AbortSignal;
  /** Tells what happens at the moment; `percent` where it is known. */
  step(message: string, percent?: number): void;
  /** Runs a program, logs its output, and throws an `AssetError` with the end of it when the program fails. */
  exec(argv: readonly [string, ...string[]], options?: ExecOptions): Promise<string>;
}

/** How a stage runs a program. */
export interface ExecOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly onLine?: (line: string) => void;
  /** Leave its output out of the log: it is huge and says nothing. */
  readonly isSilent?: boolean;
}

/** One step: what it is made from, and how. */
export interface Stage {
  readonly name: string;
  /** Texts that decide the result: recipes, sources, versions, earlier results. */
  readonly inputs: readonly string[];
  /** Makes the files; returns what the manifest says about all of them. */
  build(context: StageContext): Promise<StageFacts>;
}

/** What a stage knows about its files. */
export interface StageFacts {
  readonly versions: Readonly<Record<string, string>>;
  readonly packages?: Readonly<Record<string, string>>;
  readonly contents?: Readonly<Record<string, number>>;
  readonly registry?: string;
}

/** A stage's kept result. */
export interface StageResult extends StageFacts {
  /** Where the files lie. */
  readonly directory: string;
  readonly files: Readonly<Record<string, { readonly size: number; readonly sha256: string }>>;
  /** Identifies the inputs, and thereby the result, to later stages. */
  readonly key: string;
  /** How long making it took. */
  readonly seconds: number;
  /** False when it was made now. */
  readonly isCached: boolean;
}

/** How stages of one build run. */
export interface StageRun {
  /** Root of everything the build keeps. */
  readonly buildDir: string;
  readonly signal: AbortSignal;
  readonly onProgress: OnBuildProgress;
  /** Make everything anew. */
  readonly isForced: boolean;
  /** Put before every program: what keeps its mounts and its children to itself. */
  readonly enclosure: readonly string[];
}

/**
 * What programs of a build are enclosed in: namespaces for mounts and processes. A build that is killed then takes its compilers along,
 * and the mounts of a root being made can never be met by whoever clears it away. Root only; nothing where the host does not allow it.
 */
export async function findEnclosure(isRoot: boolean): Promise<readonly string[]> {
  if (!isRoot) return [];
  const enclosure = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount-proc",
    "--propagation",
    "private",
    "--pid",
    "--kill-child=KILL",
  ] as const;
  const probe = await run([...enclosure, "true"]).catch(() => undefined); // No util-linux: nothing to enclose with.
  return probe?.code === 0 ? enclosure : [];
}

type StageRecord = Omit<StageResult, "directory" | "isCached">;

/** The kept result of `stage`, or a new one. A kept file that is no longer what was recorded is made anew. */
export async function runStage(stage: Stage, options: StageRun): Promise<StageResult> {
  const key = createHash("sha256").update(JSON.stringify([stage.name, ...stage.inputs])).digest("hex").slice(0, 20);
  const stages = path.join(options.buildDir, "stages");
  const directory = path.join(stages, `${slug(stage.name)}-${key}`);
  const kept = options.isForced ? undefined : await readResult(directory);
  if (kept) {
    options.onProgress({ task: stage.name, message: "unchanged", isDone: true });
    return { ...kept, directory, isCached: true };
  }
  const startedMs = performance.now();
  await using staged = await StagedDirectory.create(stages);
  await using work = await StagedDirectory.create(path.join(options.buildDir, "work"));
  await using log = await StageLog.open(path.join(options.buildDir, "logs", `${slug(stage.name)}.log`));
  const context = stageContext(stage.name, { work: work.path, out: staged.path, log, options });
  const facts = await stage.build(context);
  options.signal.throwIfAborted();
  const files: Record<string, { size: number; sha256: string }> = {};
  for (const name of (await fs.readdir(staged.path)).sort()) {
    const file = path.join(staged.path, name);
    files[name] = { size: (await fs.stat(file)).size, sha256: await sha256File(file, options.signal) };
  }
  const record: StageRecord = { ...facts, key, files, seconds: Math.round((performance.now() - startedMs) / 100) / 10 };
  await writeFileAtomic(path.join(staged.path, RECORD_NAME), JSON.stringify(record));
  await fs.rm(directory, { recursive: true, force: true }); // A damaged or unwanted earlier result.
  await staged.publish(directory);
  await removeOlder(stages, slug(stage.name), directory);
  options.onProgress({ task: stage.name, message: describe(files), isDone: true });
  return { ...record, directory, isCached: false };
}

function stageContext(
  name: string,
  parts: { readonly work: string; readonly out: string; readonly log: StageLog; readonly options: StageRun },
): StageContext {
  const { work, out, log, options } = parts;
  return {
    work,
    out,
    signal: options.signal,
    step(message, percent) {
      log.write(`== ${message}`);
      options.onProgress({ task: name, message, ...(percent === undefined ? {} : { percent }) });
    },
    async exec(argv, execOptions = {}) {
      const tail: string[] = [];
      log.write(`$ ${argv.join(" ")}`);
      const onLine = (line: string) => {
        if (!execOptions.isSilent) log.write(line);
        if (tail.push(line) > FAILURE_TAIL_LINES) tail.shift();
        execOptions.onLine?.(line);
      };
      const env = { ...process.env, LC_ALL: "C.UTF-8", DEBIAN_FRONTEND: "noninteractive", ...execOptions.env } as Record<string, string>;
      let ended;
      try {
        const [first = argv[0], ...rest] = [...options.enclosure, ...argv];
        ended = await run([first, ...rest], { signal: options.signal, onLine, env, cwd: execOptions.cwd ?? work });
      } catch (error) {
        options.signal.throwIfAborted();
        throw new AssetError(`Cannot build ${name}: "${argv[0]}" must be installed and runnable, got ${messageOf(error)}`, {
          hint: "install.sh installs what the build needs.",
          cause: error,
        });
      }
      if (ended.code === 0) return ended.stdout;
      throw new AssetError(`Cannot build ${name}: "${argv[0]}" ${describeExit(ended)}\n${tail.join("\n")}`, {
        hint: `The whole output is in ${log.file}.`,
      });
    },
  };
}

/** The recorded result in `directory`, if every file still is what was recorded. */
async function readResult(directory: string): Promise<StageRecord | undefined> {
  let record: StageRecord;
  try {
    record = JSON.parse(await fs.readFile(path.join(directory, RECORD_NAME), "utf8")) as StageRecord;
    for (const [name, { size, sha256 }] of Object.entries(record.files)) {
      const file = path.join(directory, name);
      // Hashed, not only measured: these files are linked into the published set, where a wrong byte must not survive a build.
      if ((await fs.stat(file)).size !== size || await sha256File(file) !== sha256) return undefined;
    }
  } catch {
    return undefined; // Never made, or not readable: it is made anew.
  }
  return record;
}

/** Keeps one earlier result of a stage beside the present one, for a change that is taken back. */
async function removeOlder(stages: string, name: string, present: string): Promise<void> {
  const older: Array<{ directory: string; mtimeMs: number }> = [];
  for (const entry of await fs.readdir(stages)) {
    const directory = path.join(stages, entry);
    if (!entry.startsWith(`${name}-`) || !/^[0-9a-f]{20}$/.test(entry.slice(name.length + 1)) || directory === present) continue;
    older.push({ directory, mtimeMs: (await fs.stat(directory)).mtimeMs });
  }
  older.sort((a, b) => b.mtimeMs - a.mtimeMs);
  for (const { directory } of older.slice(1)) await fs.rm(directory, { recursive: true, force: true });
}

/** The output of one stage's programs. */
class StageLog implements AsyncDisposable {
  readonly file: string;
  readonly #stream;

  private constructor(file: string) {
    this.file = file;
    this.#stream = createWriteStream(file, { mode: 0o600 });
    this.#stream.on("error", () => {}); // A full disk ends the build where its result is written; the log may be short.
  }

  static async open(file: string): Promise<StageLog> {
    await makePrivateDirectory(path.dirname(file));
    return new StageLog(file);
  }

  write(line: string): void {
    this.#stream.write(line + "\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => this.#stream.end(() => resolve()));
  }
}

function slug(name: string): string {
  return name.replace(/[^a-z0-9]+/gi, "-");
}

function describe(files: StageRecord["files"]): string {
  return Object.entries(files).map(([name, { size }]) => `${name} ${(size / 1e6).toFixed(1)} MB`).join(", ");
}
