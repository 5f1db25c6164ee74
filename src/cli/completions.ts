/** `sbx completions`: prints a completion script for a shell, made from the command tree. */
import type { Command, Input, LoadTree } from "./command.ts";
import { bashCompletion } from "./completion_bash.ts";
import { fishCompletion } from "./completion_fish.ts";
import { zshCompletion } from "./completion_zsh.ts";
import type { CliContext } from "./context.ts";
import { EXIT, UsageError } from "./failure.ts";

/** The generator of each shell. */
export const SHELLS: Readonly<Record<string, (commands: readonly Command[]) => string>> = {
  bash: bashCompletion,
  zsh: zshCompletion,
  fish: fishCompletion,
};

/** The command. */
export const completions: Command = {
  name: "completions",
  summary: "print a completion script for bash, zsh or fish",
  argument: { name: "SHELL", isRequired: true, completion: Object.keys(SHELLS), help: "bash, zsh or fish" },
  examples: [
    [`eval "$(sbx completions bash)"`, "in ~/.bashrc"],
    ['sbx completions zsh > "${fpath[1]}/_sbx"', "once, for zsh"],
    ["sbx completions fish > ~/.config/fish/completions/sbx.fish", "once, for fish"],
  ],
  run: execute,
};

async function execute(context: CliContext, input: Input, loadTree: LoadTree): Promise<number> {
  const shell = input.positionals[0] ?? "";
  const generate = Object.hasOwn(SHELLS, shell) ? SHELLS[shell] : undefined;
  if (generate === undefined) {
    throw new UsageError(`Cannot complete for ${JSON.stringify(shell)}: the shell must be one of ${Object.keys(SHELLS).join(", ")}`);
  }
  context.stdout.write(generate(await loadTree()));
  return EXIT.ok;
}
