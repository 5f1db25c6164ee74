/** Program: from the command line to a command and its exit status. */
import { Command as Parser, CommanderError } from "commander";
import { assert } from "../base/errors.ts";
import { type Command, COMMON_OPTIONS, DEFAULT_COMMAND, Input } from "./command.ts";
import { COMMANDS, loadCommands } from "./commands.ts";
import type { CliContext } from "./context.ts";
import { errorJson, EXIT, exitCodeOf, InterruptedError, reportError, UsageError } from "./failure.ts";
import { writeJson } from "./result_json.ts";
import { VERSION } from "../config/version.ts";

/** Runs the command that `args` ask for; every failure is reported, and told by the exit status returned. */
export async function runProgram(args: readonly string[], context: CliContext): Promise<number> {
  const [first, ...rest] = args;
  if (first === "help") return await helpOn(rest, context);
  if (first === undefined || first === "-h" || first === "--help") return await showHelp(first === undefined, context);
  const name = Object.hasOwn(COMMANDS, first) ? first : DEFAULT_COMMAND;
  const load = COMMANDS[name];
  assert(load !== undefined, `command ${name} is missing`);
  const command = await load();
  return await runCommand(command, name === first ? rest : args, context);
}

/** `sbx help COMMAND…`: the same as `sbx COMMAND… --help`, but never of the default command. */
async function helpOn(words: readonly string[], context: CliContext): Promise<number> {
  const [first] = words;
  if (first === undefined || first === "-h" || first === "--help") return await showHelp(false, context);
  let known = await loadCommands();
  for (const [index, word] of words.entries()) {
    const command = known.find((each) => each.name === word);
    if (command === undefined) {
      const names = known.map((each) => each.name).join(", ");
      const wanted = index === 0 ? `the commands are ${names}` : `${words[index - 1]} has ${names || "no commands"}`;
      const message = `Cannot help with ${JSON.stringify(words.join(" "))}: ${wanted}`;
      reportError(context.stderr, new UsageError(message, { hint: "See sbx --help." }));
      return EXIT.usage;
    }
    known = command.commands ?? [];
  }
  return await runProgram([...words, "--help"], context);
}

async function runCommand(root: Command, args: readonly string[], context: CliContext): Promise<number> {
  const isJson = isGiven("json", root, args);
  let code: number;
  try {
    const parsed = parse(root, args, context);
    code = parsed === undefined ? EXIT.ok : await parsed.run();
  } catch (error) {
    if (isJson) writeJson(context.stdout, { error: errorJson(error) });
    else if (!(error instanceof InterruptedError)) reportError(context.stderr, error, { isDebug: isGiven("debug", root, args) });
    code = exitCodeOf(error);
  }
  // An interrupt ends the program whatever its parts made of it, and is told once.
  if (context.signal.reason instanceof InterruptedError && !root.isEndedBySignal) {
    reportError(context.stderr, context.signal.reason);
    return context.signal.reason.exitCode;
  }
  return code;
}

/** What is to be run; undefined when help or version were asked for and written. */
function parse(root: Command, args: readonly string[], context: CliContext): { run(): Promise<number> } | undefined {
  let chosen: { run(): Promise<number> } | undefined;
  const parser = parserOf(root, `sbx ${root.name}`, context, (command, input) => {
    const { run } = command;
    assert(run !== undefined, `command ${command.name} does nothing`);
    chosen = { run: () => run.call(command, context, input, loadCommands) };
  });
  try {
    parser.parse([...args], { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return undefined;
    throw usageErrorOf(error, root);
  }
  return chosen;
}

/** Commander's own message in our form: its second line is advice. */
function usageErrorOf(error: CommanderError, root: Command): UsageError {
  if (error.code === "commander.help") {
    const names = (root.commands ?? []).map((command) => command.name);
    return new UsageError(`Nothing to do: give one of ${names.join(", ")}`, { hint: `See sbx ${root.name} --help.` });
  }
  const [message = "", ...advice] = error.message.replace(/^error: /, "").split("\n");
  const hint = [...advice.map((line) => line.replace(/^\((.*)\)$/, "$1")), `See sbx ${root.name} --help.`].join(" ");
  return new UsageError(`Cannot read the command line: ${message}`, { hint });
}

type OnChosen = (command: Command, input: Input) => void;

function parserOf(command: Command, name: string, context: CliContext, onChosen: OnChosen): Parser {
  const parser = styled(new Parser(name), context).summary(command.summary).description(sentence(command.summary));
  for (const option of command.options ?? []) {
    const flags = `${option.short === undefined ? "" : `-${option.short}, `}--${option.long}${
      option.value === undefined ? "" : ` <${option.value}>`
    }`;
    const isList = option.isRepeatable === true;
    parser.option(flags, option.help, (value: string, before: string[] | undefined) => isList ? [...(before ?? []), value] : [value]);
  }
  const { argument } = command;
  if (argument !== undefined) {
    const text = `${argument.name}${argument.isVariadic ? "..." : ""}`;
    parser.argument(argument.isRequired ? `<${text}>` : `[${text}]`, argument.help);
  }
  if (command.examples !== undefined) parser.addHelpText("after", `\n${examplesOf(command.examples)}`);
  for (const sub of command.commands ?? []) parser.addCommand(parserOf(sub, sub.name, context, onChosen));
  if (command.run !== undefined) parser.action(() => onChosen(command, new Input(command, parser.args, givenOf(parser))));
  return parser;
}

/** The options that were on the command line. */
function givenOf(parser: Parser): Map<string, readonly string[]> {
  const given = new Map<string, readonly string[]>();
  for (const option of parser.options) {
    const value: unknown = parser.getOptionValue(option.attributeName());
    // An option that begins with "no-" has a value, true, when it was not given.
    const isGiven = value !== undefined && parser.getOptionValueSource(option.attributeName()) !== "default";
    if (option.long && isGiven) given.set(option.long.slice(2), Array.isArray(value) ? value : []);
  }
  return given;
}

/** Columns that a description is still wrapped in; in fewer the terminal breaks it. */
const HELP_WIDTH_MIN = 20;

/** What all parsers share: `-h` and `-V`, errors thrown instead of printed, output through the context. */
function styled(parser: Parser, { stdout, stderr }: CliContext): Parser {
  const [help, version] = COMMON_OPTIONS;
  assert(help !== undefined && version !== undefined, "the common options are help and version");
  return parser
    .helpOption(`-${help.short}, --${help.long}`, help.help)
    .version(VERSION, `-${version.short}, --${version.long}`, version.help)
    .helpCommand(false)
    .exitOverride()
    .configureHelp({ minWidthToWrap: HELP_WIDTH_MIN })
    .configureOutput({
      writeOut: (text) => stdout.write(text),
      writeErr: () => {}, // Errors are thrown, and reported in one place.
      getOutHelpWidth: () => Math.min(stdout.columns, 120),
      getOutHasColors: () => stdout.hasColor,
      getErrHelpWidth: () => stderr.columns,
    });
}

/** Writes the help of the whole program; without any argument it is the answer to a usage error. */
async function showHelp(isMistake: boolean, context: CliContext): Promise<number> {
  const commands = await loadCommands();
  const parser = styled(new Parser("sbx"), context)
    .description("Run untrusted Python, JavaScript/TypeScript and shell code, each execution in its own QEMU microVM.")
    .usage("[command]");
  for (const command of commands) parser.addCommand(parserOf(command, command.name, context, () => {}));
  const examples = commands.find((command) => command.name === DEFAULT_COMMAND)?.examples ?? [];
  const output = isMistake ? context.stderr : context.stdout;
  output.write(`${parser.helpInformation()}\nA first argument that is no command means ${DEFAULT_COMMAND}.\n\n${examplesOf(examples)}\n`);
  return isMistake ? EXIT.usage : EXIT.ok;
}

function examplesOf(examples: NonNullable<Command["examples"]>): string {
  return `Examples:\n${examples.map(([line, meaning]) => `  # ${meaning}\n  ${line}`).join("\n")}`;
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

/** Was the flag given, on a command line that may not be readable as a whole? */
function isGiven(long: string, root: Command, args: readonly string[]): boolean {
  const commands = [root, ...(root.commands ?? [])];
  const options = commands.flatMap((command) => command.options ?? []).filter((option) => option.value !== undefined);
  const valued = new Set(options.flatMap((option) => [`--${option.long}`, `-${option.short}`]));
  for (let at = 0; at < args.length && args[at] !== "--"; at += 1) {
    if (args[at] === `--${long}`) return true;
    if (valued.has(args[at] ?? "")) at += 1; // Its value is not an option, whatever it looks like.
  }
  return false;
}
