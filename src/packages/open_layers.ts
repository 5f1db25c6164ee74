/** Open layers: the store of installed packages that a configuration asks for. */
import path from "node:path";
import type { Logger } from "../base/log.ts";
import type { ResolvedConfig } from "../config/config.ts";
import { LayerStore } from "./layer_store.ts";

/** Where the layers of a cache lie. */
export function layersDirectory(cacheDir: string): string {
  return path.join(cacheDir, "layers");
}

/** The layers of this user. Nothing is read or made before one is wanted. The caller disposes it. */
export function openLayerStore(config: Pick<ResolvedConfig, "cacheDir" | "layerCacheMaxMb">, log: Logger): LayerStore {
  return new LayerStore(layersDirectory(config.cacheDir), { log, maxBytes: config.layerCacheMaxMb * 1_048_576 });
}
