/** Host images: the images directory that schedulers of this user open. */
import { AssetError } from "../base/errors.ts";
import { resolveConfig, type ResolvedConfig } from "../config/config.ts";
import { type Arch, readPlatform } from "../host/platform.ts";
import { defaultImagesDirectory, openAssets, readManifest } from "../images/assets.ts";
import { removeAssets, verifyAssets } from "../images/verify.ts";
import type { CliImages, FetchRequest } from "./context.ts";
import { VERSION } from "../config/version.ts";

type Env = Readonly<Record<string, string | undefined>>;

/** The images for `arch`, default this host's own. Nothing is read before it is asked for. */
export function openHostImages(env: Env, arch: Arch = readPlatform().arch): CliImages {
  const config = resolveConfig({}, env);
  const directory = config.imagesDir ?? defaultImagesDirectory(config.cacheDir, arch);
  return {
    directory,
    open: () => openAssets(directory, { arch }),
    verify: (request) => verifyAssets(directory, request),
    fetch: (request) => fetchImages(request, { env, config, directory, arch }),
    build: async (request) => {
      const { buildImages } = await import("../images/build.ts");
      return await buildImages({ ...request, version: VERSION, cacheDir: config.cacheDir, imagesDir: directory, arch });
    },
    remove: () => removeAssets(directory),
  };
}

interface FetchPlace {
  readonly env: Env;
  readonly config: ResolvedConfig;
  readonly directory: string;
  readonly arch: Arch;
}

/** Verifies what is there when that is the wanted version; downloads what is not, or not right. */
async function fetchImages(request: FetchRequest, { env, config, directory, arch }: FetchPlace): Promise<void> {
  const wanted = env["EXEC_SANDBOX_ASSET_VERSION"] || VERSION;
  try {
    const { manifest } = await readManifest(directory);
    if (manifest.version === wanted && manifest.arch === arch) return void await verifyAssets(directory, request);
  } catch (error) {
    // Without a place to download from, what is wrong with the files says more than that there is none.
    if (!(error instanceof AssetError) || !env["EXEC_SANDBOX_ASSET_URL"]) throw error;
  }
  const { downloadAssets } = await import("../images/download.ts");
  await downloadAssets({
    ...request,
    version: VERSION,
    arch,
    imagesDir: directory,
    cacheDir: config.cacheDir,
    isOffline: config.isOffline,
    env,
  });
}
