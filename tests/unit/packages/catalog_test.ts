/** Catalogs: who is in, and who was meant. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { PackageNotAllowedError } from "../../../src/base/errors.ts";
import { Catalog, editDistance } from "../../../src/packages/catalog.ts";
import { parsePackages } from "../../../src/packages/spec.ts";

const python = new Catalog("python", "requests\nrequests-oauthlib\nnumpy\nPy_YAML\nrequest\n\npandas\n");
const javascript = new Catalog("javascript", "lodash\n@types/node\nJSONStream\n");

test("has what its text names, in the spelling of the registry", () => {
  assert.equal(python.size, 6);
  assert.ok(python.has("py-yaml") && !python.has("Py_YAML"));
  assert.ok(javascript.has("JSONStream") && !javascript.has("jsonstream"));
  python.check(parsePackages("python", ["Requests==2.32.5", "PY.YAML==6"]));
});

test("the first unknown package is refused, with what was perhaps meant", () => {
  assert.throws(() => python.check(parsePackages("python", ["numpy==2", "reqeusts==2.32.5"])), (error) => {
    assert.ok(error instanceof PackageNotAllowedError);
    assert.match(error.message, /"reqeusts": it must be one of the 6 python packages/);
    assert.match(error.hint ?? "", /^Did you mean requests or request\? .*--no-validation/);
    return true;
  });
  assert.throws(() => python.check(parsePackages("python", ["zzz==1"])), (error) => {
    assert.ok(error instanceof PackageNotAllowedError);
    assert.doesNotMatch(error.hint ?? "", /mean/);
    return true;
  });
});

test("nearer names come first, and of equally near ones the more used", () => {
  assert.deepEqual(python.similar("reqests"), ["requests", "request"]);
  assert.deepEqual(new Catalog("python", "abcx\nabcy\nabcz\nabcw\n").similar("abcd"), ["abcx", "abcy", "abcz"]);
  assert.deepEqual(python.similar("np"), []);
});

test("the distance counts insertions, deletions, substitutions and swaps, and is symmetric", () => {
  const known: ReadonlyArray<readonly [string, string, number]> = [["", "", 0], ["a", "", 1], ["ab", "ba", 1], ["kitten", "sitting", 3], [
    "abc",
    "cab",
    2,
  ]];
  for (const [a, b, distance] of known) assert.equal(editDistance(a, b, 9), distance, `${a} ${b}`);
  const word = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 8 });
  fc.assert(fc.property(word, word, fc.nat(8), (a, b, most) => {
    const distance = editDistance(a, b, 99);
    assert.equal(distance, editDistance(b, a, 99));
    assert.equal(distance === 0, a === b);
    assert.ok(distance <= most ? editDistance(a, b, most) === distance : editDistance(a, b, most) > most);
  }));
});
