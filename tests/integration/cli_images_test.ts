/** `sbx images` and `sbx prefetch` on a real directory of small files, which no machine could start from. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { readPlatform } from "../../src/host/platform.ts";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { ROOT, sbx } from "./cli_terminal.ts";

const KINDS = { "vmlinux-sbx": "kernel", "initrd-sbx.cpio": "initrd", "qboot.rom": "firmware" } as const;
const { version } = JSON.parse(await fs.readFile(path.join(ROOT, "deno.json"), "utf8"));

/** A directory of images in the wanted version, and the environment that names it. */
async function smallImages(t: TestContext) {
  const cache = temporaryDirectory(t);
  const directory = path.join(cache, "images");
  await fs.mkdir(directory);
  const entries = await Promise.all(
    Object.entries(KINDS).map(async ([name, kind]) => {
      const content = `content of ${name}`;
      await fs.writeFile(path.join(directory, name), content);
      const sha256 = createHash("sha256").update(content).digest("hex");
      return [name, { size: content.length, sha256, kind, versions: { made: "here" } }];
    }),
  );
  const manifest = { schema: 1, version, arch: readPlatform().arch, files: Object.fromEntries(entries) };
  await fs.writeFile(path.join(directory, "manifest.json"), JSON.stringify(manifest));
  const env = { EXEC_SANDBOX_CACHE_DIR: cache, EXEC_SANDBOX_IMAGES_DIR: directory, EXEC_SANDBOX_OFFLINE: "1" };
  return { directory, env, hashOf: (name: string): string => manifest.files[name].sha256 };
}

test("list and verify show what is there", async (t) => {
  const { directory, env, hashOf } = await smallImages(t);
  const list = await sbx(["images", "list", "--json"], { env });
  const shown = JSON.parse(list.stdout);
  assert.deepEqual([list.code, list.stderr, shown.directory], [0, "", directory]);
  assert.deepEqual(shown.files.map((file: { name: string }) => file.name), Object.keys(KINDS));
  const verify = await sbx(["images", "verify", "-q"], { env });
  assert.deepEqual([verify.code, verify.stderr], [0, ""]);
  assert.ok(verify.stdout.includes(hashOf("qboot.rom")));
});

test("a wrong byte is an AssetError that names the file and both hashes", async (t) => {
  const { directory, env, hashOf } = await smallImages(t);
  await fs.writeFile(path.join(directory, "qboot.rom"), "Content of qboot.rom");
  const wrong = createHash("sha256").update("Content of qboot.rom").digest("hex");
  for (const args of [["images", "verify", "-q"], ["prefetch", "-q"]]) {
    const { code, stdout, stderr } = await sbx(args, { env });
    assert.deepEqual([code, stdout], [125, ""]);
    for (const part of ["qboot.rom", hashOf("qboot.rom"), wrong]) assert.ok(stderr.includes(part), `${part} in ${stderr}`);
  }
  const { error } = JSON.parse((await sbx(["images", "verify", "-q", "--json"], { env })).stdout);
  assert.deepEqual([error.code, error.type], ["SBX_ASSET", "AssetError"]);
});

test("a truncated file is found without hashing, by list and by run", async (t) => {
  const { directory, env } = await smallImages(t);
  await fs.writeFile(path.join(directory, "vmlinux-sbx"), "content");
  for (const args of [["images", "list"], ["run", "print(1)"]]) {
    const { code, stderr } = await sbx(args, { env });
    assert.equal(code, 125);
    assert.match(stderr, /vmlinux-sbx: it must have 22 bytes, got 7\n.*sbx images build/);
  }
});

test("remove takes the images away, and nothing else", async (t) => {
  const { directory, env } = await smallImages(t);
  await fs.writeFile(path.join(directory, "somebody-elses"), "");
  assert.equal((await sbx(["images", "remove"], { env })).code, 0);
  assert.deepEqual(await fs.readdir(directory), ["somebody-elses"]);
  const again = await sbx(["images", "remove"], { env });
  assert.deepEqual([again.code, again.stderr], [0, `There were no images in ${directory}.\n`]);
  assert.equal((await sbx(["images", "list"], { env })).code, 125);
});

test("prefetch without images says that the network must not be used", async (t) => {
  const cache = temporaryDirectory(t);
  const env = { EXEC_SANDBOX_CACHE_DIR: cache, EXEC_SANDBOX_IMAGES_DIR: "", EXEC_SANDBOX_ASSET_URL: "http://127.0.0.1:9/releases" };
  const offline = await sbx(["prefetch"], { env: { ...env, EXEC_SANDBOX_OFFLINE: "1" } });
  assert.equal(offline.code, 125);
  assert.match(offline.stderr, /EXEC_SANDBOX_OFFLINE is set/);
  const refused = await sbx(["prefetch"], { env });
  assert.equal(refused.code, 125);
  assert.match(refused.stderr, /^sbx: .*127\.0\.0\.1:9/);
});

test("a build without sources says where they could come from", async (t) => {
  const cache = temporaryDirectory(t);
  const env = { EXEC_SANDBOX_CACHE_DIR: path.join(cache, "c"), EXEC_SANDBOX_IMAGES_DIR: "" };
  const { code, stderr } = await sbx(["images", "build", "--source", cache], { env });
  assert.equal(code, 125);
  assert.ok(stderr.includes(cache), stderr);
});

noLeftovers();
