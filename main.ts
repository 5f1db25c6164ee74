/** Entry of the `sbx` program: answers the version before anything else is loaded. */
import { VERSION } from "./src/config/version.ts";

const args = process.argv.slice(2);
if (args[0] === "-V" || args[0] === "--version") {
  // console.log and not process.stdout: building that stream takes Bun 9 ms, more than the whole rest of the program.
  // deno-lint-ignore no-console
  console.log(VERSION);
} else {
  // No top-level await: the bytecode of a compiled binary stays usable in either module format.
  import("./src/cli/main.ts").then(({ main }) => main(args));
}
