/** apt: both notations of a host's sources, and which mirror they give. */
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import fc from "fast-check";
import { SandboxDependencyError } from "../../../src/base/errors.ts";
import { findMirrors, hostMirrors, parseDeb822Sources, parseOneLineSources, sourceLine } from "../../../src/images/apt.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

const DEB822 = `Types: deb
# a comment in between
URIs: http://mirror.test/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://mirror.test/security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: bookworm
Components: main
`;

test("deb822 sources are read, with comments, folded lines and disabled paragraphs", () => {
  const sources = parseDeb822Sources(DEB822);
  assert.equal(sources.length, 2);
  assert.deepEqual(sources[0], {
    types: ["deb"],
    uris: ["http://mirror.test/debian/"],
    suites: ["bookworm", "bookworm-updates"],
    components: ["main"],
  });
  const folded = parseDeb822Sources("Types: deb\nURIs: http://a.test/d\nSuites:\n trixie\n trixie-updates\nComponents: main contrib\n");
  assert.deepEqual(folded[0]?.suites, ["trixie", "trixie-updates"]);
});

test("one-line sources are read, with options and comments", () => {
  const sources = parseOneLineSources(
    "# none\ndeb [arch=amd64 signed-by=/k.gpg] https://m.test/debian bookworm main contrib # here\n\ndeb-src http://m.test/d x main\n",
  );
  assert.deepEqual(sources, [
    { types: ["deb"], uris: ["https://m.test/debian"], suites: ["bookworm"], components: ["main", "contrib"] },
    { types: ["deb-src"], uris: ["http://m.test/d"], suites: ["x"], components: ["main"] },
  ]);
});

test("the mirrors are the host's own; a security mirror that is not configured lies beside the main one", () => {
  assert.deepEqual(findMirrors(parseDeb822Sources(DEB822), "bookworm"), {
    main: "http://mirror.test/debian",
    security: "http://mirror.test/security",
  });
  const alone = parseOneLineSources("deb http://m.test/debian/ bookworm main\ndeb http://vendor.test/apt stable-not main");
  assert.deepEqual(findMirrors(alone, "bookworm"), { main: "http://m.test/debian", security: "http://m.test/debian-security" });
});

test("sources of others are never taken for Debian's", () => {
  const vendor = parseOneLineSources("deb https://vendor.test/apt nodistro main\ndeb-src http://m.test/debian bookworm main");
  assert.throws(() => findMirrors(vendor, "bookworm"), SandboxDependencyError);
});

test("a suite's line names the mirror it lies on", () => {
  const mirrors = { main: "http://m.test/debian", security: "http://s.test/debian-security" };
  assert.match(sourceLine("deb", mirrors, "forky"), /^deb \[signed-by=.*\] http:\/\/m\.test\/debian forky main$/);
  assert.match(sourceLine("deb-src", mirrors, "trixie-security"), /^deb-src .* http:\/\/s\.test\/debian-security trixie-security main$/);
});

test("the host's files are read in both notations; a host that is no Debian is refused", async (t) => {
  const root = temporaryDirectory(t);
  await assert.rejects(hostMirrors(root), SandboxDependencyError);
  mkdirSync(path.join(root, "etc/apt/sources.list.d"), { recursive: true });
  writeFileSync(path.join(root, "etc/os-release"), 'PRETTY_NAME="Debian"\nID=debian\nVERSION_CODENAME=bookworm\n');
  writeFileSync(path.join(root, "etc/apt/sources.list.d/debian.sources"), DEB822);
  assert.equal((await hostMirrors(root)).main, "http://mirror.test/debian");
  writeFileSync(path.join(root, "etc/apt/sources.list"), "deb http://first.test/debian bookworm main\n");
  assert.equal((await hostMirrors(root)).main, "http://first.test/debian");
  writeFileSync(path.join(root, "etc/os-release"), "ID=ubuntu\nVERSION_CODENAME=bookworm\n");
  await assert.rejects(hostMirrors(root), SandboxDependencyError);
});

test("no text breaks the parsers", () => {
  fc.assert(fc.property(fc.string(), (text) => {
    parseOneLineSources(text);
    parseDeb822Sources(text);
  }));
});

noLeftovers();
