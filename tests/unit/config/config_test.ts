/** Configuration: every field by default, explicitly and from the environment; at its limits and beyond; and what the refusals say. */
import assert from "node:assert/strict";
import path from "node:path";
import test from "node:test";
import { SandboxError, VmConfigError } from "../../../src/base/errors.ts";
import { resolveConfig, type SchedulerConfig } from "../../../src/config/config.ts";

type Field = keyof SchedulerConfig;
const ENV_CACHE = { EXEC_SANDBOX_CACHE_DIR: "/cache" };
/** Any value: what callers without types pass. */
const resolveAny = (config: unknown, env: Record<string, string | undefined> = {}) =>
  resolveConfig(config as SchedulerConfig, { ...ENV_CACHE, ...env });

/** Every field of CONTRACT with the name that its environment variable must have. */
const ENV_NAMES: Readonly<Record<Field, string>> = {
  warmPoolSize: "EXEC_SANDBOX_WARM_POOL_SIZE",
  spareVms: "EXEC_SANDBOX_SPARE_VMS",
  defaultMemoryMb: "EXEC_SANDBOX_DEFAULT_MEMORY_MB",
  defaultTimeoutSeconds: "EXEC_SANDBOX_DEFAULT_TIMEOUT_SECONDS",
  sessionIdleTimeoutSeconds: "EXEC_SANDBOX_SESSION_IDLE_TIMEOUT_SECONDS",
  imagesDir: "EXEC_SANDBOX_IMAGES_DIR",
  snapshotCacheDir: "EXEC_SANDBOX_SNAPSHOT_CACHE_DIR",
  layerCacheMaxMb: "EXEC_SANDBOX_LAYER_CACHE_MAX_MB",
  s3Bucket: "EXEC_SANDBOX_S3_BUCKET",
  s3Region: "EXEC_SANDBOX_S3_REGION",
  s3Prefix: "EXEC_SANDBOX_S3_PREFIX",
  s3Endpoint: "EXEC_SANDBOX_S3_ENDPOINT",
  s3SigningKey: "EXEC_SANDBOX_S3_SIGNING_KEY",
  maxConcurrentS3Uploads: "EXEC_SANDBOX_MAX_CONCURRENT_S3_UPLOADS",
  memoryOvercommitRatio: "EXEC_SANDBOX_MEMORY_OVERCOMMIT_RATIO",
  cpuOvercommitRatio: "EXEC_SANDBOX_CPU_OVERCOMMIT_RATIO",
  hostMemoryReserveRatio: "EXEC_SANDBOX_HOST_MEMORY_RESERVE_RATIO",
  resourceMonitorIntervalSeconds: "EXEC_SANDBOX_RESOURCE_MONITOR_INTERVAL_SECONDS",
  enablePackageValidation: "EXEC_SANDBOX_ENABLE_PACKAGE_VALIDATION",
  packageLayerMaxMb: "EXEC_SANDBOX_PACKAGE_LAYER_MAX_MB",
  packageInstallTimeoutSeconds: "EXEC_SANDBOX_PACKAGE_INSTALL_TIMEOUT_SECONDS",
  packageScripts: "EXEC_SANDBOX_PACKAGE_SCRIPTS",
  autoDownloadAssets: "EXEC_SANDBOX_AUTO_DOWNLOAD_ASSETS",
};
/** Another acceptable value than the default, for each. */
const OTHERS: Readonly<Record<Field, number | string | boolean>> = {
  warmPoolSize: 2,
  spareVms: 1,
  defaultMemoryMb: 512,
  defaultTimeoutSeconds: 60,
  sessionIdleTimeoutSeconds: 20,
  imagesDir: "/images",
  snapshotCacheDir: "/snapshots",
  layerCacheMaxMb: 64,
  s3Bucket: "bucket",
  s3Region: "eu-central-1",
  s3Prefix: "p/",
  s3Endpoint: "http://127.0.0.1:9000",
  s3SigningKey: "secret",
  maxConcurrentS3Uploads: 7,
  memoryOvercommitRatio: 2.5,
  cpuOvercommitRatio: 8,
  hostMemoryReserveRatio: 0.25,
  resourceMonitorIntervalSeconds: 2.5,
  enablePackageValidation: false,
  packageLayerMaxMb: 512,
  packageInstallTimeoutSeconds: 60,
  packageScripts: true,
  autoDownloadAssets: false,
};
/** Lowest and highest acceptable value of each number; the highest undefined where CONTRACT has none. */
const BOUNDS: ReadonlyArray<readonly [Field, number, number | undefined, "whole" | "any"]> = [
  ["warmPoolSize", 0, 1024, "whole"],
  ["spareVms", 0, 16, "whole"],
  ["defaultMemoryMb", 128, undefined, "whole"],
  ["layerCacheMaxMb", 1, undefined, "whole"],
  ["defaultTimeoutSeconds", 1, 300, "any"],
  ["sessionIdleTimeoutSeconds", 10, 3600, "whole"],
  ["maxConcurrentS3Uploads", 1, 16, "whole"],
  ["memoryOvercommitRatio", 0.1, 100, "any"],
  ["cpuOvercommitRatio", 0.1, 1000, "any"],
  ["hostMemoryReserveRatio", 0, 0.95, "any"],
  ["resourceMonitorIntervalSeconds", 1, 60, "any"],
  ["packageLayerMaxMb", 16, 16_384, "whole"],
  ["packageInstallTimeoutSeconds", 10, 7200, "whole"],
];
const TEXTS: readonly Field[] = ["imagesDir", "snapshotCacheDir", "s3Bucket", "s3Region", "s3Endpoint", "s3SigningKey"];
const FLAGS: readonly Field[] = ["enablePackageValidation", "autoDownloadAssets", "packageScripts"];

/** Asserts a `VmConfigError` that says what it could not set, what it wanted and what it got. */
function refuses(field: string, value: unknown, says: RegExp, env: Record<string, string> = {}): void {
  assert.throws(() => resolveAny(value === undefined ? {} : { [field]: value }, env), (error) => {
    assert.ok(error instanceof VmConfigError && SandboxError.is(error), String(error));
    assert.equal(error.retry, "never");
    assert.match(error.message, new RegExp(`^Cannot set ${Object.keys(env)[0] ?? field}: must .*, got .`));
    assert.match(error.message, says);
    assert.ok(error.message.length < 400, error.message);
    return true;
  });
}

test("config: the defaults are those of CONTRACT", () => {
  assert.deepEqual(resolveConfig({}, ENV_CACHE), {
    warmPoolSize: 0,
    spareVms: 0,
    defaultMemoryMb: 256,
    defaultTimeoutSeconds: 30,
    sessionIdleTimeoutSeconds: 300,
    layerCacheMaxMb: 10_240,
    s3Region: "us-east-1",
    s3Prefix: "snapshots/",
    maxConcurrentS3Uploads: 4,
    memoryOvercommitRatio: 1.5,
    cpuOvercommitRatio: 4,
    hostMemoryReserveRatio: 0.1,
    resourceMonitorIntervalSeconds: 5,
    enablePackageValidation: true,
    packageLayerMaxMb: 4096,
    packageInstallTimeoutSeconds: 1800,
    packageScripts: false,
    autoDownloadAssets: true,
    cacheDir: "/cache",
    snapshotCacheDir: "/cache/snapshots",
    isOffline: false,
    isEmulationForced: false,
    qemuPath: undefined,
    assetUrl: undefined,
    assetVersion: undefined,
    logLevel: "warning",
  });
  assert.deepEqual(resolveConfig(undefined, ENV_CACHE), resolveConfig({}, ENV_CACHE));
});

for (const [field, name] of Object.entries(ENV_NAMES) as Array<[Field, string]>) {
  const other = OTHERS[field];
  test(`config: ${field} is taken from the caller, else from ${name}, else by default`, () => {
    assert.equal(resolveAny({ [field]: other })[field], other);
    assert.equal(resolveAny({}, { [name]: String(other) })[field], other);
    assert.equal(resolveAny({ [field]: other }, { [name]: "nonsense, but nobody asks" })[field], other);
    assert.equal(resolveAny({ [field]: undefined }, { [name]: String(other) })[field], other, "an explicit undefined is not given");
    assert.equal(resolveAny({}, { [name]: "" })[field], resolveAny({})[field], "an empty variable is not set");
    assert.notEqual(resolveAny({})[field], other);
  });

  test(`config: ${field} is read from no other name`, () => {
    const others = [name.toLowerCase(), name.replace("EXEC_SANDBOX_", ""), name.replace("EXEC_SANDBOX_", "SBX_"), `${name}_`, field];
    for (const wrong of others) assert.equal(resolveAny({}, { [wrong]: String(other) })[field], resolveAny({})[field], wrong);
  });

  test(`config: ${field} refuses values of another type`, () => {
    const values: unknown[] = [null, {}, [], [1], Symbol("s"), () => {}, 10n, new Date(0), Object.create(null)];
    if (typeof other !== "boolean") values.push(true);
    if (typeof other === "string") values.push(1, NaN);
    if (typeof other === "boolean") values.push(1, 0);
    for (const value of values) refuses(field, value, /must be/);
  });
}

for (const [field, low, high, kind] of BOUNDS) {
  test(`config: ${field} takes its bounds and nothing beyond`, () => {
    const step = kind === "whole" ? 1 : 0.001;
    for (const value of [low, ...(high === undefined ? [1_000_000_000] : [high])]) {
      assert.equal(resolveAny({ [field]: value })[field], value);
      assert.equal(resolveAny({}, { [ENV_NAMES[field]]: String(value) })[field], value);
    }
    refuses(field, low - step, new RegExp(`at least ${low}, got ${low - step}$`));
    refuses(field, -1e9, new RegExp(`at least ${low}`));
    if (high !== undefined) {
      refuses(field, high + step, new RegExp(`at most ${high}, got ${high + step}$`));
      refuses(field, 1e9, new RegExp(`at most ${high}`));
      refuses(field, undefined, new RegExp(`at most ${high}`), { [ENV_NAMES[field]]: "9".repeat(15) });
    }
    refuses(field, 1e300, /must be/);
    refuses(field, NaN, /number.*, got NaN$/);
    refuses(field, Infinity, /must be.*, got Infinity$/);
    if (kind === "any") {
      assert.equal(resolveAny({ [field]: low + 0.25 })[field], low + 0.25);
      assert.equal(resolveAny({}, { [ENV_NAMES[field]]: String(low + 0.25) })[field], low + 0.25);
    }
    if (kind === "whole") refuses(field, low + 1.5, new RegExp(`whole number.*, got ${low + 1.5}$`));
    refuses(field, "", /must be a (whole )?number, got ""$/);
  });

  test(`config: ${field} from the environment is a plain decimal number or refused by its variable's name`, () => {
    const name = ENV_NAMES[field];
    for (const value of ["abc", " ", "0x10", "1e1", "1,5", "१", "--1", "1 2", "NaN", "Infinity", "10MB", "9".repeat(400)]) {
      refuses(field, undefined, /must be/, { [name]: value });
    }
    refuses(field, undefined, new RegExp(`at least ${low}`), { [name]: "-5" });
    const typical = String(OTHERS[field]);
    assert.equal(resolveAny({}, { [name]: ` ${typical}\n` })[field], OTHERS[field], "blanks around it are none of its business");
  });
}

for (const field of TEXTS) {
  test(`config: ${field} must not be empty`, () => refuses(field, "", /must not be empty, got ""$/));
}

test("config: s3Prefix may be empty", () => {
  assert.equal(resolveAny({ s3Prefix: "" }).s3Prefix, "");
});

for (const field of FLAGS) {
  test(`config: ${field} reads words in any case, and refuses others`, () => {
    for (const word of ["1", "true", "yes", "on", "TRUE", "Yes", "oN", " true "]) {
      assert.equal(resolveAny({}, { [ENV_NAMES[field]]: word })[field], true, word);
    }
    for (const word of ["0", "false", "no", "off", "FALSE", "No", "oFF", " 0\n"]) {
      assert.equal(resolveAny({}, { [ENV_NAMES[field]]: word })[field], false, word);
    }
    for (const word of ["2", "-1", "y", "n", "t", "enabled", "true false", "wahr", "truе"]) {
      refuses(field, undefined, /must be one of 1, true, yes, on, 0, false, no, off, got "/, { [ENV_NAMES[field]]: word });
    }
    assert.deepEqual([resolveAny({ [field]: true })[field], resolveAny({ [field]: false })[field]], [true, false]);
  });
}

test("config: an unknown field is refused by name, and the known ones are told", () => {
  for (const field of ["warmPoolsize", "memoryMb", "toString", "__proto__", "constructor", ""]) {
    const config = JSON.parse(`{${JSON.stringify(field)}: 1}`);
    assert.throws(() => resolveAny(config), (error) => {
      assert.ok(error instanceof VmConfigError);
      assert.ok(error.message.includes(`unknown field "${field}"`), error.message);
      for (const known of Object.keys(ENV_NAMES)) assert.ok(error.hint?.includes(known), known);
      return true;
    });
  }
  assert.throws(() => resolveAny({ a: 1, b: 2 }), /unknown field "a", "b"/);
  assert.equal(resolveAny({ unknownButUndefined: undefined }).warmPoolSize, 0);
});

for (
  const [name, value] of [["null", null], ["a number", 5], ["a string", "x"], ["a function", () => {}], ["an array", []], [
    "true",
    true,
  ]] as const
) {
  test(`config: ${name} is no configuration`, () => {
    assert.throws(() => resolveAny(value), {
      name: "VmConfigError",
      message: /^Cannot read the configuration: it must be an object, got /,
    });
  });
}

test("config: an absurdly long value is refused with a short message", () => {
  refuses("defaultMemoryMb", "x".repeat(1_000_000), /must be a whole number, got "xx/);
  refuses("warmPoolSize", Array.from({ length: 100_000 }, () => 1), /must be/);
});

test("config: the caller's object is neither changed nor kept", () => {
  const config = Object.freeze({ warmPoolSize: 3 });
  const resolved = resolveAny(config);
  assert.deepEqual([config, resolved.warmPoolSize], [{ warmPoolSize: 3 }, 3]);
});

test("config: what only the environment can say", () => {
  for (const word of ["1", "TRUE", "yes", "On"]) {
    const resolved = resolveAny({}, { EXEC_SANDBOX_OFFLINE: word, EXEC_SANDBOX_FORCE_EMULATION: word });
    assert.deepEqual([resolved.isOffline, resolved.isEmulationForced], [true, true]);
  }
  for (const name of ["EXEC_SANDBOX_OFFLINE", "EXEC_SANDBOX_FORCE_EMULATION"]) {
    refuses(name, undefined, /must be one of 1, true, yes, on, 0, false, no, off, got "maybe"$/, { [name]: "maybe" });
  }
  assert.equal(resolveAny({}, { EXEC_SANDBOX_QEMU: "/usr/bin/qemu" }).qemuPath, "/usr/bin/qemu");
  assert.equal(resolveAny({}, { EXEC_SANDBOX_QEMU: "" }).qemuPath, undefined);
});

test("config: the log level is one of five, in any case", () => {
  for (const level of ["debug", "info", "warning", "error", "silent"] as const) {
    assert.equal(resolveAny({}, { EXEC_SANDBOX_LOG_LEVEL: level.toUpperCase() }).logLevel, level);
  }
  refuses("", undefined, /one of debug, info, warning, error, silent, got "loud"$/, { EXEC_SANDBOX_LOG_LEVEL: "loud" });
  refuses("", undefined, /got "x{20}/, { EXEC_SANDBOX_LOG_LEVEL: "x".repeat(10_000) });
});

test("config: directories become absolute; templates lie under the cache unless a place is given", () => {
  assert.equal(resolveAny({}).snapshotCacheDir, "/cache/snapshots");
  assert.equal(resolveAny({ snapshotCacheDir: "here" }).snapshotCacheDir, path.resolve("here"));
  assert.equal(resolveAny({ snapshotCacheDir: "/a/../b" }).snapshotCacheDir, "/b");
});

test("config: the environment is read once; later changes are not seen", () => {
  const env: Record<string, string> = { ...ENV_CACHE, EXEC_SANDBOX_WARM_POOL_SIZE: "2" };
  const resolved = resolveConfig({}, env);
  env["EXEC_SANDBOX_WARM_POOL_SIZE"] = "5";
  assert.equal(resolved.warmPoolSize, 2);
});
