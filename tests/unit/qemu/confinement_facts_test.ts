/** confinementFacts: equal where the verdict is, different where rights differ. */
import assert from "node:assert/strict";
import process from "node:process";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { run } from "../../../src/host/process.ts";
import { confinementFacts } from "../../../src/qemu/confinement_facts.ts";

const skip = process.platform === "linux" ? false : "Linux only";

async function factsBehind(prefix: readonly string[]): Promise<string> {
  const module = fileURLToPath(new URL("../../../src/qemu/confinement_facts.ts", import.meta.url));
  const code = `import(${JSON.stringify(module)}).then((m) => process.stdout.write(m.confinementFacts()))`;
  const runtime = "Deno" in globalThis ? [process.execPath, "eval", "--ext=js"] : [process.execPath, "-e"];
  const output = await run([...prefix, ...runtime, code] as unknown as [string]);
  assert.equal(output.code, 0, output.stderr);
  return output.stdout;
}

test("confinementFacts are the same for two processes of the same rights", { skip }, async () => {
  assert.equal(await factsBehind([]), confinementFacts());
});

test("confinementFacts differ when privileges cannot be gained any more", { skip }, async () => {
  const facts = await factsBehind(["setpriv", "--no-new-privs", "--"]);
  assert.notEqual(facts, confinementFacts());
  assert.equal(facts.replace("NoNewPrivs:\\t1", "NoNewPrivs:\\t0"), confinementFacts());
});

test(
  "confinementFacts differ in another mount namespace",
  { skip: skip || (process.getuid?.() === 0 ? false : "needs root") },
  async (t) => {
    if ((await run(["unshare", "--mount", "true"])).code !== 0) return t.skip("this host allows no mount namespace");
    assert.notEqual(await factsBehind(["unshare", "--mount", "--"]), confinementFacts());
  },
);
