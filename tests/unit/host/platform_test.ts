/** Platform: the facts of this host, and where the cache is. */
import assert from "node:assert/strict";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import test from "node:test";
import { cacheDirectory, readPlatform } from "../../../src/host/platform.ts";

const isMac = process.platform === "darwin";

test("readPlatform gives facts that hold together and do not change", () => {
  const platform = readPlatform();
  assert.deepEqual(readPlatform(), platform);
  assert.deepEqual([platform.os, platform.isRoot], [isMac ? "macos" : "linux", process.getuid?.() === 0]);
  assert.ok(["x86_64", "aarch64"].includes(platform.arch));
  assert.equal(platform.kernelRelease, os.release());
  assert.ok(Number.isInteger(platform.cpus) && platform.cpus >= 1, `${platform.cpus} CPUs`);
  assert.ok(platform.memoryBytes > 64 * 1_048_576, `${platform.memoryBytes} bytes`);
  assert.match(platform.bootId, isMac ? /^$/ : /^[0-9a-f-]{36}$/);
});

test("cacheDirectory: our own variable beats everything and becomes absolute", () => {
  assert.equal(cacheDirectory({ EXEC_SANDBOX_CACHE_DIR: "/a/b/../c", XDG_CACHE_HOME: "/x" }), "/a/c");
  assert.equal(cacheDirectory({ EXEC_SANDBOX_CACHE_DIR: "relative/dir" }), path.resolve("relative/dir"));
});

test("cacheDirectory: an empty variable is one that is not set", () => {
  assert.equal(cacheDirectory({ EXEC_SANDBOX_CACHE_DIR: "", XDG_CACHE_HOME: "" }), cacheDirectory({}));
});

test("cacheDirectory: XDG_CACHE_HOME counts on Linux, unless it is relative", { skip: isMac }, () => {
  const own = path.join(os.homedir(), ".cache", "exec-sandbox");
  assert.equal(cacheDirectory({ XDG_CACHE_HOME: "/xdg" }), "/xdg/exec-sandbox");
  for (const relative of ["xdg", "./xdg", "../xdg", "~/xdg"]) assert.equal(cacheDirectory({ XDG_CACHE_HOME: relative }), own);
  assert.equal(cacheDirectory({}), own);
});

test("cacheDirectory: macOS has its own place", { skip: !isMac }, () => {
  assert.equal(cacheDirectory({ XDG_CACHE_HOME: "/xdg" }), path.join(os.homedir(), "Library", "Caches", "exec-sandbox"));
});

test("cacheDirectory reads the process's environment when none is given", () => {
  assert.equal(cacheDirectory(), cacheDirectory(process.env));
  assert.ok(path.isAbsolute(cacheDirectory()));
});
