/** Sources: forms, languages, and everything that must be refused instead of run. */
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";
import fc from "fast-check";
import { languageOfFile, looksLikePath } from "../../../src/cli/sources.ts";
import { sbx } from "./fake_context.ts";

let directory = "";
before(async () => {
  directory = await fs.mkdtemp(path.join(os.tmpdir(), "sbx-sources-"));
});
after(async () => {
  await fs.rm(directory, { recursive: true });
});

async function file(name: string, content: string | Uint8Array): Promise<string> {
  const full = path.join(directory, name);
  await fs.writeFile(full, content);
  return full;
}

const LANGUAGES: Record<string, string> = {
  py: "python",
  js: "javascript",
  mjs: "javascript",
  cjs: "javascript",
  ts: "javascript",
  mts: "javascript",
  cts: "javascript",
  jsx: "javascript",
  tsx: "javascript",
  sh: "raw",
  bash: "raw",
};

test("every known extension names its language, in any case", async () => {
  for (const [extension, language] of Object.entries(LANGUAGES)) {
    const { requests, code } = await sbx(["run", await file(`code.${extension}`, `code of ${extension}`)]);
    assert.equal(code, 0);
    assert.equal(requests[0]?.language, language, extension);
    assert.equal(requests[0]?.code, `code of ${extension}`);
    assert.equal(languageOfFile(`X.${extension.toUpperCase()}`), language);
  }
});

test("a file with another extension, and one without, are python", async () => {
  for (const name of ["code.txt", "code", "code.py.bak"]) {
    assert.equal((await sbx(["run", await file(name, "1")])).requests[0]?.language, "python");
  }
});

test("--language beats the extension, and takes every short form", async () => {
  const script = await file("beaten.py", "1");
  const forms = {
    python: "python",
    py: "python",
    javascript: "javascript",
    js: "javascript",
    ts: "javascript",
    raw: "raw",
    sh: "raw",
    bash: "raw",
  };
  for (const [form, language] of Object.entries(forms)) {
    assert.equal((await sbx(["run", "-l", form, script])).requests[0]?.language, language);
    assert.equal((await sbx(["run", `--language=${form}`, "code"])).requests[0]?.language, language);
  }
});

test("an unknown language is a usage error that lists the known ones", async () => {
  for (const name of ["ruby", "Python", "", "constructor", "__proto__"]) {
    const { code, stderr, opened } = await sbx(["run", "-l", name, "1"]);
    assert.deepEqual([code, opened], [2, 0]);
    assert.match(stderr, /must be one of python, javascript, raw/);
  }
});

test("inline code is what is no path and does not look like one", async () => {
  for (
    const code of ["print(1)", "a.py is here", "import x.py\n", "/no/such/thing", "a/b/c", "x".repeat(200_000), "print('é')\n# 🎈"]
  ) {
    const { requests } = await sbx(["run", code]);
    assert.deepEqual([requests[0]?.code, requests[0]?.language], [code, "python"]);
  }
});

test("what looks like a path and is none is a usage error and never runs", async () => {
  for (const name of ["missing.py", "./a/b/missing.tsx", "missing.SH", "~/x.mjs"]) {
    const { code, stderr, requests } = await sbx(["run", "print(1)", name]);
    assert.deepEqual([code, requests.length], [2, 0]);
    assert.match(stderr, /^sbx: Cannot read ".*": no such file\n/);
  }
});

test("a path through a file looks missing, a directory says what it is", async () => {
  const script = await file("plain.txt", "1");
  assert.match((await sbx(["run", `${script}/x.py`])).stderr, /no such file/);
  const { code, stderr } = await sbx(["run", directory]);
  assert.equal(code, 2);
  assert.match(stderr, /it is a directory/);
});

test("a link to itself is no missing file", async () => {
  const link = path.join(directory, "circle.py");
  await fs.symlink(link, link);
  const { code, stderr, requests } = await sbx(["run", link]);
  assert.deepEqual([code, requests.length], [2, 0]);
  assert.match(stderr, /its symbolic links lead in a circle/);
});

test("--code runs before the positionals and is never taken for a path", async () => {
  const script = await file("last.js", "last");
  const { requests } = await sbx(["run", script, "-c", "first.py", "--code", "-", "--code=third"]);
  assert.deepEqual(requests.map((request) => [request.code, request.language]), [
    ["first.py", "python"],
    ["-", "python"],
    ["third", "python"],
    ["last", "javascript"],
  ]);
});

test("- is standard input, once", async () => {
  const { requests } = await sbx(["run", "-l", "sh", "-"], { stdin: "echo 1" });
  assert.deepEqual([requests[0]?.code, requests[0]?.language], ["echo 1", "raw"]);
  const twice = await sbx(["run", "-", "print(1)", "-"], { stdin: "1" });
  assert.deepEqual([twice.code, twice.requests.length], [2, 0]);
  assert.match(twice.stderr, /may be given once/);
});

test("a terminal on standard input is told that it is read", async () => {
  assert.match((await sbx(["run", "-"], { stdin: "1", isStdinTty: true })).stderr, /Ctrl-D/);
  assert.equal((await sbx(["run", "-"], { stdin: "1" })).stderr, "");
});

test("code may be 1,048,576 bytes, and one more is refused", async () => {
  const most = "#".repeat(1_048_576);
  assert.equal((await sbx(["run", "-"], { stdin: most })).requests[0]?.code.length, most.length);
  assert.equal((await sbx(["run", await file("most.py", most)])).requests[0]?.code.length, most.length);
  for (const args of [["-"], [await file("more.py", `${most}#`)], ["/dev/zero"]]) {
    const { code, stderr, requests } = await sbx(["run", ...args], { stdin: `${most}#` });
    assert.deepEqual([code, requests.length], [2, 0]);
    assert.match(stderr, /at most 1048576 bytes/);
  }
});

test("a file that is no UTF-8 is refused, a byte-order mark is dropped", async () => {
  const { code, stderr } = await sbx(["run", await file("latin.py", Uint8Array.of(0x23, 0xe9, 0x0a))]);
  assert.equal(code, 2);
  assert.match(stderr, /must be UTF-8/);
  assert.equal((await sbx(["run", await file("mark.py", "\uFEFF1")])).requests[0]?.code, "1");
});

test("looking like a path needs a known extension at the end and no white space", () => {
  fc.assert(fc.property(fc.string(), fc.constantFrom(...Object.keys(LANGUAGES)), (text, extension) => {
    const name = `${text}x.${extension}`;
    assert.equal(looksLikePath(name), !/\s/.test(text));
    assert.equal(looksLikePath(`${name} `), false);
    assert.equal(looksLikePath(`${name})`), false);
  }));
});
