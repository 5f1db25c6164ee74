/** Host context: the real streams, scheduler and checks; each library part is loaded when a command first asks for it. */
import { Buffer } from "node:buffer";
import process from "node:process";
import { isatty } from "node:tty";
import type { BakeProgress } from "../run/bake.ts";
import type { InstallProgress } from "../run/layers.ts";
import type { CliContext, OpenOptions, ProgressEvent } from "./context.ts";
import { type InputStream, Line } from "./output.ts";
import { areOutputsOne, OutputQueue, ProcessOutput } from "./process_output.ts";

const PHASES: Readonly<Record<BakeProgress["phase"], string>> = {
  waiting: "waiting for another process that makes it",
  booting: "booting",
  importing: "importing packages",
  warming: "warming up",
  saving: "saving",
  done: "ready",
};

/** The context of a real process. `onBroken` is called with the system's code when standard output takes no more. */
export function hostContext(options: { readonly signal: AbortSignal; readonly onBroken: (code: string) => void }): CliContext {
  const { env } = process;
  const queue = new OutputQueue(), line = new Line();
  // Nobody reads our complaints: no reason to end what runs.
  const stderr = new ProcessOutput(queue, { descriptor: 2, env, onBroken: () => {}, line: areOutputsOne() ? line : new Line() });
  return {
    stdin: processInput(),
    stdout: new ProcessOutput(queue, { descriptor: 1, env, onBroken: options.onBroken, line }),
    stderr,
    env,
    signal: options.signal,
    openScheduler,
    openTerminal: async () => new (await import("./repl_terminal.ts")).ProcessTerminal(stderr),
    openImages: async (arch) => (await import("./host_images.ts")).openHostImages(env, arch),
    openCache: async () => (await import("./host_cache.ts")).openHostCache(env),
    openServer: async () => {
      const { startServer, findServer, stopServer, installServer, uninstallServer } = await import("../serve/host_server.ts");
      return {
        start: (options) => startServer(options, env),
        find: (signal) => findServer(env, signal),
        stop: () => stopServer(env),
        install: (args) => installServer(args, env),
        uninstall: () => uninstallServer(env),
      };
    },
    doctorChecks: async () => (await import("./doctor_checks.ts")).hostChecks(env),
  };
}

const INSTALL_PHASES: Readonly<Record<InstallProgress["phase"], string>> = {
  waiting: "waiting for another process that installs them",
  fetch: "looking into the remote cache",
  boot: "starting a VM",
  resolve: "resolving",
  download: "downloading",
  freeze: "freezing",
  done: "ready",
};

async function openScheduler({ onProgress, onLog, isDebug, isQuiet, isValidated = true, isServerUsed }: OpenOptions) {
  const [{ Scheduler }, { resolveConfig }, { lineLogger }] = await Promise.all([
    import("../run/scheduler.ts"),
    import("../config/config.ts"),
    import("../base/log.ts"),
  ]);
  const isLevelGiven = Boolean(process.env["EXEC_SANDBOX_LOG_LEVEL"]);
  const level = isDebug ? "debug" : isQuiet && !isLevelGiven ? "error" : resolveConfig().logLevel;
  const log = lineLogger(level, onLog);
  // One command, one run of each VM: a pool would be filled for nobody.
  return await Scheduler.open({ warmPoolSize: 0, ...(isValidated ? {} : { enablePackageValidation: false }) }, {
    log,
    onProgress: (progress) => onProgress(bakeEvent(progress)),
    onInstall: (progress) => onProgress(installEvent(progress)),
    isServerUsed,
  });
}

/** A step of a bake as a step of a task. */
function bakeEvent({ language, phase }: BakeProgress): ProgressEvent {
  return { task: `start template for ${language}`, message: PHASES[phase], ...(phase === "done" ? { isDone: true } : {}) };
}

/** A step of an installation as a step of a task; what the installer says is for those who watch. */
function installEvent({ language, phase, detail }: InstallProgress): ProgressEvent {
  const message = INSTALL_PHASES[phase] + (detail === undefined ? "" : `: ${detail}`);
  return { task: `packages for ${language}`, message, isDetail: detail !== undefined, ...(phase === "done" ? { isDone: true } : {}) };
}

function processInput(): InputStream {
  return {
    isTty: isatty(0),
    async read(maxBytes, signal) {
      const chunks: Uint8Array[] = [];
      let total = 0;
      const { stdin } = process;
      const onAbort = () => void stdin.destroy();
      signal.addEventListener("abort", onAbort, { once: true });
      try {
        for await (const chunk of stdin as AsyncIterable<Uint8Array>) {
          chunks.push(chunk);
          total += chunk.length;
          if (total > maxBytes) break;
        }
      } finally {
        signal.removeEventListener("abort", onAbort);
        signal.throwIfAborted();
      }
      return Buffer.concat(chunks).subarray(0, maxBytes + 1);
    },
  };
}
