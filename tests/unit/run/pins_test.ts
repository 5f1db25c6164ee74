/** Versions of packages named without one: read as the tools print them, kept for each registry. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import { PackageInstallError } from "../../../src/base/errors.ts";
import { installError } from "../../../src/run/install.ts";
import { parsePins, PinFile } from "../../../src/run/pins.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

test("pins are read in the tool's own form, and all of them must be there", () => {
  assert.deepEqual([...parsePins("python", "# by uv\nPandas==2.3.1\nother==1\n", ["pandas"])], [["pandas", "2.3.1"]]);
  assert.deepEqual([...parsePins("javascript", "@types/node@24.0.0\nlodash@4.17.21\n", ["lodash", "@types/node"])], [
    ["@types/node", "24.0.0"],
    ["lodash", "4.17.21"],
  ]);
  for (const text of ["", "pandas", "pandas==", "lodash@null", "\x1b[2Jpandas==1"]) {
    assert.throws(() => parsePins("python", text, ["pandas"]), PackageInstallError, text);
  }
  assert.throws(() => parsePins("javascript", "lodash@null\n", ["lodash"]), PackageInstallError);
});

test("versions are kept, each language and registry for itself, and what is damaged is looked up anew", async (t) => {
  const directory = temporaryDirectory(t);
  const file = (registry: string) => new PinFile(directory, { language: "python", registry });
  assert.deepEqual([...await file("a").read()], []);
  await file("a").add(new Map([["x", "1"], ["y", "1"]]));
  await file("a").add(new Map([["x", "2"]]));
  assert.deepEqual([...await file("a").read()], [["x", "2"], ["y", "1"]]);
  assert.deepEqual([...await file("b").read()], []);
  assert.deepEqual([...await new PinFile(directory, { language: "javascript", registry: "a" }).read()], []);
  for (const text of ["", "null", "{", '{"registry":"a","versions":5}', '{"registry":"a","versions":{"x":5}}']) {
    writeFileSync(path.join(directory, "versions-python.json"), text);
    assert.deepEqual([...await file("a").read()], [], text);
  }
});

test("a failed installation is told in the installer's words, with what would mend it", () => {
  const facts = { title: "x==1", diskBytes: 64 * 1_048_576, isNetwork: false, refusedNames: [] };
  const plain = installError({ said: "error: no solution", exitCode: 1 }, facts);
  assert.deepEqual([plain.message, plain.retry, plain.hint], ["Cannot install x==1: error: no solution", "never", undefined]);
  assert.match(installError({ said: "", exitCode: 9 }, facts).message, /status 9/);
  const full = installError({ said: "error: No space left on device (os error 28)", exitCode: 2 }, facts);
  assert.match(full.message, /must fit into 64 MB, and does not/);
  assert.match(full.hint ?? "", /packageLayerMaxMb/);
  assert.equal(installError({ said: "dns error", exitCode: 2 }, { ...facts, isNetwork: true }).retry, "safe");
  assert.match(installError({ said: "x", exitCode: 1 }, { ...facts, refusedNames: ["evil.example.com"] }).hint ?? "", /evil\.example\.com/);
  assert.match(installError({ said: "error: command 'g++' failed: No such file", exitCode: 1 }, facts).hint ?? "", /has a wheel/);
  assert.ok(installError({ said: "y".repeat(9_000), exitCode: 1 }, facts).message.length < 2_000);
});

noLeftovers();
