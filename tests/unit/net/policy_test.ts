/** Policy: rules that users write, and the verdict on every name, address and port. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { InputValidationError } from "../../../src/base/errors.ts";
import { parseAddress } from "../../../src/net/address.ts";
import { covers, normalName, parseRule } from "../../../src/net/domain.ts";
import {
  decideTcp,
  decideUdp,
  DOMAIN_RULES_MAX,
  freeChars,
  mayResolve,
  type NetworkPolicy,
  policyOf,
  type Target,
} from "../../../src/net/policy.ts";
import { fuzzRuns } from "../../support/fuzz.ts";

const allowlist = (...domains: string[]) => policyOf({ allowedDomains: domains }, "run");
const target = (text: string, port: number, names: string[] = [], more: Partial<Target> = {}): Target => {
  const address = parseAddress(text);
  assert.ok(address);
  return { address, port, names, hasExpired: false, isPinned: false, ...more };
};
const reason = (policy: NetworkPolicy, at: Target) => {
  const verdict = decideTcp(policy, at);
  return verdict.isAllowed ? verdict.inspection : verdict.reason;
};

test("policy: rules in any spelling are one rule", () => {
  const pairs = [
    ["API.Example.COM", "api.example.com"],
    ["example.com.", "example.com"],
    ["*.Example.com", "*.example.com"],
    ["db.example.com:5432", "db.example.com:5432"],
    ["*.example.com:8443", "*.example.com:8443"],
    ["bücher.example", "xn--bcher-kva.example"],
    ["BÜCHER.example", "xn--bcher-kva.example"],
    ["xn--bcher-kva.example", "xn--bcher-kva.example"],
    ["_dmarc.example.com", "_dmarc.example.com"],
    ["例え.テスト", "xn--r8jz45g.xn--zckzah"],
    ["ｅxample.com", "example.com"],
  ];
  for (const [text, canonical] of pairs) assert.equal(parseRule(text, "run").text, canonical);
});

test("policy: what is no rule is a typed error that names it, before anything starts", () => {
  const bad: unknown[] = [
    ...["", ".", "*", "*.", "*.*", "a.*", "*a.example.com", "**.example.com", "example", "com", "localhost", "a.localhost", "LOCALHOST."],
    ...[
      "http://x",
      "https://example.com",
      "example.com/",
      "example.com/path",
      "user@example.com",
      "exa mple.com",
      " example.com",
      "example.com ",
      "a\tb.com",
      "a\0b.com",
    ],
    ...[
      "example..com",
      ".example.com",
      "-a.example.com",
      "a-.example.com",
      `${"a".repeat(64)}.com`,
      Array.from({ length: 300 }, () => "a").join("."),
      "x".repeat(5000),
    ],
    ...[
      "1.2.3.4",
      "127.1",
      "0x7f.1",
      "0x7f000001",
      "2130706433",
      "1.2.3.4:80",
      "::1",
      "[::1]",
      "[::1]:80",
      "::ffff:127.0.0.1",
      "1.2.3.0x4",
      "a.0x",
    ],
    ...[
      "example.com:0",
      "example.com:65536",
      "example.com:",
      "example.com:http",
      "example.com:+80",
      "example.com:080",
      "example.com:80:80",
      ":80",
      "example.com:1e3",
    ],
    ...[
      "xn--a.example",
      "a,b.com",
      "a.com,b.com",
      "a_b!.com",
      "%61.com",
      "a\u200b.c om",
      "\ud800.com",
      5,
      null,
      undefined,
      {},
      ["a.com"],
      true,
    ],
  ];
  for (const text of bad) {
    assert.throws(() => allowlist(text as string), (error) => {
      assert.ok(error instanceof InputValidationError, `${String(text)}: ${String(error)}`);
      assert.match(error.message, /^Cannot run: .*got /s);
      assert.ok(error.message.length < 400);
      return true;
    }, `${JSON.stringify(text)} is refused`);
  }
});

test("policy: the fields of a request say which network there is", () => {
  assert.deepEqual(policyOf({}, "run"), { kind: "off" });
  assert.deepEqual(policyOf({ allowNetwork: false }, "run"), { kind: "off" });
  assert.deepEqual(policyOf({ allowNetwork: false, allowedDomains: [] }, "run"), { kind: "off" });
  assert.deepEqual(policyOf({ allowNetwork: true }, "run"), { kind: "full" });
  assert.deepEqual(policyOf({ allowNetwork: true, allowedDomains: [] }, "run"), { kind: "allowlist", rules: [] });
  assert.equal(policyOf({ allowedDomains: ["example.com"] }, "run").kind, "allowlist");
  for (
    const request of [{ allowNetwork: "yes" }, { allowNetwork: 1 }, { allowedDomains: "example.com" }, {
      allowNetwork: false,
      allowedDomains: ["example.com"],
    }]
  ) {
    assert.throws(() => policyOf(request, "run"), InputValidationError);
  }
  assert.throws(() => allowlist(...Array.from({ length: DOMAIN_RULES_MAX + 1 }, (_, at) => `a${at}.example`)), InputValidationError);
});

test("policy: a name covers what is below it, a star only that", () => {
  const policy = allowlist("example.com", "*.cdn.test", "db.internal.test:5432");
  for (const name of ["example.com", "www.example.com", "a.b.example.com", "x.cdn.test", "db.internal.test"]) {
    assert.ok(mayResolve(policy, name), name);
  }
  for (const name of ["cdn.test", "notexample.com", "example.com.evil.test", "com", "internal.test", "example.co", "evil-example.com"]) {
    assert.ok(!mayResolve(policy, name), name);
  }
  assert.ok(mayResolve({ kind: "full" }, "anything.test"));
  assert.ok(!mayResolve({ kind: "off" }, "example.com"));
  assert.ok(!mayResolve(allowlist(), "example.com"));
});

test("policy: an address counts only for the names it was handed out for, and a rule only for its ports", () => {
  const policy = allowlist("example.com", "db.test.example:5432", "git.test.example:443");
  const at = "203.0.113.5";
  assert.equal(reason(policy, target(at, 443, ["example.com"])), "tls");
  assert.equal(reason(policy, target(at, 80, ["www.example.com"])), "http");
  assert.equal(reason(policy, target(at, 5432, ["db.test.example"])), "none");
  assert.equal(reason(policy, target(at, 443, ["git.test.example"])), "tls");
  assert.equal(reason(policy, target(at, 80, ["git.test.example"])), "port");
  assert.equal(reason(policy, target(at, 443, ["db.test.example"])), "port");
  assert.equal(reason(policy, target(at, 22, ["example.com"])), "port");
  assert.equal(reason(policy, target(at, 5432, ["example.com"])), "port");
  assert.equal(reason(policy, target(at, 443)), "not-resolved");
  assert.equal(reason(policy, target(at, 443, [], { hasExpired: true })), "expired");
  assert.equal(reason(policy, target(at, 443, ["other.test"])), "name");
  const verdict = decideTcp(policy, target(at, 443, ["example.com", "other.test", "db.test.example"]));
  assert.deepEqual(verdict.isAllowed && verdict.names, ["example.com"]);
});

test("policy: special addresses are refused with every policy, unless the host's owner pinned them", () => {
  for (const policy of [allowlist("example.com"), { kind: "full" } as const]) {
    for (const text of ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:93.184.216.34"]) {
      assert.ok(!decideTcp(policy, target(text, 443, ["example.com"])).isAllowed, text);
      assert.ok(!decideUdp(policy, target(text, 53)).isAllowed, text);
      assert.ok(decideTcp(policy, target(text, 443, ["example.com"], { isPinned: true })).isAllowed, text);
    }
  }
  assert.equal(reason({ kind: "off" }, target("203.0.113.5", 443, ["example.com"], { isPinned: true })), "off");
  assert.equal(reason({ kind: "full" }, target("203.0.113.5", 25)), "none");
  assert.ok(decideUdp({ kind: "full" }, target("203.0.113.5", 443)).isAllowed);
  assert.deepEqual(decideUdp(allowlist("example.com"), target("203.0.113.5", 443, ["example.com"])), { isAllowed: false, reason: "udp" });
});

test("policy: what a guest may put into names is counted", () => {
  const policy = allowlist("example.com", "*.deep.example.com");
  assert.equal(freeChars(policy, "example.com"), 0);
  assert.equal(freeChars(policy, "abc.example.com"), 3);
  assert.equal(freeChars(policy, "abc.deep.example.com"), 3);
  assert.equal(freeChars(policy, "other.test"), 10);
  assert.equal(freeChars({ kind: "full" }, "abc.example.com"), 0);
});

test("policy: no text crashes the parsers, a rule's text is a rule again, and covers itself or what is below", () => {
  const text = fc.oneof(
    fc.string({ unit: "binary" }),
    fc.string({ unit: fc.constantFrom("a", ".", "*", ":", "-", "0", "x", "é", "1", "_", "/"), maxLength: 20 }),
    fc.domain(),
  );
  fc.assert(
    fc.property(text, (given) => {
      const name = normalName(given);
      if (name !== undefined) assert.equal(normalName(name), name);
      let rule;
      try {
        rule = parseRule(given, "run");
      } catch (error) {
        assert.ok(error instanceof InputValidationError, String(error));
        return;
      }
      assert.deepEqual(parseRule(rule.text, "run"), rule);
      assert.equal(normalName(rule.name), rule.name);
      assert.equal(covers(rule, rule.name), !rule.isBelowOnly);
      assert.ok(covers(rule, `a.${rule.name}`));
      assert.ok(!covers(rule, `a${rule.name}`));
    }),
    fuzzRuns(3000),
  );
});
