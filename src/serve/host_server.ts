/** Host server: what the command line does with the server of this host: starts it, finds it, asks it, stops it, installs it. */
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import { messageOf, SandboxDependencyError } from "../base/errors.ts";
import type { Logger } from "../base/log.ts";
import { resolveConfig } from "../config/config.ts";
import { VERSION } from "../config/version.ts";
import { ask } from "../host/ask.ts";
import { writeFileAtomic } from "../host/files.ts";
import { cacheDirectory } from "../host/platform.ts";
import { ClientLink } from "../link/client_link.ts";
import type { ServerStatus } from "../link/messages.ts";
import { placeOf } from "../link/place.ts";
import { findRunning, stopRunning } from "./running.ts";
import { Server } from "./server.ts";
import { LAUNCHD_LABEL, type ServiceManager, SYSTEMD_UNIT, unitFile, unitPath } from "./unit_files.ts";

const DEFAULT_WARM_POOL_SIZE = 1;
/** Variables of this shell that a service started elsewhere would not have, and that decide what it serves. */
const KEPT_VARIABLES = /^(?:EXEC_SANDBOX_\w+|XDG_CACHE_HOME|AWS_\w+)$/;
/** What must not lie in a file. */
const SECRET_VARIABLES = /SECRET|TOKEN|PASSWORD|ACCESS_KEY/;

type Environment = Readonly<Record<string, string | undefined>>;

/** What a server is started with. */
export interface StartOptions {
  /** Ready VMs kept per language; default: `EXEC_SANDBOX_WARM_POOL_SIZE`, else 1. */
  readonly warmPoolSize?: number | undefined;
  readonly log: Logger;
}

/** A server that runs. */
export interface FoundServer {
  readonly pid: number;
  readonly socket: string;
  /** What it says of itself; undefined when it does not answer us, and then `reason` says why. */
  readonly status: ServerStatus | undefined;
  readonly reason: string;
}

/** What an installation did, and what is left for the user to do. */
export interface Installation {
  readonly path: string;
  /** Commands to run next; empty where they were run. */
  readonly next: readonly string[];
}

/** Starts the server in this process. The caller owns it. */
export async function startServer({ warmPoolSize, log }: StartOptions, env: Environment): Promise<Server> {
  const size = warmPoolSize ?? (env["EXEC_SANDBOX_WARM_POOL_SIZE"] ? undefined : DEFAULT_WARM_POOL_SIZE);
  return await Server.start({ config: resolveConfig({ warmPoolSize: size }, env), log });
}

/** The server that runs for this environment's cache directory. Throws `SocketAuthError` when its place cannot be trusted. */
export async function findServer(env: Environment, signal?: AbortSignal): Promise<FoundServer | undefined> {
  const place = placeOf(cacheDirectory(env), env), running = await findRunning(place);
  if (running === undefined) return undefined;
  const found = { pid: running.pid, socket: place.socket };
  try {
    using link = await ClientLink.open(place, { version: VERSION, signal });
    return { ...found, status: await link.status(signal), reason: "" };
  } catch (error) {
    signal?.throwIfAborted();
    return { ...found, status: undefined, reason: messageOf(error) };
  }
}

/** Stops the server in order, and returns its pid; undefined when there is none. Throws `SandboxDependencyError` when it does not end. */
export async function stopServer(env: Environment): Promise<number | undefined> {
  const running = await findRunning(placeOf(cacheDirectory(env), env));
  if (running === undefined || await stopRunning(running)) return running?.pid;
  throw new SandboxDependencyError(`Cannot stop the server: process ${running.pid} has been asked to end and still runs`, {
    hint: `End it: \`kill -9 ${running.pid}\`; its VMs end with it.`,
  });
}

/** Writes the unit and, where the service manager can be reached, starts it. Needs no root. */
export async function installServer(args: readonly string[], env: Environment): Promise<Installation> {
  const manager = managerOf(process.platform);
  const unit = unitFile({ manager, command: [...ownCommand(), "serve", ...args], env: keptVariables(env), userEnv: env });
  await fs.mkdir(path.dirname(unit.path), { recursive: true });
  await writeFileAtomic(unit.path, unit.text, 0o600);
  const next = manager === "systemd"
    ? [["systemctl", "--user", "daemon-reload"], ["systemctl", "--user", "enable", "--now", SYSTEMD_UNIT]]
    : [["launchctl", "bootstrap", `gui/${process.getuid?.() ?? 0}`, unit.path]];
  return { path: unit.path, next: await runAll(next) };
}

/** Stops the unit and removes it; undefined when there is none. */
export async function uninstallServer(env: Environment): Promise<Installation | undefined> {
  const manager = managerOf(process.platform), file = unitPath(manager, env);
  if (!await fs.lstat(file).then(() => true, () => false)) return undefined;
  const stop = manager === "systemd"
    ? [["systemctl", "--user", "disable", "--now", SYSTEMD_UNIT]]
    : [["launchctl", "bootout", `gui/${process.getuid?.() ?? 0}/${LAUNCHD_LABEL}`]];
  const next = await runAll(stop);
  await fs.rm(file, { force: true });
  const reload = manager === "systemd" && next.length === 0 ? await runAll([["systemctl", "--user", "daemon-reload"]]) : [];
  return { path: file, next: [...next, ...reload] };
}

function managerOf(platform: string): ServiceManager {
  return platform === "darwin" ? "launchd" : "systemd";
}

/** How this very program is started: a compiled one by itself, a script by its runtime. */
function ownCommand(): string[] {
  const [runtime = process.execPath, script = ""] = process.argv;
  // A compiled program names a script that is none of the file system's.
  const isCompiled = script === "" || script.startsWith("/$bunfs") || script === process.execPath || runtime === script;
  if (isCompiled) return [process.execPath];
  return [process.execPath, ...(process.versions["deno"] === undefined ? [] : ["run", "-A"]), path.resolve(script)];
}

function keptVariables(env: Environment): Record<string, string> {
  const entries = Object.entries(env).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return Object.fromEntries(entries.filter(([name]) => KEPT_VARIABLES.test(name) && !SECRET_VARIABLES.test(name)));
}

/** Runs the commands; what could not be done is returned, for the user to do: there may be no service manager that we can reach. */
async function runAll(commands: ReadonlyArray<readonly string[]>): Promise<string[]> {
  for (const [at, command] of commands.entries()) {
    const [program = "", ...args] = command;
    const isDone = await ask("Cannot start the service", [program, ...args]).then(({ code }) => code === 0, () => false);
    if (!isDone) return commands.slice(at).map((words) => words.join(" "));
  }
  return [];
}
