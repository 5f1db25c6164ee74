/** Assets: what a directory must hold to be opened, and what every kind of damage is called. */
import assert from "node:assert/strict";
import { mkdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import fc from "fast-check";
import { AssetError } from "../../../src/base/errors.ts";
import { defaultImagesDirectory, openAssets, parseManifest } from "../../../src/images/assets.ts";
import { removeAssets, verifyAssets } from "../../../src/images/verify.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { manifestOf, sha256, smallFiles, writeImages } from "./support.ts";
import { existsSync, readdirSync } from "node:fs";

/** An `AssetError` whose message has all `parts` and whose hint names the command that mends. */
const damaged = (...parts: string[]) => (error: unknown) => {
  assert.ok(error instanceof AssetError, String(error));
  for (const part of parts) assert.ok(error.message.includes(part), `"${error.message}" must contain "${part}"`);
  assert.match(error.hint ?? "", /sbx images build/);
  return true;
};

test("openAssets finds every file by what it is for", async (t) => {
  const directory = temporaryDirectory(t);
  const files = writeImages(directory);
  const assets = await openAssets(directory, { arch: "x86_64" });
  assert.equal(assets.kernel.path, path.join(directory, "vmlinux-sbx"));
  assert.equal(assets.initrd.path, path.join(directory, "initrd-sbx.cpio"));
  assert.equal(assets.firmware.path, path.join(directory, "qboot.rom"));
  assert.equal(assets.qemu?.path, path.join(directory, "qemu-sbx"));
  assert.equal(assets.jail?.path, path.join(directory, "sbx-jail"));
  assert.equal(assets.rootImage("javascript").path, path.join(directory, "node-1.3-base.erofs"));
  assert.equal(assets.kernel.sha256, sha256(files["vmlinux-sbx"]!));
  assert.deepEqual(assets.languages, ["python", "raw", "javascript"]);
});

test("openAssets resolves links once, so that all files come from one set", async (t) => {
  const directory = temporaryDirectory(t);
  writeImages(path.join(directory, "set"));
  symlinkSync("set", path.join(directory, "link"));
  const assets = await openAssets(path.join(directory, "link"));
  assert.equal(assets.kernel.path, path.join(directory, "set", "vmlinux-sbx"));
});

test("a language without a root image is an AssetError, and the others still open", async (t) => {
  const directory = temporaryDirectory(t);
  const files = smallFiles();
  delete files["python-3.14-base.erofs"];
  writeImages(directory, files);
  const assets = await openAssets(directory);
  assert.deepEqual(assets.languages, ["raw", "javascript"]);
  assert.throws(() => assets.rootImage("python"), damaged("python", directory));
  assert.throws(() => assets.rootImage("cobol"), damaged("cobol"));
});

test("a missing directory, manifest or file says which", async (t) => {
  const directory = temporaryDirectory(t);
  await assert.rejects(openAssets(path.join(directory, "none")), damaged(path.join(directory, "none", "manifest.json")));
  writeImages(directory);
  rmSync(path.join(directory, "qboot.rom"));
  await assert.rejects(openAssets(directory), damaged("qboot.rom", "must exist"));
  mkdirSync(path.join(directory, "qboot.rom"));
  await assert.rejects(openAssets(directory), damaged("qboot.rom", "something else"));
  rmSync(path.join(directory, "manifest.json"));
  await assert.rejects(openAssets(directory), damaged("manifest.json"));
});

test("a truncated file is refused at open, with both sizes", async (t) => {
  const directory = temporaryDirectory(t);
  const files = writeImages(directory);
  const whole = files["raw-base.erofs"]!.length;
  truncateSync(path.join(directory, "raw-base.erofs"), whole - 1);
  await assert.rejects(openAssets(directory), damaged("raw-base.erofs", `${whole} bytes`, `got ${whole - 1}`));
});

test("a kernel that the manifest does not name is refused", async (t) => {
  const directory = temporaryDirectory(t);
  const files = smallFiles();
  delete files["vmlinux-sbx"];
  writeImages(directory, files);
  await assert.rejects(openAssets(directory), damaged("kernel"));
});

test("images of another architecture are refused", async (t) => {
  const directory = temporaryDirectory(t);
  writeImages(directory);
  await assert.rejects(openAssets(directory, { arch: "aarch64" }), damaged("aarch64", "x86_64"));
});

test("verifyAssets names the file with one wrong byte and both hashes", async (t) => {
  const directory = temporaryDirectory(t);
  const files = writeImages(directory);
  assert.equal((await verifyAssets(directory)).length, Object.keys(files).length);
  const wrong = files["vmlinux-sbx"]!.replace("c", "C");
  writeFileSync(path.join(directory, "vmlinux-sbx"), wrong);
  await openAssets(directory); // The cheap check cannot see it.
  await assert.rejects(verifyAssets(directory), damaged("vmlinux-sbx", sha256(files["vmlinux-sbx"]!), sha256(wrong)));
});

test("verifyAssets stops when aborted", async (t) => {
  const directory = temporaryDirectory(t);
  writeImages(directory);
  const reason = new Error("enough");
  await assert.rejects(verifyAssets(directory, { signal: AbortSignal.abort(reason) }), (error) => error === reason);
});

test("a manifest that is damaged anywhere is an AssetError that names it", () => {
  const good = manifestOf(smallFiles());
  assert.deepEqual(parseManifest(JSON.stringify(good), "m").files["qboot.rom"]?.kind, "firmware");
  const entry = good.files["qboot.rom"]!;
  const bad: unknown[] = [
    null,
    [],
    {},
    { ...good, schema: 2 },
    { ...good, arch: "riscv64" },
    { ...good, files: { "../qboot.rom": entry } },
    { ...good, files: { "a/b": entry } },
    { ...good, files: { "..": entry } },
    { ...good, files: { "qboot.rom": { ...entry, size: -1 } } },
    { ...good, files: { "qboot.rom": { ...entry, size: 1.5 } } },
    { ...good, files: { "qboot.rom": { ...entry, sha256: "00" } } },
    { ...good, files: { "qboot.rom": { ...entry, kind: "bootloader" } } },
  ];
  for (const value of bad) assert.throws(() => parseManifest(JSON.stringify(value), "the manifest"), damaged("the manifest"));
  fc.assert(fc.property(fc.string(), (text) => {
    assert.throws(() => parseManifest(text, "the manifest"), damaged("the manifest"));
  }));
});

test("removeAssets removes what the manifest names and nothing of anybody else's", async (t) => {
  const parent = temporaryDirectory(t);
  const directory = path.join(parent, "images");
  const files = writeImages(directory);
  writeFileSync(path.join(directory, "notes.txt"), "mine");
  const size = Object.values(files).reduce((sum, text) => sum + text.length, 0);
  assert.equal(await removeAssets(directory), size);
  assert.deepEqual(readdirSync(directory), ["notes.txt"]);
  assert.equal(await removeAssets(directory), 0);
  rmSync(path.join(directory, "notes.txt"));
  await removeAssets(directory);
  assert.ok(!existsSync(directory));
});

test("each architecture has its own place below the cache", () => {
  assert.equal(defaultImagesDirectory("/cache", "aarch64"), "/cache/images/aarch64");
});

noLeftovers();
