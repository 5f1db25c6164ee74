/** Builds the images from this checkout: `deno task images [--force] [python] [raw] [javascript]`. */
import process from "node:process";
import { messageOf, SandboxError } from "../src/base/errors.ts";
import { cacheDirectory } from "../src/host/platform.ts";
import { IMAGE_LANGUAGES } from "../src/images/assets.ts";
import { buildImages } from "../src/images/build.ts";
import type { BuildProgress } from "../src/images/progress.ts";
import settings from "../deno.json" with { type: "json" };

/** Plain lines: each task's steps as they change, with the time since the start. */
function plainProgress(): (progress: BuildProgress) => void {
  const startedMs = performance.now();
  const shown = new Map<string, string>();
  return ({ task, message = "", percent, isDone }) => {
    const decile = percent === undefined ? "" : ` ${Math.floor(percent / 10) * 10} %`;
    const text = `${message}${isDone ? "" : decile}`;
    if (shown.get(task) === text) return;
    shown.set(task, text);
    process.stderr.write(`[${((performance.now() - startedMs) / 1000).toFixed(1).padStart(6)} s] ${task}: ${text}\n`);
  };
}

const args = process.argv.slice(2);
const unknown = args.find((arg) => arg !== "--force" && !IMAGE_LANGUAGES.some((language) => language === arg));
if (unknown !== undefined) {
  process.stderr.write(`usage: build.ts [--force] [${IMAGE_LANGUAGES.join("] [")}]; got "${unknown}"\n`);
  process.exit(2);
}
const stop = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => stop.abort(new Error(`the build was ended by ${name}`)));
const wanted = IMAGE_LANGUAGES.filter((language) => args.includes(language));
try {
  const result = await buildImages({
    version: settings.version,
    cacheDir: cacheDirectory(),
    imagesDir: process.env["EXEC_SANDBOX_IMAGES_DIR"] || undefined,
    languages: wanted.length > 0 ? wanted : undefined,
    isForced: args.includes("--force"),
    onProgress: plainProgress(),
    onWarning: (message) => process.stderr.write(`warning: ${message}\n`),
    signal: stop.signal,
  });
  for (const { name, seconds, isCached } of result.stages) {
    process.stdout.write(`${name.padEnd(18)} ${isCached ? "unchanged" : `${seconds.toFixed(1)} s`}\n`);
  }
  process.stdout.write(`${result.imagesDir} is ready after ${result.seconds.toFixed(1)} s\n`);
} catch (error) {
  process.stderr.write(`${messageOf(error)}\n`);
  if (SandboxError.is(error) && error.hint) process.stderr.write(`${error.hint}\n`);
  process.exit(stop.signal.aborted ? 130 : 1);
}
