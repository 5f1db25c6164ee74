/** Transfer: what the two sides of a spec mean, whole trees in and out, and a guest whose names are hostile. */
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { type FileReason, InputValidationError, SandboxFileError } from "../../../src/base/errors.ts";
import { FILE_MAX_BYTES } from "../../../src/base/limits.ts";
import { UsageError } from "../../../src/cli/failure.ts";
import { downloadTree, type TransferProgress, uploadTree } from "../../../src/cli/transfer.ts";
import { numbered, parseDownload, parseUpload } from "../../../src/cli/transfer_spec.ts";
import { filePeer } from "../../support/file_peer.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { openSessionPeer } from "../../support/session_peer.ts";
import { eventually, settled } from "../../support/waiting.ts";

async function open(t: TestContext) {
  const guest = filePeer(), directory = temporaryDirectory(t);
  const at = (name: string) => path.join(directory, name);
  return { guest, directory, at, ...await openSessionPeer(t, { onFrame: guest.onFrame }) };
}
const bytes = (text: string) => new TextEncoder().encode(text);
const all = (directory: string) => (fs.readdirSync(directory, { recursive: true }) as string[]).sort();

async function failsWith(call: Promise<unknown>, [side, reason]: ["guest" | "host", FileReason], says: RegExp = /^Cannot /): Promise<void> {
  const error = await settled(call, "the call").catch((caught) => caught);
  assert.ok(error instanceof SandboxFileError, String(error));
  assert.deepEqual([error.side, error.reason], [side, reason], error.message);
  assert.match(error.message, says);
}

test("transfer specs: the last colon splits, and a backslash makes one part of a name", () => {
  const uploads: Array<[string, string, string]> = [
    ["a", "a", ""],
    ["a:b", "a", "b"],
    ["a:b:c", "a:b", "c"],
    ["a:", "a", ""],
    ["a\\:b", "a:b", ""],
    ["a\\:b:c\\:d", "a:b", "c:d"],
    ["a\\\\:b", "a\\", "b"],
    ["a\\b:c", "a\\b", "c"],
    ["./x y:in/", "./x y", "in/"],
  ];
  for (const [text, local, guest] of uploads) assert.deepEqual(parseUpload(text), { local, guest }, text);
  const downloads: Array<[string, string, string | undefined]> = [
    ["a", "a", undefined],
    ["a:-", "a", "-"],
    ["out/x:y/", "out/x", "y/"],
    ["a\\:b", "a:b", undefined],
    ["a:b:c", "a:b", "c"],
    [".:home", ".", "home"],
  ];
  for (const [text, guest, local] of downloads) assert.deepEqual(parseDownload(text), { guest, local }, text);
});

test("transfer specs: what cannot be a path is refused", () => {
  for (const text of ["", ":b", "a\0:b", "-:b", `${"x".repeat(4097)}:b`]) assert.throws(() => parseUpload(text), UsageError, text);
  for (const text of ["", ":b", "a:", "a:b\0"]) assert.throws(() => parseDownload(text), UsageError, text);
  for (const guest of ["/etc/x", "..", "a/../b", "a\0b", "x".repeat(256)]) {
    assert.throws(() => parseUpload(`l:${guest}`), InputValidationError, guest);
    assert.throws(() => parseDownload(`${guest}:l`), InputValidationError, guest);
  }
});

test("transfer specs: a number goes before the extension", () => {
  assert.deepEqual(
    ["a/r.csv", "r", "r.tar.gz", ".env", ".", "x/"].map((target) => numbered(target, 2)),
    ["a/r-2.csv", "r-2", "r.tar-2.gz", ".env-2", "2", "x-2"],
  );
  assert.equal(numbered("a/r.csv", undefined), "a/r.csv");
});

test("upload: where a file goes", async (t) => {
  const { session, guest, at } = await open(t);
  fs.writeFileSync(at("f.txt"), "x");
  guest.directories.add("there");
  const places: Array<[string, string]> = [
    ["", "f.txt"],
    [".", "f.txt"],
    ["./", "f.txt"],
    ["g", "g"],
    ["./a/./b//g", "a/b/g"],
    ["in/", "in/f.txt"],
    ["there", "there/f.txt"],
  ];
  for (const [given, wanted] of places) {
    guest.files.clear();
    const done = await uploadTree(session, { local: at("f.txt"), guest: given });
    assert.deepEqual([[...guest.files.keys()], done], [[wanted], { guest: wanted, local: at("f.txt"), files: 1, bytes: 1 }], given);
  }
});

test("upload: where a directory goes, with modes and empty directories", async (t) => {
  const { session, guest, at } = await open(t);
  fs.mkdirSync(at("d/sub/empty"), { recursive: true });
  fs.writeFileSync(at("d/sub/ü 🙂\n"), "x");
  fs.writeFileSync(at("d/run"), "yy", { mode: 0o700 });
  for (const [given, wanted] of [["", "d/"], [".", ""], ["app", "app/"], ["app/", "app/d/"], ["a/b/", "a/b/d/"]] as const) {
    guest.files.clear();
    guest.directories.clear();
    const seen: TransferProgress[] = [];
    const done = await uploadTree(session, { local: at("d"), guest: given }, { onProgress: (progress) => void seen.push(progress) });
    assert.deepEqual([...guest.files.keys()].sort(), [`${wanted}run`, `${wanted}sub/ü 🙂\n`], given);
    assert.deepEqual([...guest.directories], [`${wanted}sub/empty`]);
    assert.deepEqual([guest.modes.get(`${wanted}run`), guest.modes.get(`${wanted}sub/ü 🙂\n`)], [0o755, 0o644]);
    assert.deepEqual([done.files, done.bytes, seen.at(-1)], [2, 3, { files: 2, totalFiles: 2, bytes: 3, totalBytes: 3 }]);
  }
  assert.deepEqual(await uploadTree(session, { local: `${at("d")}/.`, guest: "" }).then(({ guest }) => guest), ".");
});

test("upload: the first refusal ends it, and a full guest says what to do", async (t) => {
  const { session, guest, at } = await open(t);
  fs.mkdirSync(at("d"));
  for (let number = 0; number < 100; number++) fs.writeFileSync(at(`d/${number}`), "x");
  guest.refused.set("d/3", "no_space");
  const error = await uploadTree(session, { local: at("d"), guest: "" }).catch((caught) => caught);
  assert.ok(error instanceof SandboxFileError && error.reason === "no-space", String(error));
  assert.match(error.hint ?? "", /--memory/);
  assert.ok(guest.files.size < 100);
  await failsWith(uploadTree(session, { local: at("none"), guest: "" }), ["host", "not-found"]);
  assert.equal(session.closed, false);
});

test("upload: an abort ends it with its reason", async (t) => {
  const { session, guest, at } = await open(t), ending = new AbortController(), reason = new Error("enough");
  fs.mkdirSync(at("d"));
  for (let number = 0; number < 100; number++) fs.writeFileSync(at(`d/${number}`), "x");
  const onProgress = () => ending.abort(reason);
  await assert.rejects(
    uploadTree(session, { local: at("d"), guest: "" }, { signal: ending.signal, onProgress }),
    (error) => error === reason,
  );
  assert.ok(guest.files.size < 100);
});

test("download: where a file goes, with its mode", async (t) => {
  const { session, guest, at, directory } = await open(t);
  guest.files.set("out/f.txt", bytes("content"));
  guest.modes.set("out/f.txt", 0o755);
  fs.mkdirSync(at("there"));
  fs.writeFileSync(at("old"), "old");
  const places: Array<[string, string]> = [["g", "g"], ["in/", "in/f.txt"], ["there", "there/f.txt"], ["old", "old"], ["a/b/g", "a/b/g"]];
  for (const [given, wanted] of places) {
    const done = await downloadTree(session, { guest: "./out/f.txt", local: at(given) });
    assert.deepEqual(done, { guest: "out/f.txt", local: path.join(directory, wanted), files: 1, bytes: 7 });
    assert.deepEqual([fs.readFileSync(at(wanted), "utf8"), fs.statSync(at(wanted)).mode & 0o100], ["content", 0o100]);
  }
  await downloadTree(session, { guest: "out/f.txt", local: at("n.txt") }, { number: 3 });
  assert.ok(fs.existsSync(at("n-3.txt")));
  assert.deepEqual(all(directory).filter((name) => name.includes(".tmp")), []);
});

test("download: without a local name it goes to the current directory", async (t) => {
  const { session, guest } = await open(t), name = `sbx-test-${crypto.randomUUID()}`;
  guest.files.set(`out/${name}`, bytes("x"));
  t.after(() => fs.rmSync(name, { force: true }));
  assert.equal((await downloadTree(session, { guest: `out/${name}`, local: undefined })).local, name);
  assert.equal(fs.readFileSync(name, "utf8"), "x");
});

test("download: a directory with everything in it, twice the same", async (t) => {
  const { session, guest, at } = await open(t);
  for (let number = 0; number < 100; number++) guest.files.set(`out/${number % 7}/${number}`, bytes("x".repeat(number)));
  guest.files.set("out/run ü", bytes("#!"));
  guest.modes.set("out/run ü", 0o700);
  guest.directories.add("out/empty/deep");
  for (let round = 0; round < 2; round++) {
    const done = await downloadTree(session, { guest: "out", local: at("here") });
    assert.deepEqual([done.files, done.bytes], [101, 4952]);
    assert.equal(all(at("here")).length, 101 + 7 + 2);
    assert.deepEqual([fs.readFileSync(at("here/3/94"), "utf8").length, fs.statSync(at("here/run ü")).mode & 0o100], [94, 0o100]);
    assert.ok(fs.statSync(at("here/empty/deep")).isDirectory());
  }
  await downloadTree(session, { guest: "out", local: `${at("into")}/` });
  await downloadTree(session, { guest: ".", local: at("home") });
  assert.deepEqual([all(at("into")).length, fs.readdirSync(at("home"))], [111, ["out"]]);
});

test("download: links to files are their content, links to directories are followed once", async (t) => {
  const { session, guest, at } = await open(t);
  guest.files.set("out/lib/x", bytes("x"));
  guest.listed.set("out", [{ name: "lib64", type: "symlink", follow: { type: "directory" } }]);
  guest.directories.add("out/lib64");
  guest.files.set("out/lib64/x", bytes("x"));
  // Both as the guest lists them: the directory itself, and the link to it.
  guest.listed.set("out/lib", [{ name: "back", type: "symlink", follow: { type: "directory" } }]);
  await failsWith(downloadTree(session, { guest: "out", local: at("o") }), ["host", "exists"]);
  guest.listed.clear();
  guest.listed.set("home", [{ name: "round", type: "symlink", follow: { type: "directory" } }]);
  guest.listed.set("home/round", [{ name: "round", type: "symlink", follow: { type: "directory" } }]);
  guest.directories.add("home");
  await failsWith(downloadTree(session, { guest: "home", local: at("h") }), ["guest", "not-a-file"], /below another such link/);
  guest.listed.set("home", [{ name: "gone", type: "symlink", follow: { type: "symlink" } }]);
  await failsWith(downloadTree(session, { guest: "home", local: at("h") }), ["guest", "not-a-file"]);
  assert.deepEqual(fs.readdirSync(at(".")), []);
});

test("download: names that lead elsewhere or are not what they look like, and special files, are refused, and nothing is left", async (t) => {
  const { session, guest, at } = await open(t);
  guest.files.set("out/good", bytes("x"));
  for (const name of ["..", ".", "a\nb", "a\x1b[2J", "a\x7f", "a\u0085", "a\ufffd", "a\u202egpj.exe"]) {
    guest.listed.set("out", [{ name, type: "file" }]);
    // deno-lint-ignore no-control-regex
    const says = /^Cannot download "out\/[^\x00-\x1f\x7f-\x9f\u202e]+" from the guest: its name [^\n]+$/;
    await failsWith(downloadTree(session, { guest: "out", local: at("o") }), ["guest", "not-a-file"], says);
  }
  for (const type of ["other", "symlink"]) {
    guest.listed.set("out", [{ name: "x", type }]);
    await failsWith(downloadTree(session, { guest: "out", local: at("o") }), ["guest", "not-a-file"], /neither a file nor/);
  }
  guest.listed.set("out", [{ name: "x", type: "file", size: FILE_MAX_BYTES + 1 }]);
  await failsWith(downloadTree(session, { guest: "out", local: at("o") }), ["guest", "too-large"]);
  guest.listed.set("out", Array.from({ length: 70 }, (_, number) => ({ name: `x${number}`, type: "file", size: FILE_MAX_BYTES })));
  await failsWith(downloadTree(session, { guest: "out", local: at("o") }), ["guest", "too-large"], /together|may hold/);
  await failsWith(downloadTree(session, { guest: "none", local: at("o") }), ["guest", "not-found"]);
  assert.deepEqual(fs.readdirSync(at(".")), []);
  assert.equal(session.closed, false);
});

test("download: what stands in the way on the host is told, and nothing changes", async (t) => {
  const { session, guest, at } = await open(t);
  guest.files.set("out/f", bytes("theirs"));
  fs.writeFileSync(at("mine"), "mine");
  fs.symlinkSync("mine", at("link"));
  fs.mkdirSync(at("d"));
  fs.symlinkSync("../mine", at("d/f"));
  await failsWith(downloadTree(session, { guest: "out/f", local: at("link") }), ["host", "permission"], /symbolic link/);
  await failsWith(downloadTree(session, { guest: "out", local: at("d") }), ["host", "permission"], /symbolic link/);
  await failsWith(downloadTree(session, { guest: "out", local: at("mine") }), ["host", "not-directory"]);
  assert.deepEqual([fs.readFileSync(at("mine"), "utf8"), all(at("."))], ["mine", ["d", "d/f", "link", "mine"]]);
});

test("download: an abort in the middle leaves nothing", async (t) => {
  const { session, guest, at } = await open(t), reason = new Error("enough");
  for (let number = 0; number < 40; number++) guest.files.set(`out/${number}`, new Uint8Array(1_000_000));
  for (const source of ["out", "out/3"]) {
    const ending = new AbortController();
    const onProgress = ({ bytes }: TransferProgress) => bytes > 300_000 && ending.abort(reason);
    const options = { signal: ending.signal, onProgress };
    await assert.rejects(
      settled(downloadTree(session, { guest: source, local: at("o") }, options), "the abort"),
      (error) => error === reason,
    );
    assert.deepEqual(fs.readdirSync(at(".")), [], source);
  }
  await session.close();
  await eventually("nothing comes later", () => fs.readdirSync(at(".")).length === 0);
});

test("download: standard output gets the bytes of a file, and of nothing else", async (t) => {
  const { session, guest } = await open(t);
  guest.files.set("out/f", new Uint8Array(300_000).fill(7));
  let count = 0;
  const writeOutput = (part: Uint8Array) => Promise.resolve(void (count += part.length));
  assert.equal((await downloadTree(session, { guest: "out/f", local: "-" }, { writeOutput })).bytes, 300_000);
  assert.equal(count, 300_000);
  await failsWith(downloadTree(session, { guest: "out", local: "-" }, { writeOutput }), ["guest", "not-a-file"]);
});

noLeftovers();
