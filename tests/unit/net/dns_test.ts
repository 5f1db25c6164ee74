/** DNS messages: questions of real resolvers, hostile ones, and answers that read back. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { encodeAnswer, encodeRefusal, parseQuery, QUERY_MAX_BYTES, type Question, RCODE, TYPE } from "../../../src/net/dns.ts";
import { fromHex, fuzzRuns, mutations } from "../../support/fuzz.ts";

const latin1 = (text: string) => Uint8Array.from(text, (char) => char.charCodeAt(0));
const nameBytes = (name: string) => [...name.split(".").flatMap((label) => [label.length, ...latin1(label)]), 0];
/** A question as glibc asks it. */
const query = (
  name: string,
  type: number = TYPE.a,
  more: { flags?: number; tail?: number[]; extra?: number; counts?: number[]; recordClass?: number } = {},
) =>
  Uint8Array.from([
    0x12,
    0x34,
    ...[(more.flags ?? 0x100) >> 8, (more.flags ?? 0x100) & 255],
    ...(more.counts ?? [0, 1, 0, 0, 0, 0]),
    0,
    more.extra ?? 0,
    ...nameBytes(name),
    type >> 8,
    type & 255,
    0,
    more.recordClass ?? 1,
    ...(more.tail ?? []),
  ]);
const OPT_1232 = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];
const questionOf = (message: Uint8Array): Question => {
  const parsed = parseQuery(message);
  assert.ok(parsed.kind === "question", parsed.kind);
  return parsed.question;
};
/** What a plain reader finds in an answer. */
function readAnswer(message: Uint8Array) {
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength), flags = view.getUint16(2);
  let at = 12;
  while (message[at]) at += 1 + (message[at] ?? 0);
  at += 5;
  const records = Array.from({ length: view.getUint16(6) }, () => {
    const length = view.getUint16(at + 10),
      record = {
        pointer: view.getUint16(at),
        type: view.getUint16(at + 2),
        ttl: view.getUint32(at + 6),
        data: [...message.subarray(at + 12, at + 12 + length)],
      };
    at += 12 + length;
    return record;
  });
  return { id: view.getUint16(0), isAnswer: flags >> 15, isCut: (flags >> 9) & 1, rcode: flags & 15, records, rest: message.length - at };
}

test("dns: a question is read as asked", () => {
  assert.deepEqual(questionOf(query("WwW.Example.com")), {
    id: 0x1234,
    name: "WwW.Example.com",
    type: 1,
    section: Uint8Array.from([...nameBytes("WwW.Example.com"), 0, 1, 0, 1]),
    isRecursionDesired: true,
    udpBytes: 512,
    hasEdns: false,
  });
  const edns = questionOf(query("example.com", TYPE.aaaa, { extra: 1, tail: OPT_1232 }));
  assert.deepEqual([edns.udpBytes, edns.hasEdns, edns.type], [1232, true, 28]);
  const padded = query("example.com", TYPE.a, { extra: 1, tail: [0, 0, 41, 0, 100, 0, 0, 0, 0, 0, 8, 0, 10, 0, 4, 1, 2, 3, 4] });
  assert.equal(questionOf(padded).udpBytes, 512, "less than 512 is 512");
});

test("dns: what is malformed gets FORMERR, what is no question gets nothing", () => {
  const malformed: Record<string, Uint8Array> = {
    "two questions": query("a.example", 1, { counts: [0, 2, 0, 0, 0, 0] }),
    "no question": query("a.example", 1, { counts: [0, 0, 0, 0, 0, 0] }),
    "an answer inside": query("a.example", 1, { counts: [0, 1, 0, 1, 0, 0] }),
    "an authority inside": query("a.example", 1, { counts: [0, 1, 0, 0, 0, 1] }),
    "a pointer": Uint8Array.from([...query("a.example").subarray(0, 12), 0xc0, 12, 0, 1, 0, 1]),
    "a label beyond the end": Uint8Array.from([...query("a.example").subarray(0, 12), 60, 1, 2]),
    "a label of 64": Uint8Array.from([...query("a.example").subarray(0, 12), 64, ...new Array(64).fill(97), 0, 0, 1, 0, 1]),
    "a dot in a label": Uint8Array.from([...query("a.example").subarray(0, 12), 3, 97, 46, 98, 0, 0, 1, 0, 1]),
    "a name of 256": query(Array.from({ length: 4 }, () => "a".repeat(63)).join(".")),
    "no type": query("a.example").subarray(0, -4),
    "records that are not there": query("a.example", 1, { extra: 1 }),
    "two OPT records": query("a.example", 1, { extra: 2, tail: [...OPT_1232, ...OPT_1232] }),
    "an OPT that is cut off": query("a.example", 1, { extra: 1, tail: OPT_1232.slice(0, 9) }),
    "data beyond the end": query("a.example", 1, { extra: 1, tail: [0, 0, 41, 4, 0, 0, 0, 0, 0, 255, 255] }),
  };
  for (const [what, message] of Object.entries(malformed)) {
    assert.deepEqual(parseQuery(message), { kind: "refused", id: 0x1234, rcode: RCODE.malformed }, what);
  }
  assert.deepEqual(parseQuery(query("a.example", 1, { flags: 0x2800 })), { kind: "refused", id: 0x1234, rcode: RCODE.notImplemented });
  assert.deepEqual(parseQuery(query("a.example", 1, { recordClass: 3 })), { kind: "refused", id: 0x1234, rcode: RCODE.refused });
  for (
    const message of [new Uint8Array(0), new Uint8Array(11), query("a.example", 1, { flags: 0x8000 }), new Uint8Array(QUERY_MAX_BYTES + 1)]
  ) assert.equal(parseQuery(message).kind, "ignored");
});

test("dns: an answer has the question's own spelling, its addresses and their time", () => {
  const question = questionOf(query("WwW.Example.com", TYPE.a, { extra: 1, tail: OPT_1232 }));
  const message = encodeAnswer(question, { rcode: RCODE.ok, addresses: [Uint8Array.from([203, 0, 113, 5])], ttlSeconds: 60 }, "udp");
  assert.deepEqual(message.subarray(12, 12 + question.section.length), question.section);
  const { rest, ...answer } = readAnswer(message);
  assert.deepEqual(answer, {
    id: 0x1234,
    isAnswer: 1,
    isCut: 0,
    rcode: 0,
    records: [{ pointer: 0xc00c, type: 1, ttl: 60, data: [203, 0, 113, 5] }],
  });
  assert.equal(rest, 11, "an OPT record answers an OPT record");
  assert.equal(readAnswer(encodeAnswer(questionOf(query("a.example")), { rcode: RCODE.notFound }, "udp")).rcode, 3);
  assert.deepEqual([...encodeRefusal(0x1234, RCODE.malformed)], [0x12, 0x34, 0x80, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
});

test("dns: an answer too long for UDP is empty and says so, over TCP it is whole", () => {
  const question = questionOf(query("a.example")), addresses = Array.from({ length: 40 }, (_, at) => Uint8Array.from([203, 0, 113, at]));
  const cut = readAnswer(encodeAnswer(question, { rcode: RCODE.ok, addresses }, "udp"));
  assert.deepEqual([cut.isCut, cut.records.length], [1, 0]);
  const whole = readAnswer(encodeAnswer(question, { rcode: RCODE.ok, addresses }, "tcp"));
  assert.deepEqual([whole.isCut, whole.records.length, whole.rest], [0, 40, 0]);
});

const CORPUS = [
  query("example.com"),
  query("WwW.Example.com", TYPE.aaaa, { extra: 1, tail: OPT_1232 }),
  query("_svc._tcp.example.com", 33),
  query("example.com", 65, { extra: 1, tail: [0, 0, 41, 4, 208, 0, 0, 128, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8] }),
  fromHex("abcd01200001000000000001076578616d706c6503636f6d0000010001000029100000000000000c000a00080102030405060708"),
];

test("dns: no message crashes the parser, and every question that it reads can be answered", () => {
  fc.assert(
    fc.property(fc.oneof(mutations(CORPUS), fc.uint8Array({ maxLength: 80 })), (message) => {
      const parsed = parseQuery(message);
      if (parsed.kind !== "question") return;
      const { question } = parsed;
      assert.ok(question.name.length <= 253 && question.udpBytes >= 512);
      const again = readAnswer(encodeAnswer(question, { rcode: RCODE.ok, addresses: [new Uint8Array(4)], ttlSeconds: 1 }, "udp"));
      assert.deepEqual([again.id, again.records.length, again.rest], [question.id, 1, question.hasEdns ? 11 : 0]);
    }),
    fuzzRuns(3000),
  );
});
