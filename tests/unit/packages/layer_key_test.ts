/** Layer keys: equal for what is the same installation however it was asked for, different for all that changes what it leaves. */
import assert from "node:assert/strict";
import test from "node:test";
import { layerInputs, layerKey, type LayerRequest } from "../../../src/packages/layer_key.ts";
import { parsePackages } from "../../../src/packages/spec.ts";

const REQUEST: LayerRequest = {
  language: "python",
  arch: "x86_64",
  image: "a".repeat(64),
  runtime: { python: "3.14.2", uv: "0.13.9" },
  packages: parsePackages("python", ["requests[socks]==2.32.5", "idna==3.10"]),
};
const keyOf = (changes: Partial<LayerRequest> = {}) => layerKey(layerInputs({ ...REQUEST, ...changes }));

test("layerKey is the same for other spellings, orders and repetitions of the same packages", () => {
  assert.match(keyOf(), /^[0-9a-f]{64}$/);
  const packages = parsePackages("python", ["Idna==3.10", "REQUESTS[Socks]==2.32.5", "idna==3.10", "requests==2.32.5"]);
  assert.equal(keyOf({ packages }), keyOf());
  assert.equal(keyOf({ packages: [...REQUEST.packages].reverse() }), keyOf());
  assert.equal(keyOf({ runtime: { uv: "0.13.9", python: "3.14.2" } }), keyOf());
  assert.equal(keyOf({ options: { scripts: false, build: true } }), keyOf({ options: { build: true, scripts: false } }));
});

test("layerKey is the one that other hosts and earlier versions of this program have", () => {
  // It names what lies in shared buckets: a change of it must be meant, and comes with another LAYER_FORMAT.
  assert.equal(keyOf(), "8ad1d30cd080f6ff64ee8c477fadeee8cce570c24b4671e807b52b2e70cc4561");
});

test("layerKey survives the way of its inputs through JSON", () => {
  const inputs = layerInputs({ ...REQUEST, options: { scripts: true } });
  assert.equal(layerKey(JSON.parse(JSON.stringify(inputs))), layerKey(inputs));
});

test("layerKey differs with every input that changes what is installed", () => {
  const changes: ReadonlyArray<Partial<LayerRequest>> = [
    {},
    { language: "javascript", packages: parsePackages("javascript", ["requests@2.32.5"]) },
    { arch: "aarch64" },
    { image: "b".repeat(64) },
    { runtime: { python: "3.14.3", uv: "0.13.9" } },
    { runtime: { python: "3.14.2" } },
    { packages: parsePackages("python", ["requests==2.32.5", "idna==3.10"]) },
    { packages: parsePackages("python", ["requests[socks]==2.32.4", "idna==3.10"]) },
    { packages: parsePackages("python", ["requests[socks]==2.32.5"]) },
    { index: "https://packages.example/simple" },
    { index: "https://packages.example/other" },
    { options: { scripts: true } },
    { options: { scripts: false } },
    { options: { scripts: "true" } },
  ];
  assert.equal(new Set(changes.map(keyOf)).size, changes.length);
});

test("layerInputs keeps no credentials of an index, and no key depends on them", () => {
  const plain = layerInputs({ ...REQUEST, index: "https://packages.example/simple" });
  const secret = layerInputs({ ...REQUEST, index: "https://me:hidden@packages.example/simple/?token=hidden#hidden" });
  assert.deepEqual(secret, plain);
  assert.equal(layerInputs({ ...REQUEST, index: "a mirror" }).index, "a mirror");
});
