/** Configuration of a scheduler: explicit fields, then the environment, then defaults. */
import path from "node:path";
import process from "node:process";
import { z } from "zod";
import { VmConfigError } from "../base/errors.ts";
import { MEMORY_MIN_MIB, TIMEOUT_MAX_SECONDS, TIMEOUT_MIN_SECONDS } from "../base/limits.ts";
import { LOG_LEVELS, type LogLevel } from "../base/log.ts";
import { cacheDirectory } from "../host/platform.ts";

const ENV_PREFIX = "EXEC_SANDBOX_";

/** Strings `1 true yes on` and `0 false no off` in any case; what the environment can say. */
const flag = z.union([
  z.boolean(),
  z.string().transform((text, context) => {
    const word = text.trim().toLowerCase();
    if (["1", "true", "yes", "on"].includes(word)) return true;
    if (["0", "false", "no", "off", ""].includes(word)) return false;
    context.addIssue({ code: "custom", message: "must be one of 1, true, yes, on, 0, false, no, off" });
    return z.NEVER;
  }),
]);

/** A number, or its text as the environment has it; an empty text is refused, not read as 0. */
const number = z.union([z.number(), z.string().trim().regex(/^-?\d+(\.\d+)?$/, "must be a number").transform(Number)]);
const integer = (min: number, max: number) => number.pipe(z.number().int().min(min).max(max));
const ratio = (min: number, max: number) => number.pipe(z.number().min(min).max(max));
const text = z.string().min(1);

const schema = z.strictObject({
  warmPoolSize: integer(0, 1024).default(0),
  defaultMemoryMb: integer(MEMORY_MIN_MIB, Number.MAX_SAFE_INTEGER).default(256),
  defaultTimeoutSeconds: integer(TIMEOUT_MIN_SECONDS, TIMEOUT_MAX_SECONDS).default(30),
  sessionIdleTimeoutSeconds: integer(10, 3600).default(300),
  imagesDir: text.optional(),
  snapshotCacheDir: text.optional(),
  s3Bucket: text.optional(),
  s3Region: text.default("us-east-1"),
  s3Prefix: z.string().default("snapshots/"),
  s3Endpoint: text.optional(),
  maxConcurrentS3Uploads: integer(1, 16).default(4),
  memoryOvercommitRatio: ratio(0.1, 100).default(1.5),
  cpuOvercommitRatio: ratio(0.1, 1000).default(4),
  hostMemoryReserveRatio: ratio(0, 0.95).default(0.1),
  resourceMonitorIntervalSeconds: number.pipe(z.number().min(1).max(60)).default(5),
  enablePackageValidation: flag.default(true),
  autoDownloadAssets: flag.default(true),
});

/** Fields of `Scheduler.open`; each also as `EXEC_SANDBOX_<UPPER_SNAKE>` in the environment. */
export type SchedulerConfig = { readonly [K in keyof z.input<typeof schema>]?: z.input<typeof schema>[K] | undefined };

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
  readonly logLevel: LogLevel;
}

/** Resolves `config` against `env`, which is read here and never again. Throws `VmConfigError` for unknown fields and bad values. */
export function resolveConfig(
  config: SchedulerConfig = {},
  env: Readonly<Record<string, string | undefined>> = process.env,
): ResolvedConfig {
  const merged: Record<string, unknown> = { ...explicitFields(config) };
  const fromEnv = new Map<string, string>();
  for (const field of Object.keys(schema.shape)) {
    const name = ENV_PREFIX + field.replace(/[A-Z0-9]+/g, (part, at) => (at > 0 && /[A-Z]/.test(part) ? "_" : "") + part).toUpperCase();
    const value = env[name];
    if (field in merged || value === undefined || value === "") continue;
    merged[field] = value;
    fromEnv.set(field, name);
  }
  const parsed = schema.safeParse(merged);
  if (!parsed.success) throw configError(parsed.error.issues[0], merged, fromEnv);
  const cacheDir = cacheDirectory(env);
  return {
    ...parsed.data,
    cacheDir,
    snapshotCacheDir: path.resolve(parsed.data.snapshotCacheDir ?? path.join(cacheDir, "snapshots")),
    isOffline: readFlag(env, "OFFLINE"),
    isEmulationForced: readFlag(env, "FORCE_EMULATION"),
    qemuPath: env[`${ENV_PREFIX}QEMU`] || undefined,
    logLevel: readLogLevel(env[`${ENV_PREFIX}LOG_LEVEL`]),
  };
}

/** Fields that were given; an explicit `undefined` counts as not given. */
function explicitFields(config: SchedulerConfig): Record<string, unknown> {
  if (typeof config !== "object" || config === null) {
    throw new VmConfigError(`Cannot read the configuration: it must be an object, got ${config === null ? "null" : typeof config}`);
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
  return new VmConfigError(`Cannot set ${source}: ${wanted(issue)}, got ${JSON.stringify(values[field])}`);
}

/** What was wanted, in our words: zod's own messages name types, not units. */
function wanted(issue: z.core.$ZodIssue | undefined): string {
  if (issue?.code === "too_small") return `must be at least ${issue.minimum}`;
  if (issue?.code === "too_big") return `must be at most ${issue.maximum}`;
  if (issue?.code === "invalid_type") return `must be of type ${issue.expected}`;
  if (issue?.code === "invalid_union") {
    const inner = issue.errors.flat().find((error) => error.code !== "invalid_type");
    return inner ? wanted(inner) : "must be of another type";
  }
  return issue?.message ?? "is not acceptable";
}

function readFlag(env: Readonly<Record<string, string | undefined>>, name: string): boolean {
  const parsed = flag.safeParse(env[ENV_PREFIX + name] ?? "");
  if (!parsed.success) {
    throw new VmConfigError(
      `Cannot set ${ENV_PREFIX}${name}: must be one of 1, true, yes, on, 0, false, no, off, got ${JSON.stringify(env[ENV_PREFIX + name])}`,
    );
  }
  return parsed.data;
}

function readLogLevel(value: string | undefined): LogLevel {
  const level = (value || "warning").toLowerCase();
  const known = LOG_LEVELS.find((candidate) => candidate === level);
  if (!known) throw new VmConfigError(`Cannot set ${ENV_PREFIX}LOG_LEVEL: must be one of ${LOG_LEVELS.join(", ")}, got "${value}"`);
  return known;
}
