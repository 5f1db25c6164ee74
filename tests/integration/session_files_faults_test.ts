/** Files in real VMs when things go wrong or happen at once: races with guest code, limits, full disks, aborts, dead VMs, many transfers. */
import assert from "node:assert/strict";
import { readdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { after, before } from "node:test";
import {
  CommunicationError,
  type FileReason,
  GuestAgentError,
  SandboxFileError,
  type Session,
  SessionClosedError,
  type SessionRequest,
} from "../../src/mod.ts";
import { temporaryDirectory } from "../support/leftovers.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";
import { descendants, openTestScheduler, type TestScheduler } from "../support/vm.ts";

const MB = 1_048_576;
const FILE_MAX_BYTES = 500 * MB;

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());
const open = (more: Partial<SessionRequest> = {}) => vms.scheduler.session({ language: "python", ...more });

async function python(session: Session, code: string): Promise<string> {
  const { stdout, stderr, exitCode } = await session.exec(code);
  assert.equal(exitCode, 0, stderr);
  return stdout.trim();
}

const refusedAs = (reason: FileReason) => (error: unknown) => {
  assert.ok(error instanceof SandboxFileError, String(error));
  assert.deepEqual([error.side, error.reason], ["guest", reason], error.message);
  return true;
};

/** So many bytes in pieces of a megabyte, none of which is kept. `onPiece` may hold them up. */
function zeros(byteCount: number, onPiece: (sentBytes: number) => unknown = () => {}): ReadableStream<Uint8Array> {
  let sentBytes = 0;
  return new ReadableStream({
    async pull(controller) {
      await onPiece(sentBytes);
      const piece = new Uint8Array(Math.min(MB, byteCount - sentBytes));
      sentBytes += piece.length;
      if (piece.length > 0) controller.enqueue(piece);
      if (sentBytes === byteCount) controller.close();
    },
  }, { highWaterMark: 0 });
}

/** A destination that counts, and calls `onFirst` before it takes its second piece. */
function counter(onFirst: () => Promise<unknown> = async () => {}) {
  const seen = { byteCount: 0, isZero: true, isAborted: false };
  const stream = new WritableStream<Uint8Array>({
    async write(piece) {
      if (seen.byteCount === 0) await onFirst();
      seen.byteCount += piece.length;
      if (seen.byteCount % 64 === 0) seen.isZero &&= piece.every((byte) => byte === 0);
    },
    abort: () => void (seen.isAborted = true),
  });
  return { seen, stream };
}

const temporaries = (session: Session) =>
  python(session, "import glob; print(glob.glob('/home/user/**/.sbx-*', recursive=True, include_hidden=True))");

test("guest code that swaps directories, links and files under every call never lets one out of the home", async () => {
  await using session = await open();
  await python(
    session,
    "import os\nos.makedirs('/tmp/out/sub'); open('/tmp/out/sub/outside', 'w').close(); open('/tmp/out/f', 'w').write('outside')\nos.makedirs('d/sub'); open('d/f', 'w').write('inside')\n" +
      "os.symlink('/tmp/out', 'evil'); os.symlink('/tmp/out/f', 'evilfile'); os.symlink('/tmp/out/sub', 'evilsub'); open('t', 'w').write('inside')",
  );
  const racing = session.exec(
    `import ctypes, time
exchange = ctypes.CDLL(None).renameat2
end = time.monotonic() + 6
count = 0
while time.monotonic() < end:
    for one, other in ((b"d", b"evil"), (b"t", b"evilfile"), (b"d/sub", b"evilsub")):
        exchange(-100, one, -100, other, 2)
    count += 1
print(count)`,
  );
  let isRacing = true;
  const over = () => void (isRacing = false);
  racing.then(over, over);
  const seen = new Set<string>();
  const attempt = (call: Promise<unknown>) =>
    call.then((value) => seen.add(typeof value === "string" ? value : "done"), (error) => {
      assert.ok(error instanceof SandboxFileError || error instanceof GuestAgentError, String(error));
      seen.add(error instanceof SandboxFileError ? error.reason : error.retry);
    });
  for (let round = 0; isRacing; round++) {
    await Promise.all([
      attempt(session.readFile("d/f", { encoding: "utf-8" })),
      attempt(session.readFile("t", { encoding: "utf-8" })),
      attempt(session.writeFile(`d/w${round}`, "written")),
      attempt(session.writeFile(`d/sub/deep/w${round}`, "written")),
      attempt(session.makeDir(`d/m${round}`)),
      attempt(session.listFiles("d/sub").then((entries) => entries.some(({ name }) => name === "outside") ? "outside" : "listed")),
      attempt(session.rename(`d/w${round - 1}`, `d/r${round}`)),
      attempt(session.remove(`d/m${round - 1}`, { recursive: true })),
    ]);
  }
  assert.ok(Number((await racing).stdout) > 100);
  assert.ok(seen.has("inside") && seen.has("permission") && !seen.has("outside"), [...seen].join());
  assert.equal(
    await python(session, "print(open('/tmp/out/f').read(), sorted(os.listdir('/tmp/out')), os.listdir('/tmp/out/sub'))"),
    "outside ['f', 'sub'] ['outside']",
  );
  assert.equal(await temporaries(session), "[]");
});

test("a file that grows or shrinks while it is read is refused as changed, and nothing is left on the host", async (t) => {
  await using session = await open();
  const directory = temporaryDirectory(t);
  for (const change of ["os.truncate('f', 1000)", "open('f', 'ab').write(b'x')", "os.utime('f', (1, 1))"]) {
    await python(session, "import os; open('f', 'wb').write(bytes(8_000_000))");
    const { seen, stream } = counter(() => python(session, change));
    await assert.rejects(session.readFile("f", { destination: stream }), refusedAs("changed"), change);
    assert.ok(seen.isAborted && seen.byteCount > 0, change);
  }
  const { promise: grows, resolve } = Promise.withResolvers<void>();
  const growing = session.exec(
    "import time\nend = time.monotonic() + 60\nwith open('f', 'ab', 0) as f:\n print(f.write(b'x'), flush=True)\n" +
      " while time.monotonic() < end and not os.path.exists('stop'): f.write(b'x')",
    { onStdout: () => resolve() },
  );
  growing.catch(() => {}); // Awaited below; a test that fails first has closed the session.
  await settled(grows, "the file grows");
  // On a busy host the program may stand still for a whole reading, which is good then.
  const destination = path.join(directory, "f");
  const read = () => session.readFile("f", { destination }).then(() => rmSync(destination), (error) => error);
  let refusal: unknown;
  await eventually("it grows while it is read", async () => (refusal = await read()) !== undefined);
  await assert.rejects(Promise.reject(refusal), refusedAs("changed"));
  await session.writeFile("stop", "");
  await growing;
  assert.deepEqual(readdirSync(directory), []);
  // One that is replaced is read to its end: it is another file.
  await python(session, "open('f', 'wb').write(b'old' * 1_000_000)");
  const { seen, stream } = counter(() => python(session, "open('g', 'w').write('new'); os.replace('g', 'f')"));
  await session.readFile("f", { destination: stream });
  assert.equal(seen.byteCount, 3_000_000);
});

test("500 MB pass both ways, one byte more is refused; holes take no memory; 100,000 entries are listed, one more is refused", async (t) => {
  await using session = await open({ memoryMb: 1300 });
  await python(
    session,
    `import os\nfor name, size in (("sparse", ${FILE_MAX_BYTES}), ("more", ${
      FILE_MAX_BYTES + 1
    })):\n with open(name, "wb") as f: f.truncate(size)`,
  );
  const { seen, stream } = counter();
  assert.equal(await session.readFile("sparse", { destination: stream }), FILE_MAX_BYTES);
  assert.deepEqual([seen.byteCount, seen.isZero], [FILE_MAX_BYTES, true]);
  assert.equal(await python(session, "print(os.stat('sparse').st_blocks)"), "0");
  await assert.rejects(session.readFile("more"), refusedAs("too-large"));
  await session.remove("sparse");
  await session.writeFile("whole", zeros(FILE_MAX_BYTES));
  assert.equal((await session.stat("whole")).size, FILE_MAX_BYTES);
  await session.remove("whole");
  await refusesMore(session);
  const local = path.join(temporaryDirectory(t), "local");
  writeFileSync(local, "");
  truncateSync(local, FILE_MAX_BYTES + 1);
  await assert.rejects(
    session.writeFile("toomuch", { local }),
    (error) => error instanceof SandboxFileError && error.reason === "too-large",
  );
  assert.deepEqual(await Promise.all(["whole", "toomuch"].map((name) => session.exists(name))), [false, false]);
  assert.equal(await temporaries(session), "[]");
  // Links take no memory but for their names, so this VM is large enough for a directory that is too large.
  await python(session, "os.mkdir('links')\nfor n in range(100_001): os.link('more', f'links/{n}')");
  await assert.rejects(session.listFiles("links"), (error) => error instanceof GuestAgentError && /100000 entries/.test(error.message));
  await session.remove("links/0");
  assert.equal((await session.listFiles("links")).length, 100_000);
});

/** A stream that does not say how long it is, and is a byte too long. It is never far ahead of what the guest has taken. */
async function refusesMore(session: Session): Promise<void> {
  await session.writeFile("over", "before");
  let producedBytes = 0, sentBytes = 0, aheadBytes = 0;
  const content = zeros(FILE_MAX_BYTES + 1, (bytes) => {
    producedBytes = bytes;
    aheadBytes = Math.max(aheadBytes, bytes - sentBytes);
  });
  const onProgress = (bytes: number) => void (sentBytes = bytes);
  await assert.rejects(session.writeFile("over", content, { onProgress }), refusedAs("too-large"));
  assert.equal(producedBytes, FILE_MAX_BYTES, "the last byte was asked for");
  assert.ok(aheadBytes <= 2 * MB, `${aheadBytes} bytes were held`);
  assert.equal(await session.readFile("over", { encoding: "utf-8" }), "before");
  assert.equal(await temporaries(session), "[]");
  assert.equal(await python(session, "print('usable')"), "usable");
}

test("a disk that is full half-way is no-space, leaves nothing, and what was there stays", async () => {
  await using session = await open();
  await session.writeFile("kept", "kept");
  await assert.rejects(session.writeFile("kept", zeros(200 * MB)), refusedAs("no-space"));
  assert.equal(await session.readFile("kept", { encoding: "utf-8" }), "kept");
  assert.equal(await temporaries(session), "[]");
  await session.writeFile("next", new Uint8Array(20 * MB));
  // The same when guest code takes the space.
  await python(session, "f = open('hog', 'wb')\ntry:\n while True: f.write(bytes(1 << 20))\nexcept OSError: f.close()");
  await assert.rejects(session.writeFile("small", new Uint8Array(4 * MB)), refusedAs("no-space"));
  await session.remove("hog");
  await session.writeFile("small", new Uint8Array(4 * MB));
});

test("an abort in the middle, on either side, leaves nothing under the final name nor beside it", async (t) => {
  await using session = await open();
  const directory = temporaryDirectory(t), reason = new Error("enough");
  await session.writeFile("f", "before");
  const writing = new AbortController();
  const content = zeros(64 * MB, (sentBytes) => sentBytes >= 8 * MB && writing.abort(reason));
  await assert.rejects(session.writeFile("f", content, { signal: writing.signal }), reason);
  const broken = zeros(64 * MB, (sentBytes) => {
    if (sentBytes >= 8 * MB) throw reason;
  });
  await assert.rejects(session.writeFile("f", broken), reason);
  assert.equal(await session.readFile("f", { encoding: "utf-8" }), "before");
  assert.equal(await temporaries(session), "[]");
  await python(session, "open('large', 'wb').write(bytes(32_000_000))");
  const reading = new AbortController();
  const onProgress = (byteCount: number) => byteCount >= 1_000_000 && reading.abort(reason);
  await assert.rejects(session.readFile("large", { destination: path.join(directory, "x"), signal: reading.signal, onProgress }), reason);
  const failing = new WritableStream({ write: () => Promise.reject(reason) });
  await assert.rejects(session.readFile("large", { destination: failing }), reason);
  assert.deepEqual(readdirSync(directory), []);
  assert.equal((await session.readFile("large")).length, 32_000_000);
});

test("100 transfers at once, with listings and calls among them, all end well", async () => {
  await using session = await open();
  const content = (index: number) => new Uint8Array(200_000 + index).fill(index);
  await Promise.all(Array.from({ length: 50 }, (_, index) => session.writeFile(`many/${index}`, content(index))));
  const reads = Array.from({ length: 50 }, async (_, index) => assert.deepEqual(await session.readFile(`many/${index}`), content(index)));
  const writes = Array.from({ length: 50 }, (_, index) => session.writeFile(`more/${index}`, content(index)));
  const others = Array.from({ length: 20 }, (_, index) => [session.stat(`many/${index}`), session.listFiles("many"), session.ping()])
    .flat();
  await Promise.all([...reads, ...writes, ...others]);
  assert.equal((await session.listFiles("more")).length, 50);
});

test("a running execution and transfers go on beside each other, and so does the removal of a large tree", async () => {
  await using session = await open();
  await python(
    session,
    "import os\nfor d in range(20):\n os.makedirs(f'tree/{d}/sub')\n for n in range(400): open(f'tree/{d}/sub/{n}', 'w').close()",
  );
  let ticks = "";
  const running = session.exec(
    "import time\nwhile not os.path.exists('stop'):\n  print('.', end='', flush=True)\n  sum(range(20000))\n  time.sleep(0.01)\nprint('end')",
    { onStdout: (text) => void (ticks += text), timeoutSeconds: 200 },
  );
  const before = ticks.length;
  const big = session.writeFile("big", zeros(64 * MB)), removed = session.remove("tree", { recursive: true });
  await session.writeFile("small", "small");
  assert.equal(await session.readFile("small", { encoding: "utf-8" }), "small");
  await Promise.all([big, removed]);
  const { seen, stream } = counter();
  await session.readFile("big", { destination: stream });
  assert.equal(seen.byteCount, 64 * MB);
  assert.ok(ticks.length > before + 5, `the program went on: ${ticks.length - before}`);
  await session.writeFile("stop", "");
  assert.equal((await running).exitCode, 0);
  assert.equal(await session.exists("tree"), false);
});

test("a tree that is filled while it is removed ends in an answer, and an abort ends a removal", async () => {
  await using session = await open();
  await python(session, "import os; os.makedirs('filled/x')");
  const filling = session.exec(
    "n = 0\nwhile not os.path.exists('stop'):\n  n += 1\n  try: os.makedirs(f'filled/x/{n}')\n  except OSError: pass",
  );
  for (let round = 0; round < 5; round++) {
    await session.remove("filled", { recursive: true }).catch((error) => {
      assert.ok(error instanceof SandboxFileError || error instanceof GuestAgentError, String(error));
    });
  }
  await session.writeFile("stop", "");
  await filling;
  await python(
    session,
    "import shutil; shutil.rmtree('filled', ignore_errors=True); os.mkdir('links')\n" +
      "for n in range(20000): os.link('stop', f'links/{n}')",
  );
  const controller = new AbortController(), reason = new Error("enough");
  const removing = session.remove("links", { recursive: true, signal: controller.signal });
  await session.ping();
  controller.abort(reason);
  await assert.rejects(removing, reason);
  const left = (await session.listFiles("links")).length;
  await sleep(300);
  assert.ok(left > 0, "the removal was ended");
  assert.equal((await session.listFiles("links")).length, left);
});

test("a VM that is killed in the middle of a transfer is a typed error, and no partial file is on the host", async (t) => {
  const directory = temporaryDirectory(t), local = path.join(directory, "source");
  writeFileSync(local, new Uint8Array(16 * MB));
  const lost = (error: unknown) => error instanceof CommunicationError || error instanceof SessionClosedError;
  const middles: ReadonlyArray<(session: Session, kill: () => void) => Promise<unknown>> = [
    (session, kill) => session.writeFile("f", zeros(64 * MB, (sentBytes) => sentBytes >= 4 * MB && kill())),
    (session, kill) => session.writeFile("f", { local }, { onProgress: (byteCount) => byteCount >= 4 * MB && kill() }),
    (session, kill) =>
      session.readFile("large", { destination: path.join(directory, "x"), onProgress: (byteCount) => byteCount >= 1_000_000 && kill() }),
    (session, kill) => {
      const removed = session.remove("tree", { recursive: true });
      setTimeout(kill, 5);
      return removed;
    },
  ];
  for (const middle of middles) {
    await using session = await open();
    await python(
      session,
      "import os; open('large', 'wb').write(bytes(64_000_000)); os.mkdir('tree')\nfor n in range(20000): os.link('large', f'tree/{n}')",
    );
    const kill = () => {
      for (const line of descendants().filter((line) => line.includes("qemu"))) process.kill(Number(line.split(" ")[0]), "SIGKILL");
    };
    await assert.rejects(settled(middle(session, kill), String(middle)), lost, String(middle));
    await assert.rejects(session.stat("f"), SessionClosedError);
  }
  assert.deepEqual(readdirSync(directory), ["source"]);
});
