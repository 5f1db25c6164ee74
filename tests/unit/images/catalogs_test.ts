/** Catalogs: where the names come from, and what is refused as a list of names. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { AssetError } from "../../../src/base/errors.ts";
import type { Apt } from "../../../src/images/apt.ts";
import { readLock } from "../../../src/images/lock.ts";
import type { StageContext } from "../../../src/images/stage.ts";
import { CATALOG_NAMES, catalogsStage, parseNames } from "../../../src/images/stage_catalogs.ts";
import type { Workshop } from "../../../src/images/stages_machine.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

const ROOT = path.resolve(import.meta.dirname ?? "", "../../..");
const numbered = (word: string, count: number) => Array.from({ length: count }, (_, at) => `${word}${at}`);

/** A workshop whose sources lie in an empty directory, and a stage's context in which npm and dpkg-deb leave what a test says. */
async function workshop(t: TestContext, { npm = numbered("js", 12_000), debian = numbered("Deb.Name", 1_200) } = {}) {
  const directory = temporaryDirectory(t),
    root = path.join(directory, "checkout"),
    work = path.join(directory, "work"),
    out = path.join(directory, "out");
  for (const each of [root, work, out]) mkdirSync(each);
  const archive = "content of the archive", lock = structuredClone(await readLock(ROOT));
  lock.catalogs.javascript.integrity = `sha512-${createHash("sha512").update(archive).digest("base64")}`;
  const write = (file: string, text: string) => {
    mkdirSync(path.dirname(path.join(work, file)), { recursive: true });
    writeFileSync(path.join(work, file), text);
  };
  const programs: Record<string, () => void> = {
    npm: () => write("npm-high-impact-1.tgz", archive),
    tar: () => write("package/lib/top.js", `export const top = [\n${npm.map((name) => `  '${name}'`).join(",\n")}\n]\n`),
    "dpkg-deb": () =>
      write(
        "debian/usr/share/dh-python/dist/cpython3_fallback",
        debian.map((name) => `${name} python3-x\n${name} python3-y; PEP386\n`).join(""),
      ),
  };
  const context: StageContext = {
    work,
    out,
    signal: t.signal,
    step: () => {},
    exec: ([program]) => {
      programs[program]?.();
      return Promise.resolve("");
    },
  };
  const apt = { download: () => Promise.resolve(path.join(work, "dh-python_1_all.deb")) } as unknown as Apt;
  const shop: Workshop = { root, buildDir: directory, arch: "x86_64", lock, apt: () => Promise.resolve(apt) };
  const read = (language: keyof typeof CATALOG_NAMES) =>
    readFileSync(path.join(out, CATALOG_NAMES[language]), "utf8").trimEnd().split("\n");
  return { shop, context, directory, read };
}

test("without a list Python's names are those of Debian's mapping, JavaScript's the first 10,000 of the pinned package", async (t) => {
  const { shop, context, read } = await workshop(t);
  const { versions } = await (await catalogsStage(shop)).build(context);
  assert.deepEqual(versions, { python: "dh-python_1_all.deb", javascript: "npm-high-impact 1.13.0" });
  assert.deepEqual(read("python"), numbered("Deb.Name", 1_200));
  assert.deepEqual(read("javascript"), numbered("js", 10_000));
});

test("a list beside the checkout is taken, one that is given goes before it, and the stage is another then", async (t) => {
  const { shop, context, directory, read } = await workshop(t);
  mkdirSync(path.join(directory, "shared/data"), { recursive: true });
  const bare = await catalogsStage(shop);
  writeFileSync(path.join(directory, "shared/data/pypi-top-10000.txt"), numbered("beside", 1_000).join("\n"));
  const beside = await catalogsStage(shop);
  await beside.build(context);
  assert.deepEqual(read("python"), numbered("beside", 1_000));
  const given = path.join(directory, "list.txt");
  writeFileSync(given, `# a comment\n${numbered("given", 11_000).join("\r\n")}`);
  const chosen = await catalogsStage(shop, given);
  const { versions } = await chosen.build(context);
  assert.deepEqual([read("python"), versions["python"]], [numbered("given", 10_000), "list.txt"]);
  assert.equal(new Set([bare, beside, chosen].map((stage) => stage.inputs.join())).size, 3);
});

test("a list comes from a URL too; what the server will not give is an AssetError", async (t) => {
  const server = createServer((request, response) => {
    if (request.url !== "/names") response.statusCode = 404;
    response.end(numbered("remote", 1_000).join("\n"));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  try {
    const { shop, context, read } = await workshop(t);
    await (await catalogsStage(shop, `${url}/names`)).build(context);
    assert.deepEqual(read("python"), numbered("remote", 1_000));
    await assert.rejects(
      catalogsStage(shop, `${url}/nothing`),
      (error) => error instanceof AssetError && error.message.includes("answered 404"),
    );
  } finally {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
  const { shop } = await workshop(t);
  await assert.rejects(catalogsStage(shop, `${url}/names`), AssetError, "nobody listens any more");
});

test("a catalog that would refuse everyday packages is none", async (t) => {
  const { shop, context } = await workshop(t, { npm: numbered("js", 999) });
  await assert.rejects((await catalogsStage(shop)).build(context), /must have at least 1000 names, got 999/);
});

test("another archive than the pinned one is refused", async (t) => {
  const { shop, context } = await workshop(t);
  shop.lock.catalogs.javascript.integrity = "sha512-other";
  await assert.rejects((await catalogsStage(shop)).build(context), /its hash must be sha512-other, got sha512-/);
});

test("a list that is missing, or has something else than names, is an AssetError that says so", async (t) => {
  const { shop } = await workshop(t);
  await assert.rejects(
    catalogsStage(shop, "/nowhere/list.txt"),
    (error) => error instanceof AssetError && error.message.includes("/nowhere/list.txt"),
  );
  for (const line of ["two words", "a==1", "<html>", "-x", "a/b"]) {
    assert.throws(() => parseNames(`ok\n${line}\n`, "a list"), AssetError, line);
  }
});

noLeftovers();
