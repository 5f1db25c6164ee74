/** Publishing: readers see one set or the other, damage is mended, and nobody else's files are touched. */
import assert from "node:assert/strict";
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import { AssetError } from "../../../src/base/errors.ts";
import { openAssets } from "../../../src/images/assets.ts";
import { publishSet, setsDirectory, sweepSets } from "../../../src/images/publish.ts";
import { removeAssets, verifyAssets } from "../../../src/images/verify.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { manifestOf, smallFiles, writeFiles, writeImages } from "./support.ts";

async function publish(parent: string, mark: string): Promise<string> {
  const images = path.join(parent, "images");
  const files = smallFiles(mark);
  await publishSet(images, manifestOf(files), writeFiles(path.join(parent, `sources-${mark}`), files));
  return images;
}

test("a published set opens and verifies, and is read-only", async (t) => {
  const images = await publish(temporaryDirectory(t), "one");
  await verifyAssets(images);
  const { kernel, qemu } = await openAssets(images);
  assert.equal(lstatSync(kernel.path).mode & 0o777, 0o444);
  assert.equal(lstatSync(qemu!.path).mode & 0o777, 0o555);
});

test("a newer set replaces the link; who opened the older one keeps it until the set after next", async (t) => {
  const parent = temporaryDirectory(t);
  const images = await publish(parent, "one");
  const first = await openAssets(images);
  await publish(parent, "two");
  assert.equal(readFileSync(first.kernel.path, "utf8"), smallFiles("one")["vmlinux-sbx"]);
  assert.equal(readFileSync((await openAssets(images)).kernel.path, "utf8"), smallFiles("two")["vmlinux-sbx"]);
  await publish(parent, "three");
  assert.ok(!existsSync(first.kernel.path));
  assert.equal(readdirSync(setsDirectory(images)).length, 2);
});

test("publishing the same set again mends what was damaged, in place", async (t) => {
  const parent = temporaryDirectory(t);
  const images = await publish(parent, "one");
  const before = await openAssets(images);
  rmSync(before.kernel.path);
  writeFileSync(before.kernel.path, smallFiles("one")["vmlinux-sbx"]!.replace("c", "C"));
  rmSync(before.jail!.path);
  await publish(parent, "one");
  await verifyAssets(images);
  assert.equal((await openAssets(images)).directory, before.directory);
});

test("a plain directory of images makes room for the link", async (t) => {
  const parent = temporaryDirectory(t);
  writeImages(path.join(parent, "images"), smallFiles("old"));
  const images = await publish(parent, "new");
  assert.ok(lstatSync(images).isSymbolicLink());
  assert.equal(readFileSync((await openAssets(images)).kernel.path, "utf8"), smallFiles("new")["vmlinux-sbx"]);
});

test("a directory that holds anything else is refused and left alone", async (t) => {
  const parent = temporaryDirectory(t);
  mkdirSync(path.join(parent, "images"));
  writeFileSync(path.join(parent, "images", "thesis.txt"), "years of work");
  await assert.rejects(publish(parent, "one"), (error) => error instanceof AssetError && error.message.includes("thesis.txt"));
  assert.equal(readFileSync(path.join(parent, "images", "thesis.txt"), "utf8"), "years of work");
});

test("what a dead build left is swept, and what a living one is writing is not", async (t) => {
  const parent = temporaryDirectory(t);
  const images = await publish(parent, "one");
  const dead = path.join(setsDirectory(images), ".tmp-999999999-1-0"), link = path.join(parent, ".tmp-999999999-1-1");
  const living = path.join(setsDirectory(images), `.tmp-1-${readFileSync("/proc/1/stat", "latin1").split(") ").at(-1)!.split(" ")[19]}-2`);
  for (const directory of [dead, link, living]) mkdirSync(directory);
  await sweepSets(images);
  assert.deepEqual([dead, link, living].map((directory) => existsSync(directory)), [false, false, true]);
  await verifyAssets(images);
});

test("removeAssets takes away the link and every set", async (t) => {
  const parent = temporaryDirectory(t);
  const images = await publish(parent, "one");
  await publish(parent, "two");
  assert.ok(await removeAssets(images) > 0);
  assert.deepEqual(readdirSync(parent).filter((name) => !name.startsWith("sources-")), []);
  await assert.rejects(openAssets(images), AssetError);
});

noLeftovers();
