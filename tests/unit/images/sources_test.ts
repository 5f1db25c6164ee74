/** Sources: packed and unpacked unchanged, fingerprinted completely, and the recipes themselves in order. */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { SandboxDependencyError } from "../../../src/base/errors.ts";
import { readLock, requirements, uvWheel } from "../../../src/images/lock.ts";
import { findSources, fingerprint, listSources, packSources, unpackSources } from "../../../src/images/sources.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));

test("what is packed comes out again, programs as programs", async (t) => {
  const pack = await packSources(ROOT);
  const unpacked = await unpackSources(pack, temporaryDirectory(t));
  const names = await listSources(unpacked, ["guest", "jail", "images"]);
  assert.deepEqual(names, Object.keys(pack));
  assert.ok(names.includes("images/versions.lock") && names.includes("guest/Cargo.lock"));
  assert.ok(!names.some((name) => name.includes("/target/")));
  for (const name of names) {
    assert.deepEqual(readFileSync(path.join(unpacked, name)), readFileSync(path.join(ROOT, name)), name);
  }
  assert.ok(statSync(path.join(unpacked, "images/rootfs/compile.sh")).mode & 0o100);
  assert.equal(await unpackSources(pack, path.dirname(unpacked)), unpacked, "a second time is the same place");
});

test("a fingerprint changes with any content or name, and with nothing else", async (t) => {
  const root = temporaryDirectory(t);
  mkdirSync(path.join(root, "guest/target"), { recursive: true });
  writeFileSync(path.join(root, "guest/a"), "1");
  const first = await fingerprint(root, ["guest"]);
  writeFileSync(path.join(root, "guest/target/junk"), "1");
  assert.equal(await fingerprint(root, ["guest"]), first);
  writeFileSync(path.join(root, "guest/a"), "2");
  const second = await fingerprint(root, ["guest"]);
  writeFileSync(path.join(root, "guest/b"), "");
  assert.equal(new Set([first, second, await fingerprint(root, ["guest"])]).size, 3);
});

test("this checkout is found, and a directory that is none is refused", async (t) => {
  const cache = temporaryDirectory(t);
  assert.equal(await findSources(cache), path.resolve(ROOT));
  assert.equal(await findSources(cache, ROOT), path.resolve(ROOT));
  await assert.rejects(findSources(cache, cache), (error) => error instanceof SandboxDependencyError && error.message.includes(cache));
});

test("versions.lock is valid and pins what comes from PyPI and npm by hash", async () => {
  const lock = await readLock(ROOT);
  assert.match(requirements(lock.qemu.python), /^meson==1\.5\.0 --hash=sha256:[0-9a-f]{64}\n/);
  assert.notEqual(uvWheel(lock, "x86_64").sha256, uvWheel(lock, "aarch64").sha256);
  assert.notEqual(lock.bun.x86_64.integrity, lock.bun.aarch64.integrity);
});

test("no kernel option is stated twice, and every line is one", () => {
  const directory = path.join(ROOT, "images/kernel");
  const files = readdirSync(directory).filter((name) => name.endsWith(".config") && name !== "common.config");
  assert.deepEqual(files.sort(), ["aarch64.config", "x86_64.config"]);
  for (const file of files) {
    const seen = new Set<string>();
    const lines = ["common.config", file].flatMap((name) => readFileSync(path.join(directory, name), "utf8").split("\n"));
    for (const line of lines) {
      const symbol = /^(CONFIG_\w+)=|^# (CONFIG_\w+) is not set$/.exec(line);
      if (!symbol) assert.match(line, /^(#.*)?$/, line);
      const name = symbol?.[1] ?? symbol?.[2];
      if (name === undefined) continue;
      assert.ok(!seen.has(name), `${name} is stated twice for ${file}`);
      seen.add(name);
    }
    for (const wanted of ["IO_URING", "BPF_SYSCALL", "USERFAULTFD", "KALLSYMS", "KEXEC", "MODULES", "USER_NS", "DEVMEM", "COREDUMP"]) {
      assert.ok(lines.includes(`# CONFIG_${wanted} is not set`), `${wanted} must be off`);
    }
  }
});

noLeftovers();
