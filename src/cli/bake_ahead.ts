/** Baking ahead: the start template of every language whose image is there. */
import type { Assets } from "../images/assets.ts";
import type { CliContext } from "./context.ts";
import { printable } from "./failure.ts";
import type { Language } from "../run/request.ts";
import { packageFinder, type PackageOptions } from "./package_options.ts";
import type { Progress } from "./progress.ts";

/** What is made, and who is told. */
export interface BakeAheadOptions {
  readonly progress: Progress;
  readonly isQuiet: boolean;
  /** Where there are some, their template is made too. */
  readonly packages?: PackageOptions;
  /** Of the packages; default python. */
  readonly language?: Language;
  /** Of the machine with the packages. */
  readonly memoryMb?: number;
}

/** Makes the templates one after the other, with the memory that a run without options gets. */
export async function bakeAhead(
  context: CliContext,
  assets: Pick<Assets, "languages">,
  { progress, isQuiet, packages, language, memoryMb }: BakeAheadOptions,
): Promise<void> {
  const onLog = (line: string) => {
    progress.clear();
    context.stderr.write(`${printable(line)}\n`);
  };
  const isValidated = packages?.isValidated ?? true;
  await using scheduler = await context.openScheduler({
    onProgress: progress.update,
    onLog,
    isDebug: false,
    isQuiet,
    isValidated,
    isServerUsed: false,
  });
  const { signal, stderr } = context;
  // What was named is refused before anything is made.
  const named = packages && await packageFinder(packages, { scheduler, stderr, progress, isQuiet, signal })(language ?? "python");
  for (const each of assets.languages) await scheduler.prepare(each, { signal });
  if (named?.packages) await scheduler.prepare(language ?? "python", { ...named, ...(memoryMb === undefined ? {} : { memoryMb }), signal });
}
