/** `sbx prefetch`: makes the first run as fast as every later one. */
import type { Arch } from "../host/platform.ts";
import { readPlatform } from "../host/platform.ts";
import { bakeAhead } from "./bake_ahead.ts";
import type { Command, Input } from "./command.ts";
import type { CliContext } from "./context.ts";
import { EXIT, UsageError } from "./failure.ts";
import { Progress } from "./progress.ts";

const ARCHITECTURES: readonly Arch[] = ["x86_64", "aarch64"];

/** The command. */
export const prefetch: Command = {
  name: "prefetch",
  summary: "download and verify the images, then make the start templates for this host",
  options: [
    { long: "arch", value: "ARCH", completion: ARCHITECTURES, help: "images of x86_64 or aarch64; default: this host's own" },
    { long: "quiet", short: "q", help: "show no progress" },
  ],
  examples: [["sbx prefetch", "once after the installation"]],
  run: execute,
};

async function execute(context: CliContext, input: Input): Promise<number> {
  const given = input.value("arch");
  const arch = ARCHITECTURES.find((known) => known === given);
  if (given !== undefined && arch === undefined) {
    throw new UsageError(`Cannot set --arch: must be one of ${ARCHITECTURES.join(", ")}, got ${JSON.stringify(given)}`);
  }
  using progress = new Progress(context.stderr, { isQuiet: input.has("quiet") });
  const images = await context.openImages(arch);
  await images.fetch({ onProgress: progress.update, signal: context.signal });
  // A template is a running machine of this host's own kind.
  if (arch === undefined || arch === readPlatform().arch) {
    await bakeAhead(context, await images.open(), { progress, isQuiet: input.has("quiet") });
  }
  return EXIT.ok;
}
