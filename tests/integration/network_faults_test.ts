/** Network, with peers that misbehave: silent, slow, breaking off, endless; and guests that do not read. Nothing hangs, nothing is held without bound. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import net, { type Socket } from "node:net";
import process from "node:process";
import { createInterface } from "node:readline";
import test, { type TestContext } from "node:test";
import type { NetworkEvent, NetworkHosts, Session } from "../../src/mod.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { echo, service } from "../support/net_peer.ts";
import { reasonToSkip, withScheduler } from "../support/scheduler.ts";
import { eventually, sleep } from "../support/waiting.ts";

const options = () => {
  const skip = reasonToSkip();
  return skip === undefined ? { timeout: 300_000 } : { skip };
};
const ALLOWED = ["a", "b", "c"].map((name) => `${name}.example.com:9000`);
/** Credit, and what the kernels of both sides hold of one connection: 4 to 6 MB, most of it the host's. */
const HELD_MAX_BYTES = 16_000_000;
/** No two borders of frames and packets fall on the same byte of it. */
const CHUNK = Uint8Array.from({ length: 65_521 }, (_, at) => at % 251);

/** A Python session in which `a.example.com:9000` and so on are these services. */
async function withPeers(
  ports: readonly number[],
  body: (python: (code: string) => Promise<string>, seen: { session: Session; events: NetworkEvent[] }) => Promise<void>,
): Promise<void> {
  const names = ports.map((port, at) => [ALLOWED[at] ?? "", `127.0.0.1:${port}`]), hosts: NetworkHosts = Object.fromEntries(names);
  await withScheduler(
    async (scheduler) => {
      const events: NetworkEvent[] = [], onNetworkEvent = (event: NetworkEvent) => void events.push(event);
      await using session = await scheduler.session({ language: "python", allowedDomains: ALLOWED, onNetworkEvent });
      const python = async (code: string) => {
        const { stdout, stderr } = await session.exec(code, { timeoutSeconds: 120 });
        assert.equal(stderr, "");
        return stdout.trim();
      };
      await python(
        "import socket, threading, zlib\ndef connect(name, **options): return socket.create_connection((f'{name}.example.com', 9000), 60)",
      );
      await body(python, { session, events });
    },
    {},
    { networkHosts: hosts },
  );
}

test("faults: a peer that never answers costs its own connection alone, and learns of its end", options(), async (t) => {
  let ends = 0, closes = 0;
  const silent = await service(t, (socket) => {
    socket.resume().on("end", () => {
      ends += 1;
      socket.end();
    }).on("close", () => closes += 1);
  });
  await withPeers([silent, await service(t, echo)], async (python, { session, events }) => {
    const out = await python(`silent, forgotten = connect('a'), connect('a')
silent.sendall(b'?'); silent.settimeout(0.2)
try: silent.recv(1)
except TimeoutError: print('nothing')
other = connect('b'); other.sendall(b'echo'); print(other.recv(4)); other.close()`);
    assert.equal(out, "nothing\nb'echo'");
    assert.deepEqual([ends, closes], [0, 0], "it may still answer");
    await python("silent.close()");
    await eventually("one has ended", () => ends === 1 && closes === 1);
    await session.close();
    await eventually("the other ends with the machine", () => closes === 2);
    const isOver = () => events.filter(({ kind, verdict }) => kind === "tcp" && verdict === "allowed").length === 3;
    await eventually("all are told", isOver);
  });
});

test("faults: a peer that never accepts is given up by its client, and nothing else waits for it", options(), async (t) => {
  await withPeers([await fullService(t), await service(t, echo)], async (python) => {
    const out = await python(`import time
def wait():
    try: socket.create_connection(('a.example.com', 9000), 8)
    except TimeoutError: print('given up')
waiting = threading.Thread(target=wait); waiting.start()
other = connect('b'); other.sendall(b'echo'); print(other.recv(4), waiting.is_alive())
waiting.join()`);
    assert.equal(out, "b'echo' True\ngiven up");
  });
});

test("faults: a peer that sends a byte at a time is heard byte by byte, both ways", options(), async (t) => {
  const slow = await service(t, (socket) => {
    // The next byte when the last one has come back: held back anywhere, it would never come.
    let next = 97;
    socket.write(String.fromCharCode(next));
    socket.on("data", (bytes) => {
      if (bytes.length !== 1 || bytes[0] !== next) return socket.destroy();
      next += 1;
      if (next <= 122) socket.write(String.fromCharCode(next));
      else socket.end();
    });
  });
  await withPeers([slow], async (python) => {
    const out = await python("s = connect('a'); all = b''\nwhile byte := s.recv(10): all += byte; s.sendall(byte)\nprint(all.decode())");
    assert.equal(out, "abcdefghijklmnopqrstuvwxyz");
  });
});

test("faults: a reset half-way is a reset, not the end of a whole answer; a half that is closed leaves the other", options(), async (t) => {
  const torn = await service(t, (socket) => {
    socket.write(CHUNK.subarray(0, 1_000), () => socket.once("data", () => socket.resetAndDestroy()));
  });
  let heard = "";
  const halfClosed = await service(t, (socket) => {
    socket.end("all I have");
    socket.setEncoding("utf8").on("data", (text) => heard += text).on("end", () => heard += ".");
  });
  const lateAnswer = await service(t, (socket) => {
    let size = 0;
    socket.on("data", (bytes) => size += bytes.length).on("end", () => socket.end(String(size)));
  });
  await withPeers([torn, halfClosed, lateAnswer], async (python, { events }) => {
    const out = await python(`def read(s):
    all = b''
    while data := s.recv(65536): all += data
    return all
s = connect('a'); got = s.recv(1000, socket.MSG_WAITALL); s.sendall(b'!')
try: print(len(got), read(s))
except ConnectionResetError: print(len(got), 'reset')
s = connect('b'); print(read(s)); s.sendall(b'still '); s.sendall(b'here'); s.close()
s = connect('c'); s.sendall(bytes(300_000)); s.shutdown(socket.SHUT_WR); print(read(s)); s.close()`);
    assert.equal(out, "1000 reset\nb'all I have'\nb'300000'");
    await eventually("the other half came whole", () => heard === "still here.");
    await eventually("all are told", () => events.filter(({ kind }) => kind === "tcp").length === 3);
    assert.deepEqual(events.filter(({ kind }) => kind === "tcp").map(({ name, verdict, reason }) => [name?.[0], verdict, reason]).sort(), [
      ["a", "failed", "reset"],
      ["b", "allowed", null],
      ["c", "allowed", null],
    ]);
  });
});

const READER_BYTES = 64_000_000;

test("faults: a guest that opens and never reads holds up its peer, not the host; when it reads, all is there", options(), async (t) => {
  const peers: Socket[] = [];
  const pouring = await service(t, (socket) => {
    peers.push(socket);
    pour(socket, READER_BYTES);
  });
  await withPeers([pouring, await service(t, echo)], async (python) => {
    await python("held = connect('a')");
    await eventually("the peer has begun", () => peers[0] !== undefined && sentBytes(peers[0]) > 0);
    const stoodAt = await standstill(() => peers[0] ? sentBytes(peers[0]) : 0);
    assert.ok(stoodAt < HELD_MAX_BYTES, `${stoodAt} bytes were taken for nobody`);
    assert.equal(await python("other = connect('b'); other.sendall(b'echo'); print(other.recv(4))"), "b'echo'");
    const out = await python(`size, sum = 0, 1
while data := held.recv(1 << 20): size += len(data); sum = zlib.adler32(data, sum)
print(size, sum == ${adler(READER_BYTES)})`);
    assert.equal(out, `${READER_BYTES} True`);
  });
});

test("faults: a peer that never reads holds up the guest, not the host; when it reads, all is there", options(), async (t) => {
  const peers: Socket[] = [];
  const deaf = await service(t, (socket) => void peers.push(socket.pause()));
  await withPeers([deaf], async (python, { session }) => {
    await python(`s = connect('a'); s.settimeout(None); sent = 0
def send():
    global sent
    while sent < ${READER_BYTES}: sent += s.send(bytes(65536)[:${READER_BYTES} - sent])
    s.shutdown(socket.SHUT_WR)
sender = threading.Thread(target=send); sender.start()`);
    const sent = async () => Number((await session.exec("print(sent)")).stdout);
    await eventually("it sends", async () => await sent() > 0);
    const stoodAt = await standstill(sent);
    assert.ok(stoodAt < HELD_MAX_BYTES, `${stoodAt} bytes were taken for nobody`);
    let read = 0, hasEnded = false;
    peers[0]?.on("data", (bytes) => read += bytes.length).on("end", () => hasEnded = true).resume();
    await eventually("all of it has come", () => hasEnded);
    assert.equal(read, READER_BYTES);
    assert.equal(await python("sender.join(); print(sent)"), String(READER_BYTES));
  });
});

/** More than the host may grow by; tests/bench has the gigabyte. */
const MUCH_BYTES = 128_000_000;

test("faults: hundreds of megabytes each way arrive whole, and the host's memory stays where it was", options(), async (t) => {
  const pouring = await service(t, (socket) => pour(socket, MUCH_BYTES));
  let taken = 0;
  const taking = await service(t, (socket) => {
    socket.on("data", (bytes) => taken += bytes.length).on("end", () => socket.end());
  });
  await withPeers([pouring, taking], async (python) => {
    await python("s = connect('b'); s.sendall(bytes(1000000)); s.shutdown(socket.SHUT_WR); s.recv(1); s.close()");
    taken = 0;
    let mostBytes = 0;
    const before = process.memoryUsage().rss,
      watch = setInterval(() => mostBytes = Math.max(mostBytes, process.memoryUsage().rss - before), 20);
    try {
      const out = await python(`s = connect('a'); size, buffer = 0, bytearray(1 << 20)
while n := s.recv_into(buffer): size += n
s.close(); print(size)
s = connect('b'); chunk = bytes(1 << 20)
for _ in range(${MUCH_BYTES} >> 20): s.sendall(chunk)
s.sendall(chunk[:${MUCH_BYTES} & ((1 << 20) - 1)]); s.shutdown(socket.SHUT_WR); print(s.recv(1)); s.close()`);
      assert.equal(out, `${MUCH_BYTES}\nb''`);
    } finally {
      clearInterval(watch);
    }
    assert.equal(taken, MUCH_BYTES);
    // Buffers that were read wait for the collector of garbage; what is held for a connection is 256 KiB.
    assert.ok(mostBytes < 100_000_000, `the host grew by ${mostBytes} bytes`);
  });
});

/** Sends so many bytes as fast as they are taken, then the end. */
function pour(socket: Socket, byteCount: number): void {
  let left = byteCount;
  const more = () => {
    while (left > 0 && !socket.destroyed) {
      const part = CHUNK.subarray(0, Math.min(left, CHUNK.length));
      left -= part.length;
      if (!socket.write(part)) return void socket.once("drain", more);
    }
    socket.end();
  };
  more();
}

/** What the system has taken. */
function sentBytes(socket: Socket): number {
  return socket.bytesWritten - socket.writableLength;
}

/** The value at which `read` stays. */
async function standstill(read: () => number | Promise<number>): Promise<number> {
  let last = -1, value = await read();
  while (value !== last) {
    last = value;
    await sleep(500);
    value = await read();
  }
  return value;
}

/** Adler-32 of what `pour` sends. */
function adler(byteCount: number): number {
  let low = 1, high = 0;
  for (let at = 0; at < byteCount; at += 1) {
    low = (low + (CHUNK[at % CHUNK.length] ?? 0)) % 65_521;
    high = (high + low) % 65_521;
  }
  return high * 65_536 + low;
}

/** A service whose system takes no more connections: it accepts none, and its queue is full. */
async function fullService(t: TestContext): Promise<number> {
  const code =
    "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(0); print(s.getsockname()[1], flush=True); sys.stdin.read()";
  const child = spawn("python3", ["-c", code], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = new Promise((resolve) => child.once("close", resolve));
  const held: Socket[] = [];
  t.after(async () => {
    for (const socket of held) socket.destroy();
    child.stdin.end();
    await ended;
  });
  const port = await new Promise<number>((resolve) =>
    createInterface({ input: child.stdout }).once("line", (line) => resolve(Number(line)))
  );
  for (let at = 0; at < 3; at += 1) {
    const socket = net.connect(port, "127.0.0.1");
    socket.on("error", () => {}); // It may never be connected.
    held.push(socket);
  }
  await eventually("its queue is full", () => held.filter((socket) => !socket.connecting).length >= 1);
  return port;
}

noLeftovers();
