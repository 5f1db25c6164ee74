/** Host cache: what is kept for schedulers of this user. */
import path from "node:path";
import { removeDirectoryAtOnce, sweepLocks, sweepTemporaries } from "../host/files.ts";
import { cachePlaces, listCache } from "../run/inventory.ts";
import type { CliCache } from "./context.ts";

/** The cache that `env` names. Nothing is read before it is asked for. */
export function openHostCache(env: Readonly<Record<string, string | undefined>>): CliCache {
  const places = cachePlaces(env);
  return {
    list: (options) => Promise.resolve({ directory: places.root, entries: listCache(places, options) }),
    remove: async ({ kind, directory }) => {
      if (kind !== "image") return await removeDirectoryAtOnce(directory);
      // A set of images is a link to files that other sets may share.
      await (await import("../images/verify.ts")).removeAssets(path.resolve(directory));
    },
    sweep: async () => {
      for (const root of [places.snapshots, places.layers, places.checkpoints, path.join(places.root, "packages")]) {
        await sweepTemporaries(root);
        await sweepLocks(root);
      }
    },
  };
}
