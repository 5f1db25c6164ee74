/** `sbx run --upload --download`: before and after the code, exit statuses, JSON and progress, without a VM. */
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { InterruptedError } from "../../../src/cli/failure.ts";
import { sizeOf } from "../../../src/cli/run_transfers.ts";
import type { ExecutionResult, RunRequest, Session } from "../../../src/mod.ts";
import { filePeer } from "../../support/file_peer.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { openSessionPeer } from "../../support/session_peer.ts";
import { FakeOutput, resultOf, sbx } from "./fake_context.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

async function open(t: TestContext) {
  const guest = filePeer(), directory = temporaryDirectory(t);
  const { session } = await openSessionPeer(t, { onFrame: guest.onFrame });
  const at = (name: string) => path.join(directory, name);
  return { guest, directory, at, session };
}

/** A run as the scheduler makes it, whose code is `code`. */
function running(session: Session, code: () => Partial<ExecutionResult> = () => ({})) {
  return async (request: RunRequest) => {
    const signal = request.signal ?? new AbortController().signal;
    await request.prepare?.(session, signal);
    const result = resultOf(code());
    await request.collect?.(session, signal);
    return result;
  };
}

test("uploads are there before the code runs, and downloads when it has ended", async (t) => {
  const { guest, at, session } = await open(t);
  fs.mkdirSync(at("d"));
  fs.writeFileSync(at("d/x"), "x");
  fs.writeFileSync(at("f"), "f");
  const run = running(session, () => {
    assert.deepEqual([...guest.files.keys()].sort(), ["app/x", "f"]);
    guest.files.set("out.csv", bytes("1,2"));
    return { exitCode: 3 };
  });
  const args = ["run", "--upload", `${at("d")}:app`, "--upload", at("f"), "--download", `out.csv:${at("o.csv")}`, "code"];
  const { code, stderr } = await sbx(args, { run });
  assert.equal(code, 3);
  assert.equal(fs.readFileSync(at("o.csv"), "utf8"), "1,2");
  const lines = stderr.trimEnd().split("\n").map((line) => line.replace(/ \(\d+\.\d s\)$/, ""));
  assert.deepEqual(lines, [
    `upload ${at("d")}: 1 B → app`,
    `upload ${at("f")}: 1 B → f`,
    `download out.csv: 3 B → ${at("o.csv")}`,
  ]);
  guest.files.clear();
  assert.equal((await sbx([...args, "-q"], { run })).stderr, "");
});

test("a request without transfers has no hooks", async () => {
  const { requests: [request] } = await sbx(["run", "1"]);
  assert.deepEqual(["prepare", "collect"].filter((name) => name in (request ?? {})), []);
});

test("the program's own failure beats a download's, which else is 125; the others are still fetched", async (t) => {
  const { guest, at, session } = await open(t);
  guest.files.set("there", bytes("x"));
  const args = ["run", "-q", "--download", `none:${at("none")}`, "--download", `there:${at("there")}`, "code"];
  const results: Array<[Partial<ExecutionResult>, number]> = [[{}, 125], [{ exitCode: 7 }, 7], [{ exitCode: -1, timedOut: true }, 124]];
  for (const [result, wanted] of results) {
    fs.rmSync(at("there"), { force: true });
    const { code, stderr } = await sbx(args, { run: running(session, () => result) });
    assert.equal(code, wanted);
    assert.match(stderr, /^sbx: Cannot download "none" from the guest: it does not exist$/m);
    assert.deepEqual(fs.readdirSync(at(".")), ["there"]);
    const json = JSON.parse((await sbx([...args, "--json"], { run: running(session, () => result) })).stdout);
    assert.deepEqual([json.downloads.length, json.downloads[0].guest, json.downloads[0].error.code], [2, "none", "SBX_FILE"]);
    assert.deepEqual(json.downloads[1], { guest: "there", local: at("there"), files: 1, bytes: 1 });
    assert.equal(json.error?.code, wanted === 125 ? "SBX_FILE" : undefined);
    assert.equal(json.exit_code, result.exitCode ?? 0);
  }
});

test("a failed upload ends the run before the code", async (t) => {
  const { guest, at, session } = await open(t);
  fs.writeFileSync(at("f"), "f");
  guest.refused.set("f", "no_space");
  const run = running(session, () => assert.fail("the code ran"));
  const { code, stderr } = await sbx(["run", "--upload", at("f"), "code"], { run });
  assert.equal(code, 125);
  assert.match(stderr, /^sbx: Cannot write "f" in the guest: no space is left in the guest\n.*--memory/m);
});

test("what cannot be right is refused before a VM is opened", async (t) => {
  const { at } = await open(t);
  fs.writeFileSync(at("file"), "x");
  fs.symlinkSync("file", at("link"));
  const wrong: Array<[readonly string[], number, RegExp]> = [
    [["--upload", ""], 2, /must not be empty/],
    [["--upload", "a:/etc/x"], 2, /relative to the home/],
    [["--upload", at("none")], 125, /does not exist/],
    [["--upload", "/dev/null"], 125, /neither a file nor a directory/],
    [["--download", "../x"], 2, /must not contain/],
    [["--download", `x:${at("link")}`], 125, /symbolic link/],
    [["--download", `x:${at("file/x")}`], 125, /no directory/],
    [["--download", `x:${at("a")}`, "--download", `y:${at("a")}`], 2, /"x" and "y" would both be/],
    [["--download", "x:-", "--json"], 2, /the result is there/],
    [["--download", "x:-", "--download", "y:-"], 2, /given once/],
    [["--download", "x:-", "more"], 2, /must be one source, got 2/],
  ];
  for (const [args, wanted, says] of wrong) {
    const { code, stderr, stdout, opened } = await sbx(["run", ...args, "code"]);
    assert.deepEqual([code, opened], [wanted, 0], args.join(" "));
    assert.match(args.includes("--json") ? stdout : stderr, says);
  }
});

test("a download to standard output comes after the program's own output, byte for byte", async (t) => {
  const { guest, session } = await open(t), stdout = new FakeOutput();
  guest.files.set("f", bytes("file\n"));
  const run = async (request: RunRequest) => {
    request.onStdout?.("program\n");
    return await running(session)(request);
  };
  assert.equal((await sbx(["run", "-q", "--download", "f:-", "code"], { run, stdout })).code, 0);
  assert.equal(stdout.text, "program\nfile\n");
});

test("several sources get the same uploads and downloads of their own", async (t) => {
  const { guest, at, session } = await open(t);
  fs.writeFileSync(at("f"), "f");
  guest.files.set("r.csv", bytes("r"));
  guest.files.set("d/x", bytes("x"));
  const args = ["run", "-j", "1", "--upload", at("f"), "--download", `r.csv:${at("r.csv")}`, "--download", `d:${at("d")}`, "one", "two"];
  const { code, stderr } = await sbx(args, { run: running(session) });
  assert.equal(code, 0);
  assert.deepEqual(fs.readdirSync(at(".")).sort(), ["d-1", "d-2", "f", "r-1.csv", "r-2.csv"]);
  assert.match(stderr, /^upload .*\/f \(2\/2\): 1 B → f/m);
  const json = JSON.parse((await sbx([...args, "--json"], { run: running(session) })).stdout);
  assert.equal(json[1].downloads[0].local, at("r-2.csv"));
});

test("an interrupt in the middle of a transfer leaves nothing behind", async (t) => {
  const { guest, at, session } = await open(t);
  fs.mkdirSync(at("up"));
  for (let number = 0; number < 50; number++) fs.writeFileSync(at(`up/${number}`), "x".repeat(100_000));
  for (let number = 0; number < 50; number++) guest.files.set(`out/${number}`, new Uint8Array(100_000));
  for (const args of [["--upload", `${at("up")}:in`], ["--download", `out:${at("down")}`]]) {
    const ending = new AbortController();
    const run = (request: RunRequest) => {
      setTimeout(() => ending.abort(new InterruptedError("SIGINT", 2)), 3);
      // As the scheduler: it waits for nobody when it is aborted.
      const aborted = new Promise<never>((_, reject) => request.signal?.addEventListener("abort", () => reject(request.signal?.reason)));
      const work = running(session)(request);
      work.catch(() => {}); // The abort is told.
      return Promise.race([aborted, work]);
    };
    const { code, stderr } = await sbx(["run", "-q", ...args, "code"], { run, signal: ending.signal });
    assert.deepEqual([code, stderr], [130, "sbx: Interrupted by SIGINT\n"]);
    assert.deepEqual(fs.readdirSync(at(".")), ["up"], "at once, and not some time later");
  }
});

test("on a terminal the progress of a transfer is drawn, and its end stays", async (t) => {
  const { guest, at, session } = await open(t), stderr = new FakeOutput({ isTty: true, columns: 200 });
  guest.files.set("out/a", new Uint8Array(1_000_000));
  guest.files.set("out/b", new Uint8Array(500_000));
  await sbx(["run", "--download", `out:${at("o")}`, "code"], { run: running(session), stderr });
  // deno-lint-ignore no-control-regex
  assert.match(stderr.text, /\rdownload out: \S+ [kM]?B of 1\.5 MB, 0 of 2 files, \d+ % \(\d+\.\d s\)\x1b\[K/);
  assert.match(stderr.text, /download out: 2 files, 1\.5 MB → .*\/o \(\d+\.\d s\)\n$/);
});

test("sizes are told in the largest unit that fits", () => {
  const sizes = [0, 999, 1000, 999_949, 999_950, 1_500_000, 524_288_000, 12_345_678_901_234];
  assert.deepEqual(sizes.map(sizeOf), ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.5 MB", "524.3 MB", "12345.7 GB"]);
});

noLeftovers();
