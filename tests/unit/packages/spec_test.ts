/** Specifications of packages: what is one, what it means, and that nothing else gets through. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { InputValidationError, PackageNotAllowedError } from "../../../src/base/errors.ts";
import {
  mergePackages,
  normalizePythonName,
  type PackageSpec,
  packageText,
  parsePackage,
  parsePackages,
} from "../../../src/packages/spec.ts";

const refused = (language: string, packages: unknown, message: RegExp, hint?: RegExp) =>
  assert.throws(() => parsePackages(language, packages), (error) => {
    assert.ok(error instanceof PackageNotAllowedError, String(error));
    assert.match(error.message, message);
    if (hint) assert.match(error.hint ?? "", hint);
    return true;
  });

const PYTHON: ReadonlyArray<readonly [string, string, string, readonly string[]]> = [
  ["requests==2.32.5", "requests", "2.32.5", []],
  ["Flask_SQLAlchemy==3.1.1", "flask-sqlalchemy", "3.1.1", []],
  ["zope.interface==7.2", "zope-interface", "7.2", []],
  ["a.-_b==1", "a-b", "1", []],
  ["requests[socks]==2.32.5", "requests", "2.32.5", ["socks"]],
  ["uvicorn[standard,Standard_X]==0.30", "uvicorn", "0.30", ["standard", "standard-x"]],
  ["x==1!2.0.0rc1.post2.dev3+local.7", "x", "1!2.0.0rc1.post2.dev3+local.7", []],
  ["x==V1.0-1", "x", "v1.0-1", []],
  ["pytz==2024.2", "pytz", "2024.2", []],
];
for (const [text, name, version, extras] of PYTHON) {
  test(`Python: ${text}`, () => assert.deepEqual(parsePackages("python", [text]), [{ name, version, extras }]));
}

const JAVASCRIPT: ReadonlyArray<readonly [string, string, string]> = [
  ["lodash@4.17.21", "lodash", "4.17.21"],
  ["@types/node@24.0.0", "@types/node", "24.0.0"],
  ["JSONStream@1.3.5", "JSONStream", "1.3.5"],
  ["socket.io@4.8.1-rc.1+build.5", "socket.io", "4.8.1-rc.1+build.5"],
  ["@a/b-c_d.e@0.0.0", "@a/b-c_d.e", "0.0.0"],
];
for (const [text, name, version] of JAVASCRIPT) {
  test(`JavaScript: ${text}`, () => assert.deepEqual(parsePackages("javascript", [text]), [{ name, version, extras: [] }]));
}

const REFUSED: ReadonlyArray<readonly [string, readonly string[]]> = [
  ["python", [
    "",
    " ",
    "requests",
    "requests==",
    "==1",
    "requests>=2",
    "requests~=2.1",
    "requests<3",
    "requests===2.32.5",
    "requests==2.*",
    "requests==2,<3",
    "requests=2.32.5",
    "requests@2.32.5",
    "requests @ https://x.test/a.whl",
    "requests== 2",
    "requests ==2",
    " requests==2",
    "requests==2 ",
    "requests==2\n",
    "requests==2\nevil==1",
    "requests==2;python_version<'4'",
    "requests==2 --index-url=x",
    "--index-url=x",
    "-r",
    "-rfile==1",
    "https://x.test/a.whl",
    "git+https://x.test/a",
    "./local",
    "../x==1",
    "/abs==1",
    "file:///x",
    "a/b==1",
    "a\\b==1",
    "-a==1",
    "a-==1",
    ".a==1",
    "a$(id)==1",
    "a`id`==1",
    "é==1",
    "a==１",
    "a==1.0\u0000",
    "a[==1",
    "a]==1",
    "a[]==1",
    "a[b,]==1",
    "a[b c]==1",
    "a[b][c]==1",
    "a==latest",
    "@scope/a==1",
    `${"a".repeat(215)}==1`,
    `a==${"1.".repeat(300)}0`,
    `a[${Array.from({ length: 33 }, (_, at) => `e${at}`)}]==1`,
  ]],
  ["javascript", [
    "",
    "lodash",
    "lodash@",
    "@lodash",
    "@4.17.21",
    "lodash@latest",
    "lodash@^4.17.21",
    "lodash@~4.17.21",
    "lodash@4",
    "lodash@4.17",
    "lodash@4.17.x",
    "lodash@*",
    "lodash@>=4.17.21",
    "lodash@v4.17.21",
    "lodash@4.17.21 ",
    " lodash@4.17.21",
    "lodash@04.17.21",
    "lodash@4.17.21 || 5.0.0",
    "lodash==4.17.21",
    "lodash@npm:evil@1.0.0",
    "lodash@file:../x",
    "lodash@git+ssh://x.test/a",
    "github:a/b",
    "a/b@1.0.0",
    "@a/b/c@1.0.0",
    "@/b@1.0.0",
    "@a/@1.0.0",
    "../a@1.0.0",
    "@../a@1.0.0",
    "./a",
    "--registry=x",
    "-g@1.0.0".replace("-g", "--global"),
    ".hidden@1.0.0",
    "_a@1.0.0",
    "a b@1.0.0",
    "a\n@1.0.0",
    "a@1.0.0\n",
    "https://x.test/a.tgz",
    `${"a".repeat(215)}@1.0.0`,
    `a@1.0.0-${"a".repeat(600)}`,
  ]],
];
for (const [language, texts] of REFUSED) {
  for (const text of texts) {
    test(`${language}: ${JSON.stringify(text.slice(0, 40))} is refused`, () => refused(language, [text], /^Cannot install "/));
  }
}

test("an error says how to mend it", () => {
  refused("python", ["requests"], /its version must be given/, /Pin it, as name==version/);
  refused("python", ["--index-url=x"], /must be name==version/, /Options/);
  refused("python", ["requests>=2"], /must be name==version/, /exact version/);
  refused("javascript", ["lodash@latest"], /must be name@version/, /exact version/);
  refused("javascript", ["lodash@^4.0.0"], /must be name@version/, /exact version/);
  refused("python", ["git+https://x.test/a"], /must be name==version/, /no URL/);
  refused("python", [`a==${"1.".repeat(300)}0`], /at most 512 characters, got 604/);
  refused("raw", ["requests==2.32.5"], /packages are for python and javascript, got language "raw"/);
});

test("a bare name is a name without a version, and no package of a request", () => {
  assert.deepEqual(parsePackage("python", "Pandas[excel]"), { name: "pandas", version: undefined, extras: ["excel"] });
  assert.deepEqual(parsePackage("javascript", "@types/node"), { name: "@types/node", version: undefined, extras: [] });
});

test("there are at most 50, and each is a text", () => {
  const fifty = Array.from({ length: 50 }, (_, at) => `p${at}==1`);
  assert.equal(parsePackages("python", fifty).length, 50);
  refused("python", [...fifty, "one-more==1"], /at most 50 of them, got 51/);
  for (const packages of [undefined, null, "requests==2", {}, [1], [null], [["requests==2"]]]) {
    assert.throws(() => parsePackages("python", packages), InputValidationError);
  }
  assert.deepEqual(parsePackages("raw", []), []);
});

test("a package named twice is one, with all extras; two versions of it are refused", () => {
  assert.deepEqual(parsePackages("python", ["b==1", "A[x]==2", "a[Y]==2", "B==1"]), [
    { name: "a", version: "2", extras: ["x", "y"] },
    { name: "b", version: "1", extras: [] },
  ]);
  refused("python", ["a.b==1", "A_B==2"], /a-b: one version of it must be asked for, got 1 and 2/);
});

test("the order in which packages are named decides nothing", () => {
  const spec = fc.record({ name: fc.constantFrom("a", "b", "c", "d"), version: fc.constant("1"), extras: fc.subarray(["x", "y", "z"]) });
  fc.assert(
    fc.property(
      fc.array(spec).chain((all) => fc.tuple(fc.constant(all), fc.shuffledSubarray(all, { minLength: all.length }))),
      ([all, shuffled]) => {
        assert.deepEqual(mergePackages(all), mergePackages(shuffled));
      },
    ),
  );
});

test("whatever is accepted is written for the installer as one word that means the same, and begins with no dash", () => {
  const character = fc.constantFrom(..."ab9.-_[],=@/+!~^* \n:;'\"$v", "dev", "rc", "post", "==", "1.0");
  const texts = fc.oneof(fc.array(character, { maxLength: 24 }).map((parts) => parts.join("")), fc.string());
  fc.assert(
    fc.property(fc.constantFrom("python", "javascript"), texts, (language, text) => {
      let specs: readonly PackageSpec[];
      try {
        specs = parsePackages(language, [text]);
      } catch (error) {
        assert.ok(error instanceof PackageNotAllowedError, String(error));
        return;
      }
      const [spec] = specs;
      assert.ok(spec);
      const written = packageText(language, spec);
      assert.match(written, /^[@a-zA-Z0-9~][\w.~\-@/[\],=!+]*$/);
      assert.deepEqual(parsePackages(language, [written]), specs);
    }),
    { numRuns: 5_000 },
  );
});

test("names are normalised as PEP 503 says", () => {
  for (
    const name of [
      "friendly-bard",
      "Friendly-Bard",
      "FRIENDLY-BARD",
      "friendly.bard",
      "friendly_bard",
      "friendly--bard",
      "FrIeNdLy-._.-bArD",
    ]
  ) {
    assert.equal(normalizePythonName(name), "friendly-bard");
  }
});
