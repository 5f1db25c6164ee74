/** Entry of the `sbx` program: answers the version before anything else is loaded. */
import { writeSync } from "node:fs";
import { VERSION } from "./src/config/version.ts";

const args = process.argv.slice(2);
if (!((args[0] === "-V" || args[0] === "--version") && isWritten(`${VERSION}\n`))) {
  // No top-level await: the bytecode of a compiled binary stays usable in either module format.
  import("./src/cli/main.ts").then(({ main }) => main(args));
}

/**
 * Writes `text` to standard output; false when that did not take it, and then the whole program does it, and says why. Not by `console.log`,
 * whose failure Bun and Node keep to themselves; nor by `process.stdout`, which takes Bun 9 ms to build, more than all the rest.
 */
function isWritten(text: string): boolean {
  try {
    return writeSync(1, text) > 0;
  } catch {
    return false; // A full disk, a reader that has gone, a full pipe that does not block.
  }
}
