/** Shared configuration: what a client and a server compare, and what neither shows. */
import assert from "node:assert/strict";
import test from "node:test";
import { resolveConfig, type SchedulerConfig } from "../../../src/config/config.ts";
import { configDifference, sharedConfig } from "../../../src/run/shared_config.ts";

const shared = async (config: SchedulerConfig) =>
  await sharedConfig(resolveConfig({ imagesDir: "/images", ...config }, { EXEC_SANDBOX_CACHE_DIR: "/cache" }));

test("sharedConfig: what shapes VMs differs, what each client decides for itself does not", async () => {
  const ours = await shared({});
  assert.equal(configDifference(await shared({ defaultMemoryMb: 512, defaultTimeoutSeconds: 5, warmPoolSize: 3 }), ours), undefined);
  assert.equal(configDifference(await shared({ s3Bucket: "other" }), ours), "its s3Bucket is other, ours undefined");
});

test("sharedConfig compares the signing key, and shows it nowhere", async () => {
  const [none, one, same, other] = await Promise.all(
    [{}, { s3SigningKey: "secret one" }, { s3SigningKey: "secret one" }, { s3SigningKey: "secret two" }].map(shared),
  );
  assert.ok(none && one && same && other);
  assert.equal(configDifference(one, same), undefined);
  assert.equal(JSON.stringify([one, other, configDifference(one, other), configDifference(one, none)]).includes("secret"), false);
  assert.match(configDifference(one, other) ?? "", /^its s3SigningKey is [0-9a-f]{12}, ours [0-9a-f]{12}$/);
});
