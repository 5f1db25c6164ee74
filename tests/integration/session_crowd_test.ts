/** Sessions used to their limits, in real VMs: all streams at once, calls that are given up, inputs without an end. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { InputValidationError, type SessionProcess, VmCapacityError } from "../../src/mod.ts";
import { eventually, settled, sleep } from "../support/waiting.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

/** A source that never gives anything, and tells when it is cancelled. */
function silence() {
  const seen = { isCancelled: false };
  const stream = new ReadableStream<Uint8Array>({ pull: () => new Promise(() => {}), cancel: () => void (seen.isCancelled = true) });
  return { seen, stream };
}

test("an execution, sixteen transfers, 32 processes whose output nobody reads: every other call still has its stream", async () => {
  await using session = await vms.scheduler.session({ language: "python", timeoutSeconds: 120 });
  const controller = new AbortController(), reason = new Error("enough"), { signal } = controller;
  const printing = "import time\nwhile True: print('x' * 200, flush=True); time.sleep(0.01)";
  const held: Promise<unknown>[] = [
    session.exec(printing, { signal }),
    ...Array.from({ length: 16 }, (_, at) => session.writeFile(`w${at}`, silence().stream, { signal })),
  ];
  for (const promise of held) promise.catch(() => {}); // They are awaited below.
  const processes: SessionProcess[] = [];
  for (let count = 0; count < 32; count++) processes.push(await session.spawn("yes"));
  await assert.rejects(session.spawn("true"), VmCapacityError);
  const calls = Array.from({ length: 150 }, (_, at): Promise<unknown> => {
    switch (at % 5) {
      case 0:
        return session.ping();
      case 1:
        return session.exists("w0");
      case 2:
        return session.processes();
      case 3:
        return session.makeDir(`d${at}`);
      default:
        return processes[at % 32]!.kill("SIGCONT");
    }
  });
  await settled(Promise.all(calls), "150 calls");
  controller.abort(reason);
  for (const promise of held) await assert.rejects(settled(promise, "what was given up"), (error) => error === reason);
  assert.equal((await settled(session.exec("print('free')"), "an execution beside them")).stdout, "free\n");
  await settled(Promise.all(processes.map((process) => process.detach())), "the end of the processes");
  assert.deepEqual(await session.processes(), []);
});

test("hundreds of calls that are given up at once leave room for the next", async () => {
  await using session = await vms.scheduler.session({ language: "python" });
  for (let round = 0; round < 100; round++) {
    const controller = new AbortController(), { signal } = controller;
    const calls: Promise<unknown>[] = [
      session.ping({ signal }),
      session.exists("a", { signal }),
      session.processes({ signal }),
      session.listFiles(".", { signal }),
      session.writeFile("q", "x", { signal }),
    ];
    const ends = Promise.allSettled(calls);
    if (round % 3 > 0) await sleep(round % 4);
    controller.abort(new Error("enough"));
    for (const end of await settled(ends, "the abort")) assert.ok(end.status === "fulfilled" || /enough/.test(String(end.reason)));
  }
  assert.equal((await session.exec("print('free')")).stdout, "free\n");
  assert.ok((await session.listFiles()).every(({ name }) => name === "q"), "no partial file");
});

test("an input that never ends is cancelled when what reads it is over, however that ends", async () => {
  await using session = await vms.scheduler.session({ language: "python" });
  const ends: ReadonlyArray<readonly [string, { timeoutSeconds?: number }, "result" | "abort"]> = [
    ["print('done')", {}, "result"],
    ["input()", { timeoutSeconds: 1 }, "result"],
    ["input()", {}, "abort"],
  ];
  for (const [code, options, end] of ends) {
    const { seen, stream } = silence(), controller = new AbortController();
    const running = settled(session.exec(code, { ...options, stdin: stream, signal: controller.signal }), code);
    if (end === "abort") setTimeout(() => controller.abort(new Error("enough")), 100);
    await (end === "abort" ? assert.rejects(running, /enough/) : running);
    await eventually("the input is cancelled", () => seen.isCancelled);
  }
  const { seen, stream } = silence();
  const cat = await session.spawn("cat", [], { stdin: stream });
  await cat.kill();
  assert.deepEqual([await cat.wait(), seen.isCancelled], [{ exitCode: 143 }, true]);
  const text = new ReadableStream<Uint8Array>({ start: (controller) => controller.enqueue("text" as never) });
  await assert.rejects(settled(session.exec("input()", { stdin: text }), "an input of strings"), InputValidationError);
  assert.equal((await session.exec("print('free')")).stdout, "free\n");
});

test("an input that fails ends its process with that error, and with all that it started", async () => {
  await using session = await vms.scheduler.session({ language: "raw" });
  const torn = new ReadableStream<Uint8Array>({ pull: () => Promise.reject(new Error("torn")) });
  const started = await session.spawn("sh", ["-c", "sleep 1000 & cat"], { stdin: torn });
  await assert.rejects(settled(started.wait(), "its end"), /torn/);
  assert.deepEqual(await session.processes(), []);
  assert.equal((await session.exec("pgrep -c sleep")).stdout, "0\n");
});
