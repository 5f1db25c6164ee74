/** REPL commands: what begins with a colon at the prompt. */
import type { Language } from "../run/request.ts";
import { TIMEOUT_MAX_SECONDS, TIMEOUT_MIN_SECONDS } from "../base/limits.ts";
import { printable, UsageError } from "./failure.ts";
import type { Progress } from "./progress.ts";
import { checkpoint, forget, fork, listCheckpoints, rollBack } from "./repl_checkpoints.ts";
import type { ReplCommand, ReplWorld } from "./repl_command.ts";
import { network } from "./repl_network.ts";
import { expandHome } from "./repl_paths.ts";
import { note } from "./repl_run.ts";
import { nearest, wordsOf } from "./repl_words.ts";
import { sizeOf, transferProgress } from "./run_transfers.ts";
import { LANGUAGE_CHOICES, parseLanguage } from "./sources.ts";
import { downloadTree, type Transferred, uploadTree } from "./transfer.ts";
import { checkDownload, checkUpload, STANDARD_OUTPUT } from "./transfer_spec.ts";

/** Every command, in the order of the help. */
export const REPL_COMMANDS: readonly ReplCommand[] = [
  {
    name: "upload",
    usage: "LOCAL [GUEST]",
    words: ["local", "guest"],
    wordsMin: 1,
    help: "copy a file or directory of this host into the VM",
    run: upload,
  },
  {
    name: "download",
    usage: "GUEST [LOCAL]",
    words: ["guest", "local"],
    wordsMin: 1,
    help: "copy a file or directory of the VM to this host",
    run: download,
  },
  { name: "files", usage: "[DIR]", words: ["guest-directory"], wordsMin: 0, help: "list files of the VM", run: listFiles },
  {
    name: "processes",
    aliases: ["ps"],
    usage: "",
    words: [],
    wordsMin: 0,
    help: "list the processes started beside the prompt",
    run: listProcesses,
  },
  { name: "shell", usage: "", words: [], wordsMin: 0, help: "open a shell in the VM; leave it with exit", run: openShell },
  {
    name: "reset",
    usage: "",
    words: [],
    wordsMin: 0,
    help: "start a new VM of the same language; variables and files are gone",
    run: (_, world) => world.changeVm(world.vm.language),
  },
  {
    name: "lang",
    usage: "LANGUAGE",
    words: ["language"],
    wordsMin: 1,
    help: "start a VM of another language in place of this one",
    run: ([name = ""], world) => world.changeVm(languageOf(name)),
  },
  {
    name: "checkpoint",
    usage: "[NAME]",
    words: ["checkpoint"],
    wordsMin: 0,
    help: "save the VM as it is: until the end of this prompt, or under a name until it is forgotten",
    run: checkpoint,
  },
  {
    name: "rollback",
    usage: "[CHECKPOINT]",
    words: ["checkpoint"],
    wordsMin: 0,
    help: "go back to a checkpoint, its number or name; default the newest",
    run: rollBack,
  },
  {
    name: "fork",
    usage: "",
    words: [],
    wordsMin: 0,
    help: "go on in a copy of the VM; :quit or Ctrl-D closes it and goes back",
    run: fork,
  },
  { name: "checkpoints", usage: "", words: [], wordsMin: 0, help: "list the checkpoints", run: listCheckpoints },
  { name: "forget", usage: "CHECKPOINT", words: ["checkpoint"], wordsMin: 1, help: "remove a checkpoint", run: forget },
  {
    name: "network",
    usage: "[off|on|allow DOMAIN…]",
    words: ["network", "domain"],
    isOpenEnded: true,
    wordsMin: 0,
    help: "show what code may reach; or change it: nothing, all but private addresses, these domains too",
    run: network,
  },
  {
    name: "timeout",
    usage: "SECONDS",
    words: ["number"],
    wordsMin: 1,
    help: `seconds the code may run, ${TIMEOUT_MIN_SECONDS}-${TIMEOUT_MAX_SECONDS}`,
    run: setTimeoutSeconds,
  },
  { name: "help", aliases: ["h", "?"], usage: "[COMMAND]", words: ["command"], wordsMin: 0, help: "show this help", run: help },
  { name: "quit", aliases: ["q", "exit"], usage: "", words: [], wordsMin: 0, help: "leave (also Ctrl-D)", run: async () => "leave" },
];

const KEYS: ReadonlyArray<readonly [keys: string, meaning: string]> = [
  ["Enter, Alt-Enter", "run what is complete, else continue; always continue"],
  ["Tab", "complete names, files and commands"],
  ["Up, Down, Ctrl-R", "entries that begin with what is typed; search for what they contain"],
  ["Ctrl-C", "clear the block; interrupt code that runs, and the second time end it"],
  ["Ctrl-Z, Ctrl-D", "stop sbx as any other program; leave it"],
];

/** Runs a line that `isCommand` says is one. Throws `UsageError`, and whatever the command throws. */
export async function runCommand(line: string, world: ReplWorld): Promise<"leave" | void> {
  const [first, ...words] = wordsOf(line.trim());
  if ([first, ...words].some((word) => word?.isOpen)) throw new UsageError("Cannot read the command: a quote is not closed");
  const command = findCommand((first?.text ?? "").slice(1));
  const texts = words.map((word) => word.text);
  const hasTooMany = texts.length > command.words.length && !command.isOpenEnded;
  if (texts.length < command.wordsMin || hasTooMany) {
    throw new UsageError(`Cannot run :${command.name}: wanted :${command.name} ${command.usage}`.trimEnd(), {
      hint: hasTooMany ? "Put a name with blanks in quotes." : `:help ${command.name} says more.`,
    });
  }
  return await command.run(texts, world);
}

/** The command of that name. Throws `UsageError` that names the nearest. */
export function findCommand(name: string): ReplCommand {
  const command = REPL_COMMANDS.find((candidate) => candidate.name === name || candidate.aliases?.includes(name));
  if (command !== undefined) return command;
  const near = nearest(name, REPL_COMMANDS.map((candidate) => candidate.name));
  throw new UsageError(`Cannot run :${name}: there is no such command`, {
    hint: `${near === undefined ? "" : `Did you mean :${near}? `}:help lists the commands.`,
  });
}

async function listFiles([directory = "."]: readonly string[], { vm, stdout, stderr, signal }: ReplWorld): Promise<void> {
  const entries = await (await vm.session(signal)).listFiles(directory, { signal });
  if (entries.length === 0) return note(stderr, "no files");
  const sizes = entries.map((entry) => entry.isDir ? "-" : String(entry.size));
  const width = Math.max(...sizes.map((size) => size.length), 0);
  stdout.startLine();
  for (const [at, { name, isDir, type, modifiedMs }] of entries.entries()) {
    const mark = isDir ? "/" : type === "symlink" ? "@" : type === "other" ? "?" : "";
    stdout.write(`${sizes[at]?.padStart(width)}  ${timeOf(modifiedMs)}  ${nameOf(name)}${mark}\n`);
  }
}

/** A name on one line: it may hold anything but a slash. */
function nameOf(name: string): string {
  return printable(name).replace(/[\n\t]/g, "\uFFFD");
}

function timeOf(ms: number): string {
  const date = new Date(ms);
  return Number.isNaN(date.getTime()) ? "?".padStart(16) : date.toISOString().slice(0, 16).replace("T", " ");
}

async function listProcesses(_: readonly string[], { vm, stdout, stderr, signal }: ReplWorld): Promise<void> {
  const processes = await (await vm.session(signal)).processes({ signal });
  if (processes.length === 0) return note(stderr, "no processes beside the prompt");
  stdout.startLine();
  for (const { id, pid, argv, exitCode } of processes) {
    const state = exitCode === null ? "runs" : `ended (${exitCode})`;
    stdout.write(`${String(id).padStart(3)}  ${String(pid).padStart(5)}  ${state.padEnd(11)}  ${nameOf(argv.join(" "))}\n`);
  }
}

async function openShell(_: readonly string[], world: ReplWorld): Promise<void> {
  await world.runShell(await world.vm.session(world.signal));
}

async function setTimeoutSeconds([text = ""]: readonly string[], { stderr, setTimeout }: ReplWorld): Promise<void> {
  const seconds = /^\d+(\.\d+)?$/.test(text) ? Number(text) : NaN;
  if (!(seconds >= TIMEOUT_MIN_SECONDS && seconds <= TIMEOUT_MAX_SECONDS)) {
    const range = `between ${TIMEOUT_MIN_SECONDS} and ${TIMEOUT_MAX_SECONDS}`;
    throw new UsageError(`Cannot set the timeout: must be ${range} seconds, got ${JSON.stringify(text)}`);
  }
  setTimeout(seconds);
  note(stderr, `code may run ${seconds} s`);
}

function languageOf(name: string): Language {
  try {
    return parseLanguage(name);
  } catch {
    throw new UsageError(`Cannot change the language: must be one of ${LANGUAGE_CHOICES.join(", ")}, got ${JSON.stringify(name)}`);
  }
}

async function help([name]: readonly string[], { stdout }: ReplWorld): Promise<void> {
  stdout.startLine();
  if (name !== undefined) {
    const command = findCommand(name.replace(/^:/, ""));
    const aliases = (command.aliases ?? []).map((alias) => `, :${alias}`).join("");
    return stdout.write(`:${command.name} ${command.usage}`.trimEnd() + `${aliases}\n  ${command.help}\n`);
  }
  const rows = [
    ...REPL_COMMANDS.map((command) => [`:${command.name} ${command.usage}`, command.help] as const),
    ["", ""] as const,
    ...KEYS,
  ];
  const width = Math.max(...rows.map(([left]) => left.length));
  for (const [left, right] of rows) stdout.write(`${left.padEnd(width)}  ${right}`.trimEnd() + "\n");
}

async function upload([local = "", guest = ""]: readonly string[], { vm, stderr, signal, progress }: ReplWorld): Promise<void> {
  const spec = checkUpload({ local: expandHome(local), guest }, { action: "run :upload", text: local });
  const session = await vm.session(signal);
  const done = await showing(progress, `upload ${printable(local)}`, (onProgress) => uploadTree(session, spec, { signal, onProgress }));
  note(stderr, `${done.local} → ${summaryOf(done, done.guest)}`);
}

async function download([guest = "", local]: readonly string[], { vm, stdout, stderr, signal, progress }: ReplWorld): Promise<void> {
  const place = local === undefined ? undefined : expandHome(local);
  const spec = checkDownload({ guest, local: place }, { action: "run :download", text: local ?? guest });
  const session = await vm.session(signal);
  const writeOutput = (bytes: Uint8Array) => stdout.writeBytes(bytes);
  const run = (onProgress: OnTransfer) => downloadTree(session, spec, { signal, onProgress, writeOutput });
  const done = await showing(progress, `download ${printable(guest)}`, run);
  if (done.local !== STANDARD_OUTPUT) note(stderr, `${done.guest} → ${summaryOf(done, done.local)}`);
}

type OnTransfer = ReturnType<typeof transferProgress>;

/** Tells of a transfer while it goes on; nothing of that is left when it is over. */
async function showing<T>(progress: Progress, task: string, run: (onProgress: OnTransfer) => Promise<T>): Promise<T> {
  try {
    return await run(transferProgress(progress, task));
  } finally {
    progress.drop(task);
  }
}

function summaryOf({ files, bytes }: Transferred, target: string): string {
  return `${target}, ${files === 1 ? "" : `${files} files, `}${sizeOf(bytes)}`;
}
