/** `sbx session`: a prompt on one VM that is kept, a shell in it, or a program from standard input run block by block. */
import path from "node:path";
import { TIMEOUT_MAX_SECONDS, TIMEOUT_MIN_SECONDS } from "../base/limits.ts";
import { cacheDirectory } from "../host/platform.ts";
import type { ExposedPort } from "../base/result.ts";
import type { NetworkAccess } from "../run/network_request.ts";
import type { Language } from "../run/request.ts";
import type { Command, Input } from "./command.ts";
import type { CliContext, CliScheduler, OpenOptions, ProgressEvent } from "./context.ts";
import { oneLine, printable, UsageError } from "./failure.ts";
import { exposedJson, exposedText, NETWORK_OPTIONS, type NetworkOptions, NetworkWatch, parseNetworkOptions } from "./network_options.ts";
import { Progress } from "./progress.ts";
import { Repl } from "./repl.ts";
import { Display } from "./repl_display.ts";
import { ImageSupport } from "./repl_images.ts";
import { runPiped } from "./repl_piped.ts";
import { runShell } from "./repl_shell.ts";
import { ReplVm } from "./repl_vm.ts";
import { TRANSFER_OPTIONS } from "./run_transfers.ts";
import { LANGUAGE_CHOICES, parseLanguage } from "./sources.ts";
import { type PlannedUpload, planUpload, uploadTree } from "./transfer.ts";
import { parseUpload } from "./transfer_spec.ts";
import { PACKAGE_OPTIONS, packageFinder, type PackageOptions, parsePackageOptions } from "./package_options.ts";
import { isServerUsed, NO_SERVE_OPTION, parseVmOptions, VM_OPTIONS, type VmOptions } from "./vm_options.ts";

/** A user who sets it wants unused sessions to close. */
const IDLE_VARIABLE = "EXEC_SANDBOX_SESSION_IDLE_TIMEOUT_SECONDS";

/** A user who sets it wants that at a prompt too. */
const TIMEOUT_VARIABLE = "EXEC_SANDBOX_DEFAULT_TIMEOUT_SECONDS";
const TIMEOUT_HELP =
  `seconds each block may run, ${TIMEOUT_MIN_SECONDS}-${TIMEOUT_MAX_SECONDS}; default 30, at a prompt ${TIMEOUT_MAX_SECONDS}`;

/** The command. */
export const session: Command = {
  name: "session",
  summary: "type code at a prompt, on one VM that is kept; or run standard input block by block",
  options: [
    {
      long: "language",
      short: "l",
      value: "LANGUAGE",
      completion: LANGUAGE_CHOICES,
      help: "python, javascript or raw (also py, js, ts, sh, bash); default python",
    },
    ...PACKAGE_OPTIONS,
    ...VM_OPTIONS.map((option) => option.long === "timeout" ? { ...option, help: TIMEOUT_HELP } : option),
    ...NETWORK_OPTIONS,
    ...TRANSFER_OPTIONS.filter((option) => option.long === "upload"),
    { long: "shell", help: "open a shell in the VM instead of a prompt" },
    { long: "json", help: "read standard input and print a machine-readable result of each block, one on a line" },
    { long: "quiet", short: "q", help: "show no progress and no welcome" },
    { long: "debug", help: "stream boot and agent logs to standard error" },
    NO_SERVE_OPTION,
  ],
  examples: [
    ["sbx session", "a Python prompt; :help shows commands and keys"],
    ["sbx session -l js -m 512", "JavaScript and TypeScript, with more memory"],
    ["sbx session --shell", "a shell in a VM"],
    ["sbx session -p numpy -p pandas", "packages, installed once"],
    ["sbx session --upload data.csv", "with a file in the VM"],
    ["printf 'x = 20\\nx + 22\\n' | sbx session", "a program, block by block"],
  ],
  run: execute,
};

interface SessionOptions {
  readonly language: Language;
  readonly request: VmOptions;
  readonly packages: PackageOptions;
  readonly network: NetworkOptions;
  readonly watch: NetworkWatch;
  /** Put into every VM that the session has. */
  readonly uploads: readonly PlannedUpload[];
  readonly isShell: boolean;
  readonly isJson: boolean;
  readonly isQuiet: boolean;
  readonly isDebug: boolean;
  readonly isServerUsed: boolean;
}

async function parseOptions(input: Input, { env, signal }: CliContext): Promise<SessionOptions> {
  const given = input.value("language");
  const language = given === undefined ? "python" : parseLanguage(given),
    request = parseVmOptions(input),
    network = parseNetworkOptions(input);
  const uploads = await Promise.all(input.values("upload").map(parseUpload).map((spec) => planUpload(spec, signal)));
  return {
    language,
    request,
    packages: parsePackageOptions(input),
    network,
    watch: new NetworkWatch(network), // Last: nothing fails after it.
    uploads,
    isShell: input.has("shell"),
    isJson: input.has("json"),
    isQuiet: input.has("quiet"),
    isDebug: input.has("debug"),
    isServerUsed: isServerUsed(input, env),
  };
}

async function execute(context: CliContext, input: Input): Promise<number> {
  const options = await parseOptions(input, context);
  using _watch = options.watch;
  const hasTerminal = context.stdin.isTty && context.stderr.isTty;
  if (options.isShell) {
    if (options.isJson) throw new UsageError("Cannot open a shell: --shell and --json exclude each other");
    if (!hasTerminal) {
      const hint = context.env["TERM"] === "dumb"
        ? { hint: "TERM=dumb stands for a terminal without any control: set it to what you have." }
        : {};
      throw new UsageError("Cannot open a shell: standard input and standard error must be a terminal", hint);
    }
    return await shell(context, options);
  }
  return hasTerminal && !options.isJson ? await prompt(context, options) : await piped(context, options);
}

/** What tells of the work before the session is there. */
interface Voices {
  readonly onProgress: (event: ProgressEvent) => void;
  /** Takes text of logs, whole lines or not. */
  readonly onText: (text: string) => void;
}

/** The scheduler and the VM, both of which start in the background. The caller owns the VM, and so the scheduler. */
function startVm(context: CliContext, options: SessionOptions, { onProgress, onText }: Voices): ReplVm {
  const { isDebug, isQuiet, isServerUsed, packages: { isValidated } } = options;
  const opening: OpenOptions = { onProgress, onLog: (line) => onText(`${line}\n`), isDebug, isQuiet, isValidated, isServerUsed };
  const tellPorts = (ports: readonly ExposedPort[]) =>
    onText(options.isJson ? `${JSON.stringify({ event: "exposed_ports", exposed_ports: exposedJson(ports) })}\n` : exposedText(ports));
  let scheduler: Promise<CliScheduler> | undefined;
  return new ReplVm(options.language, {
    isKeptAlive: !context.env[IDLE_VARIABLE],
    namedCheckpoints: async () => await (await (scheduler ??= context.openScheduler(opening))).checkpoints(),
    open: async (language, leaving, access) => {
      scheduler ??= context.openScheduler(opening);
      const signal = AbortSignal.any([leaving, context.signal]);
      const opened = await scheduler;
      // Packages are of the language that was asked for first.
      const packages = language === options.language
        ? await packageFinder(options.packages, { scheduler: opened, stderr: context.stderr, progress: { clear() {} }, isQuiet, signal })(
          language,
        )
        : {};
      const session = await opened.session({
        language,
        ...packages,
        ...options.request,
        ...networkFields(options.network.fields, access),
        ...options.watch.hooks,
        ...(options.network.fields.exposePorts ? { onExposedPorts: tellPorts } : {}),
        signal,
        ...(isDebug ? { onBootLog: onText } : {}),
      });
      try {
        // One after the other: a later one may go into what an earlier one made.
        for (const upload of options.uploads) await uploadTree(session, upload, { signal });
      } catch (error) {
        await session.close();
        throw error;
      }
      return session;
    },
    close: async () => {
      const opened = await scheduler?.catch(() => undefined); // Whoever waited for the session has seen it.
      await opened?.[Symbol.asyncDispose]();
    },
  });
}

/** Of a prompt's later VMs: ports as they were asked for, access as it was changed since. */
function networkFields({ exposePorts, ...asked }: NetworkOptions["fields"], access: NetworkAccess | undefined): NetworkOptions["fields"] {
  return { ...(access ?? asked), ...(exposePorts ? { exposePorts } : {}) };
}

function directoryOf(context: CliContext, name: string): string {
  return path.join(cacheDirectory(context.env), name);
}

async function prompt(context: CliContext, options: SessionOptions): Promise<number> {
  const { stdout, stderr, env, signal } = context, { isQuiet, isDebug } = options;
  // Whoever sits there has Ctrl-C, and a time-out would cost all that was typed.
  const timeoutSeconds = options.request.timeoutSeconds ?? (env[TIMEOUT_VARIABLE] ? undefined : TIMEOUT_MAX_SECONDS);
  const screen: { repl?: Repl } = {};
  await using vm = startVm(context, options, {
    onProgress: ({ task, message = "", isDone }) => screen.repl?.setStatus(isDone || isQuiet ? "" : oneLine(`${task}: ${message}`)),
    onText: (text) => screen.repl === undefined ? stderr.write(printable(text)) : screen.repl.print(text),
  });
  const images = new ImageSupport(env, stdout.isTty ? (question) => stdout.write(question) : undefined);
  const display = new Display({
    stdout,
    stderr,
    directory: directoryOf(context, "figures"),
    protocol: async () => stdout.isTty ? await images.protocol() : undefined,
  });
  using terminal = await context.openTerminal();
  const repl = screen.repl = new Repl({
    vm,
    terminal,
    stdout,
    stderr,
    display,
    env,
    signal,
    historyDirectory: directoryOf(context, "history"),
    onAnswer: (text) => images.take(text),
    timeoutSeconds,
    isQuiet,
    isDebug,
  });
  return await repl.run();
}

async function shell(context: CliContext, options: SessionOptions): Promise<number> {
  const { stdout, env, signal } = context;
  using progress = new Progress(context.stderr, { isQuiet: options.isQuiet });
  await using vm = startVm(context, options, plainVoices(context, progress));
  const session = await vm.session(signal);
  progress.clear();
  using terminal = await context.openTerminal();
  return await runShell(session, { terminal, stdout, env, signal });
}

async function piped(context: CliContext, options: SessionOptions): Promise<number> {
  const { stdout, stderr, env } = context, { request: { timeoutSeconds }, isJson, isQuiet, isDebug } = options;
  using progress = new Progress(stderr, { isQuiet });
  await using vm = startVm(context, options, plainVoices(context, progress));
  const images = new ImageSupport(env);
  const display = new Display({
    stdout,
    stderr,
    directory: directoryOf(context, "figures"),
    protocol: async () => stdout.isTty ? await images.protocol() : undefined,
  });
  return await runPiped({ vm, context, display, timeoutSeconds, isJson, isQuiet, isDebug });
}

function plainVoices({ stderr }: CliContext, progress: Progress): Voices {
  return {
    onProgress: progress.update,
    onText: (text) => {
      progress.clear();
      stderr.write(printable(text));
    },
  };
}
