/** Registry: what a package manager's own program says about where it goes. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import test from "node:test";
import { AssetError } from "../../../src/base/errors.ts";
import { defaultRegistry } from "../../../src/images/registry.ts";
import { noLeftovers } from "../../support/leftovers.ts";

test("a registry is the address that stands in the program most often", () => {
  const uv = Buffer.from(
    "\x7fELF https://example.org/simple\0https://mirror.example.org/simple and https://example.org/simple> ",
    "latin1",
  );
  assert.equal(defaultRegistry("uv", uv), "https://example.org/simple");
  const bun = Buffer.from("https://registry.example.org/\0https://registry.other.example\0https://registry.example.org/\0\xff", "latin1");
  assert.equal(defaultRegistry("bun", bun), "https://registry.example.org/");
});

test("a program that has no such address is refused, and so is one that only has a longer one", () => {
  assert.throws(() => defaultRegistry("uv", Buffer.from("https://example.org/simple-index https://example.org/simple/x")), AssetError);
  assert.throws(() => defaultRegistry("bun", Buffer.from("https://registry.example.org")), AssetError);
});

noLeftovers();
