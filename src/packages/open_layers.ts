/** Open layers: the store of installed packages that a configuration asks for. */
import path from "node:path";
import type { Logger } from "../base/log.ts";
import type { ResolvedConfig } from "../config/config.ts";
import { LayerStore } from "./layer_store.ts";
import { S3Layers } from "./remote_layers.ts";

/** Where the layers of a cache lie. */
export function layersDirectory(cacheDir: string): string {
  return path.join(cacheDir, "layers");
}

/** The fields that matter to layers. */
type LayerConfig = Pick<
  ResolvedConfig,
  | "cacheDir"
  | "layerCacheMaxMb"
  | "isOffline"
  | "s3Bucket"
  | "s3Region"
  | "s3Prefix"
  | "s3Endpoint"
  | "s3SigningKey"
  | "maxConcurrentS3Uploads"
>;

/** The layers of this user, and those of the S3 bucket behind them. Nothing is read, loaded or made before one is wanted. The caller disposes it. */
export function openLayerStore(config: LayerConfig, log: Logger): LayerStore {
  const maxBytes = config.layerCacheMaxMb * 1_048_576;
  const remote = config.s3Bucket === undefined || config.isOffline ? undefined : new S3Layers({
    bucket: config.s3Bucket,
    region: config.s3Region,
    prefix: config.s3Prefix,
    endpoint: config.s3Endpoint,
    signingKey: config.s3SigningKey,
    uploadsMax: config.maxConcurrentS3Uploads,
    maxBytes,
    log,
  });
  return new LayerStore(layersDirectory(config.cacheDir), { log, maxBytes, remote });
}
