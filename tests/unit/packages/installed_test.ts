/** What an installation says of itself: read where it is as it should be, refused otherwise, and never more than its form believed. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { GuestAgentError } from "../../../src/base/errors.ts";
import { parseHosts, parseLock, parseModules, ruleOf } from "../../../src/packages/installed.ts";
import { noLeftovers } from "../../support/leftovers.ts";

const HASH = "a".repeat(64);

test("uv's lock: names, versions and hashes, sorted", () => {
  const text = `urllib3==2.5.0 \\\n    --hash=sha256:${HASH}\nrequests[socks]==2.32.5 ; python_version >= "3.9" \\\n` +
    `    --hash=sha256:${HASH} \\\n    --hash=sha256:${"b".repeat(64)}\n`;
  assert.deepEqual(parseLock("python", text), [
    { name: "requests", version: "2.32.5", hashes: [`sha256:${HASH}`, `sha256:${"b".repeat(64)}`] },
    { name: "urllib3", version: "2.5.0", hashes: [`sha256:${HASH}`] },
  ]);
});

test("Bun's lock: each package once, wherever it lies", () => {
  const text = `{"lockfileVersion": 1, "packages": {
    "@scope/x": ["@scope/x@1.0.0", "", { "dependencies": { "y": "^1.0.0" } }, "sha512-${"A".repeat(86)}=="],
    "y": ["y@1.2.3", "", {}, "sha512-${"B".repeat(86)}=="],
    "x/y": ["y@1.2.3", "", {}, "sha512-${"B".repeat(86)}=="],
  },}`;
  assert.deepEqual(parseLock("javascript", text).map(({ name, version, hashes }) => [name, version, hashes.length]), [
    ["@scope/x", "1.0.0", 1],
    ["y", "1.2.3", 1],
  ]);
});

test("what is no lock is refused, whatever it is", () => {
  for (const text of ["", "{}", "null", "[1]", '{"packages":{"x":[1]}}', '{"packages":{"x":["x@\\u001b[2J","",{},""]}}']) {
    assert.throws(() => parseLock("javascript", text), GuestAgentError, text);
  }
  for (const text of ["", "requests", "a==\x1b[2J", `a==1 --hash=sha256:${"z".repeat(9)}x\nb==${"1".repeat(500)}`]) {
    assert.throws(() => parseLock("python", text), GuestAgentError, text);
  }
  fc.assert(fc.property(fc.string(), fc.constantFrom("python" as const, "javascript" as const), (text, language) => {
    try {
      for (const { name, version } of parseLock(language, text)) assert.doesNotMatch(name + version, /[^\x21-\x7e]/);
    } catch (error) {
      assert.ok(error instanceof GuestAgentError);
    }
  }));
});

test("modules are what somebody imports: no tests, nothing private, nothing that is no name", () => {
  assert.deepEqual(parseModules('{"numpy": ["numpy"], "x": ["_x", "tests", "a.b", "x y", 5, "import os;x", "numpy", "y"]}'), [
    "numpy",
    "y",
  ]);
  for (const text of ["", "null", "5", "{", '{"a": "b"}']) assert.deepEqual(parseModules(text), [], text);
  assert.equal(parseModules(JSON.stringify({ a: Array.from({ length: 500 }, (_, at) => `m${at}`) })).length, 100);
});

test("hosts are those of addresses, with a port where it is no usual one", () => {
  assert.deepEqual(parseHosts("https://files.example.com\nhttp://mirror.example.com:8080\nhttps://files.example.com\nfile:///etc\nx\n"), [
    "files.example.com",
    "mirror.example.com:8080",
  ]);
  assert.equal(ruleOf("https://index.example.com:443/simple"), "index.example.com");
});

noLeftovers();
