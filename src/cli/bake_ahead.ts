/** Baking ahead: the start template of every language whose image is there. */
import type { Assets } from "../images/assets.ts";
import type { CliContext } from "./context.ts";
import { printable } from "./failure.ts";
import type { Progress } from "./progress.ts";

/** Makes the templates one after the other, with the memory that a run without options gets. */
export async function bakeAhead(
  context: CliContext,
  assets: Pick<Assets, "languages">,
  { progress, isQuiet }: { readonly progress: Progress; readonly isQuiet: boolean },
): Promise<void> {
  const onLog = (line: string) => {
    progress.clear();
    context.stderr.write(`${printable(line)}\n`);
  };
  await using scheduler = await context.openScheduler({ onProgress: progress.update, onLog, isDebug: false, isQuiet, isServerUsed: false });
  for (const language of assets.languages) await scheduler.prepare(language, { signal: context.signal });
}
