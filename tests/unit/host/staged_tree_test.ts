/** Staged tree: a download appears whole or not at all, and never through a link. */
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import test from "node:test";
import { type FileReason, SandboxFileError } from "../../../src/base/errors.ts";
import { checkTarget, StagedTree } from "../../../src/host/staged_tree.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

async function put(tree: StagedTree, relative: string, content: string | Uint8Array, isExecutable = false): Promise<void> {
  const writer = tree.writeFile(relative, { isExecutable }).getWriter();
  if (content.length > 0) await writer.write(typeof content === "string" ? new TextEncoder().encode(content) : content);
  await writer.close();
}

async function failsWith(call: Promise<unknown>, reason: FileReason, says = /^Cannot write /): Promise<void> {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof SandboxFileError, String(error));
    assert.deepEqual([error.side, error.reason], ["host", reason], error.message);
    assert.match(error.message, says);
    return true;
  });
}

test("staged tree: a file of any size appears when it is published, with its mode, in directories that are made", async (t) => {
  const directory = temporaryDirectory(t), target = path.join(directory, "a/b/file");
  for (const [content, isExecutable] of [[new Uint8Array(1_000_003).fill(7), true], ["", false], ["small", false]] as const) {
    await using tree = await StagedTree.create(target, "file");
    await put(tree, "", content, isExecutable);
    assert.equal(fs.readdirSync(path.dirname(target)).filter((name) => !name.startsWith(".tmp-") && name !== "file").length, 0);
    await tree.publish();
    assert.deepEqual(fs.readFileSync(target), Buffer.from(content));
    assert.equal((fs.statSync(target).mode & 0o111) !== 0, isExecutable);
  }
  assert.deepEqual(fs.readdirSync(path.dirname(target)), ["file"]);
});

test("staged tree: a directory appears whole, empty directories and modes too", async (t) => {
  const directory = temporaryDirectory(t), target = path.join(directory, "out");
  await using tree = await StagedTree.create(target, "directory");
  for (const name of ["d", "d/empty"]) await tree.makeDirectory(name);
  await put(tree, "d/x", "x", true);
  await put(tree, "y", "y");
  assert.equal(fs.existsSync(target), false);
  await tree.publish();
  assert.deepEqual((fs.readdirSync(target, { recursive: true }) as string[]).sort(), ["d", "d/empty", "d/x", "y"]);
  assert.deepEqual([fs.statSync(path.join(target, "d/x")).mode & 0o100, fs.readdirSync(directory)], [0o100, ["out"]]);
});

test("staged tree: what is not published is removed, also in the middle of a write", async (t) => {
  const directory = temporaryDirectory(t);
  for (const kind of ["file", "directory"] as const) {
    const tree = await StagedTree.create(path.join(directory, "out"), kind);
    const writer = tree.writeFile(kind === "file" ? "" : "x", { isExecutable: false }).getWriter();
    writer.write(new Uint8Array(10_000_000)).catch(() => {}); // Its file is taken away.
    writer.closed.catch(() => {}); // As above.
    await tree[Symbol.asyncDispose]();
    await assert.rejects(writer.write(new Uint8Array(1)), /the download is over/);
    assert.deepEqual(fs.readdirSync(directory), [], kind);
  }
});

test("staged tree: a directory that is there gets the new files, all or none", async (t) => {
  const directory = temporaryDirectory(t), target = path.join(directory, "out");
  const at = (name: string) => path.join(target, name);
  fs.mkdirSync(at("d"), { recursive: true });
  fs.writeFileSync(at("d/old"), "old");
  fs.writeFileSync(at("d/x"), "old");
  {
    await using tree = await StagedTree.create(target, "directory");
    for (const name of ["d", "e", "e/f"]) await tree.makeDirectory(name);
    await put(tree, "d/x", "new");
    await put(tree, "e/f/y", "y");
    await tree.publish();
  }
  assert.deepEqual((fs.readdirSync(target, { recursive: true }) as string[]).sort(), ["d", "d/old", "d/x", "e", "e/f", "e/f/y"]);
  assert.deepEqual([fs.readFileSync(at("d/x"), "utf8"), fs.readFileSync(at("d/old"), "utf8")], ["new", "old"]);
  // Now something is in the way: nothing else changes either.
  fs.rmSync(at("e/f"), { recursive: true });
  fs.writeFileSync(at("e/f"), "a file");
  const tree = await StagedTree.create(target, "directory");
  for (const name of ["d", "e", "e/f", "g"]) await tree.makeDirectory(name);
  await put(tree, "d/x", "newer");
  await failsWith(tree.publish(), "not-directory", /out\/e\/f"/);
  await tree[Symbol.asyncDispose]();
  assert.deepEqual([fs.readFileSync(at("d/x"), "utf8"), fs.readdirSync(target).sort()], ["new", ["d", "e"]]);
});

test("staged tree: links are neither followed nor replaced", async (t) => {
  const directory = temporaryDirectory(t), outside = path.join(directory, "outside"), target = path.join(directory, "out");
  fs.mkdirSync(outside);
  fs.writeFileSync(path.join(outside, "f"), "mine");
  const isUntouched = () => assert.deepEqual([fs.readdirSync(outside), fs.readFileSync(path.join(outside, "f"), "utf8")], [["f"], "mine"]);
  for (const to of ["outside", "outside/f", "none"]) {
    fs.symlinkSync(to, target);
    for (const kind of ["file", "directory"] as const) await failsWith(StagedTree.create(target, kind), "permission", /symbolic link/);
    await failsWith(checkTarget(target), "permission", /symbolic link/);
    fs.rmSync(target);
    isUntouched();
  }
  fs.mkdirSync(target);
  for (const [link, to] of [["d", "../outside"], ["f", "../outside/f"]] as const) {
    fs.symlinkSync(to, path.join(target, link));
    await using tree = await StagedTree.create(target, "directory");
    if (link === "d") await tree.makeDirectory("d");
    await put(tree, link === "d" ? "d/f" : "f", "theirs");
    await failsWith(tree.publish(), "permission", /symbolic link/);
    fs.rmSync(path.join(target, link));
    isUntouched();
  }
  // One that is planted meanwhile.
  fs.rmSync(target, { recursive: true });
  await using late = await StagedTree.create(target, "file");
  await put(late, "", "theirs");
  fs.symlinkSync("outside/f", target);
  await failsWith(late.publish(), "permission", /symbolic link/);
  isUntouched();
  // Links on the way are the user's own.
  fs.rmSync(target);
  fs.symlinkSync("outside", path.join(directory, "way"));
  await using own = await StagedTree.create(path.join(directory, "way/new"), "file");
  await put(own, "", "x");
  await own.publish();
  assert.deepEqual(fs.readdirSync(outside).sort(), ["f", "new"]);
});

test("staged tree: two names that are one here, and files where directories are wanted, are refused", async (t) => {
  const directory = temporaryDirectory(t), file = path.join(directory, "file");
  fs.writeFileSync(file, "x");
  await failsWith(StagedTree.create(file, "directory"), "not-directory");
  await failsWith(StagedTree.create(directory, "file"), "is-directory");
  await failsWith(StagedTree.create(path.join(file, "x"), "file"), "not-directory");
  await failsWith(StagedTree.create("/dev/null", "file"), "not-a-file");
  await using tree = await StagedTree.create(path.join(directory, "out"), "directory");
  await tree.makeDirectory("A");
  await failsWith(tree.makeDirectory("A"), "exists");
  await put(tree, "x", "1");
  await failsWith(put(tree, "x", "2"), "exists", /out\/x"/);
});

test("staged tree: a place is checked before a run", async (t) => {
  const directory = temporaryDirectory(t), file = path.join(directory, "file");
  fs.writeFileSync(file, "x");
  for (const good of ["file", "new", "a/b/new", "."]) await checkTarget(path.join(directory, good));
  await failsWith(checkTarget(path.join(file, "x")), "not-directory");
  await failsWith(checkTarget("/dev/null"), "not-a-file");
  assert.deepEqual(fs.readdirSync(directory), ["file"]);
});

noLeftovers();
