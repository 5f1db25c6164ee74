/** `sbx cache`: lists what is kept as it is, removes what it says and nothing else. Over directories as the stores make them. */
import assert from "node:assert/strict";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { silentLogger } from "../../../src/base/log.ts";
import { openHostCache } from "../../../src/cli/host_cache.ts";
import { FileLock } from "../../../src/host/files.ts";
import { LayerStore } from "../../../src/packages/layer_store.ts";
import { inputsOf, installing } from "../../support/layers.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { FakeOutput, sbx } from "./fake_context.ts";

const DAY_MS = 86_400_000;
/** As a process that has died names things: no process has that number. */
const DEAD = ".tmp-999999999-1-f00";

interface Filled {
  readonly root: string;
  readonly layer: string;
  readonly run: (...args: readonly string[]) => ReturnType<typeof sbx>;
  readonly at: (...names: readonly string[]) => string;
}

/** A cache with two templates, a layer, a checkpoint, a set of images, a leftover, and other files. */
async function filled(t: TestContext): Promise<Filled> {
  const root = temporaryDirectory(t), at = (...names: readonly string[]) => path.join(root, ...names);
  const put = (name: string, text: string) => {
    mkdirSync(path.dirname(at(name)), { recursive: true });
    writeFileSync(at(name), text);
  };
  for (const [name, days] of [[`python-256-${"a".repeat(32)}`, 1], [`raw-128-${"b".repeat(32)}`, 40]] as const) {
    for (const file of ["ram", "state", "meta.json"]) put(`snapshots/${name}/${file}`, "{}".repeat(3000));
    const usedAt = (Date.now() - days * DAY_MS) / 1000;
    utimesSync(at("snapshots", name, "meta.json"), usedAt, usedAt);
  }
  truncateSync(at("snapshots", `raw-128-${"b".repeat(32)}`, "ram"), 64 * 1_048_576); // A hole takes no room.
  put(`snapshots/${DEAD}/ram`, "half a template");
  put("snapshots/somebody-else", "x");
  put("checkpoints/before/meta.json", JSON.stringify({ language: "raw", memoryMiB: 256 }));
  put("images/.x86_64.sets/one/manifest.json", JSON.stringify({ schema: 1, version: "0.1.0", arch: "x86_64", files: {} }));
  symlinkSync(path.join(".x86_64.sets", "one"), at("images", "x86_64"));
  const { layer } = await new LayerStore(at("layers"), { log: silentLogger() }).obtain(inputsOf(), { make: installing() });
  const cache = openHostCache({ EXEC_SANDBOX_CACHE_DIR: root });
  return { root, layer: layer.key, at, run: (...args) => sbx(["cache", ...args], { cache }) };
}

const KINDS = ["template", "template", "layer", "checkpoint", "image", "leftover"];
const shown = (text: string, pattern: RegExp) => text.split("\n").filter((line) => pattern.test(line));

test("cache ls lists every kind with its size, its age and what it is", async (t) => {
  const { root, layer, run } = await filled(t);
  const { code, stdout, stderr } = await run("ls");
  assert.deepEqual([code, stderr], [0, ""]);
  const lines = stdout.trimEnd().split("\n");
  assert.deepEqual(lines.slice(0, -1).map((line) => line.split(" ")[0]), KINDS);
  assert.match(lines[0] ?? "", /^template +python-256-a{12} +0\.0 MB +24 h ago +python, 256 MB$/);
  assert.match(lines[1] ?? "", /^template +raw-128-b{12} +0\.0 MB +40 d ago +raw, 128 MB$/);
  assert.match(lines[2] ?? "", new RegExp(`^layer +${layer.slice(0, 12)} +0\\.0 MB +0 min ago +python: requests==2\\.32\\.5$`));
  assert.match(lines[3] ?? "", /^checkpoint +before +0\.0 MB +0 min ago +raw, 256 MB$/);
  assert.match(lines[4] ?? "", /^image +x86_64 +0\.0 MB +version 0\.1\.0$/);
  assert.equal(lines.at(-1), `6 entries, 0.1 MB in ${root}`);
});

test("cache ls --packages shows all that a layer has, with --json its hashes too", async (t) => {
  const { layer, run } = await filled(t);
  assert.deepEqual(shown((await run("ls", "--packages")).stdout, /^ /), ["  idna==3.10", "  requests==2.32.5"]);
  const { entries } = JSON.parse((await run("ls", "--packages", "--json")).stdout);
  const found = entries.find(({ kind }: { kind: string }) => kind === "layer");
  assert.deepEqual([found.name, found.language, found.packages], [layer, "python", ["requests==2.32.5"]]);
  assert.deepEqual(found.installed[0], { name: "idna", version: "3.10", hashes: [`sha256:${"1".repeat(64)}`] });
  const plain = JSON.parse((await run("ls", "--json")).stdout).entries;
  assert.equal(plain.some((entry: object) => "installed" in entry), false);
});

test("cache ls --json has bytes on disk, times and places", async (t) => {
  const { root, at, run } = await filled(t);
  const { directory, size_bytes, entries } = JSON.parse((await run("ls", "--json")).stdout);
  assert.deepEqual([directory, entries.map(({ kind }: { kind: string }) => kind)], [root, KINDS]);
  assert.equal(size_bytes, entries.reduce((sum: number, entry: { size_bytes: number }) => sum + entry.size_bytes, 0));
  const [first] = entries, files = readdirSync(first.directory).map((name) => statSync(path.join(first.directory, name)));
  assert.equal(first.directory, at("snapshots", `python-256-${"a".repeat(32)}`));
  assert.equal(first.size_bytes, files.reduce((sum, { blocks }) => sum + blocks * 512, 0));
  assert.deepEqual([first.language, first.memory_mb, first.damaged], ["python", 256, false]);
  assert.ok(Math.abs(Date.parse(first.used_at) - Date.now() + DAY_MS) < DAY_MS / 2);
  assert.equal(entries.find(({ kind }: { kind: string }) => kind === "image").used_at, null);
});

test("cache ls of nothing, and of a directory that is not there", async (t) => {
  const root = temporaryDirectory(t);
  for (const directory of [root, path.join(root, "missing")]) {
    const { code, stdout } = await sbx(["cache", "ls"], { cache: openHostCache({ EXEC_SANDBOX_CACHE_DIR: directory }) });
    assert.deepEqual([code, stdout], [0, `0 entries, 0.0 MB in ${directory}\n`]);
  }
});

test("cache ls shows what is damaged, and no control characters of it", async (t) => {
  const { layer, at, run } = await filled(t);
  rmSync(at("layers", layer, "manifest.json"));
  rmSync(at("snapshots", `python-256-${"a".repeat(32)}`, "meta.json"));
  writeFileSync(at("checkpoints", "before", "meta.json"), "[");
  mkdirSync(at("checkpoints", "\x1b[31mred"));
  const { stdout } = await run("ls");
  assert.equal(shown(stdout, /damaged$/).length, 4, stdout);
  assert.equal(stdout.includes("\x1b"), false);
});

test("cache prune removes what is old, damaged or left behind; checkpoints and images stay", async (t) => {
  const { layer, at, run } = await filled(t);
  mkdirSync(at("layers", "f".repeat(64)));
  writeFileSync(at("snapshots", ".lock-left"), JSON.stringify({ pid: 999999999, startTicks: 1, token: "t" }));
  await using lock = await FileLock.acquire(at("layers", ".lock-held"));
  const dry = await run("prune", "--dry-run");
  assert.match(dry.stderr, /^Would remove 3 of 7: 0\.0 MB\.\n$/);
  assert.ok(existsSync(at("snapshots", DEAD)), "nothing is removed by asking");
  const { code, stdout, stderr } = await run("prune");
  assert.deepEqual([code, stdout, stderr], [0, dry.stdout, dry.stderr.replace("Would remove", "Removed")]);
  assert.deepEqual(readdirSync(at("snapshots")).sort(), [`python-256-${"a".repeat(32)}`, "somebody-else"]);
  assert.deepEqual(readdirSync(at("layers")).sort(), [".lock-held", layer], "a living process keeps its lock");
  assert.ok(lock && existsSync(at("checkpoints", "before")) && existsSync(at("images", "x86_64", "manifest.json")));
  assert.match((await run("prune")).stderr, /^Nothing to remove in /);
});

test("cache prune --unused-for says what is old", async (t) => {
  const { at, run } = await filled(t);
  const removed = async (...args: readonly string[]) => JSON.parse((await run("prune", "--json", ...args)).stdout).removed.length;
  assert.equal(await removed("-n", "--unused-for", "50"), 1);
  assert.equal(await removed("-n", "--unused-for", "0.5"), 3);
  assert.equal(await removed("--unused-for", "0"), 4);
  assert.deepEqual([readdirSync(at("layers")), readdirSync(at("snapshots"))], [[], ["somebody-else"]]);
  for (const days of ["-1", "x", "1e3", "", "36501"]) {
    const { code, stderr } = await run("prune", `--unused-for=${days}`);
    assert.equal(code, 2);
    assert.match(stderr, /number of days from 0 to 36500, got/);
  }
});

test("cache prune leaves alone what a living process makes", async (t) => {
  const { at, run } = await filled(t);
  const stat = process.platform === "linux" ? readFileSync("/proc/self/stat", "latin1") : "";
  const ticks = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "0";
  const own = at("snapshots", `.tmp-${process.pid}-${ticks}-f00`);
  mkdirSync(own);
  await run("prune", "--unused-for", "0");
  assert.deepEqual([existsSync(own), existsSync(at("snapshots", DEAD))], [true, false]);
});

test("cache clear removes templates and layers, and says how much that was", async (t) => {
  const { root, at, run } = await filled(t);
  const { code, stdout, stderr } = await run("clear");
  assert.deepEqual([code, shown(stdout, /./).map((line) => line.split(" ")[0])], [0, ["template", "template", "layer", "leftover"]]);
  assert.match(stderr, /^Removed 4 of 6: 0\.1 MB\.\n$/);
  assert.deepEqual([readdirSync(at("snapshots")), readdirSync(at("layers"))], [["somebody-else"], []]);
  assert.ok(existsSync(at("checkpoints", "before")) && existsSync(at("images", "x86_64", "manifest.json")));
  assert.equal((await run("clear")).stderr, `Nothing to remove in ${root}.\n`);
});

test("cache clear KIND removes that kind alone", async (t) => {
  const { at, run } = await filled(t);
  assert.equal(JSON.parse((await run("clear", "checkpoints", "images", "--json", "--dry-run")).stdout).removed.length, 3);
  await run("clear", "checkpoints", "images");
  assert.deepEqual([readdirSync(at("checkpoints")), readdirSync(at("images"))], [[], []]);
  assert.deepEqual([readdirSync(at("snapshots")).length, readdirSync(at("layers")).length], [3, 1]);
  const { code, stderr } = await run("clear", "everything");
  assert.equal(code, 2);
  assert.match(stderr, /must be one of templates, layers, checkpoints, images/);
});

test("cache clear ends between two entries when it is interrupted", async (t) => {
  const { at } = await filled(t);
  const controller = new AbortController();
  const cache = openHostCache({ EXEC_SANDBOX_CACHE_DIR: at() });
  const { code } = await sbx(["cache", "clear"], {
    signal: controller.signal,
    stderr: new FakeOutput(),
    cache: {
      ...cache,
      remove: async (entry) => {
        await cache.remove(entry);
        controller.abort(new Error("enough"));
      },
    },
  });
  assert.notEqual(code, 0);
  assert.equal(readdirSync(at("layers")).length, 1);
});

test("cache needs one of its commands", async () => {
  const { code, stderr } = await sbx(["cache"]);
  assert.equal(code, 2);
  assert.match(stderr, /ls, prune, clear/);
});

noLeftovers();
