/** Guest: an agent that lies, stammers, or leaves at any point; each time a typed error, never a hang, never a crash. */
import assert from "node:assert/strict";
import type { Duplex } from "node:stream";
import test from "node:test";
import fc from "fast-check";
import { CommunicationError, GuestAgentError, OutcomeUnknownError, SandboxError } from "../../../src/base/errors.ts";
import { DATA_FLAG, encodeFrame, KIND } from "../../../src/channel/wire.ts";
import {
  ANNOUNCEMENT,
  answering,
  connect,
  IDENTITY,
  json,
  PATIENT,
  type Peer,
  quiet,
  rejectsWith,
  REPLY,
  REQUEST,
} from "../../support/guest_peer.ts";
import { settled, sleep } from "../../support/waiting.ts";

const huge = "x".repeat(60_000);
const MALFORMED: ReadonlyArray<readonly [string, Uint8Array]> = [
  ["nothing", new Uint8Array(0)],
  ["bytes that are no JSON", Uint8Array.of(0xff, 0, 1, 2)],
  ["half an object", new TextEncoder().encode('{"exitCode":0')],
  ["brackets without end", new TextEncoder().encode("[".repeat(65_536))],
  ...[null, 5, "text", [], [REPLY], {}].map((value) => [JSON.stringify(value), json(value)] as const),
  ...Object.keys(REPLY).map((field) => [`no ${field}`, json({ ...REPLY, [field]: undefined })] as const),
  ...[-2, 256, 1e9, 2 ** 53, 1.5, "0", null, true, {}, []].map((exitCode) =>
    [`exitCode ${JSON.stringify(exitCode)}`, json({ ...REPLY, exitCode })] as const
  ),
  ...[-1, 1.5, "1", null, {}, 2 ** 60].map((executionUs) =>
    [`executionUs ${JSON.stringify(executionUs)}`, json({ ...REPLY, executionUs })] as const
  ),
  ["an endless time", new TextEncoder().encode(JSON.stringify(REPLY).replace("812", "1e999"))],
  ...[0, "false", null, {}].map((timedOut) => [`timedOut ${JSON.stringify(timedOut)}`, json({ ...REPLY, timedOut })] as const),
  ...[0, "false", null, {}].map((reset) => [`reset ${JSON.stringify(reset)}`, json({ ...REPLY, reset })] as const),
  ...["", "stdin", 1, true, ["stdout"]].map((limit) =>
    [`outputLimit ${JSON.stringify(limit)}`, json({ ...REPLY, outputLimit: limit })] as const
  ),
  ...[1, true, {}, [], { toString: 1 }].map((value) => [`value ${JSON.stringify(value)}`, json({ ...REPLY, value })] as const),
  ["a flood of text", json(huge)],
];
for (const [name, payload] of MALFORMED) {
  test(`guest: a RESULT of ${name} is a GuestAgentError`, async () => {
    const { channel } = connect(answering(payload));
    await rejectsWith(channel.exec(PATIENT, quiet), GuestAgentError, /^Cannot read the guest's answer/);
    assert.equal(channel.closed.aborted, false, "the channel itself is whole");
  });
}

const ERRORS: ReadonlyArray<readonly [unknown, RegExp, string]> = [
  [{ code: "busy", message: "one runs" }, /^Cannot exec in the guest: one runs \(busy\)$/, "safe"],
  [{ code: "limit", message: "too long" }, /too long \(limit\)$/, "unknown"],
  [{ code: "new_code", message: "m" }, /m \(new_code\)$/, "unknown"],
  [{}, /undefined \(undefined\)$/, "unknown"],
  [
    { code: { toString: 1, valueOf: 1 }, message: { toString: null } },
    /in the guest: \{"toString":null\} \(\{"toString":1,"valueOf":1\}\)$/,
    "unknown",
  ],
  [{ code: [], message: 5 }, /5 \(\[\]\)$/, "unknown"],
  [{ code: huge.slice(0, 5000), message: huge.slice(0, 50_000) }, /x{1024} \(x{1024}\)$/, "unknown"],
  [{ code: "a\u001b[2J", message: "b\r\n\u0000\u009bc" }, /: b c \(a \[2J\)$/, "unknown"],
];
for (const [error, says, retry] of ERRORS) {
  test(`guest: an ERROR of ${JSON.stringify(error).slice(0, 60)} is a GuestAgentError`, async () => {
    const { channel } = connect(answering(json(error), KIND.error));
    const running = channel.exec(PATIENT, quiet);
    await rejectsWith(running, GuestAgentError, says);
    assert.equal(await running.catch((failure) => failure.retry), retry);
    await rejectsWith(channel.ping(), GuestAgentError, /^Cannot ping/);
  });
}
test("guest: an ERROR that is no JSON is a GuestAgentError", async () => {
  const { channel } = connect(answering(Uint8Array.of(0xc0), KIND.error));
  await rejectsWith(channel.exec(PATIENT, quiet), GuestAgentError);
});

const HELLOS: ReadonlyArray<readonly [string, Uint8Array]> = [
  ...[2, 0, "1", null, undefined, { toString: 1 }].map((protocol) =>
    [`protocol ${JSON.stringify(protocol)}`, json({ ...ANNOUNCEMENT, protocol })] as const
  ),
  ["no JSON", Uint8Array.of(0xff)],
  ["nothing", new Uint8Array(0)],
  ...[null, 5, [], "HELLO"].map((value) => [JSON.stringify(value), json(value)] as const),
  ["no agent", json({ protocol: 1, language: "python" })],
  ["an agent that is no text", json({ ...ANNOUNCEMENT, agent: { toString: 1, valueOf: 1 } })],
  ["a language that is no text", json({ ...ANNOUNCEMENT, language: [1] })],
  ["an id that is no text", json({ protocol: 1, id: { toString: null } })],
];
for (const [name, payload] of HELLOS) {
  test(`guest: a HELLO with ${name} ends the channel for everybody who waits`, async () => {
    const { channel, peer } = connect();
    const waiting = [channel.announced(), channel.hello(IDENTITY), channel.ping()];
    const running = channel.exec(PATIENT, quiet);
    peer.send(0, KIND.hello, payload);
    for (const promise of waiting) await rejectsWith(promise, CommunicationError, /^Cannot understand the guest: /);
    await rejectsWith(running, OutcomeUnknownError, /^Cannot tell how the code ended/);
    assert.ok(channel.closed.reason instanceof CommunicationError);
    await rejectsWith(channel.exec(PATIENT, quiet), CommunicationError);
    await rejectsWith(channel.hello(IDENTITY), CommunicationError);
    await rejectsWith(channel.announced(), CommunicationError);
  });
}

const VIOLATIONS: ReadonlyArray<readonly [string, (peer: Peer) => void]> = [
  ["output of no kind", (peer) => peer.send(1, KIND.data, new Uint8Array(1), DATA_FLAG.body)],
  ["a frame of an unknown kind", (peer) => peer.raw(Uint8Array.of(0, 0, 0, 0, 1, 0, 0, 0, 99, 0, 0, 0))],
  ["a frame of 4 GB", (peer) => peer.raw(Uint8Array.of(255, 255, 255, 255, 1, 0, 0, 0, 7, 0, 0, 0))],
  ["an OPEN of its own", (peer) => peer.send(1, KIND.open, json({ method: "exec" }))],
  ["an answer to what was never asked", (peer) => peer.send(77, KIND.result, json(REPLY))],
  ["endless credit", (peer) => peer.send(1, KIND.credit, Uint8Array.of(255, 255, 255, 255))],
  ["text instead of frames", (peer) => peer.raw(new TextEncoder().encode("Kernel panic - not syncing: Attempted to kill init!"))],
];
for (const [name, violate] of VIOLATIONS) {
  test(`guest: ${name} ends the channel, and the code's outcome is unknown`, async () => {
    const { channel, peer } = connect();
    const running = channel.exec(PATIENT, quiet);
    await sleep(1);
    violate(peer);
    await rejectsWith(running, OutcomeUnknownError);
    assert.match(channel.closed.reason.message, /^Cannot understand the guest: /);
  });
}

for (
  const [name, leave] of [
    ["closes", (pipe: Duplex) => void pipe.destroy()],
    ["breaks", (pipe: Duplex) => void pipe.destroy(new Error("read ECONNRESET"))],
    ["only stops speaking", (pipe: Duplex) => void pipe.push(null)],
  ] as const
) {
  test(`guest: a channel that ${name}, at any byte of a whole conversation, leaves nobody waiting`, async () => {
    const conversation = [
      encodeFrame({ stream: 0, kind: KIND.hello, payload: json(ANNOUNCEMENT) }),
      encodeFrame({ stream: 0, kind: KIND.hello, payload: json({ protocol: 1, id: "vm-1" }) }),
      encodeFrame({ stream: 1, kind: KIND.credit, payload: Uint8Array.of(1, 0, 0, 0) }),
      encodeFrame({ stream: 1, kind: KIND.data, flags: DATA_FLAG.stdout, payload: new TextEncoder().encode("out") }),
      encodeFrame({ stream: 1, kind: KIND.result, payload: json(REPLY) }),
      encodeFrame({ stream: 2, kind: KIND.result, payload: json({}) }),
    ];
    const bytes = Uint8Array.from(conversation.flatMap((frame) => [...frame]));
    for (let cut = 0; cut <= bytes.length; cut++) {
      const { channel, peer } = connect();
      const waiting = {
        announced: channel.announced(),
        hello: channel.hello(IDENTITY),
        exec: channel.exec(PATIENT, quiet),
        ping: channel.ping(),
      };
      peer.raw(bytes.subarray(0, cut));
      leave(peer.pipe);
      const ends = await settled(Promise.allSettled(Object.values(waiting)), `everything, cut at ${cut}`);
      // Whatever was whole before the cut may have arrived; all after it is lost, with the error of its kind.
      const types = [CommunicationError, CommunicationError, OutcomeUnknownError, CommunicationError];
      let isLost = false;
      for (const [at, end] of ends.entries()) {
        if (end.status === "rejected") assert.equal(end.reason.constructor, types[at], `${at} cut at ${cut}: ${end.reason}`);
        else assert.equal(isLost, false, `${at} cut at ${cut} came after what was lost`);
        isLost ||= end.status === "rejected";
      }
      if (cut < bytes.length) assert.ok(isLost, `cut at ${cut}`);
      assert.ok(channel.closed.aborted);
    }
  });
}

test("guest: whatever bytes come, every call ends as it should or with a typed error", async () => {
  const anyFrame = fc.record({
    stream: fc.constantFrom(0, 0, 1, 1, 1, 2, 3, 99),
    kind: fc.constantFrom(...Object.values(KIND)),
    flags: fc.constantFrom(0, 0, 1, 2, 3, 9),
    payload: fc.oneof(
      fc.uint8Array({ maxLength: 20 }),
      fc.jsonValue().map(json),
      fc.constantFrom(
        json(REPLY),
        json(ANNOUNCEMENT),
        json({ protocol: 1, id: "vm-1" }),
        json({ code: "busy", message: {} }),
        new Uint8Array(4),
      ),
    ),
  }).map(encodeFrame);
  const chunks = fc.array(fc.oneof({ weight: 9, arbitrary: anyFrame }, { weight: 1, arbitrary: fc.uint8Array({ maxLength: 30 }) }), {
    maxLength: 12,
  });
  await fc.assert(
    fc.asyncProperty(chunks, fc.boolean(), async (bytes, isDestroyed) => {
      const { channel, peer } = connect();
      const calls = [channel.announced(), channel.hello(IDENTITY), channel.exec(REQUEST, quiet), channel.ping()];
      for (const chunk of bytes) peer.raw(chunk);
      if (isDestroyed) peer.pipe.destroy();
      else setTimeout(() => peer.pipe.push(null), 2);
      for (const end of await settled(Promise.allSettled(calls), "every call")) {
        if (end.status === "rejected") assert.ok(SandboxError.is(end.reason), String(end.reason));
      }
    }),
    { numRuns: 300 },
  );
});
