/** Find the assets: the images directory, downloaded first where it is missing and a release is known. */
import { AssetError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import type { ResolvedConfig } from "../config/config.ts";
import { VERSION } from "../config/version.ts";
import type { Platform } from "../host/platform.ts";
import { type Assets, defaultImagesDirectory, openAssets } from "../images/assets.ts";

/** Opens the images. Throws `AssetError` when they are missing or not whole and cannot, or must not, be downloaded. */
export async function findAssets(config: ResolvedConfig, platform: Platform, log: Logger): Promise<Assets> {
  const { arch } = platform, imagesDir = config.imagesDir ?? defaultImagesDirectory(config.cacheDir, arch);
  try {
    return await openAssets(imagesDir, { arch });
  } catch (error) {
    const canDownload = config.autoDownloadAssets && !config.isOffline && config.assetUrl !== undefined;
    if (!(error instanceof AssetError) || !canDownload) throw error;
    log.warning("images are missing and are downloaded now", { reason: error.message });
  }
  const { downloadAssets } = await import("../images/download.ts");
  const { cacheDir, assetUrl: baseUrl } = config;
  await downloadAssets({ version: config.assetVersion ?? VERSION, arch, imagesDir, cacheDir, baseUrl, isOffline: false, env: {} });
  return await openAssets(imagesDir, { arch });
}
