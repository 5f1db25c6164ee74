/** REPL checkpoints: the commands that save the VM of a prompt, go back to what was saved, and go on in a copy. */
import type { CliCheckpoint } from "./context.ts";
import { printable, UsageError } from "./failure.ts";
import type { ReplWorld } from "./repl_command.ts";
import { note } from "./repl_run.ts";
import { sizeOf } from "./run_transfers.ts";

/** `:checkpoint [NAME]`. */
export async function checkpoint([name]: readonly string[], { vm, stderr, signal }: ReplWorld): Promise<void> {
  if (name !== undefined && isNumber(name)) {
    throw new UsageError(`Cannot name a checkpoint: the name must not be a number, got ${name}`, {
      hint: "Numbers are those without a name.",
    });
  }
  const made = await (await vm.session(signal)).checkpoint({ signal, ...(name === undefined ? {} : { name }) });
  const shown = vm.keep(made);
  const until = name === undefined ? "until the end of this prompt" : "until :forget, for every prompt of this user";
  note(stderr, `checkpoint ${shown}, ${sizeOf(made.sizeBytes)}, kept ${until}; :rollback ${shown} goes back to it`);
}

/** `:rollback [CHECKPOINT]`. */
export async function rollBack([text]: readonly string[], { vm, stderr, signal }: ReplWorld): Promise<void> {
  const to = text ?? vm.newestCheckpoint;
  if (to === undefined) throw new UsageError("Cannot roll back: there is no checkpoint of this prompt", { hint: ":checkpoint makes one." });
  await (await vm.session(signal)).rollback(isNumber(to) ? numbered(vm.checkpoints, to) : to, { signal });
  note(stderr, `as it was at checkpoint ${to}`);
}

/** `:fork`. */
export async function fork(_: readonly string[], { vm, stderr, signal }: ReplWorld): Promise<void> {
  const session = await vm.session(signal);
  const [copy] = await session.fork(1, { signal });
  if (copy === undefined) throw new Error("a fork of one has one copy");
  vm.enter(copy);
  note(stderr, "this is a copy; :quit or Ctrl-D closes it and goes back to where it was made");
}

/** `:checkpoints`. */
export async function listCheckpoints(_: readonly string[], { vm, stdout, stderr }: ReplWorld): Promise<void> {
  const all = [
    ...[...vm.checkpoints].map(([number, one]) => [String(number), one] as const),
    ...(await vm.namedCheckpoints()).map((one) => [one.name ?? "", one] as const),
  ];
  if (all.length === 0) return note(stderr, "no checkpoints");
  const width = Math.max(...all.map(([shown]) => shown.length));
  stdout.startLine();
  for (const [shown, { createdAt, language, memoryMb, sizeBytes }] of all) {
    const time = createdAt.toISOString().slice(0, 16).replace("T", " ");
    stdout.write(`${shown.padEnd(width)}  ${time}  ${language.padEnd(10)}  ${memoryMb} MB of memory, ${sizeOf(sizeBytes)}\n`);
  }
}

/** `:forget CHECKPOINT`. */
export async function forget([text = ""]: readonly string[], { vm, stderr }: ReplWorld): Promise<void> {
  if (isNumber(text)) {
    await numbered(vm.checkpoints, text).remove();
    vm.checkpoints.delete(Number(text));
  } else {
    const found = (await vm.namedCheckpoints()).find(({ name }) => name === text);
    if (found === undefined) throw missingError(text);
    await found.remove();
  }
  note(stderr, `checkpoint ${printable(text)} is removed`);
}

function isNumber(text: string): boolean {
  return /^\d+$/.test(text);
}

function numbered(checkpoints: ReadonlyMap<number, CliCheckpoint>, text: string): CliCheckpoint {
  const found = checkpoints.get(Number(text));
  if (found === undefined) throw missingError(text);
  return found;
}

function missingError(text: string): UsageError {
  return new UsageError(`Cannot find the checkpoint ${printable(text)}: there is none`, { hint: ":checkpoints lists those there are." });
}
