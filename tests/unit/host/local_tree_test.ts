/** Local tree: what an upload takes, which links it follows, and what it refuses. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { type FileReason, SandboxFileError } from "../../../src/base/errors.ts";
import { FILE_MAX_BYTES } from "../../../src/base/limits.ts";
import { readLocalTree } from "../../../src/host/local_tree.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

function treeWith(t: TestContext, build: (at: (name: string) => string) => void): string {
  const directory = temporaryDirectory(t), root = path.join(directory, "root");
  fs.mkdirSync(root);
  fs.writeFileSync(path.join(directory, "outside"), "secret");
  build((name) => path.join(root, name));
  return root;
}

async function refuses(root: string, reason: FileReason, says: RegExp): Promise<void> {
  await assert.rejects(readLocalTree(root), (error) => {
    assert.ok(error instanceof SandboxFileError, String(error));
    assert.deepEqual([error.side, error.reason], ["host", reason], error.message);
    assert.match(error.message, says);
    return true;
  });
}

test("local tree: files with sizes and executable bits, and directories with nothing in them", async (t) => {
  const root = treeWith(t, (at) => {
    fs.mkdirSync(at("a/b"), { recursive: true });
    fs.mkdirSync(at("a/empty"));
    fs.writeFileSync(at("a/b/ü 🙂"), "12345");
    fs.writeFileSync(at("run.sh"), "#!/bin/sh\n", { mode: 0o755 });
    fs.writeFileSync(at("nothing"), "");
  });
  const { isDirectory, files, emptyDirectories, totalBytes } = await readLocalTree(root);
  assert.deepEqual(
    files.map(({ relative, size, isExecutable }) => [relative, size, isExecutable]),
    [["a/b/ü 🙂", 5, false], ["nothing", 0, false], ["run.sh", 10, true]],
  );
  assert.deepEqual([isDirectory, emptyDirectories, totalBytes], [true, ["a/empty"], 15]);
});

test("local tree: one file, and an empty directory", async (t) => {
  const root = treeWith(t, () => {});
  assert.deepEqual(await readLocalTree(root), { isDirectory: true, files: [], emptyDirectories: [""], totalBytes: 0 });
  const file = path.join(path.dirname(root), "outside");
  const tree = await readLocalTree(file);
  assert.deepEqual(tree, {
    isDirectory: false,
    files: [{ relative: "", local: file, size: 6, isExecutable: false }],
    emptyDirectories: [],
    totalBytes: 6,
  });
});

test("local tree: links are followed inside, and where they were named", async (t) => {
  const root = treeWith(t, (at) => {
    fs.mkdirSync(at("lib"));
    fs.writeFileSync(at("lib/x"), "x");
    fs.symlinkSync("lib", at("lib64"));
    fs.symlinkSync(at("lib/x"), at("absolute"));
    fs.symlinkSync("../lib/x", at("lib/y"));
  });
  const link = path.join(path.dirname(root), "link");
  fs.symlinkSync("root", link);
  for (const start of [root, link]) {
    const { files } = await readLocalTree(start);
    assert.deepEqual(files.map(({ relative }) => relative), ["absolute", "lib/x", "lib/y", "lib64/x", "lib64/y"]);
  }
});

test("local tree: links that lead out, nowhere or in a circle are refused", async (t) => {
  const with_ = (name: string, target: string) => treeWith(t, (at) => (fs.mkdirSync(at("d")), fs.symlinkSync(target, at(name))));
  await refuses(with_("l", "../outside"), "permission", /root\/l" .*symbolic link that leads out/);
  await refuses(with_("l", "/etc"), "permission", /leads out/);
  await refuses(with_("d/l", "../.."), "permission", /leads out/);
  await refuses(with_("l", "none"), "not-found", /root\/l"/);
  await refuses(with_("l", "."), "not-a-file", /directory above it/);
  await refuses(with_("d/l", ".."), "not-a-file", /directory above it/);
  const circle = treeWith(t, (at) => {
    for (const [name, other] of [["a", "b"], ["b", "a"]] as const) {
      fs.mkdirSync(at(name));
      fs.symlinkSync(`../${other}`, at(`${name}/${other}`));
    }
  });
  await refuses(circle, "not-a-file", /directory above it/);
  // A directory whose name begins like the root's is not inside of it.
  const sibling = with_("l", "../root-2");
  fs.mkdirSync(`${sibling}-2`);
  await refuses(sibling, "permission", /leads out/);
});

test("local tree: what is neither file nor directory, too large, unreadable or oddly named is refused", async (t) => {
  await refuses(treeWith(t, (at) => void execFileSync("mkfifo", [at("f")])), "not-a-file", /neither a file nor a directory/);
  await refuses("/dev/null", "not-a-file", /neither/);
  await refuses(treeWith(t, () => {}) + "/none", "not-found", /does not exist/);
  await refuses(
    treeWith(t, (at) => (fs.writeFileSync(at("big"), ""), fs.truncateSync(at("big"), FILE_MAX_BYTES + 1))),
    "too-large",
    /524288001/,
  );
  const limit = treeWith(t, (at) => (fs.writeFileSync(at("big"), ""), fs.truncateSync(at("big"), FILE_MAX_BYTES)));
  assert.equal((await readLocalTree(limit)).totalBytes, FILE_MAX_BYTES);
  const odd = treeWith(t, (at) => fs.writeFileSync(Buffer.concat([Buffer.from(at("x")), Buffer.of(0xff)]), ""));
  await refuses(odd, "not-a-file", /no valid UTF-8/);
});

test("local tree: an abort ends it with its reason", async (t) => {
  const root = treeWith(t, () => {}), reason = Object.assign(new Error("enough"), { code: "EENOUGH" });
  await assert.rejects(readLocalTree(root, AbortSignal.abort(reason)), (error) => error === reason);
});

noLeftovers();
