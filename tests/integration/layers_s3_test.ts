/** Package layers and S3: fetched before anything is installed, uploaded behind a run's back, and never trusted, waited for or missed. */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { zstdCompressSync } from "node:zlib";
import { lineLogger } from "../../src/base/log.ts";
import { S3Objects } from "../../src/cache/s3.ts";
import { resolveConfig, type SchedulerConfig } from "../../src/config/config.ts";
import type { LayerInputs } from "../../src/packages/layer_key.ts";
import { layerKey } from "../../src/packages/layer_key.ts";
import type { Layer, LayerStore, ObtainedLayer } from "../../src/packages/layer_store.ts";
import { openLayerStore } from "../../src/packages/open_layers.ts";
import { erofs, inputsOf, installing, SET } from "../support/layers.ts";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { BUCKET, type Fault, type PassingRequest, skipS3, startS3, type TestS3 } from "../support/s3.ts";
import { eventually } from "../support/waiting.ts";

const skip = skipS3;
const INPUTS = inputsOf(), KEY = layerKey(INPUTS);
const neverMake = () => assert.fail("S3 has it");

/** One host: its own cache, one scheduler's store. */
interface Host {
  readonly store: LayerStore;
  readonly told: string[];
  readonly root: string;
  obtain(make?: Parameters<LayerStore["obtain"]>[1]["make"], inputs?: LayerInputs): Promise<ObtainedLayer>;
  close(): Promise<void>;
}

function host(t: TestContext, s3: Pick<TestS3, "endpoint">, config: SchedulerConfig = {}, root = temporaryDirectory(t)): Host {
  const told: string[] = [], log = lineLogger("warning", (line) => told.push(line));
  const resolved = resolveConfig({ s3Bucket: BUCKET, s3Endpoint: s3.endpoint, s3Prefix: "", ...config }, { EXEC_SANDBOX_CACHE_DIR: root });
  const store = openLayerStore(resolved, log);
  t.after(() => store[Symbol.asyncDispose]());
  return {
    store,
    told,
    root,
    obtain: (make = installing(), inputs = INPUTS) => store.obtain(inputs, { make }),
    close: () => store[Symbol.asyncDispose](),
  };
}

/** A bucket with the layer of `INPUTS` in it, from a host that has closed. */
async function uploaded(t: TestContext, config: SchedulerConfig = {}): Promise<{ s3: TestS3; layer: Layer }> {
  const s3 = await startS3(t), first = host(t, s3, config), { layer, origin } = await first.obtain();
  assert.equal(origin, "made");
  await first.close();
  assert.deepEqual([s3.objects(), first.told], [[`blobs/v1/${layer.sha256}.zst`, `layers/v1/${KEY}.json`], []]);
  return { s3, layer };
}

test("a layer that one host installed is fetched by the next, and by no third where it is on disk", { skip }, async (t) => {
  const { s3, layer } = await uploaded(t);
  const second = host(t, s3);
  let isAsked = false;
  const { layer: fetched, origin } = await second.store.obtain(INPUTS, { make: neverMake, onFetch: () => isAsked = true });
  assert.deepEqual([origin, isAsked, fetched.sha256, fetched.packages, fetched.details], [
    "remote",
    true,
    layer.sha256,
    SET.packages,
    SET.details,
  ]);
  assert.ok(readFileSync(fetched.layerFile).equals(erofs("layer")));
  assert.deepEqual(readdirSync(path.dirname(fetched.directory)), [KEY], "no temporary, no lock");
  await second.close();
  const before = s3.requests.length, third = host(t, s3, {}, second.root);
  assert.equal((await third.obtain(neverMake)).origin, "disk");
  await third.close();
  assert.equal(s3.requests.length, before, "what came from there is not offered again");
  assert.deepEqual([second.told, third.told], [[], []]);
});

test("of two hosts that install at once, either's layer is whole in the bucket", { skip }, async (t) => {
  const s3 = await startS3(t), hosts = [host(t, s3), host(t, s3)];
  await Promise.all(hosts.map((each, index) => each.obtain(installing(`by ${index}`))));
  await Promise.all(hosts.map((each) => each.close()));
  const { layer, origin } = await host(t, s3).obtain(neverMake);
  assert.equal(origin, "remote");
  assert.match(readFileSync(layer.layerFile, "latin1"), /^by [01]/);
});

test("an upload is not waited for, and what could not be uploaded is made up for at the next use", { skip }, async (t) => {
  const s3 = await startS3(t), first = host(t, s3);
  s3.inject(({ method }) => method === "PUT" ? { kind: "hang" } : undefined);
  assert.equal((await first.obtain()).origin, "made");
  await eventually("the upload has begun", () => s3.requests.some((request) => request.startsWith("PUT")));
  await first.close();
  assert.deepEqual([s3.objects(), first.told], [[], []], "it is abandoned without a word");
  s3.inject(() => undefined);
  const again = host(t, s3, {}, first.root);
  assert.equal((await again.obtain(neverMake)).origin, "disk");
  await again.close();
  assert.equal(s3.objects().length, 2);
  const before = s3.requests.length, once = host(t, s3, {}, first.root);
  await once.obtain(neverMake);
  await once.close();
  assert.equal(s3.requests.length, before, "and not a third time");
});

test("no more uploads run at once than the configuration allows", { skip }, async (t) => {
  const s3 = await startS3(t), one = host(t, s3, { maxConcurrentS3Uploads: 2 });
  let hanging = 0;
  s3.inject(({ method }) => method === "PUT" && ++hanging > 0 ? { kind: "hang" } : undefined);
  for (const name of ["a==1", "b==1", "c==1", "d==1"]) await one.obtain(installing(name), inputsOf(name));
  await eventually("two have begun", () => hanging === 2);
  await one.close();
  assert.equal(hanging, 2);
});

const answer = (status: number, code: string): Fault => ({ kind: "answer", status, code });
const onBlob = (fault: Fault) => ({ method, key }: PassingRequest) => method === "GET" && key.startsWith("blobs/") ? fault : undefined;
const onRecord = (fault: Fault) => ({ method, key }: PassingRequest) => method === "GET" && key.startsWith("layers/") ? fault : undefined;
const LOST: ReadonlyArray<readonly [string, (request: PassingRequest) => Fault | undefined]> = [
  ["403", onRecord(answer(403, "AccessDenied"))],
  ["500", onRecord(answer(500, "InternalError"))],
  ["no bucket", onRecord(answer(404, "NoSuchBucket"))],
  ["a reset", onRecord({ kind: "reset" })],
  ["403 for the file", onBlob(answer(403, "AccessDenied"))],
  ["a connection that is cut half-way", onBlob({ kind: "cut", atByte: 4000 })],
  ["a file that stops coming", onBlob({ kind: "stall", atByte: 4000 })],
];
for (const [name, fault] of LOST) {
  test(`${name} while fetching: the packages are installed, one warning, and S3 is left alone for a while`, { skip }, async (t) => {
    const { s3, layer } = await uploaded(t);
    s3.inject(fault);
    const second = host(t, s3);
    assert.equal((await second.obtain(installing("own"))).origin, "made");
    assert.equal(second.told.length, 1, second.told.join("\n"));
    assert.match(second.told[0] ?? "", /^sbx warning: a package layer cannot be read from S3 and is installed reason="Cannot /);
    const before = s3.requests.length;
    assert.equal((await second.obtain(installing(), inputsOf("other==1"))).origin, "made");
    await second.close();
    assert.equal(s3.requests.length, before);
    s3.inject(() => undefined);
    assert.equal((await host(t, s3).obtain(neverMake)).layer.sha256, layer.sha256, "what is in the bucket is as it was");
  });
}

const DAMAGED: ReadonlyArray<readonly [string, (request: PassingRequest) => Fault | undefined]> = [
  ["a corrupted file", onBlob({ kind: "corrupt", atByte: 4000 })],
  ["a file that ends half-way", onBlob({ kind: "truncate", atByte: 4000 })],
  ["an empty file", onBlob({ kind: "truncate", atByte: 0 })],
  ["a missing file", onBlob(answer(404, "NoSuchKey"))],
  ["a corrupted record", onRecord({ kind: "corrupt", atByte: 40 })],
  ["half a record", onRecord({ kind: "truncate", atByte: 100 })],
];
for (const [name, fault] of DAMAGED) {
  test(`${name} in S3 is refused, told, installed, and replaced there`, { skip }, async (t) => {
    const { s3 } = await uploaded(t);
    s3.inject(fault);
    const second = host(t, s3), { layer, origin } = await second.obtain(installing("own"));
    assert.equal(origin, "made");
    assert.deepEqual(readdirSync(path.dirname(layer.directory)), [KEY]);
    await second.close();
    assert.equal(second.told.length, 1, second.told.join("\n"));
    assert.match(second.told[0] ?? "", /^sbx warning: a package layer in S3 is not what it should be; it is installed and replaced there /);
    s3.inject(() => undefined);
    assert.equal((await host(t, s3).obtain(neverMake)).layer.sha256, layer.sha256);
  });
}

/** Puts a record and its file, as somebody who may write to the bucket can. */
async function poison(s3: TestS3, change: (manifest: Record<string, unknown>) => { file?: Uint8Array; packages?: string }): Promise<void> {
  using objects = new S3Objects({ bucket: BUCKET, region: "us-east-1", endpoint: s3.endpoint });
  const signal = new AbortController().signal, name = `layers/v1/${KEY}.json`;
  const record = JSON.parse(await objects.getText(name, 1e6, signal) ?? ""), manifest = JSON.parse(record.manifest);
  const { file, packages = record.packages } = change(manifest);
  if (file) {
    const sha256 = manifest.files["layer.erofs"].sha256;
    const place = path.join(s3.data, "poison");
    writeFileSync(place, file);
    await objects.uploadFile(`blobs/v1/${sha256}.zst`, place, {
      sha256: createHash("sha256").update(file).digest("hex"),
      isReplacing: true,
      signal,
    });
    rmSync(place);
  }
  await objects.putText(name, JSON.stringify({ ...record, manifest: JSON.stringify(manifest), packages }), { isReplacing: true, signal });
}

type Files = Record<string, { size: number; sha256: string }>;
const entryOf = (manifest: Record<string, unknown>) => (manifest["files"] as Files)["layer.erofs"] ?? assert.fail();
const describe = (manifest: Record<string, unknown>, file: Uint8Array) => {
  Object.assign(entryOf(manifest), { size: file.length, sha256: createHash("sha256").update(file).digest("hex") });
  return { file };
};
const POISONS: ReadonlyArray<readonly [string, RegExp, Parameters<typeof poison>[1]]> = [
  ["another file under the hash of the old", /must have SHA-256/, () => ({ file: erofs("malicious") })],
  ["a file that is no EROFS", /is no EROFS/, (manifest) => describe(manifest, new Uint8Array(8192))],
  ["a file that unpacks to more than it says", /at most 8192 bytes, and has more/, () => ({ file: new Uint8Array(64 * 1_048_576) })],
  [
    "a size beyond the cache",
    /at most 10737418240 bytes, got/,
    (manifest) => (Object.assign(entryOf(manifest), { size: 12 * 2 ** 30 }), {}),
  ],
  ["a negative size", /cannot be read/, (manifest) => (Object.assign(entryOf(manifest), { size: -1 }), {})],
  ["a path as hash", /cannot be read/, (manifest) => (Object.assign(entryOf(manifest), { sha256: "../../x" }), {})],
  [
    "files with other names",
    /cannot be read/,
    (manifest) => (Object.assign(manifest["files"] as Files, { "../evil": { size: 1, sha256: "0".repeat(64) } }), {}),
  ],
  ["the key of another layer", /is of f{64}/, (manifest) => (Object.assign(manifest, { key: "f".repeat(64) }), {})],
  [
    "the inputs of another layer",
    /inputs of another key/,
    (manifest) => (Object.assign(manifest["inputs"] as object, { packages: ["evil==1"] }), {}),
  ],
  ["another list of packages", /packages.json is not what/, () => ({ packages: '{"packages":[],"details":{}}\n' })],
];
for (const [name, reason, change] of POISONS) {
  test(`a record with ${name} is refused, told and replaced`, { skip }, async (t) => {
    const { s3 } = await uploaded(t);
    await poison(s3, change);
    const second = host(t, s3), { origin, layer } = await second.obtain(installing("own"));
    assert.deepEqual([origin, readdirSync(path.dirname(layer.directory))], ["made", [KEY]]);
    await second.close();
    assert.equal(second.told.length, 1, second.told.join("\n"));
    assert.match(second.told[0] ?? "", reason);
    assert.equal((await host(t, s3).obtain(neverMake)).layer.sha256, layer.sha256);
  });
}

test("with a signing key only layers of hosts that have it are used", { skip }, async (t) => {
  const { s3, layer } = await uploaded(t, { s3SigningKey: "ours" });
  assert.equal((await host(t, s3, { s3SigningKey: "ours" }).obtain(neverMake)).layer.sha256, layer.sha256);
  const evil = erofs("malicious");
  await poison(s3, (manifest) => describe(manifest, evil));
  const unsigned = host(t, s3);
  assert.ok(readFileSync((await unsigned.obtain(neverMake)).layer.layerFile).equals(evil), "without a key whoever may write is trusted");
  const careful = host(t, s3, { s3SigningKey: "ours" });
  assert.equal((await careful.obtain(installing("own"))).origin, "made");
  assert.match(careful.told.join(), /its signature is not that of our key/);
  await careful.close();
  assert.equal((await host(t, s3, { s3SigningKey: "ours" }).obtain(neverMake)).origin, "remote");
});

test(
  "a full disk while fetching: nothing of the layer is left, and the packages are installed",
  { skip: skip || skipMounts() },
  async (t) => {
    const s3 = await startS3(t), first = host(t, s3), large = installing("large", 2 * 1_048_576);
    await first.obtain(large);
    await first.close();
    const small = temporaryDirectory(t);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "sbx-test", small]);
    try {
      const second = host(t, s3, {}, small);
      assert.equal((await second.obtain(installing("small"))).origin, "made");
      await second.close();
      assert.deepEqual(readdirSync(path.join(small, "layers")), [KEY]);
      assert.match(second.told.join(), /^sbx warning: .* reason="Cannot read \S+ no space is left on the disk" /);
    } finally {
      execFileSync("umount", ["-l", small]);
    }
  },
);

/** Why file systems cannot be mounted here; false where they can. */
function skipMounts(): string | false {
  return process.getuid?.() === 0 && spawnSync("unshare", ["-m", "true"]).status === 0 ? false : "mounting needs root";
}

test("no upload is tried for a day where the service refused it", { skip }, async (t) => {
  const s3 = await startS3(t), first = host(t, s3);
  s3.inject(({ method }) => method === "PUT" ? answer(403, "AccessDenied") : undefined);
  await first.obtain();
  await eventually("it is told", () => first.told.length > 0);
  await first.close();
  assert.match(first.told.join(), /^sbx warning: a package layer is not uploaded to S3 reason="Cannot write .* refuses it/);
  const before = s3.requests.length, second = host(t, s3, {}, first.root);
  await second.obtain(neverMake);
  await second.close();
  assert.deepEqual([s3.requests.length, second.told], [before, []]);
});

test("an abort while fetching gives the reason, and installs nothing", { skip }, async (t) => {
  const { s3 } = await uploaded(t);
  const controller = new AbortController(), reason = new Error("enough"), second = host(t, s3);
  s3.inject(() => {
    setTimeout(() => controller.abort(reason), 50);
    return { kind: "hang" };
  });
  await assert.rejects(second.store.obtain(INPUTS, { make: neverMake, signal: controller.signal }), (error) => error === reason);
  assert.deepEqual([readdirSync(path.join(second.root, "layers")), second.told], [[], []]);
});

test("offline, or without a bucket, nothing is asked", { skip }, async (t) => {
  const { s3 } = await uploaded(t);
  const before = s3.requests.length;
  for (const config of [{ s3Bucket: undefined, isOffline: false }, { s3Bucket: BUCKET, isOffline: true }]) {
    const root = temporaryDirectory(t),
      resolved = resolveConfig({ s3Endpoint: s3.endpoint, s3Prefix: "" }, { EXEC_SANDBOX_CACHE_DIR: root });
    await using store = openLayerStore({ ...resolved, ...config }, lineLogger("silent", () => {}));
    assert.equal((await store.obtain(INPUTS, { make: installing() })).origin, "made");
  }
  assert.equal(s3.requests.length, before);
});

test("what is in the bucket has the form that earlier versions of this program read", { skip }, async (t) => {
  const { s3, layer } = await uploaded(t);
  assert.ok(existsSync(path.join(layer.directory, "uploaded.json")));
  const blob = readFileSync(path.join(s3.data, BUCKET, "blobs", "v1", `${layer.sha256}.zst`));
  assert.deepEqual([...blob.subarray(0, 4)], [0x28, 0xb5, 0x2f, 0xfd], "zstd");
  assert.ok(blob.length <= zstdCompressSync(erofs("layer")).length + 64);
  const record = JSON.parse(readFileSync(path.join(s3.data, BUCKET, "layers", "v1", `${KEY}.json`), "utf8"));
  assert.deepEqual(Object.keys(record), ["manifest", "packages"]);
  assert.equal(record.manifest, readFileSync(path.join(layer.directory, "manifest.json"), "utf8"));
});

noLeftovers();
