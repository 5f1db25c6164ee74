/** Configuration of a scheduler: explicit fields, then the environment, then defaults. */
import path from "node:path";
import process from "node:process";
import { z } from "zod";
import { ONCE } from "../base/schema.ts";
import { shown, VmConfigError } from "../base/errors.ts";
import { MEMORY_MIN_MIB, TIMEOUT_MAX_SECONDS, TIMEOUT_MIN_SECONDS } from "../base/limits.ts";
import { LOG_LEVELS, type LogLevel } from "../base/log.ts";
import { cacheDirectory } from "../host/platform.ts";

const ENV_PREFIX = "EXEC_SANDBOX_";

const integer = (min: number, max: number) =>
  bounded(z.number({ error: "must be a whole number" }).int({ error: "must be a whole number" }), min, max);
const number = (min: number, max: number) => bounded(z.number({ error: "must be a number" }), min, max);
const flag = z.boolean({ error: "must be true or false" });
const anyText = z.string({ error: "must be a text" });
const text = anyText.min(1, { error: "must not be empty" });

function bounded(number: z.ZodNumber, min: number, max: number): z.ZodNumber {
  return number.min(min, { error: `must be at least ${min}` }).max(max, { error: `must be at most ${max}` });
}

const schema = z.strictObject({
  warmPoolSize: integer(0, 1024).default(0),
  spareVms: integer(0, 16).default(0),
  defaultMemoryMb: integer(MEMORY_MIN_MIB, Number.MAX_SAFE_INTEGER).default(256),
  defaultTimeoutSeconds: number(TIMEOUT_MIN_SECONDS, TIMEOUT_MAX_SECONDS).default(30),
  sessionIdleTimeoutSeconds: integer(10, 3600).default(300),
  imagesDir: text.optional(),
  snapshotCacheDir: text.optional(),
  layerCacheMaxMb: integer(1, Number.MAX_SAFE_INTEGER).default(10_240),
  s3Bucket: text.optional(),
  s3Region: text.default("us-east-1"),
  s3Prefix: anyText.default("snapshots/"),
  s3Endpoint: text.optional(),
  s3SigningKey: text.optional(),
  maxConcurrentS3Uploads: integer(1, 16).default(4),
  memoryOvercommitRatio: number(0.1, 100).default(1.5),
  cpuOvercommitRatio: number(0.1, 1000).default(4),
  hostMemoryReserveRatio: number(0, 0.95).default(0.1),
  resourceMonitorIntervalSeconds: number(1, 60).default(5),
  enablePackageValidation: flag.default(true),
  packageLayerMaxMb: integer(16, 16_384).default(4096),
  packageInstallTimeoutSeconds: integer(10, 7200).default(1800),
  packageScripts: flag.default(false),
  autoDownloadAssets: flag.default(true),
});

/** Fields of `Scheduler.open`; each also as `EXEC_SANDBOX_<UPPER_SNAKE>` in the environment, which an explicit field beats. */
export interface SchedulerConfig {
  /** Ready VMs kept per language, 0-1024. Default 0. */
  readonly warmPoolSize?: number | undefined;
  /** QEMU processes spawned ahead for templates in use, in all, 0-16: a start then only loads a guest. Default 0. */
  readonly spareVms?: number | undefined;
  /** Memory of a VM in MB (2^20 bytes), at least 128. Default 256. */
  readonly defaultMemoryMb?: number | undefined;
  /** Seconds the code may run, 1-300, fractions too. Default 30. */
  readonly defaultTimeoutSeconds?: number | undefined;
  /** Seconds until an idle session closes, 10-3600. Default 300. */
  readonly sessionIdleTimeoutSeconds?: number | undefined;
  /** Where kernel, QEMU and root images are. Default: below the cache directory. */
  readonly imagesDir?: string | undefined;
  /** Where templates are kept. Default: below the cache directory. */
  readonly snapshotCacheDir?: string | undefined;
  /** Disk that installed packages may take, in MB (2^20 bytes); those not used for longest go first. Default 10,240. */
  readonly layerCacheMaxMb?: number | undefined;
  /** Bucket of the remote snapshot cache. Default: none. Credentials come by the AWS default chain. */
  readonly s3Bucket?: string | undefined;
  /** Region of the bucket. Default `us-east-1`. */
  readonly s3Region?: string | undefined;
  /** What every key begins with. Default `snapshots/`. */
  readonly s3Prefix?: string | undefined;
  /** URL of another S3-compatible service. Default: none. */
  readonly s3Endpoint?: string | undefined;
  /** A secret of the hosts that share the bucket: what was not uploaded by one that has it is not used. Default: none; whoever may write to the bucket is trusted. */
  readonly s3SigningKey?: string | undefined;
  /** Uploads at once, 1-16. Default 4. */
  readonly maxConcurrentS3Uploads?: number | undefined;
  /** Memory that VMs may be promised, per memory of the host less its reserve, 0.1-100. Default 1.5. */
  readonly memoryOvercommitRatio?: number | undefined;
  /** VMs that may run per CPU of the host, 0.1-1000. Default 4. */
  readonly cpuOvercommitRatio?: number | undefined;
  /** Part of the host's memory that is left to others, 0-0.95. Default 0.1. */
  readonly hostMemoryReserveRatio?: number | undefined;
  /** Seconds between looks at the host's resources, 1-60. Default 5. */
  readonly resourceMonitorIntervalSeconds?: number | undefined;
  /** Refuse packages that are not in the catalog. Default true. */
  readonly enablePackageValidation?: boolean | undefined;
  /** Room that an installation of packages has, in MB (2^20 bytes), 16-16384: for what is downloaded, unpacked and built. Default 4096. */
  readonly packageLayerMaxMb?: number | undefined;
  /** Seconds that an installation of packages may take, 10-7200. Default 1800. */
  readonly packageInstallTimeoutSeconds?: number | undefined;
  /** Run the life-cycle scripts of npm packages when they are installed. Default false. */
  readonly packageScripts?: boolean | undefined;
  /** Download images that are missing. Default true. */
  readonly autoDownloadAssets?: boolean | undefined;
}

/** A configuration in which every field has its value, and what only the environment can say. */
export interface ResolvedConfig extends Readonly<Omit<z.output<typeof schema>, "snapshotCacheDir">> {
  /** Root of everything sbx keeps. */
  readonly cacheDir: string;
  /** Where templates are kept; absolute. */
  readonly snapshotCacheDir: string;
  /** `EXEC_SANDBOX_OFFLINE`: missing assets fail at once. */
  readonly isOffline: boolean;
  /** `EXEC_SANDBOX_FORCE_EMULATION`: never use a hardware accelerator. */
  readonly isEmulationForced: boolean;
  /** `EXEC_SANDBOX_QEMU`: another QEMU instead of our own. */
  readonly qemuPath: string | undefined;
  /** `EXEC_SANDBOX_ASSET_URL`: where releases of the images lie. */
  readonly assetUrl: string | undefined;
  /** `EXEC_SANDBOX_ASSET_VERSION`: another release of the images than this program's own. */
  readonly assetVersion: string | undefined;
  readonly logLevel: LogLevel;
}

/** Resolves `config` against `env`, which is read here and never again. Throws `VmConfigError` for unknown fields and bad values. */
export function resolveConfig(
  config: SchedulerConfig = {},
  env: Readonly<Record<string, string | undefined>> = process.env,
): ResolvedConfig {
  const merged: Record<string, unknown> = { ...explicitFields(config) };
  const fromEnv = new Map<string, string>();
  for (const [field, type] of Object.entries(schema.shape)) {
    const name = ENV_PREFIX + field.replace(/(?<=[a-z0-9])(?=[A-Z])/g, "_").toUpperCase();
    const value = env[name];
    if (field in merged || value === undefined || value === "") continue;
    merged[field] = fromText(type.unwrap().def.type, name, value);
    fromEnv.set(field, name);
  }
  const parsed = schema.safeParse(merged, ONCE);
  if (!parsed.success) throw configError(parsed.error.issues[0], merged, fromEnv);
  const cacheDir = cacheDirectory(env);
  return {
    ...parsed.data,
    cacheDir,
    snapshotCacheDir: path.resolve(parsed.data.snapshotCacheDir ?? path.join(cacheDir, "snapshots")),
    isOffline: readFlag(env, "OFFLINE"),
    isEmulationForced: readFlag(env, "FORCE_EMULATION"),
    qemuPath: env[`${ENV_PREFIX}QEMU`] || undefined,
    assetUrl: env[`${ENV_PREFIX}ASSET_URL`] || undefined,
    assetVersion: env[`${ENV_PREFIX}ASSET_VERSION`] || undefined,
    logLevel: readLogLevel(env[`${ENV_PREFIX}LOG_LEVEL`]),
  };
}

/** Fields that were given; an explicit `undefined` counts as not given. */
function explicitFields(config: SchedulerConfig): Record<string, unknown> {
  if (typeof config !== "object" || config === null || Array.isArray(config)) {
    throw new VmConfigError(`Cannot read the configuration: it must be an object, got ${shown(config)}`);
  }
  return Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));
}

function configError(
  issue: z.core.$ZodIssue | undefined,
  values: Record<string, unknown>,
  fromEnv: ReadonlyMap<string, string>,
): VmConfigError {
  if (issue?.code === "unrecognized_keys") {
    return new VmConfigError(`Cannot read the configuration: unknown field ${issue.keys.map((key) => `"${key}"`).join(", ")}`, {
      hint: `Known fields: ${Object.keys(schema.shape).join(", ")}.`,
    });
  }
  const field = String(issue?.path[0] ?? "");
  const source = fromEnv.get(field) ?? field;
  return new VmConfigError(`Cannot set ${source}: ${issue?.message ?? "is not acceptable"}, got ${shown(values[field])}`);
}

/** What an environment variable says, in the type of its field; what cannot be read stays text, and the field's check refuses it. */
function fromText(type: string, name: string, value: string): unknown {
  if (type === "boolean") return parseFlag(name, value);
  const word = value.trim();
  return type === "number" && /^-?\d+(\.\d+)?$/.test(word) ? Number(word) : value;
}

function parseFlag(name: string, value: string): boolean {
  const word = value.trim().toLowerCase();
  if (["1", "true", "yes", "on"].includes(word)) return true;
  if (["0", "false", "no", "off", ""].includes(word)) return false;
  throw new VmConfigError(`Cannot set ${name}: must be one of 1, true, yes, on, 0, false, no, off, got ${shown(value)}`);
}

function readFlag(env: Readonly<Record<string, string | undefined>>, name: string): boolean {
  return parseFlag(ENV_PREFIX + name, env[ENV_PREFIX + name] ?? "");
}

function readLogLevel(value: string | undefined): LogLevel {
  const level = (value || "warning").toLowerCase();
  const known = LOG_LEVELS.find((candidate) => candidate === level);
  if (!known) throw new VmConfigError(`Cannot set ${ENV_PREFIX}LOG_LEVEL: must be one of ${LOG_LEVELS.join(", ")}, got ${shown(value)}`);
  return known;
}
