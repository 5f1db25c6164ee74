/** Run transfers: what `--upload` and `--download` put around each run. */
import path from "node:path";
import { checkTarget } from "../host/staged_tree.ts";
import type { FileHook, RunRequest } from "../run/request.ts";
import type { Input, OptionSpec } from "./command.ts";
import type { CliContext } from "./context.ts";
import { printable, UsageError } from "./failure.ts";
import type { Progress } from "./progress.ts";
import type { DownloadOutcome } from "./result_json.ts";
import {
  downloadTree,
  localTarget,
  type PlannedUpload,
  planUpload,
  type TransferProgress,
  type Transferred,
  uploadTree,
} from "./transfer.ts";
import { type DownloadSpec, parseDownload, parseUpload, STANDARD_OUTPUT } from "./transfer_spec.ts";

/** The options, for every command that starts a VM. */
export const TRANSFER_OPTIONS: readonly OptionSpec[] = [
  {
    long: "upload",
    value: "LOCAL[:GUEST]",
    isRepeatable: true,
    completion: "file",
    help: "file or directory to put below /home/user before the code starts, repeatable",
  },
  {
    long: "download",
    value: "GUEST[:LOCAL]",
    isRepeatable: true,
    help: "file or directory to fetch when the code has ended, repeatable; LOCAL - is standard output",
  },
];

/** What a run of sources has around it. */
export interface Surroundings {
  readonly sourceCount: number;
  readonly context: CliContext;
  readonly progress: Progress;
}

/** Between two drawings of a transfer's progress. */
const DRAW_MS = 100;

/**
 * Reads the options, looks at what is to be uploaded and at where downloads will go, so that no run is for nothing. Undefined when there are none.
 * Throws `UsageError`, `InputValidationError` and `SandboxFileError`.
 */
export async function planTransfers(input: Input, around: Surroundings): Promise<Transfers | undefined> {
  const uploads = input.values("upload").map(parseUpload), downloads = input.values("download").map(parseDownload);
  if (uploads.length + downloads.length === 0) return undefined;
  checkOutput(downloads, { isJson: input.has("json"), sourceCount: around.sourceCount });
  await checkTargets(downloads, around.sourceCount);
  const planned = await Promise.all(uploads.map((spec) => planUpload(spec, around.context.signal)));
  return new Transfers(planned, downloads, around);
}

function checkOutput(
  downloads: readonly DownloadSpec[],
  { isJson, sourceCount }: { readonly isJson: boolean; readonly sourceCount: number },
): void {
  const count = downloads.filter(({ local }) => local === STANDARD_OUTPUT).length;
  const refuse = (why: string) => new UsageError(`Cannot download to standard output: ${why}`);
  if (count > 1) throw refuse(`- may be given once, got it ${count} times`);
  if (count > 0 && isJson) throw refuse("with --json the result is there");
  if (count > 0 && sourceCount > 1) throw refuse(`there must be one source, got ${sourceCount}`);
}

async function checkTargets(downloads: readonly DownloadSpec[], sourceCount: number): Promise<void> {
  const seen = new Map<string, string>();
  for (const spec of downloads) {
    if (spec.local === STANDARD_OUTPUT) continue;
    for (let number = 1; number <= sourceCount; number += 1) {
      // As a file: that a directory is meant, only the guest knows, and then the same place is asked once more.
      const target = path.resolve(await localTarget(spec, false, sourceCount > 1 ? number : undefined));
      const other = seen.get(target);
      if (other !== undefined) {
        const both = `${JSON.stringify(other)} and ${JSON.stringify(spec.guest)}`;
        throw new UsageError(`Cannot set --download: ${both} would both be ${JSON.stringify(target)}`);
      }
      seen.set(target, spec.guest);
      await checkTarget(target);
    }
  }
}

/** The transfers of a command line. */
export class Transfers {
  readonly #uploads: readonly PlannedUpload[];
  readonly #downloads: readonly DownloadSpec[];
  readonly #around: Surroundings;

  /** Made by `planTransfers`. */
  constructor(uploads: readonly PlannedUpload[], downloads: readonly DownloadSpec[], around: Surroundings) {
    this.#uploads = uploads;
    this.#downloads = downloads;
    this.#around = around;
  }

  /** Those of one source. The caller disposes it, which waits until nothing of it is under way. */
  forSource(index: number): SourceTransfers {
    return new SourceTransfers(this.#uploads, this.#downloads, { ...this.#around, index });
  }
}

/** The transfers around one run. */
export class SourceTransfers implements AsyncDisposable {
  /** For the request. */
  readonly hooks: Pick<RunRequest, "prepare" | "collect">;
  readonly #around: Surroundings & { readonly index: number };
  readonly #downloads: readonly DownloadSpec[];
  #outcomes: DownloadOutcome[] = [];
  #underWay: Promise<unknown> = Promise.resolve();

  /** Made by `Transfers.forSource`. */
  constructor(uploads: readonly PlannedUpload[], downloads: readonly DownloadSpec[], around: Surroundings & { readonly index: number }) {
    this.#around = around;
    this.#downloads = downloads;
    this.hooks = {
      ...(uploads.length === 0 ? {} : { prepare: this.#tracked((files, signal) => this.#upload(uploads, files, signal)) }),
      ...(downloads.length === 0 ? {} : { collect: this.#tracked((files, signal) => this.#download(files, signal)) }),
    };
  }

  /** What became of the downloads, once the run is over; nothing where none were asked for. */
  get outcome(): { readonly downloads?: readonly DownloadOutcome[] } {
    return this.#downloads.length === 0 ? {} : { downloads: this.#outcomes };
  }

  /** A run that is aborted waits for nobody: what is unfinished is removed all the same before the program ends. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#underWay.catch(() => {}); // The run has told it.
  }

  #tracked(hook: FileHook): FileHook {
    return (files, signal) => {
      const work = hook(files, signal);
      this.#underWay = work;
      return work;
    };
  }

  async #upload(uploads: readonly PlannedUpload[], ...[files, signal]: Parameters<FileHook>): Promise<void> {
    // One after the other: a later one may go into what an earlier one made.
    for (const upload of uploads) {
      const report = this.#report("upload", upload.spec.local);
      try {
        report.end(await uploadTree(files, upload, { signal, onProgress: report.onProgress }));
      } catch (error) {
        report.fail();
        throw error;
      }
    }
  }

  /** A download that fails is an outcome, and does not keep the others from being tried. */
  async #download(...[files, signal]: Parameters<FileHook>): Promise<void> {
    const { context: { stdout }, progress, index, sourceCount } = this.#around;
    const writeOutput = (bytes: Uint8Array) => {
      progress.clear();
      return stdout.writeBytes(bytes);
    };
    for (const spec of this.#downloads) {
      const report = this.#report("download", spec.guest);
      const number = sourceCount > 1 ? index + 1 : undefined;
      try {
        const done = await downloadTree(files, spec, { signal, onProgress: report.onProgress, writeOutput, number });
        report.end(done);
        this.#outcomes.push({ done });
      } catch (error) {
        signal.throwIfAborted();
        report.fail();
        this.#outcomes.push({ guest: spec.guest, error });
      }
    }
  }

  #report(action: string, name: string) {
    const { progress, index, sourceCount } = this.#around;
    const task = `${action} ${printable(name)}${sourceCount > 1 ? ` (${index + 1}/${sourceCount})` : ""}`;
    const onProgress = transferProgress(progress, task);
    const end = ({ files, bytes, local, guest }: Transferred) => {
      const where = action === "upload" ? guest : local;
      progress.update({ task, message: `${files === 1 ? "" : `${files} files, `}${sizeOf(bytes)} → ${where}`, isDone: true });
    };
    return { onProgress, end, fail: () => progress.drop(task) };
  }
}

/** Tells `progress` of a transfer, now and then. */
export function transferProgress(progress: Progress, task: string): (step: TransferProgress) => void {
  let drawnAt = -Infinity;
  return ({ files, totalFiles, bytes, totalBytes }) => {
    const now = performance.now();
    if (now - drawnAt < DRAW_MS) return;
    drawnAt = now;
    const message = `${sizeOf(bytes)} of ${sizeOf(totalBytes)}${totalFiles === 1 ? "" : `, ${files} of ${totalFiles} files`},`;
    progress.update({ task, message, isDetail: true, ...(totalBytes === 0 ? {} : { percent: Math.min(100, 100 * bytes / totalBytes) }) });
  };
}

/** `999 B`, `12.3 kB`, `45.0 MB`: powers of 1,000, as disks and networks count. */
export function sizeOf(byteCount: number): string {
  const units = ["B", "kB", "MB", "GB"];
  let size = byteCount, unit = 0;
  while (size >= 999.95 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? size : size.toFixed(1)} ${units[unit]}`;
}
