/** SNI: hellos of real clients cut anywhere, and everything that must not pass for one. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import fc from "fast-check";
import { concat } from "../../../src/channel/wire.ts";
import type { Step } from "../../../src/net/inspector.ts";
import { HELLO_MAX_BYTES, parseClientHello, TlsInspector } from "../../../src/net/sni.ts";
import { fromHex, fuzzRuns, mutations, pieces } from "../../support/fuzz.ts";

const captured: Array<{ name: string; hex: string }> = JSON.parse(
  readFileSync(new URL("../../fixtures/net/client_hellos.json", import.meta.url), "utf8"),
);
const latin1 = (text: string) => Uint8Array.from(text, (char) => char.charCodeAt(0));
const u16 = (value: number) => [value >> 8, value & 255];
const withLength = (bytes: readonly number[]) => [...u16(bytes.length), ...bytes];
const extension = (type: number, data: readonly number[]) => [...u16(type), ...withLength(data)];
const serverName = (name: string) => extension(0, withLength([0, ...withLength([...latin1(name)])]));
const body = (extensions: readonly number[]) =>
  Uint8Array.from([3, 3, ...new Array(32).fill(7), 0, ...withLength([0x13, 1]), 1, 0, ...withLength(extensions)]);
const handshake = (of: Uint8Array, type = 1) => Uint8Array.from([type, of.length >> 16, (of.length >> 8) & 255, of.length & 255, ...of]);
const record = (content: Uint8Array, type = 22) => Uint8Array.from([type, 3, 1, ...u16(content.length), ...content]);
const hello = (...names: string[]) => record(handshake(body(names.flatMap((name) => serverName(name)))));
const allowing = (...names: string[]) => new TlsInspector((name) => names.includes(name));

/** Everything let go, and why it ended there. */
function run(inspector: TlsInspector, parts: readonly Uint8Array[]): { passed: Uint8Array; refusal: Step["refusal"] } {
  const passed: Uint8Array[] = [];
  for (const part of parts) {
    const { forward, refusal } = inspector.push(part);
    passed.push(...forward);
    if (refusal !== undefined) return { passed: concat(...passed), refusal };
  }
  return { passed: concat(...passed), refusal: undefined };
}
const refusalOf = (bytes: Uint8Array, ...names: string[]) => {
  const { passed, refusal } = run(allowing(...names), [bytes]);
  assert.equal(passed.length, 0, "nothing passes before the refusal");
  return refusal;
};

for (const { name, hex } of captured) {
  const bytes = fromHex(hex), isNameless = name.includes("without a name");
  test(`sni: the hello of ${name}, cut at any byte, ${isNameless ? "is refused" : "passes for its name alone"}`, () => {
    for (let cut = 0; cut <= bytes.length; cut++) {
      const parts = [bytes.subarray(0, cut), bytes.subarray(cut)], inspector = allowing("api.example.com");
      const { passed, refusal } = run(inspector, parts);
      assert.equal(refusal, isNameless ? "no-server-name" : undefined, `cut at ${cut}`);
      assert.deepEqual(passed, isNameless ? new Uint8Array(0) : bytes);
      if (!isNameless) assert.equal(inspector.name, "api.example.com");
    }
    assert.equal(refusalOf(bytes, "other.example.com"), isNameless ? "no-server-name" : "server-name");
  });
}

test("sni: a hello spread over many records is put together", () => {
  const whole = handshake(body(serverName("api.example.com")));
  const records = concat(...[...whole].map((byte) => record(Uint8Array.of(byte))));
  const { passed, refusal } = run(allowing("api.example.com"), pieces(records, [3, 7, 50, 51, 200]));
  assert.deepEqual([refusal, passed.length], [undefined, records.length]);
  assert.equal(refusalOf(records, "other.example.com"), "server-name");
});

test("sni: names are compared in their one spelling", () => {
  for (const name of ["API.Example.Com", "api.example.com."]) {
    assert.equal(run(allowing("api.example.com"), [hello(name)]).refusal, undefined, name);
  }
  for (
    const name of [
      "api.example.com\0.evil.test",
      "api.example.com ",
      "127.0.0.1",
      "0x7f.1",
      "*.example.com",
      "api.example.com..",
      "api.example.com/",
    ]
  ) {
    assert.equal(refusalOf(hello(name), "api.example.com"), "server-name", JSON.stringify(name));
  }
});

test("sni: without a name, with two, or with an encrypted hello, nothing passes", () => {
  const ech = extension(0xfe0d, [0, 0, 1, 0, 1, 5, 0, 0]), allowed = "api.example.com";
  assert.equal(refusalOf(record(handshake(body([]))), allowed), "no-server-name");
  assert.equal(refusalOf(record(handshake(body(ech))), allowed), "encrypted-client-hello");
  assert.equal(refusalOf(record(handshake(body([...serverName(allowed), ...ech]))), allowed), "encrypted-client-hello");
  assert.equal(refusalOf(hello(allowed, allowed), allowed), "not-tls");
  const two = extension(0, withLength([0, ...withLength([...latin1(allowed)]), 0, ...withLength([...latin1("evil.test")])]));
  assert.equal(refusalOf(record(handshake(body(two))), allowed), "not-tls");
  assert.equal(refusalOf(record(handshake(body(extension(0, withLength([1, ...withLength([...latin1(allowed)])]))))), allowed), "not-tls");
  assert.equal(refusalOf(record(handshake(body(extension(0, [])))), allowed), "not-tls");
});

test("sni: what is no hello is refused at its first wrong byte", () => {
  const allowed = "api.example.com";
  const bad: Record<string, Uint8Array> = {
    http: latin1("GET / HTTP/1.1\r\n"),
    ssh: latin1("SSH-2.0-x"),
    "one wrong byte": Uint8Array.of(0),
    "SSL 2": fromHex("802e0100020015"),
    "application data first": record(latin1("x"), 23),
    "an alert first": record(Uint8Array.of(1, 0), 21),
    "another handshake message": record(handshake(new Uint8Array(4), 2)),
    "an empty record": record(new Uint8Array(0)),
    "version 2": Uint8Array.of(22, 2, 0, 0, 5, 1),
    "a record of 20,000": Uint8Array.of(22, 3, 1, ...u16(20_000)),
    "something behind it in its record": record(concat(handshake(body(serverName(allowed))), handshake(body(serverName("evil.test"))))),
    "a hello cut off inside": record(handshake(body(serverName(allowed)).subarray(0, 50))),
    "bytes after the extensions": record(handshake(concat(body(serverName(allowed)), Uint8Array.of(0)))),
  };
  for (const [what, bytes] of Object.entries(bad)) assert.equal(refusalOf(bytes, allowed), "not-tls", what);
  assert.equal(refusalOf(record(Uint8Array.of(1, 0, 0xff, 0xff)), allowed), "limit", "a hello that says it has 65,535 bytes");
  const drip = concat(record(Uint8Array.of(1, 0, 0x3f, 0)), ...Array.from({ length: 4000 }, () => record(Uint8Array.of(0))));
  assert.ok(drip.length > HELLO_MAX_BYTES);
  assert.equal(refusalOf(drip, allowed), "limit");
});

test("sni: a second hello is looked at as the first was", () => {
  const first = hello("api.example.com"), changed = record(Uint8Array.of(1), 20);
  const run2 = (second: Uint8Array) => run(allowing("api.example.com"), [first, changed, second]);
  assert.equal(run2(hello("api.example.com")).refusal, undefined);
  assert.equal(run2(hello("evil.test")).refusal, "server-name");
  assert.equal(run2(hello("evil.test")).passed.length, first.length + changed.length);
  assert.equal(run(allowing("api.example.com"), [first, hello("api.example.com"), hello("api.example.com")]).refusal, "not-tls");
  assert.equal(run(allowing("api.example.com"), [concat(first, hello("evil.test"))]).refusal, "server-name");
  for (const next of [record(latin1("encrypted"), 23), record(handshake(new Uint8Array(9), 16))]) {
    const inspector = allowing("api.example.com");
    assert.equal(run(inspector, [first, next]).passed.length, first.length + next.length);
    const rest = latin1("whatever comes then");
    assert.deepEqual(inspector.push(rest).forward, [rest], "the rest is not copied");
  }
});

test("sni: a connection that ends within its hello was none", () => {
  const inspector = allowing("api.example.com");
  assert.equal(inspector.end().refusal, "incomplete");
  inspector.push(hello("api.example.com").subarray(0, 20));
  assert.equal(inspector.end().refusal, "incomplete");
  inspector.push(hello("api.example.com").subarray(20));
  assert.equal(inspector.end().refusal, undefined);
});

const CORPUS = [
  ...captured.map(({ hex }) => fromHex(hex)),
  hello("api.example.com"),
  concat(hello("api.example.com"), record(Uint8Array.of(1), 20), hello("api.example.com")),
];

test("sni: no input crashes it, pieces change nothing, and nothing passes before an allowed name was shown", () => {
  const input = fc.tuple(fc.oneof(mutations(CORPUS), fc.uint8Array({ maxLength: 100 })), fc.array(fc.nat({ max: 2000 }), { maxLength: 6 }));
  fc.assert(
    fc.property(input, ([bytes, cuts]) => {
      parseClientHello(bytes);
      const inspector = allowing("api.example.com"), whole = run(inspector, [bytes]);
      const cut = run(allowing("api.example.com"), pieces(bytes, cuts));
      assert.deepEqual([cut.refusal, [...cut.passed]], [whole.refusal, [...whole.passed]]);
      assert.deepEqual([...whole.passed], [...bytes.subarray(0, whole.passed.length)]);
      if (whole.passed.length === 0) return;
      assert.ok(concat(whole.passed).length > 0 && (whole.refusal !== undefined || inspector.name === "api.example.com"));
    }),
    fuzzRuns(2000),
  );
});
