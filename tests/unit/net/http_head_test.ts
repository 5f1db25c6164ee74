/** HTTP heads: requests of real clients, the second one on a connection, and everything that two servers might read differently. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { concat } from "../../../src/channel/wire.ts";
import { HEAD_MAX_BYTES, HttpInspector } from "../../../src/net/http_head.ts";
import type { Step } from "../../../src/net/inspector.ts";
import { fuzzRuns, mutations, pieces } from "../../support/fuzz.ts";

const latin1 = (text: string) => Uint8Array.from(text, (char) => char.charCodeAt(0));
const text = (bytes: Uint8Array) => String.fromCharCode(...bytes);
const allowing = () => new HttpInspector((name) => name === "api.example.com" || name === "b.example.com");
const H = "Host: api.example.com\r\n";
const get = (fields = H, line = "GET / HTTP/1.1") => `${line}\r\n${fields}\r\n`;

function run(inspector: HttpInspector, parts: readonly Uint8Array[]): { passed: string; refusal: Step["refusal"] } {
  const passed: Uint8Array[] = [];
  for (const part of parts) {
    const { forward, refusal } = inspector.push(part);
    passed.push(...forward);
    if (refusal !== undefined) return { passed: text(concat(...passed)), refusal };
  }
  return { passed: text(concat(...passed)), refusal: undefined };
}
const outcome = (request: string) => run(allowing(), [latin1(request)]);

test("http: requests of real clients pass as they are, cut at any byte", () => {
  const requests = [
    get(),
    get("Host: API.example.com:80\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n"),
    get("User-Agent: python-requests/2\r\nAccept-Encoding: gzip, deflate\r\nhost:api.example.com.\r\nConnection: keep-alive\r\n"),
    get(H, "GET http://api.example.com/path?q=1 HTTP/1.1"),
    get(H, "OPTIONS * HTTP/1.1"),
    get(H, "GET / HTTP/1.0"),
    `${get(`${H}Content-Length: 11\r\n`, "POST /a HTTP/1.1")}hello\r\n\r\nxx${get("Host: b.example.com\r\n")}`,
    `${get(`${H}Transfer-Encoding: Chunked\r\n`, "PUT / HTTP/1.1")}5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n${get()}`,
    `${get(`${H}Expect: 100-continue\r\nContent-Length: 2\r\n`, "POST / HTTP/1.1")}hi`,
  ];
  for (const request of requests) {
    const bytes = latin1(request);
    for (let cut = 0; cut <= bytes.length; cut++) {
      const inspector = allowing();
      assert.deepEqual(
        run(inspector, [bytes.subarray(0, cut), bytes.subarray(cut)]),
        { passed: request, refusal: undefined },
        `${JSON.stringify(request)} at ${cut}`,
      );
      assert.equal(inspector.end().refusal, undefined);
    }
  }
});

test("http: every request on a connection is asked for its host", () => {
  const first = get();
  assert.deepEqual(outcome(`${first}${get("Host: evil.test\r\n")}`), { passed: first, refusal: "host" });
  const posted = `${get(`${H}Content-Length: 4\r\n`, "POST / HTTP/1.1")}body`;
  assert.deepEqual(outcome(`${posted}${get("Host: evil.test\r\n")}`), { passed: posted, refusal: "host" });
  const chunked = `${get(`${H}Transfer-Encoding: chunked\r\n`, "POST / HTTP/1.1")}1\r\nx\r\n0\r\n\r\n`;
  assert.deepEqual(outcome(`${chunked}${get("Host: evil.test\r\n")}`), { passed: chunked, refusal: "host" });
});

test("http: what is refused, and why", () => {
  const cases: Array<[string, string]> = [
    [get("Host: evil.test\r\n"), "host"],
    [get("Host: 127.0.0.1\r\n"), "host"],
    [get("Host: api.example.com:8080\r\n"), "host"],
    [get("Host: api.example.com@evil.test\r\n"), "host"],
    [get("Host: \r\n"), "host"],
    [get("Host: api.example.com, evil.test\r\n"), "host"],
    [get(H, "GET http://evil.test/ HTTP/1.1"), "host"],
    [get(H, "GET http://api.example.com@evil.test/ HTTP/1.1"), "not-http"],
    [get(H, "GET http://b.example.com/ HTTP/1.1"), "host"],
    [get(H, "GET https://api.example.com/ HTTP/1.1"), "not-http"],
    [get(H, "GET evil.test/ HTTP/1.1"), "not-http"],
    [get(H, "GET * HTTP/1.1"), "not-http"],
    [get(""), "no-host"],
    [get("", "GET / HTTP/1.0"), "no-host"],
    [get(`${H}Host: evil.test\r\n`), "smuggling"],
    [get(`${H}${H}`), "smuggling"],
    [get("Host : api.example.com\r\n"), "smuggling"],
    [get(`${H} Host: evil.test\r\n`), "smuggling"],
    [get("X: y\r\n\tz\r\n" + H), "smuggling"],
    [get(`${H}Content-Length: 5\r\nContent-Length: 6\r\n`), "smuggling"],
    [get(`${H}Content-Length: 5\r\nContent-Length: 5\r\n`), "smuggling"],
    [get(`${H}Content-Length: 5, 5\r\n`), "smuggling"],
    [get(`${H}Content-Length: +5\r\n`), "smuggling"],
    [get(`${H}Content-Length: 0x5\r\n`), "smuggling"],
    [get(`${H}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n`), "smuggling"],
    [get(`${H}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n`), "smuggling"],
    [get(`${H}Transfer-Encoding: gzip, chunked\r\n`), "smuggling"],
    [get(`${H}Transfer-Encoding: xchunked\r\n`), "smuggling"],
    [get(`${H}Transfer-Encoding: chunked\r\n`, "POST / HTTP/1.0"), "smuggling"],
    [get(`${H}X: a\nHost: evil.test\r\n`), "smuggling"],
    [get(`${H}X: a\rHost: evil.test\r\n`), "smuggling"],
    [get(`${H}X: a\0\r\n`), "not-http"],
    [get(H, "CONNECT evil.test:443 HTTP/1.1"), "connect"],
    [get(H, "CONNECT api.example.com:443 HTTP/1.1"), "connect"],
    ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2"],
    [get(H, "GET / HTTP/2.0"), "not-http"],
    [get(H, "GET /"), "not-http"],
    [get(H, "GET  / HTTP/1.1"), "not-http"],
    [get(H, "GET / HTTP/1.1 "), "not-http"],
    ["\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "not-http"],
    ["SSH-2.0-OpenSSH\r\n", "not-http"],
    ["\r\nGET / HTTP/1.1\r\n", "not-http"],
    ["GET / HTTP/1.1\nHost: api.example.com\n\n", "never"],
    [`GET /${"a".repeat(HEAD_MAX_BYTES)} HTTP/1.1\r\n`, "limit"],
  ];
  for (const [request, reason] of cases) {
    const inspector = allowing(), { passed, refusal } = run(inspector, [latin1(request)]);
    assert.deepEqual([passed, refusal ?? "never"], ["", reason], JSON.stringify(request.slice(0, 200)));
    if (refusal === undefined) assert.equal(inspector.end().refusal, "incomplete", "what waits for more never passes");
  }
});

test("http: chunks are read by the letter", () => {
  const head = get(`${H}Transfer-Encoding: chunked\r\n`, "POST / HTTP/1.1");
  const bad = [
    "5;x=y\r\nhello\r\n",
    "-1\r\n",
    "0x5\r\nhello\r\n",
    " 5\r\nhello\r\n",
    "5 \r\nhello\r\n",
    "\r\n",
    "fffffffffffff\r\n",
    `${"0".repeat(300)}`,
  ];
  for (const chunk of bad) assert.deepEqual(outcome(head + chunk), { passed: head, refusal: "smuggling" }, JSON.stringify(chunk));
  assert.deepEqual(outcome(`${head}5\r\nhelloX`), { passed: `${head}5\r\nhello`, refusal: "smuggling" });
  assert.deepEqual(outcome(`${head}0\r\nHost: evil.test\r\n\r\n`), { passed: `${head}0\r\n`, refusal: "smuggling" });
});

test("http: an upgrade to WebSocket opens the connection only when the server agrees", () => {
  const upgrade = get(`${H}Connection: Upgrade\r\nUpgrade: websocket\r\n`), frames = "\x81\x85\0\0\0\0hello";
  const agreed = allowing();
  assert.equal(run(agreed, [latin1(upgrade)]).passed, upgrade);
  assert.deepEqual(agreed.push(latin1(frames)).forward, [], "held until the answer");
  assert.deepEqual(agreed.pushReply(latin1("HTTP/1.")).forward, []);
  assert.equal(text(concat(...agreed.pushReply(latin1("1 101 Switching Protocols\r\n")).forward)), frames);
  assert.equal(text(concat(...agreed.push(latin1(frames)).forward)), frames);
  for (const reply of ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 1010 X\r\n", "nonsense and more\r\n", "\n"]) {
    const denied = allowing();
    run(denied, [latin1(upgrade), latin1(get("Host: evil.test\r\n"))]);
    assert.equal(denied.pushReply(latin1(reply)).refusal, "host", reply);
  }
  assert.equal(outcome(get() + upgrade).refusal, "upgrade", "behind another request nobody knows whose answer comes");
  assert.equal(outcome(get(`${H}Upgrade: h2c\r\nConnection: Upgrade\r\n`) + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").refusal, "http2");
  const flooding = allowing();
  run(flooding, [latin1(upgrade)]);
  assert.equal(flooding.push(new Uint8Array(65_537)).refusal, "limit");
});

const CORPUS = [
  get(),
  `${get(`${H}Content-Length: 4\r\n`, "POST / HTTP/1.1")}body${get("Host: b.example.com\r\n")}`,
  `${get(`${H}Transfer-Encoding: chunked\r\n`, "POST / HTTP/1.1")}3\r\nabc\r\n0\r\n\r\n${get()}`,
  get(H, "GET http://api.example.com/ HTTP/1.1"),
  get(`${H}Connection: Upgrade\r\nUpgrade: websocket\r\n`),
  `${get(`${H}Host: evil.test\r\n`)}`,
].map(latin1);

test("http: no input crashes it, pieces change nothing, and every host that passes is allowed", () => {
  const input = fc.tuple(fc.oneof(mutations(CORPUS), fc.uint8Array({ maxLength: 100 })), fc.array(fc.nat({ max: 400 }), { maxLength: 6 }));
  fc.assert(
    fc.property(input, ([bytes, cuts]) => {
      const whole = run(allowing(), [bytes]), cut = run(allowing(), pieces(bytes, cuts));
      assert.deepEqual(cut, whole);
      assert.ok(text(bytes).startsWith(whole.passed));
      for (const [, host] of whole.passed.matchAll(/(?:^|\n)host:[ \t]*([^\r\n]*)/gi)) {
        if (whole.refusal === undefined && !/content-length|transfer/i.test(whole.passed)) {
          assert.match(host ?? "", /^(?:api|b)\.example\.com\.?(?::0*80)?[ \t]*$/i);
        }
      }
    }),
    fuzzRuns(2000),
  );
});
