/** `sbx images`: what machines are made of. */
import { bakeAhead } from "./bake_ahead.ts";
import type { Command, Input } from "./command.ts";
import type { CliContext } from "./context.ts";
import { EXIT, printable } from "./failure.ts";
import { Progress } from "./progress.ts";
import { writeJson } from "./result_json.ts";
import { LANGUAGE_CHOICES, parseLanguage } from "./sources.ts";
import { megabytes, table } from "./table.ts";

const HASH_SHOWN_DIGITS = 12;

const build: Command = {
  name: "build",
  summary: "build the images from source, and the start templates on top",
  options: [
    {
      long: "language",
      short: "l",
      value: "LANGUAGE",
      isRepeatable: true,
      completion: LANGUAGE_CHOICES,
      help: "build the image of this language alone, repeatable; default: all",
    },
    { long: "source", value: "DIR", completion: "file", help: "a checkout of sbx; default: the sources that this program carries" },
    {
      long: "python-catalog",
      value: "FILE|URL",
      completion: "file",
      help: "names of the Python packages that may be installed, most used first; default: what Debian packages",
    },
    { long: "force", help: "build everything anew, with the newest packages" },
    { long: "quiet", short: "q", help: "show no progress" },
  ],
  examples: [["sbx images build -l python", "what Python alone needs"]],
  run: buildImages,
};

const list: Command = {
  name: "list",
  summary: "list the images with size, hash and the versions inside",
  options: [{ long: "json", help: "print a machine-readable list" }],
  run: listImages,
};

const verify: Command = {
  name: "verify",
  summary: "compare every byte of the images with their manifest",
  options: [
    { long: "json", help: "print a machine-readable result" },
    { long: "quiet", short: "q", help: "show no progress" },
  ],
  run: verifyImages,
};

const remove: Command = {
  name: "remove",
  summary: "remove the images",
  run: removeImages,
};

/** The command. */
export const images: Command = {
  name: "images",
  summary: "build, list, verify or remove the kernel, root file systems and programs that machines are made of",
  commands: [build, list, verify, remove],
};

async function buildImages(context: CliContext, input: Input): Promise<number> {
  const languages = input.values("language").map(parseLanguage);
  const installed = await context.openImages();
  using progress = new Progress(context.stderr, { isQuiet: input.has("quiet") });
  const { imagesDir, seconds } = await installed.build({
    languages: languages.length === 0 ? undefined : languages,
    sourceDir: input.value("source"),
    pythonCatalog: input.value("python-catalog"),
    isForced: input.has("force"),
    onProgress: progress.update,
    onWarning: (message) => {
      progress.clear();
      context.stderr.write(`sbx warning: ${printable(message)}\n`);
    },
    signal: context.signal,
  });
  await bakeAhead(context, await installed.open(), { progress, isQuiet: input.has("quiet") });
  progress.clear();
  if (!input.has("quiet")) context.stderr.write(`The images are ready in ${imagesDir}; building took ${seconds} s.\n`);
  return EXIT.ok;
}

async function listImages(context: CliContext, input: Input): Promise<number> {
  const { directory, version, arch, files } = await (await context.openImages()).open();
  if (input.has("json")) {
    const shown = files.map(({ name, kind, size, sha256, language, versions }) => ({
      name,
      kind,
      size,
      sha256,
      ...(language === undefined ? {} : { language }),
      versions,
    }));
    writeJson(context.stdout, { directory, version, arch, files: shown });
    return EXIT.ok;
  }
  const rows = files.map((file) => [
    file.name,
    megabytes(file.size),
    file.sha256.slice(0, HASH_SHOWN_DIGITS),
    Object.entries(file.versions).map(([name, text]) => `${name} ${text}`).join(", "),
  ]);
  context.stdout.write(`sbx images ${version} for ${arch} in ${directory}\n${table(rows)}`);
  return EXIT.ok;
}

async function verifyImages(context: CliContext, input: Input): Promise<number> {
  const installed = await context.openImages();
  using progress = new Progress(context.stderr, { isQuiet: input.has("quiet") });
  const files = await installed.verify({ onProgress: progress.update, signal: context.signal });
  if (input.has("json")) writeJson(context.stdout, { ok: true, directory: installed.directory, files });
  else context.stdout.write(table(files.map((file) => ["ok", file.name, megabytes(file.size), file.sha256])));
  return EXIT.ok;
}

async function removeImages(context: CliContext): Promise<number> {
  const installed = await context.openImages();
  const bytes = await installed.remove();
  context.stderr.write(
    bytes === 0 ? `There were no images in ${installed.directory}.\n` : `Removed ${installed.directory}: ${megabytes(bytes)}.\n`,
  );
  return EXIT.ok;
}
