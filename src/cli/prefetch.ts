/** `sbx prefetch`: makes the first run as fast as every later one. */
import type { Arch } from "../host/platform.ts";
import { readPlatform } from "../host/platform.ts";
import { bakeAhead } from "./bake_ahead.ts";
import type { Command, Input } from "./command.ts";
import type { CliContext } from "./context.ts";
import { EXIT, UsageError } from "./failure.ts";
import { MEMORY_MIN_MIB } from "../base/limits.ts";
import { PACKAGE_OPTIONS, parsePackageOptions } from "./package_options.ts";
import { Progress } from "./progress.ts";
import { LANGUAGE_CHOICES, parseLanguage } from "./sources.ts";
import { numberOption } from "./vm_options.ts";

const ARCHITECTURES: readonly Arch[] = ["x86_64", "aarch64"];

/** The command. */
export const prefetch: Command = {
  name: "prefetch",
  summary: "download and verify the images, then make the start templates for this host",
  options: [
    { long: "arch", value: "ARCH", completion: ARCHITECTURES, help: "images of x86_64 or aarch64; default: this host's own" },
    {
      long: "language",
      short: "l",
      value: "LANGUAGE",
      completion: LANGUAGE_CHOICES,
      help: "language of the packages; default python",
    },
    ...PACKAGE_OPTIONS,
    { long: "memory", short: "m", value: "MB", help: "memory of the VMs that will have the packages; default 256" },
    { long: "quiet", short: "q", help: "show no progress" },
  ],
  examples: [
    ["sbx prefetch", "once after the installation"],
    ["sbx prefetch -p numpy==2.3.4 -p pandas==2.3.3", "packages too, so that their first run need not wait"],
  ],
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
    const given = input.value("language"), memoryMb = numberOption(input, "memory", { min: MEMORY_MIN_MIB, unit: " MB", isWhole: true });
    await bakeAhead(context, await images.open(), {
      progress,
      isQuiet: input.has("quiet"),
      packages: parsePackageOptions(input),
      language: given === undefined ? "python" : parseLanguage(given),
      ...(memoryMb === undefined ? {} : { memoryMb }),
    });
  }
  return EXIT.ok;
}
