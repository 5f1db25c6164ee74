/** Release: the images of this host packed as `downloadAssets` reads them from a server. */
import { createReadStream, createWriteStream } from "node:fs";
import fs from "node:fs/promises";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { constants, createZstdCompress } from "node:zlib";
import { StagedDirectory } from "../host/files.ts";
import { MANIFEST_NAME, readManifest } from "./assets.ts";
import { verifyAssets } from "./verify.ts";

/** 19 of 22: the levels above need more memory to unpack and gain a hundredth. */
const ZSTD_LEVEL = 19;

/** How a release is packed. */
export interface ReleaseOptions {
  /** 1 to 22; default 19. */
  readonly level?: number;
  readonly signal?: AbortSignal;
}

/**
 * Packs the images of `imagesDir` into `target/v<version>/<arch>`: every file as `<name>.zst`, and the manifest. The images are verified
 * first. Returns the new directory, which must not exist yet. Throws `AssetError` when an image is damaged.
 */
export async function packRelease(imagesDir: string, target: string, options: ReleaseOptions = {}): Promise<string> {
  await verifyAssets(imagesDir, options);
  const { directory, manifest } = await readManifest(imagesDir);
  const parent = path.join(target, `v${manifest.version}`);
  await using staged = await StagedDirectory.create(parent);
  const params = { [constants.ZSTD_c_compressionLevel]: options.level ?? ZSTD_LEVEL };
  for (const name of Object.keys(manifest.files)) {
    const compress = createZstdCompress({ params });
    const output = createWriteStream(path.join(staged.path, `${name}.zst`));
    await pipeline(createReadStream(path.join(directory, name)), compress, output, { signal: options.signal });
  }
  await fs.copyFile(path.join(directory, MANIFEST_NAME), path.join(staged.path, MANIFEST_NAME));
  await fs.chmod(staged.path, 0o755);
  const place = path.join(parent, manifest.arch);
  await fs.mkdir(place); // Refuses to mix with an older release; publishing replaces the empty directory.
  await staged.publish(place);
  return place;
}
