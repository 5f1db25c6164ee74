/** `sbx serve`: keeps VMs warm for other commands and programs; and the questions and orders to the server that runs. */
import { abortable } from "../base/async.ts";
import { messageOf } from "../base/errors.ts";
import { lineLogger } from "../base/log.ts";
import type { Command, Input } from "./command.ts";
import type { CliContext, CliServer } from "./context.ts";
import { EXIT, InterruptedError, oneLine, printable, UsageError } from "./failure.ts";
import { writeJson } from "./result_json.ts";
import { numberOption } from "./vm_options.ts";

const WARM_MAX = 1_024;
const ACTIONS = ["status", "stop", "install", "uninstall"] as const;

/** The command. */
export const serve: Command = {
  name: "serve",
  summary: "keep VMs warm, and lend them to sbx run, sbx session and programs over a private socket",
  options: [
    { long: "warm", value: "N", help: "ready VMs kept per language; default 1" },
    { long: "status", help: "show the server that runs; the exit status is 1 when none does" },
    { long: "stop", help: "end the server that runs, and its VMs" },
    { long: "install", help: "have the user's service manager (systemd, launchd) start the server from now on, with these options" },
    { long: "uninstall", help: "undo --install" },
    { long: "json", help: "print a machine-readable status" },
    { long: "quiet", short: "q", help: "log warnings and errors only" },
    { long: "debug", help: "log everything" },
  ],
  examples: [
    ["sbx serve --warm 2 &", "two ready VMs of each language; sbx run uses them"],
    ["sbx serve --status", "what the server does"],
    ["sbx serve --install", "started when you log in"],
  ],
  isEndedBySignal: true,
  run: execute,
};

async function execute(context: CliContext, input: Input): Promise<number> {
  const actions = ACTIONS.filter((action) => input.has(action));
  if (actions.length > 1) throw new UsageError(`Cannot serve: --${actions[0]} and --${actions[1]} exclude each other`);
  const [action] = actions, server = await context.openServer();
  const warmPoolSize = numberOption(input, "warm", { min: 0, max: WARM_MAX, unit: "", isWhole: true });
  const isJson = input.has("json");
  if (isJson && action !== "status") throw new UsageError("Cannot serve: --json goes with --status alone");
  if (action !== undefined && action !== "install" && warmPoolSize !== undefined) {
    throw new UsageError(`Cannot serve: --warm does not go with --${action}`);
  }
  switch (action) {
    case "status":
      return await status(context, server, isJson);
    case "stop":
      return await stop(context, server);
    case "install": {
      const warm = warmPoolSize === undefined ? [] : ["--warm", String(warmPoolSize)];
      return install(context, await server.install(warm), "The server starts when you log in");
    }
    case "uninstall": {
      const undone = await server.uninstall();
      if (undone !== undefined) return install(context, undone, "The server is not started any more");
      context.stderr.write("No unit of sbx is installed.\n");
      return EXIT.ok;
    }
    default:
      return await run(context, input, warmPoolSize);
  }
}

async function run(context: CliContext, input: Input, warmPoolSize: number | undefined): Promise<number> {
  const { stderr, signal } = context;
  const log = lineLogger(input.has("debug") ? "debug" : input.has("quiet") ? "warning" : "info", (line) => {
    stderr.startLine();
    stderr.write(`${printable(line)}\n`);
  });
  await using server = await (await context.openServer()).start({ warmPoolSize, log });
  log.info("serving", { socket: server.place.socket });
  server.ready(signal).then(
    () => log.info("every warm VM is ready"),
    (error) => signal.aborted || log.warning("not every warm VM is ready", { reason: messageOf(error) }),
  );
  // Who is told to end in order has done so when it has.
  await abortable(new Promise<never>(() => {}), signal).catch((error) => {
    if (!(error instanceof InterruptedError)) throw error;
    log.info("the server ends", { reason: error.message });
  });
  return EXIT.ok;
}

async function status({ stdout, stderr, signal }: CliContext, server: CliServer, isJson: boolean): Promise<number> {
  const found = await server.find(signal);
  if (isJson) {
    const { status, pid, socket, reason } = found ?? {};
    writeJson(stdout, {
      running: found !== undefined,
      answers: status !== undefined,
      pid: pid ?? null,
      version: status?.version ?? null,
      socket: socket ?? null,
      uptime_seconds: status ? Math.floor(status.uptimeSeconds) : null,
      clients: status ? status.clients - 1 : null,
      vms: status?.vms ?? null,
      waiting: status?.waiting ?? null,
      memory_mb: status ? Math.ceil(status.memoryMb) : null,
      problem: reason || null,
    });
  } else if (found === undefined) stderr.write("No server runs. Start one with `sbx serve`.\n");
  else if (found.status === undefined) {
    stderr.write(`A server runs as process ${found.pid}, and does not answer: ${oneLine(found.reason)}\n`);
  } else {
    const { status: { version, uptimeSeconds, clients, vms, waiting, memoryMb }, pid, socket } = found;
    const rows: ReadonlyArray<readonly [string, string]> = [
      ["server", `version ${version}, process ${pid}, up ${duration(uptimeSeconds)}`],
      ["socket", socket],
      ["clients", String(clients - 1)], // All but us.
      ["VMs", `${vms} in use, ${waiting} waited for`],
      ["memory", `${Math.ceil(memoryMb)} MB, VMs apart`],
    ];
    for (const [name, text] of rows) stdout.write(`${name.padEnd(7)}  ${oneLine(text)}\n`);
  }
  return found?.status === undefined ? EXIT.failed : EXIT.ok;
}

async function stop({ stderr }: CliContext, server: CliServer): Promise<number> {
  const stopped = await server.stop();
  stderr.write(stopped === undefined ? "No server runs.\n" : `The server, process ${stopped}, has ended.\n`);
  return EXIT.ok;
}

function install(
  { stdout, stderr }: CliContext,
  { path, next }: { readonly path: string; readonly next: readonly string[] },
  done: string,
): number {
  stdout.write(`${path}\n`);
  stderr.write(next.length === 0 ? `${done}.\n` : "The service manager could not be told. Run next:\n");
  for (const command of next) stderr.write(`  ${oneLine(command)}\n`);
  return EXIT.ok;
}

/** `3 h 5 min`, or less than a minute in seconds. */
function duration(seconds: number): string {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
