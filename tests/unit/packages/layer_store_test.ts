/** Layer store: what is whole is found, what is not is removed, told and made anew; one process installs, the others wait; deaths leave nothing. */
import assert from "node:assert/strict";
import fs, {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
} from "node:fs";
import { symlinkSync, utimesSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { SnapshotError } from "../../../src/base/errors.ts";
import { lineLogger } from "../../../src/base/log.ts";
import { layerKey } from "../../../src/packages/layer_key.ts";
import { type Layer, LayerStore } from "../../../src/packages/layer_store.ts";
import { erofs, inputsOf, installing, SET } from "../../support/layers.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { startScript } from "../../support/subprocess.ts";
import { eventually } from "../../support/waiting.ts";

const INPUTS = inputsOf();
const neverMake = () => assert.fail("it is there already");

function storeIn(root: string, maxBytes?: number): { store: LayerStore; told: string[] } {
  const told: string[] = [];
  const log = lineLogger("debug", (line) => told.push(line));
  return { store: new LayerStore(root, { log, ...(maxBytes === undefined ? {} : { maxBytes }) }), told };
}

/** Waits until a change of the layer would show in its stamp, whose times are whole seconds; the next look then notes it. */
async function becomesOlder(layer: Layer): Promise<void> {
  const second = Math.floor(statSync(layer.layerFile).ctimeMs / 1000);
  await eventually("its last change is older than a second", () => Math.floor(Date.now() / 1000) > second);
}

async function made(t: TestContext): Promise<{ root: string; store: LayerStore; told: string[]; layer: Layer }> {
  const root = path.join(temporaryDirectory(t), "layers"), { store, told } = storeIn(root);
  const { layer, origin } = await store.obtain(INPUTS, { make: installing() });
  assert.equal(origin, "made");
  return { root, store, told, layer };
}

test("LayerStore makes what is not there, and finds it from then on, in other processes too", async (t) => {
  const { root, store, layer, told } = await made(t);
  assert.deepEqual(await store.find(INPUTS), layer);
  assert.deepEqual(await storeIn(root).store.obtain(INPUTS, { make: neverMake }), { layer, origin: "disk" });
  const other = await startScript(t, "layer.ts", [root]).ended;
  assert.equal(other.stdout, `disk ${layer.sha256}\n`);
  assert.deepEqual({ packages: layer.packages, details: layer.details }, SET);
  assert.deepEqual([layer.key, layer.inputs, layer.sizeBytes], [layerKey(INPUTS), INPUTS, 8192]);
  assert.deepEqual(readFileSync(layer.layerFile), Buffer.from(erofs("layer")));
  assert.deepEqual([readdirSync(root), told], [[layer.key], []], "neither lock nor temporary is left, and nothing is told");
});

test("LayerStore: a layer is for this user alone, read-only, and says what it is", async (t) => {
  const { root, store, layer } = await made(t);
  assert.deepEqual([root, layer.directory].map((directory) => statSync(directory).mode & 0o777), [0o700, 0o700]);
  await becomesOlder(layer);
  await store.find(INPUTS);
  const names = readdirSync(layer.directory).sort();
  assert.deepEqual(names, ["layer.erofs", "manifest.json", "packages.json", "verified.json"]);
  for (const name of names) assert.equal(statSync(path.join(layer.directory, name)).mode & 0o222, 0, name);
  const manifest = JSON.parse(readFileSync(path.join(layer.directory, "manifest.json"), "utf8"));
  assert.deepEqual([manifest.key, manifest.inputs], [layer.key, INPUTS]);
  assert.deepEqual(manifest.files["layer.erofs"], { size: 8192, sha256: layer.sha256 });
});

test("LayerStore keeps of an installation's directory the layer alone", async (t) => {
  const { store } = storeIn(temporaryDirectory(t));
  const { layer } = await store.obtain(INPUTS, {
    make: (place) => {
      mkdirSync(path.join(place.directory, "scratch"));
      writeFileSync(path.join(place.directory, "scratch", "disk"), "x");
      writeFileSync(path.join(place.directory, "verified.json"), "{}");
      return installing()(place);
    },
  });
  const names = readdirSync(layer.directory).filter((name) => name !== "verified.json").sort();
  assert.deepEqual(names, ["layer.erofs", "manifest.json", "packages.json"]);
});

test("LayerStore.find: nothing where nothing is", async (t) => {
  const { store } = await made(t);
  assert.equal(await storeIn(path.join(temporaryDirectory(t), "missing")).store.find(INPUTS), undefined);
  for (const other of [inputsOf("requests==2.32.4"), { ...INPUTS, arch: "aarch64" }, { ...INPUTS, index: "other" }]) {
    assert.equal(await store.find(other), undefined);
  }
});

/** Writes to a file that is read-only, as something that damages a disk would. */
function overwrite(file: string, change: (bytes: Buffer) => Buffer | string): void {
  chmodSync(file, 0o600);
  writeFileSync(file, change(readFileSync(file)));
}

const flip = (bytes: Buffer) => {
  bytes[5000] = (bytes[5000] ?? 0) ^ 1;
  return bytes;
};
const DAMAGES: ReadonlyArray<readonly [string, RegExp, (layer: Layer, at: (name: string) => string) => void]> = [
  ["a layer of which a bit was changed", /must have SHA-256 [0-9a-f]{64}, got/, ({ layerFile }) => overwrite(layerFile, flip)],
  ["a changed layer with the time of the old one", /must have SHA-256/, ({ layerFile }) => {
    const { atimeMs, mtimeMs } = statSync(layerFile);
    overwrite(layerFile, flip);
    utimesSync(layerFile, atimeMs / 1000, mtimeMs / 1000);
  }],
  ["another file in the layer's place", /must have SHA-256/, ({ layerFile }) => {
    writeFileSync(`${layerFile}.new`, erofs("malicious"));
    renameSync(`${layerFile}.new`, layerFile);
  }],
  ["a truncated layer", /must have 8192 bytes, got 4096/, ({ layerFile }) => truncateSync(layerFile, 4096)],
  ["an empty layer", /is no EROFS/, ({ layerFile }) => truncateSync(layerFile, 0)],
  ["a layer that is too long", /must have 8192 bytes, got 8193/, ({ layerFile }) => truncateSync(layerFile, 8193)],
  ["a layer that is no EROFS", /is no EROFS/, ({ layerFile }) => overwrite(layerFile, () => "x".repeat(8192))],
  ["no layer", /layer.erofs is missing/, ({ layerFile }) => rmSync(layerFile)],
  ["a link instead of the layer", /must be a regular file/, ({ layerFile }) => {
    renameSync(layerFile, `${layerFile}.real`);
    symlinkSync(`${layerFile}.real`, layerFile);
  }],
  ["a directory instead of the layer", /must be a regular file/, ({ layerFile }) => {
    rmSync(layerFile);
    mkdirSync(layerFile);
  }],
  ["no manifest", /manifest.json is missing/, (_layer, at) => rmSync(at("manifest.json"))],
  ["half a manifest", /manifest.json cannot be read/, (_layer, at) => truncateSync(at("manifest.json"), 20)],
  ["a manifest that is no object", /manifest.json cannot be read/, (_layer, at) => overwrite(at("manifest.json"), () => "[]")],
  ["an enormous manifest", /at most 65536 bytes/, (_layer, at) => overwrite(at("manifest.json"), () => " ".repeat(70_000))],
  ["a manifest of another version", /format/, (_layer, at) => {
    overwrite(at("manifest.json"), (bytes) => bytes.toString().replace('"format":1', '"format":2'));
  }],
  ["another layer's manifest", /manifest.json is of f{64}/, ({ key }, at) => {
    overwrite(at("manifest.json"), (bytes) => bytes.toString().replace(key, "f".repeat(64)));
  }],
  ["a manifest with other inputs", /inputs of another key/, (_layer, at) => {
    overwrite(at("manifest.json"), (bytes) => bytes.toString().replace("requests==2.32.5", "requests==2.32.4"));
  }],
  ["a manifest with a path", /manifest.json cannot be read/, (_layer, at) => {
    overwrite(at("manifest.json"), (bytes) => bytes.toString().replace('"layer.erofs"', '"../layer.erofs"'));
  }],
  ["a changed list of packages", /packages.json is not what manifest.json says/, (_layer, at) => {
    overwrite(at("packages.json"), (bytes) => bytes.toString().replace("3.10", "3.11"));
  }],
  ["no list of packages", /packages.json is missing/, (_layer, at) => rmSync(at("packages.json"))],
  ["nothing but an empty directory", /manifest.json is missing/, ({ directory }) => {
    rmSync(directory, { recursive: true });
    mkdirSync(directory);
  }],
  ["a file in its place", /manifest.json is missing/, ({ directory }) => {
    rmSync(directory, { recursive: true });
    writeFileSync(directory, "");
  }],
];
for (const [name, reason, damage] of DAMAGES) {
  test(`LayerStore finds no layer with ${name}, removes it, tells it, and makes it anew`, async (t) => {
    const { root, store, told, layer } = await made(t);
    if (/SHA-256/.test(reason.source)) {
      await becomesOlder(layer);
      assert.ok(await store.find(INPUTS) && existsSync(path.join(layer.directory, "verified.json")));
      await becomesOlder(layer);
    }
    damage(layer, (file) => path.join(layer.directory, file));
    assert.equal(await store.find(INPUTS), undefined);
    const fresh = await store.obtain(INPUTS, { make: installing("anew") });
    assert.equal(fresh.origin, "made");
    assert.deepEqual(await store.find(INPUTS), fresh.layer);
    assert.deepEqual(readFileSync(fresh.layer.layerFile), Buffer.from(erofs("anew")));
    assert.deepEqual(readdirSync(root), [layer.key]);
    assert.equal(told.length, 1, told.join());
    assert.match(told[0] ?? "", reason);
    assert.match(told[0] ?? "", new RegExp(`^sbx warning: .* is removed layer=${layer.key.slice(0, 12)} `));
  });
}

test("LayerStore hashes a layer again that was copied, touched or whose note is gone, and keeps it", async (t) => {
  const { store, told, layer } = await made(t);
  const note = path.join(layer.directory, "verified.json");
  const changes = [
    () => rmSync(note, { force: true }),
    () => overwrite(note, () => "{"),
    () => utimesSync(layer.layerFile, 1, 1),
    () => chmodSync(layer.layerFile, 0o400),
    () => {
      copyFileSync(layer.layerFile, `${layer.layerFile}.copy`);
      renameSync(`${layer.layerFile}.copy`, layer.layerFile);
    },
  ];
  for (const change of changes) {
    change();
    await becomesOlder(layer);
    const before = existsSync(note) ? statSync(note).ino : undefined;
    assert.deepEqual(await store.find(INPUTS), layer, String(change));
    const { ino } = statSync(note);
    assert.notEqual(ino, before, `it is noted anew: ${change}`);
    assert.deepEqual([await store.find(INPUTS), statSync(note).ino], [layer, ino], "it is not hashed a third time");
  }
  assert.deepEqual(told, []);
});

test("LayerStore: a note that fits makes no other layer pass when all of it is to be compared", async (t) => {
  const { store, layer } = await made(t);
  await becomesOlder(layer);
  await store.find(INPUTS);
  overwrite(layer.layerFile, flip);
  const { dev, ino, size, mtimeMs, ctimeMs } = statSync(layer.layerFile);
  const stamp = [dev, ino, size, Math.floor(mtimeMs), Math.floor(ctimeMs / 1000)].join(" ");
  overwrite(path.join(layer.directory, "verified.json"), () => JSON.stringify({ sha256: layer.sha256, stamp }));
  assert.deepEqual(await store.find(INPUTS), layer, "the note is trusted: it is as much this user's as the program itself");
  assert.equal(await store.find(INPUTS, "hash"), undefined);
});

test("LayerStore removes what was not used for longest when there is too much, and nothing else", async (t) => {
  const root = path.join(temporaryDirectory(t), "layers"), { store } = storeIn(root, 40_000);
  const [old, used, fresh] = ["a==1", "b==1", "c==1"].map((each) => inputsOf(each));
  assert.ok(old && used && fresh);
  const { layer: first } = await store.obtain(old, { make: installing() }),
    { layer: second } = await store.obtain(used, { make: installing() });
  utimesSync(path.join(first.directory, "manifest.json"), 2000, 2000);
  utimesSync(path.join(second.directory, "manifest.json"), 1000, 1000);
  writeFileSync(path.join(root, "somebody-else"), "x".repeat(100_000));
  const open = fs.openSync(second.layerFile, "r");
  t.after(() => fs.closeSync(open));
  await store.find(old);
  await eventually("the use is noted", () => statSync(path.join(first.directory, "manifest.json")).mtimeMs > 1e9);
  await store.obtain(fresh, { make: installing("fresh", 16_384) });
  assert.deepEqual([await store.find(used), existsSync(second.directory)], [undefined, false]);
  assert.ok(await store.find(old) && await store.find(fresh) && existsSync(path.join(root, "somebody-else")));
  assert.equal(fs.readSync(open, Buffer.alloc(5), 0, 5, 0), 5, "who has the file open keeps it");
});

test("LayerStore keeps the layer it has just made, however large", async (t) => {
  const { store } = storeIn(temporaryDirectory(t), 1);
  await store.obtain(INPUTS, { make: installing() });
  assert.ok(await store.find(INPUTS));
});

test("LayerStore: an installation that fails leaves nothing, and the next may try", async (t) => {
  const root = temporaryDirectory(t), { store } = storeIn(root), failure = new TypeError("no such version");
  const failing = [
    () => Promise.reject(failure),
    () => {
      throw failure;
    },
    (place: Parameters<ReturnType<typeof installing>>[0]) => installing()(place).then(() => Promise.reject(failure)),
  ];
  for (const make of failing) {
    await assert.rejects(store.obtain(INPUTS, { make }), (error) => error === failure);
    assert.deepEqual(readdirSync(root), []);
  }
  const unusable = [[() => Promise.resolve(SET), /layer.erofs is missing/], [(place: { layerFile: string }) => {
    writeFileSync(place.layerFile, "text");
    return Promise.resolve(SET);
  }, /is no EROFS/]] as const;
  for (const [make, message] of unusable) {
    await assert.rejects(store.obtain(INPUTS, { make }), (error) => error instanceof SnapshotError && message.test(error.message));
    assert.deepEqual(readdirSync(root), []);
  }
  assert.equal((await store.obtain(INPUTS, { make: installing() })).origin, "made");
});

test("LayerStore says that it cannot keep a layer where its directory cannot be made", async (t) => {
  const root = path.join(temporaryDirectory(t), "file");
  writeFileSync(root, "");
  await assert.rejects(storeIn(root).store.obtain(INPUTS, { make: neverMake }), (error) => {
    assert.ok(error instanceof SnapshotError);
    assert.match(error.message, /^Cannot keep the installed packages: /);
    return true;
  });
});

test("LayerStore: an abort after the installation keeps nothing of it", async (t) => {
  const root = temporaryDirectory(t), controller = new AbortController(), reason = new Error("enough");
  const make = (place: Parameters<ReturnType<typeof installing>>[0]) => {
    controller.abort(reason);
    return installing()(place);
  };
  await assert.rejects(storeIn(root).store.obtain(INPUTS, { make, signal: controller.signal }), (error) => error === reason);
  assert.deepEqual(readdirSync(root), []);
});

test("LayerStore: an abort while another installs gives the reason, and installs nothing", async (t) => {
  const root = temporaryDirectory(t);
  const other = startScript(t, "layer.ts", [root, "wait"]);
  await other.said("installing");
  const controller = new AbortController(), reason = new Error("enough");
  const waiting = storeIn(root).store.obtain(INPUTS, {
    make: neverMake,
    signal: controller.signal,
    onWait: () => controller.abort(reason),
  });
  await assert.rejects(waiting, (error) => error === reason);
  other.tell("go");
  assert.match((await other.ended).stdout, /\nmade /);
});

test("LayerStore: of two processes one installs, the other waits, says so, and gets the same", async (t) => {
  const root = temporaryDirectory(t);
  const first = startScript(t, "layer.ts", [root, "wait"]);
  await first.said("installing");
  const second = startScript(t, "layer.ts", [root, "wait"]);
  await second.said(`waiting for ${first.pid}`);
  first.tell("go");
  const ends = await Promise.all([first.ended, second.ended]);
  const layer = await storeIn(root).store.find(INPUTS);
  assert.ok(layer);
  assert.deepEqual(ends.map(({ stdout }) => stdout), [
    `installing\nmade ${layer.sha256}\n`,
    `waiting for ${first.pid}\ndisk ${layer.sha256}\n`,
  ]);
  assert.deepEqual(readdirSync(root), [layer.key]);
});

test("LayerStore: within one process, too, one installs and the others wait", async (t) => {
  const { store } = storeIn(temporaryDirectory(t));
  let count = 0;
  const make = (place: Parameters<ReturnType<typeof installing>>[0]) => installing(`${count++}`)(place);
  const all = await Promise.all(Array.from({ length: 5 }, () => store.obtain(INPUTS, { make })));
  assert.deepEqual([count, all.filter(({ origin }) => origin === "made").length], [1, 1]);
});

test("LayerStore: different layers are made side by side", async (t) => {
  const root = temporaryDirectory(t);
  const slow = startScript(t, "layer.ts", [root, "wait"]);
  await slow.said("installing");
  await storeIn(root).store.obtain(inputsOf("idna==3.10"), { make: installing() });
  slow.tell("go");
  assert.match((await slow.ended).stdout, /\nmade /);
  assert.equal(readdirSync(root).length, 2);
});

test("LayerStore: when the installation of another fails, who waited installs", async (t) => {
  const root = temporaryDirectory(t);
  const failing = startScript(t, "layer.ts", [root, "fail"]);
  const { layer } = await storeIn(root).store.obtain(INPUTS, { make: installing() });
  assert.match((await failing.ended).stdout, /failed: the installation failed\n$|^disk /);
  assert.deepEqual(readdirSync(root), [layer.key]);
});

test("LayerStore: when who installs is killed, who waits installs", async (t) => {
  const root = temporaryDirectory(t), { store } = storeIn(root);
  const killed = startScript(t, "layer.ts", [root, "wait"]);
  await killed.said("installing");
  let hasWaited = false;
  const waiting = store.obtain(INPUTS, { make: installing(), onWait: () => hasWaited = true });
  await eventually("it waits", () => hasWaited);
  killed.raw.kill("SIGKILL");
  await killed.ended;
  const { layer, origin } = await waiting;
  assert.deepEqual([origin, readdirSync(root)], ["made", [layer.key]]);
});

test("LayerStore: killed at any step, it leaves a whole layer or none, and the next run mends the rest", async (t) => {
  for (let step = 0;; step++) {
    const root = temporaryDirectory(t), { store, told } = storeIn(root);
    const { signal, stdout } = await startScript(t, "layer.ts", [root, "die", String(step)]).ended;
    const found = await store.find(INPUTS);
    const visible = readdirSync(root).filter((name) => !name.startsWith("."));
    assert.equal(found !== undefined, visible.length === 1, `step ${step}: ${visible}`);
    const { layer, origin } = await store.obtain(INPUTS, { make: installing() });
    assert.equal(origin, found ? "disk" : "made", `step ${step}`);
    await store.sweep();
    assert.deepEqual([readdirSync(root), told], [[layer.key], []], `step ${step}`);
    if (signal === null) {
      assert.match(stdout, /^installing\nmade /);
      return assert.ok(step > 30, `it was killed ${step} times`);
    }
    assert.equal(signal, "SIGKILL");
  }
});

test("LayerStore.sweep removes what a killed process left, and nothing of a living one", async (t) => {
  const root = temporaryDirectory(t), { store } = storeIn(root);
  await store.sweep();
  const { layer } = await store.obtain(inputsOf("idna==3.10"), { make: installing() });
  const living = startScript(t, "layer.ts", [root, "wait"]);
  await living.said("installing");
  const before = readdirSync(root).sort();
  assert.equal(before.length, 3, before.join());
  await store.sweep();
  assert.deepEqual(readdirSync(root).sort(), before);
  living.raw.kill("SIGKILL");
  await living.ended;
  await store.sweep();
  assert.deepEqual(readdirSync(root), [layer.key]);
});

test("LayerStore.drop removes a layer and says why, also twice, but not the one that replaced it", async (t) => {
  const { root, store, told, layer } = await made(t);
  await store.drop(layer, "it cannot be mounted");
  assert.deepEqual([await store.find(INPUTS), readdirSync(root)], [undefined, []]);
  assert.match(told.join(), /reason="it cannot be mounted"/);
  await store.drop(layer, "again");
  await eventually("time has passed", () => Date.now() > layer.createdAtMs);
  const { layer: fresh } = await store.obtain(INPUTS, { make: installing() });
  await store.drop(layer, "it is another's");
  assert.deepEqual(await store.find(INPUTS), fresh);
  assert.equal(told.length, 1);
});

test("LayerStore: layers outlive a change of this process's umask", async (t) => {
  const before = process.umask(0o077);
  t.after(() => process.umask(before));
  const { layer } = await made(t);
  assert.equal(statSync(layer.layerFile).mode & 0o777, 0o444, "confined QEMUs are other users");
});

noLeftovers();
