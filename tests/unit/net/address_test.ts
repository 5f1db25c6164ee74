/** Addresses: one spelling each, and every class that no guest may be connected to. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { addressOf, classOf, parseAddress } from "../../../src/net/address.ts";
import { fuzzRuns } from "../../support/fuzz.ts";

const classText = (text: string) => {
  const address = parseAddress(text);
  assert.ok(address, `${text} is an address`);
  return classOf(address);
};

test("address: every special range is refused under its name", () => {
  const expected: Record<string, string[]> = {
    unspecified: ["0.0.0.0", "0.1.2.3", "::"],
    private: [
      "10.0.0.1",
      "10.255.255.255",
      "172.16.0.1",
      "172.31.255.255",
      "192.168.1.1",
      "fc00::1",
      "fdff::1",
      "fec0::1",
      "::ffff:10.0.0.1",
      "2002:0a00:0001::1",
    ],
    loopback: [
      "127.0.0.1",
      "127.255.255.254",
      "::1",
      "::ffff:127.0.0.1",
      "::ffff:7f00:1",
      "::127.0.0.1",
      "64:ff9b::7f00:1",
      "2002:7f00:1::",
    ],
    "link-local": ["169.254.0.1", "fe80::1", "febf::1"],
    metadata: [
      "169.254.169.254",
      "169.254.170.2",
      "100.100.100.200",
      "168.63.129.16",
      "192.0.0.192",
      "fd00:ec2::254",
      "::ffff:a9fe:a9fe",
      "64:ff9b::169.254.169.254",
    ],
    "carrier-nat": ["100.64.0.1", "100.127.255.255"],
    multicast: ["224.0.0.1", "239.255.255.255", "ff02::1"],
    reserved: ["240.0.0.1", "255.255.255.255", "192.0.0.1", "198.18.0.1", "198.19.255.255", "100::1", "64:ff9b:1::1", "4000::1", "5f00::1"],
    translated: ["::ffff:93.184.216.34", "::93.184.216.34", "2001::1"],
  };
  for (const [is, texts] of Object.entries(expected)) for (const text of texts) assert.equal(classText(text), is, text);
});

test("address: what belongs to the public internet, or to documents, is let through", () => {
  const texts = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
  ];
  const more = [
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.1",
    "192.0.2.1",
    "192.167.1.1",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.100.7",
    "203.0.113.9",
    "223.255.255.255",
  ];
  const v6 = ["2001:db8::1", "2606:4700::1111", "2a00:1450:4001:81b::200e", "64:ff9b::5db8:d822", "2002:5db8:d822::1", "3fff:ffff::1"];
  for (const text of [...texts, ...more, ...v6]) assert.equal(classText(text), undefined, text);
});

test("address: whatever is not the strict form is no address", () => {
  const texts = [
    "",
    "1",
    "127.1",
    "0x7f.0.0.1",
    "0x7f000001",
    "2130706433",
    "0177.0.0.1",
    "127.0.0.01",
    "1.2.3.4.",
    "1.2.3.256",
    " 1.2.3.4",
    "1.2.3.4\n",
  ];
  const v6 = ["::1%lo", "fe80::1%1", "[::1]", "1:2", ":::", "::ffff:1.2.3", "12345::", "localhost"];
  for (const text of [...texts, ...v6]) assert.equal(parseAddress(text), undefined, JSON.stringify(text));
});

test("address: the canonical text is stable and short, and equal addresses have equal texts", () => {
  const pairs = [["2001:DB8:0:0:0:0:0:1", "2001:db8::1"], ["::FFFF:1.2.3.4", "::ffff:102:304"], ["1:0:0:2:0:0:0:3", "1:0:0:2::3"], [
    "0:0:0:0:0:0:0:0",
    "::",
  ], ["1:2:3:4:5:6:0:8", "1:2:3:4:5:6:0:8"]];
  for (const [text = "", canonical] of pairs) assert.equal(parseAddress(text)?.text, canonical);
  const bytes = fc.oneof(
    fc.uint8Array({ minLength: 4, maxLength: 4 }),
    fc.uint8Array({ minLength: 16, maxLength: 16 }),
    fc.array(fc.constantFrom(0, 0, 1), { minLength: 16, maxLength: 16 }).map((array) => Uint8Array.from(array)),
  );
  fc.assert(
    fc.property(bytes, (given) => {
      const address = addressOf(given), again = parseAddress(address.text);
      assert.deepEqual([...again?.bytes ?? []], [...given], address.text);
      assert.equal(again?.text, address.text);
      classOf(address);
    }),
    fuzzRuns(2000),
  );
});
