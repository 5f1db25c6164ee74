/** Host images: the images directory that schedulers of this user open. */
import { resolveConfig } from "../config/config.ts";
import { type Arch, readPlatform } from "../host/platform.ts";
import { defaultImagesDirectory, openAssets } from "../images/assets.ts";
import { removeAssets, verifyAssets } from "../images/verify.ts";
import type { CliImages } from "./context.ts";
import { VERSION } from "./version.ts";

/** The images for `arch`, default this host's own. Nothing is read before it is asked for. */
export function openHostImages(env: Readonly<Record<string, string | undefined>>, arch: Arch = readPlatform().arch): Promise<CliImages> {
  const config = resolveConfig({}, env);
  const directory = config.imagesDir ?? defaultImagesDirectory(config.cacheDir, arch);
  return Promise.resolve({
    directory,
    open: () => openAssets(directory, { arch }),
    build: async (request) => {
      const { buildImages } = await import("../images/build.ts");
      return await buildImages({ ...request, version: VERSION, cacheDir: config.cacheDir, imagesDir: directory, arch });
    },
    verify: (options) => verifyAssets(directory, options),
    remove: () => removeAssets(directory),
  });
}
