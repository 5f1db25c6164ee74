/** Layer: another process that obtains a package layer; `wait` holds the installation until told, `die N` kills it at its Nth call of the file system. */
import fs from "node:fs/promises";
import process from "node:process";
import { createInterface } from "node:readline";
import { lineLogger } from "../../../src/base/log.ts";
import { LayerStore } from "../../../src/packages/layer_store.ts";
import { inputsOf, installing } from "../layers.ts";

const [root = "", mode = "", count = "0"] = process.argv.slice(2);
const say = (line: string) => console.log(line);
const store = new LayerStore(root, { log: lineLogger("warning", say) });

if (mode === "die") {
  let left = Number(count);
  for (const name of ["open", "writeFile", "rename", "rm", "mkdir", "readdir", "link", "utimes"] as const) {
    const real = fs[name] as (...args: unknown[]) => unknown;
    // Half of the deaths come before the call has done its work, half after.
    (fs as unknown as Record<string, unknown>)[name] = async (...args: unknown[]) => {
      if (left-- === 0) process.kill(process.pid, "SIGKILL");
      const result = await real.apply(fs, args);
      if (left-- === 0) process.kill(process.pid, "SIGKILL");
      return result;
    };
  }
}

const told = mode === "wait"
  ? new Promise<void>((resolve) => createInterface({ input: process.stdin }).once("line", () => resolve()))
  : undefined;
try {
  const { layer, origin } = await store.obtain(inputsOf(), {
    make: async (place) => {
      say("installing");
      await told;
      if (mode === "fail") throw new Error("the installation failed");
      return await installing(`by ${process.pid}`)(place);
    },
    onWait: (pid) => say(`waiting for ${pid}`),
  });
  say(`${origin} ${layer.sha256}`);
} catch (error) {
  say(`failed: ${(error as Error).message}`);
}
process.exit();
