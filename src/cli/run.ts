/** `sbx run`: one or more sources, each in a VM of its own. */
import { Semaphore } from "../base/async.ts";
import { TIMEOUT_MAX_SECONDS } from "../base/limits.ts";
import { messageOf } from "../base/errors.ts";
import { lineLogger, type Logger, silentLogger } from "../base/log.ts";
import type { ExposedPort } from "../base/result.ts";
import type { PackageFields } from "../run/package_request.ts";
import type { Language, RunRequest } from "../run/request.ts";
import type { CliContext, CliScheduler } from "./context.ts";
import type { Command, Input } from "./command.ts";
import { EXIT, exitCodeOf, InterruptedError, printable, reportError, writeReport } from "./failure.ts";
import {
  NETWORK_OPTIONS,
  type NetworkOptions,
  NetworkWatch,
  OBSERVE_OPTION,
  observedText,
  parseNetworkOptions,
  tellExposed,
} from "./network_options.ts";
import { PACKAGE_OPTIONS, packageFinder, parsePackageOptions } from "./package_options.ts";
import { Progress } from "./progress.ts";
import { failedDownload, type Outcome, outcomeJson, partialResult, writeJson } from "./result_json.ts";
import { planTransfers, TRANSFER_OPTIONS, type Transfers } from "./run_transfers.ts";
import { LANGUAGE_CHOICES, parseLanguage, readSources, type Source } from "./sources.ts";
import { isServerUsed, NO_SERVE_OPTION, numberOption, parseVmOptions, VM_OPTIONS, type VmOptions } from "./vm_options.ts";

/** The command. */
export const run: Command = {
  name: "run",
  summary: "run one or more sources, each in its own VM, concurrently (the default command)",
  argument: {
    name: "SOURCES",
    isVariadic: true,
    completion: "file",
    help: "code, a path to a file, or - for standard input",
  },
  options: [
    {
      long: "language",
      short: "l",
      value: "LANGUAGE",
      completion: LANGUAGE_CHOICES,
      help: "python, javascript or raw (also py, js, ts, sh, bash); default: from the file's extension, else python",
    },
    { long: "code", short: "c", value: "CODE", isRepeatable: true, help: "inline code, repeatable; runs before the positional sources" },
    ...PACKAGE_OPTIONS,
    ...VM_OPTIONS,
    ...NETWORK_OPTIONS,
    OBSERVE_OPTION,
    ...TRANSFER_OPTIONS,
    { long: "json", help: "print a machine-readable result on standard output" },
    { long: "quiet", short: "q", help: "show no progress" },
    { long: "debug", help: "stream boot and agent logs to standard error" },
    NO_SERVE_OPTION,
    { long: "jobs", short: "j", value: "N", help: "how many sources run at once; default: as many as the host admits" },
  ],
  examples: [
    [`sbx run 'print("Hello from sandbox")'`, "inline code"],
    ["sbx run script.py app.ts -j 2", "files; the extension names the language"],
    ["sbx run -l bash -c 'uname -a'", "a shell program"],
    ["echo 'console.log(1)' | sbx run -l js -", "standard input"],
    ["sbx run --upload data.csv --download plot.png plot.py", "a file into the VM, and one out of it"],
    ["sbx run --allow-domain api.example.com fetch.py", "one domain and nothing else"],
    ["sbx run -p requests==2.32.5 --allow-domain example.com fetch.py", "a package, installed once"],
    ["sbx run --expose 8080 server.py", "a server on 127.0.0.1"],
    [`sbx run --json -t 5 'while True: pass'`, "a result for programs"],
  ],
  run: execute,
};

/** What the options say, checked. */
export interface RunOptions {
  readonly request: VmOptions;
  readonly jobs: number | undefined;
  readonly isJson: boolean;
  readonly isQuiet: boolean;
  readonly isDebug: boolean;
}

/** Reads the options. Throws `UsageError`, or `EnvVarValidationError` for `--env`. */
export function parseRunOptions(input: Input): RunOptions {
  return {
    request: parseVmOptions(input),
    jobs: numberOption(input, "jobs", { min: 1, unit: "", isWhole: true }),
    isJson: input.has("json"),
    isQuiet: input.has("quiet"),
    isDebug: input.has("debug"),
  };
}

async function execute(context: CliContext, input: Input): Promise<number> {
  const options = parseRunOptions(input);
  const given = input.value("language");
  const sources = await readSources({
    codes: input.values("code"),
    positionals: input.positionals,
    language: given === undefined ? undefined : parseLanguage(given),
  }, context);
  using progress = new Progress(context.stderr, { isQuiet: options.isQuiet });
  const packages = parsePackageOptions(input);
  const network = parseNetworkOptions(input, { hasObserve: true, sourceCount: sources.length });
  using watch = new NetworkWatch(network);
  const transfers = await planTransfers(input, { sourceCount: sources.length, context, progress });
  const onLog = (line: string) => {
    progress.clear();
    context.stderr.startLine();
    context.stderr.write(`${printable(line)}\n`);
  };
  const { isDebug, isQuiet } = options;
  const log = isDebug ? lineLogger("debug", onLog) : silentLogger();
  await using scheduler = await context.openScheduler({
    onProgress: progress.update,
    onLog,
    isDebug,
    isQuiet,
    isValidated: packages.isValidated,
    isServerUsed: isServerUsed(input, context.env),
  });
  const packagesFor = packageFinder(packages, { scheduler, progress, isQuiet, ...context });
  const [only] = sources,
    job: Job = { context, scheduler, options, progress, log, transfers, network, watch, packagesFor, isAlone: sources.length === 1 };
  const code = only !== undefined && job.isAlone ? await runOne(only, job) : await runSeveral(sources, job);
  progress.clear();
  if (watch.observed && !options.isJson) {
    context.stderr.startLine();
    context.stderr.write(observedText(watch.observed));
  }
  if (watch.failure !== undefined) writeReport(context.stderr, { message: watch.failure });
  return code;
}

interface Job {
  readonly context: CliContext;
  readonly scheduler: CliScheduler;
  readonly options: RunOptions;
  readonly progress: Progress;
  readonly log: Logger;
  /** What goes into each VM and comes out of it. */
  readonly transfers: Transfers | undefined;
  readonly network: NetworkOptions;
  readonly watch: NetworkWatch;
  /** What the package options mean for sources of a language. */
  readonly packagesFor: (language: Language) => Promise<PackageFields>;
  /** There is one source. */
  readonly isAlone: boolean;
}

/** Runs one source; its output passes through as it arrives, unless a result is wanted as JSON. */
async function runOne(source: Source, job: Job): Promise<number> {
  const { context: { stdout, stderr }, options, progress } = job;
  const pass = (output: { write(text: string): void }) => (text: string) => {
    progress.clear();
    output.write(text);
  };
  const outcome = await runSource(source, { ...job, index: 0 }, options.isJson ? {} : { onStdout: pass(stdout), onStderr: pass(stderr) });
  progress.clear();
  if (options.isJson) writeJson(stdout, { ...outcomeJson(outcome), ...observedJson(job) });
  else reportOutcome(outcome, job);
  return exitCodeOfOutcome(outcome);
}

/** Runs the sources side by side; prints each whole, in their order, as soon as those before it are printed. */
async function runSeveral(sources: readonly Source[], job: Job): Promise<number> {
  const { context: { stdout, stderr, signal }, options, progress } = job;
  const gate = options.jobs === undefined ? undefined : new Semaphore(options.jobs);
  const running = sources.map(async (source, index): Promise<Outcome> => {
    try {
      using _permit = await gate?.acquire(signal);
      return await runSource(source, { ...job, index });
    } catch (error) {
      return { error };
    }
  });
  const outcomes: Outcome[] = [];
  for (const [index, source] of sources.entries()) {
    const outcome = await running[index] as Outcome;
    outcomes.push(outcome);
    if (options.isJson) continue;
    progress.clear();
    if (stderr.isTty && !options.isQuiet) {
      stderr.startLine();
      stderr.write(`${header(`${index + 1}/${sources.length} ${printable(source.label)}`, stderr.hasColor)}\n`);
    }
    const result = "result" in outcome ? outcome.result : partialResult(outcome.error);
    if (result?.stdout) stdout.write(result.stdout);
    if (result?.stderr) stderr.write(result.stderr);
    reportOutcome(outcome, job, source.label);
  }
  if (options.isJson) {
    writeJson(
      stdout,
      outcomes.map((outcome, index) => ({ index, source: sources[index]?.source, ...outcomeJson(outcome), ...observedJson(job) })),
    );
  }
  if (signal.aborted) return exitCodeOf(signal.reason);
  return outcomes.map(exitCodeOfOutcome).find((code) => code !== 0) ?? 0;
}

/** What was observed, beside the result; with several sources what all of them needed. */
function observedJson({ watch: { observed } }: Job): Record<string, unknown> {
  return observed === undefined ? {} : { observed_domains: observed.domains, observed_others: observed.others };
}

function header(text: string, hasColor: boolean): string {
  return hasColor ? `\x1b[1m── ${text}\x1b[0m` : `── ${text}`;
}

/** Runs one source; a failure is an outcome too. */
async function runSource(
  source: Source,
  { context, scheduler, options, progress, log, transfers, network, watch, packagesFor, isAlone, index }: Job & { readonly index: number },
  callbacks: Pick<RunRequest, "onStdout" | "onStderr"> = {},
): Promise<Outcome> {
  await using transfer = transfers?.forSource(index);
  const tell = (ports: readonly ExposedPort[]) => {
    progress.clear();
    tellExposed(context.stderr, ports, { isJson: options.isJson, index: isAlone ? undefined : index });
  };
  const request: Omit<RunRequest, keyof PackageFields> = {
    code: source.code,
    language: source.language,
    ...options.request,
    ...network.fields,
    ...watch.hooks,
    ...(network.fields.exposePorts ? { onExposedPorts: tell } : {}),
    signal: context.signal,
    ...callbacks,
    ...transfer?.hooks,
    ...(options.isDebug ? { onBootLog: (text: string) => context.stderr.write(printable(text)) } : {}),
  };
  try {
    const result = await scheduler.run({ ...request, ...await packagesFor(source.language) });
    const { start, exitCode, timing } = result;
    log.debug("run finished", { index, start, exitCode, ...timing });
    return { result, ...transfer?.outcome };
  } catch (error) {
    log.debug("run failed", { index, reason: messageOf(error) });
    return { error, ...transfer?.outcome };
  }
}

/** Says on standard error what the program's own output cannot say. An interrupt is told once for all, by our caller. */
function reportOutcome(outcome: Outcome, { context: { stderr }, options }: Job, label?: string): void {
  if ("error" in outcome) {
    if (outcome.error instanceof InterruptedError) return;
    reportError(stderr, outcome.error, { isDebug: options.isDebug, ...(label === undefined ? {} : { label }) });
  } else if (outcome.result.timedOut) {
    const hint = `--timeout SECONDS allows up to ${TIMEOUT_MAX_SECONDS}.`;
    writeReport(stderr, { message: "The code ran out of time and was ended", hint, ...(label === undefined ? {} : { label }) });
  }
  for (const download of outcome.downloads ?? []) {
    if (!("error" in download) || download.error instanceof InterruptedError) continue;
    reportError(stderr, download.error, { isDebug: options.isDebug, ...(label === undefined ? {} : { label }) });
  }
}

/** The exit status of one outcome: the program's own, or ours. */
function exitCodeOfOutcome(outcome: Outcome): number {
  if ("error" in outcome) return exitCodeOf(outcome.error);
  if (outcome.result.timedOut) return EXIT.timedOut;
  const failed = failedDownload(outcome);
  if (failed !== undefined) return exitCodeOf(failed);
  // -1 without a time-out: the status was lost.
  return outcome.result.exitCode < 0 ? EXIT.sandbox : outcome.result.exitCode;
}
