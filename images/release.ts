/** Packs the built images as a release: `deno run -A images/release.ts [TARGET]` (default `dist/release`). */
import path from "node:path";
import process from "node:process";
import { cacheDirectory, readPlatform } from "../src/host/platform.ts";
import { defaultImagesDirectory } from "../src/images/assets.ts";
import { packRelease } from "../src/images/release.ts";

const target = process.argv[2] ?? path.join(import.meta.dirname ?? ".", "..", "dist", "release");
const images = process.env["EXEC_SANDBOX_IMAGES_DIR"] || defaultImagesDirectory(cacheDirectory(), readPlatform().arch);
process.stdout.write(`${await packRelease(images, target)}\n`);
