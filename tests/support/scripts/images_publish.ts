/** Publishes two sets of images in turn until it is killed. Arguments: images directory, sources of the one, sources of the other. */
import { readdirSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { readManifest } from "../../../src/images/assets.ts";
import { publishSet } from "../../../src/images/publish.ts";

const [, , images = "", ...origins] = process.argv;
for (let round = 0;; round++) {
  const origin = origins[round % 2] ?? "";
  const { manifest } = await readManifest(origin);
  const sources = new Map(readdirSync(origin).map((name) => [name, path.join(origin, name)]));
  await publishSet(images, manifest, sources);
  if (round === 2) process.stdout.write("publishing\n");
}
