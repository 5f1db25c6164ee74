/** A session's files in a real VM: every source and destination, ownership, names, listings, and what is refused. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { after, before, type TestContext } from "node:test";
import { pathToFileURL } from "node:url";
import { type FileReason, InputValidationError, SandboxFileError, type Session } from "../../src/mod.ts";
import { temporaryDirectory } from "../support/leftovers.ts";
import { settled } from "../support/waiting.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
/** Shared: each test works in a directory of its own name. */
let session: Session;
before(async () => {
  vms = await openTestScheduler();
  session = await vms.scheduler.session({ language: "python" });
});
after(() => vms.close());

async function python(code: string): Promise<string> {
  const { stdout, stderr, exitCode } = await session.exec(code);
  assert.equal(exitCode, 0, stderr);
  return stdout.trim();
}

const refusedAs = (reason: FileReason) => (error: unknown) => {
  assert.ok(error instanceof SandboxFileError, String(error));
  assert.deepEqual([error.side, error.reason], ["guest", reason], error.message);
  return true;
};

/** Bytes that no text has, and that differ from place to place. */
const bytesOf = (length: number) => Uint8Array.from({ length }, (_, at) => at * 31 + (at >> 8));
const streamOf = (...pieces: Uint8Array[]) =>
  new ReadableStream<Uint8Array>({
    start(controller) {
      for (const piece of pieces) controller.enqueue(piece);
      controller.close();
    },
  });

test("every kind of source arrives whole, and its size is what the guest says", async (t) => {
  const large = bytesOf(3_000_001), local = path.join(temporaryDirectory(t), "local");
  writeFileSync(local, large);
  const sources = {
    bytes: large,
    view: bytesOf(100).subarray(10, 20),
    buffer: large.slice().buffer,
    text: "zwölf Boxkämpfer 🙂\n\0end",
    nothing: "",
    blob: new Blob([large]),
    stream: streamOf(large.subarray(0, 70_000), new Uint8Array(0), large.subarray(70_000)),
    local: { local },
    url: { local: pathToFileURL(local) },
  };
  await Promise.all(Object.entries(sources).map(([name, source]) => session.writeFile(`in/${name}`, source)));
  for (const [name, source] of Object.entries(sources)) {
    const wanted = typeof source === "string" ? new TextEncoder().encode(source) : source instanceof Uint8Array ? source : large;
    assert.deepEqual(await session.readFile(`in/${name}`), Uint8Array.from(wanted), name);
    assert.equal((await session.stat(`in/${name}`)).size, wanted.length, name);
  }
  assert.equal(await session.readFile("in/text", { encoding: "utf-8" }), sources.text);
  assert.equal(
    await python(
      "import hashlib; print(len({hashlib.sha256(open('in/' + n, 'rb').read()).digest()\n" +
        "  for n in ('bytes', 'buffer', 'blob', 'stream', 'local', 'url')}))",
    ),
    "1",
  );
});

test("every kind of destination gets all of it", async (t) => {
  const content = bytesOf(1_000_000), directory = temporaryDirectory(t);
  await session.writeFile("out/file", content);
  const target = path.join(directory, "target");
  assert.equal(await session.readFile("out/file", { destination: target }), content.length);
  assert.deepEqual(Uint8Array.from(readFileSync(target)), content);
  assert.equal(await session.readFile("out/file", { destination: pathToFileURL(target) }), content.length);
  const pieces: Uint8Array[] = [];
  let isClosed = false, progress = 0;
  const stream = new WritableStream<Uint8Array>({ write: (piece) => void pieces.push(piece), close: () => void (isClosed = true) });
  const onProgress = (byteCount: number) => void (progress = byteCount);
  assert.equal(await session.readFile("out/file", { destination: stream, onProgress }), content.length);
  assert.deepEqual(new Uint8Array(await new Blob(pieces.map((piece) => piece.slice())).arrayBuffer()), content);
  assert.deepEqual([isClosed, progress, readdirSync(directory)], [true, content.length, ["target"]]);
});

test("what is written is the user's, with the modes promised, and the user's own code can do with it what it likes", async () => {
  await session.writeFile("own/a/b/plain", "1");
  await session.writeFile("own/program", "#!/bin/sh\necho ran", { executable: true });
  await session.writeFile("own/secret", "1", { mode: 0o600 });
  await session.makeDir("own/dir", { mode: 0o770 });
  const modes = "import os\nfor n in ('a', 'a/b', 'a/b/plain', 'program', 'secret', 'dir'):\n" +
    "  s = os.stat('own/' + n); print(n, s.st_uid, s.st_gid, oct(s.st_mode & 0o7777))";
  assert.deepEqual((await python(modes)).split("\n"), [
    "a 1000 1000 0o755",
    "a/b 1000 1000 0o755",
    "a/b/plain 1000 1000 0o644",
    "program 1000 1000 0o755",
    "secret 1000 1000 0o600",
    "dir 1000 1000 0o770",
  ]);
  assert.equal(await python("import subprocess; print(subprocess.run(['own/program'], capture_output=True, text=True).stdout)"), "ran");
  // A file that is replaced keeps its mode, even one that may not be written; what grants the rights of others is dropped.
  await python("os.chmod('own/secret', 0o440); os.chmod('own/program', 0o4755); held = open('own/secret')");
  await session.writeFile("own/secret", "new");
  await session.writeFile("own/program", "new");
  assert.equal((await session.stat("own/secret")).mode, 0o440);
  assert.equal((await session.stat("own/program")).mode, 0o755);
  assert.equal(await python("print(held.read(), open('own/secret').read()); os.remove('own/secret')"), "1 new");
  assert.equal(await session.exists("own/secret"), false);
});

test("the user's rights are all there is: what the user may not do is refused", async () => {
  await python(
    "import os\nos.makedirs('rights/closed/x'); os.mkdir('rights/dark'); open('rights/dark/f', 'w').close()\n" +
      "open('rights/unread', 'w').close(); os.chmod('rights/unread', 0o200); os.chmod('rights/closed', 0o500); os.chmod('rights/dark', 0)",
  );
  for (
    const call of [
      () => session.readFile("rights/unread"),
      () => session.writeFile("rights/closed/new", "1"),
      () => session.writeFile("rights/dark/f", "1"),
      () => session.writeFile("rights/closed/y/z", "1"),
      () => session.listFiles("rights/dark"),
      () => session.stat("rights/dark/f"),
      () => session.makeDir("rights/closed/y"),
      () => session.remove("rights/closed/x"),
      () => session.remove("rights/closed", { recursive: true }),
      () => session.rename("rights/closed/x", "rights/x"),
    ]
  ) await assert.rejects(call(), refusedAs("permission"), String(call));
  await python("os.chmod('rights/dark', 0o700); os.chmod('rights/closed', 0o700)");
  await session.remove("rights", { recursive: true });
});

test("directories are made, listed, renamed and removed, and each refusal has its reason", async () => {
  await session.makeDir("tree/a/b", { recursive: true });
  await session.makeDir("tree/a/b", { recursive: true });
  await session.writeFile("tree/f", "12345");
  await python("import os; os.symlink('f', 'tree/link'); os.mkfifo('tree/fifo'); os.utime('tree/f', (5, 1234567890.125))");
  const listed = await session.listFiles("tree");
  assert.deepEqual(listed.map(({ name, type, isDir }) => [name, type, isDir]), [
    ["a", "directory", true],
    ["f", "file", false],
    ["fifo", "other", false],
    ["link", "symlink", false],
  ]);
  assert.deepEqual(listed[1], { name: "f", type: "file", isDir: false, size: 5, mode: 0o644, modifiedMs: 1_234_567_890_125 });
  assert.deepEqual(await session.stat("tree/f"), listed[1]);
  assert.deepEqual([(await session.stat("tree/link")).type, (await session.stat("tree/link", { followLinks: false })).type], [
    "file",
    "symlink",
  ]);
  assert.deepEqual([(await session.stat(".")).name, (await session.listFiles()).some(({ name }) => name === "tree")], [".", true]);
  await session.rename("tree/f", "tree/a/f");
  await session.writeFile("tree/g", "other");
  await session.rename("tree/g", "tree/a/f");
  assert.equal(await session.readFile("tree/a/f", { encoding: "utf-8" }), "other");
  assert.deepEqual(await Promise.all(["tree/f", "tree/link", "tree/a/f/x", "tree/a"].map((name) => session.exists(name))), [
    false,
    false,
    false,
    true,
  ]);
  await assert.rejects(session.makeDir("tree/a"), refusedAs("exists"));
  await assert.rejects(session.makeDir("tree/a/f", { recursive: true }), refusedAs("exists"));
  await assert.rejects(session.makeDir("tree/x/y"), refusedAs("not-found"));
  await assert.rejects(session.remove("tree"), refusedAs("exists"));
  await assert.rejects(session.remove("tree/nothing"), refusedAs("not-found"));
  await assert.rejects(session.rename("tree/nothing", "tree/x"), refusedAs("not-found"));
  await assert.rejects(session.rename("tree/a/f", "tree/a/b"), refusedAs("is-directory"));
  await python("os.symlink('a', 'tree/to-a')");
  for (const inside of ["tree/a/self", "tree/a/b/self", "tree/to-a/self"]) {
    await assert.rejects(session.rename("tree/a", inside), (error) => {
      return error instanceof InputValidationError && error.message.includes("a directory cannot go into itself");
    }, inside);
  }
  await session.rename("tree/a", "tree/a");
  await session.remove("tree/to-a");
  await assert.rejects(session.listFiles("tree/a/f"), refusedAs("not-directory"));
  await assert.rejects(session.listFiles("tree/nothing"), refusedAs("not-found"));
  await session.remove("tree/link");
  await session.remove("tree/fifo");
  await session.remove("tree", { recursive: true });
  assert.equal(await session.exists("tree"), false);
});

test("what is no regular file is refused as what it is, at once, and nobody who waits at it is disturbed", async () => {
  await python(`import os, socket, stat
os.makedirs("odd/dir"); os.mkfifo("odd/fifo"); socket.socket(socket.AF_UNIX).bind("odd/socket")
os.mknod("odd/device", 0o666 | stat.S_IFCHR, 0)
import threading; opened = []
threading.Thread(target=lambda: opened.append(os.open("odd/fifo", os.O_WRONLY)), daemon=True).start()`);
  for (const name of ["odd/fifo", "odd/socket", "odd/device"]) {
    await assert.rejects(settled(session.readFile(name), name), refusedAs("not-a-file"), name);
    await assert.rejects(settled(session.writeFile(name, "1"), name), refusedAs("not-a-file"), name);
    assert.equal((await session.stat(name)).type, "other");
    await assert.rejects(session.listFiles(name), refusedAs("not-directory"));
  }
  await assert.rejects(session.readFile("odd/dir"), refusedAs("is-directory"));
  await assert.rejects(session.writeFile("odd/dir", "1"), refusedAs("is-directory"));
  await assert.rejects(session.writeFile("odd/fifo/x", "1"), refusedAs("not-directory"));
  assert.equal(await python("print(opened, sorted(os.listdir('odd')))"), "[] ['device', 'dir', 'fifo', 'socket']");
  // A lease would keep an ordinary reader waiting for 45 s.
  await python(
    "import fcntl, signal; signal.signal(signal.SIGIO, signal.SIG_IGN); leased = open('odd/leased', 'w'); leased.write('1')\n" +
      "leased.flush(); fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)",
  );
  await assert.rejects(settled(session.readFile("odd/leased"), "a leased file"), { code: "SBX_GUEST_AGENT", retry: "safe" });
  await python("leased.close()");
  assert.equal(await session.readFile("odd/leased", { encoding: "utf-8" }), "1");
});

test("what is no regular file on the host is refused as what it is, at once, in both directions", async (t) => {
  const directory = temporaryDirectory(t), at = (name: string) => path.join(directory, name);
  execFileSync("mkfifo", [at("fifo")]);
  mkdirSync(at("dir"));
  symlinkSync("fifo", at("to-fifo"));
  symlinkSync("dir", at("to-dir"));
  symlinkSync("nothing", at("to-nothing"));
  await session.writeFile("host/kept", "kept");
  const refusals: ReadonlyArray<readonly [string, FileReason]> = [
    [at("fifo"), "not-a-file"],
    [at("to-fifo"), "not-a-file"],
    ["/dev/null", "not-a-file"],
    ["/dev/zero", "not-a-file"],
    [at("dir"), "is-directory"],
    [at("to-dir"), "is-directory"],
    [at("fifo/x"), "not-directory"],
    [at("nothing/x"), "not-found"],
  ];
  const onHost = (name: string, reason: FileReason) => (error: unknown) => {
    assert.ok(error instanceof SandboxFileError, String(error));
    assert.deepEqual([error.side, error.path, error.reason], ["host", name, reason], error.message);
    return true;
  };
  for (const [name, reason] of refusals) {
    for (const local of [name, pathToFileURL(name)]) {
      await assert.rejects(settled(session.writeFile("host/kept", { local }), name), onHost(name, reason));
      await assert.rejects(settled(session.readFile("host/kept", { destination: local }), name), onHost(name, reason));
    }
  }
  await assert.rejects(session.writeFile("host/kept", { local: at("nothing") }), onHost(at("nothing"), "not-found"));
  await assert.rejects(session.writeFile("host/kept", { local: at("to-nothing") }), onHost(at("to-nothing"), "not-found"));
  assert.deepEqual(readdirSync(directory).sort(), ["dir", "fifo", "to-dir", "to-fifo", "to-nothing"]);
  assert.deepEqual([lstatSync(at("fifo")).isFIFO(), lstatSync("/dev/null").isCharacterDevice()], [true, true]);
  assert.deepEqual((await session.listFiles("host")).map(({ name }) => name), ["kept"]);
  assert.equal(await session.readFile("host/kept", { encoding: "utf-8" }), "kept");
});

test("names and paths at their limits work, and beyond them are refused before the guest is asked", async () => {
  for (const name of ["x".repeat(255), "é".repeat(127) + "x", "new\nline", 'quo"te\\', " ", "-rf", ".hidden", "🙂".repeat(63)]) {
    await session.writeFile(`names/${name}`, name);
    assert.equal(await session.readFile(`names/${name}`, { encoding: "utf-8" }), name);
    assert.ok((await session.listFiles("names")).some((entry) => entry.name === name), name);
  }
  await assert.rejects(session.writeFile("x".repeat(256), "1"), InputValidationError);
  const deep = "d/".repeat(2047) + "ff";
  assert.equal(deep.length, 4096);
  await session.writeFile(deep, "deep");
  assert.equal(await session.readFile(deep, { encoding: "utf-8" }), "deep");
  assert.equal((await session.stat(deep)).size, 4);
  await assert.rejects(session.readFile(deep + "f"), InputValidationError);
  await session.remove("d", { recursive: true });
  assert.equal(await session.exists("d"), false);
});

test("names that are no UTF-8 are listed with U+FFFD, and go with the directory that they are in", async () => {
  await python(
    "import os; os.mkdir('raw'); open(b'raw/\\xff\\xfe', 'w').close(); open(b'raw/' + b'\\x80' * 255, 'w').close(); open('raw/é', 'w').close()",
  );
  const names = (await session.listFiles("raw")).map(({ name }) => name);
  assert.deepEqual(names.sort(), ["é", "\ufffd\ufffd", "\ufffd".repeat(255)].sort());
  await assert.rejects(session.readFile("raw/\ufffd\ufffd"), refusedAs("not-found"));
  await session.remove("raw", { recursive: true });
});

test("absolute paths and .. never leave the host; links that lead out are refused by the guest, whoever planted them", async (t) => {
  for (const bad of ["/etc/passwd", "../x", "a/../../x", "a/..", "/", "a\0b", "\ud800"]) {
    for (const call of calls(session, bad, t)) await assert.rejects(call(), InputValidationError, `${bad} ${call}`);
  }
  await python(`import os
os.makedirs("links/sub"); open("/tmp/outside", "w").write("outside"); os.makedirs("/tmp/dir", exist_ok=True)
for name, target in {"absolute": "/tmp", "up": "../..", "deep": "sub/../../../tmp", "root": "/proc/self/root/tmp", "home": "/home/user",
                     "chain": "absolute", "fd": "/proc/self/fd"}.items(): os.symlink(target, "links/" + name)
os.symlink("/tmp/outside", "links/file"); os.symlink("/tmp/new", "links/new")`);
  for (const name of ["absolute/outside", "up/tmp/outside", "deep/outside", "root/outside", "home/x", "chain/outside", "fd/0"]) {
    for (const call of calls(session, `links/${name}`, t)) await assert.rejects(call(), refusedAs("permission"), `${name} ${call}`);
  }
  for (const name of ["links/file", "links/new"]) {
    await assert.rejects(session.readFile(name), refusedAs("permission"));
    await assert.rejects(session.writeFile(name, "inside"), refusedAs("permission"));
    await assert.rejects(session.stat(name), refusedAs("permission"));
  }
  await assert.rejects(session.listFiles("links/absolute"), refusedAs("permission"));
  // Removing and renaming mean the link.
  await session.rename("links/file", "links/renamed");
  await session.remove("links/absolute", { recursive: true });
  await session.remove("links", { recursive: true });
  assert.equal(await python("print(open('/tmp/outside').read(), os.path.exists('/tmp/new'), os.listdir('/tmp/dir'))"), "outside False []");
});

test("links inside the home work, for directories and for files", async () => {
  await python(`import os
os.makedirs("inside/real/sub"); os.symlink("real", "inside/link"); os.symlink("../real/sub", "inside/real/back")
os.symlink("real/file", "inside/file"); os.symlink("b", "inside/a"); os.symlink("a", "inside/b")`);
  await session.writeFile("inside/link/one", "1");
  await session.writeFile("inside/real/back/two", "2");
  await session.writeFile("inside/file", "3");
  assert.equal(
    await python("print(*[open('inside/real/' + n).read() for n in ('one', 'sub/two', 'file')], os.path.islink('inside/file'))"),
    "1 2 3 True",
  );
  assert.equal(await session.readFile("inside/file", { encoding: "utf-8" }), "3");
  await assert.rejects(session.readFile("inside/a"), refusedAs("not-found"));
  await assert.rejects(session.writeFile("inside/a", "1"), refusedAs("not-found"));
});

/** Every call that takes a path. */
function calls(session: Session, name: string, t: TestContext): ReadonlyArray<() => Promise<unknown>> {
  return [
    () => session.readFile(name),
    () => session.readFile(name, { destination: path.join(temporaryDirectory(t), "x") }),
    () => session.writeFile(name, "1"),
    () => session.listFiles(`${name}/x`),
    () => session.stat(name),
    () => session.makeDir(name),
    () => session.remove(name),
    () => session.rename(name, "target"),
    () => session.rename("names", name),
  ];
}
