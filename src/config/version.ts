/** Version: read from the one place that states it, in source runs and compiled binaries alike. */
import manifest from "../../deno.json" with { type: "json" };

/** Version of sbx, such as `0.1.0`. */
export const VERSION: string = manifest.version;
