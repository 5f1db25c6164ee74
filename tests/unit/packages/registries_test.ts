/** Registries: the environment before files, files before the image's own. */
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { VmConfigError } from "../../../src/base/errors.ts";
import { findRegistry } from "../../../src/packages/registries.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

const OWN = "https://index.example.com/simple";

/** A home with these files. */
function homeWith(t: TestContext, files: Readonly<Record<string, string>>): string {
  const home = temporaryDirectory(t);
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(home, name)), { recursive: true });
    writeFileSync(path.join(home, name), text);
  }
  return home;
}

test("where nothing is set, packages come from where the image's package manager goes", async (t) => {
  const home = homeWith(t, { ".npmrc": "cafile=/x\n;registry=https://no.example.com\n", ".config/uv/uv.toml": "native-tls = true\n" });
  for (const language of ["python", "javascript"] as const) {
    assert.deepEqual(await findRegistry(language, { env: {}, home }, OWN), { url: OWN, isSet: false });
    await assert.rejects(findRegistry(language, { env: {}, home }, undefined), VmConfigError);
  }
});

test("Python's index is that of uv, else of pip; the environment comes first", async (t) => {
  const pip = "[global]\nindex-url = https://pip.example.com/simple\n";
  const find = (files: Record<string, string>, env: Record<string, string> = {}) =>
    findRegistry("python", { env, home: homeWith(t, files) }, OWN).then(({ url }) => url);
  assert.equal(await find({ ".config/pip/pip.conf": pip }), "https://pip.example.com/simple");
  assert.equal(
    await find({ ".pip/pip.conf": pip, ".config/uv/uv.toml": 'index-url = "https://uv.example.com/simple"' }),
    "https://uv.example.com/simple",
  );
  const table = '[[index]]\nname = "x"\nurl = "https://table.example.com/simple"\ndefault = true\n';
  assert.equal(await find({ ".config/uv/uv.toml": table }), "https://table.example.com/simple");
  const env = { PIP_INDEX_URL: "https://env.example.com/simple" };
  assert.equal(await find({ ".config/uv/uv.toml": table }, env), "https://env.example.com/simple");
  assert.equal(await find({}, { ...env, UV_DEFAULT_INDEX: "https://first.example.com/simple" }), "https://first.example.com/simple");
});

test("JavaScript's registry is that of npm, else of Bun", async (t) => {
  const find = (files: Record<string, string>, env: Record<string, string> = {}) =>
    findRegistry("javascript", { env, home: homeWith(t, files) }, OWN).then(({ url }) => url);
  const npm = "//npm.example.com/:_authToken=x\n@scope:registry=https://scope.example.com\nregistry=https://npm.example.com/\n";
  const bun = '[install]\nregistry = "https://bun.example.com/"\n';
  assert.equal(await find({ ".npmrc": npm, ".bunfig.toml": bun }), "https://npm.example.com/");
  assert.equal(await find({ ".bunfig.toml": bun }), "https://bun.example.com/");
  assert.equal(await find({ ".npmrc": npm }, { npm_config_registry: "https://env.example.com/" }), "https://env.example.com/");
});

test("what is no web address is refused, with the name of whoever says it", async (t) => {
  const home = homeWith(t, {});
  for (const url of ["/srv/simple", "file:///srv", "ssh://x", "https://", "x"]) {
    await assert.rejects(
      findRegistry("python", { env: { PIP_INDEX_URL: url }, home }, OWN),
      (error) => error instanceof VmConfigError && /PIP_INDEX_URL must name an index/.test(error.message),
      url,
    );
  }
});

noLeftovers();
