/** Completion for zsh. */
import { type Command, COMMON_OPTIONS, type Completion, DEFAULT_COMMAND, type OptionSpec } from "./command.ts";

/** The script; works from `fpath` and by `eval`. */
export function zshCompletion(commands: readonly Command[]): string {
  const groups = commands.filter((command) => command.commands !== undefined);
  const leaves = commands.filter((command) => command.commands === undefined);
  const functions = [
    ...leaves.map((command) => leafFunction(`_sbx_${command.name}`, command)),
    ...groups.flatMap((group) => [
      groupFunction(group),
      ...(group.commands ?? []).map((sub) => leafFunction(`_sbx_${group.name}_${sub.name}`, sub)),
    ]),
  ];
  return `#compdef sbx
# zsh completion for sbx; made by \`sbx completions zsh\`.

_sbx_commands() {
  local -a commands
  commands=(
${commands.map((command) => `    ${quote(`${command.name}:${command.summary}`)}`).join("\n")}
  )
  _describe -t commands 'command' commands
}

${functions.join("\n\n")}

_sbx() {
  if (( CURRENT == 2 )); then
    _alternative 'commands:command:_sbx_commands' 'sources:source:_sbx_${DEFAULT_COMMAND}'
    return
  fi
  case "$words[2]" in
    ${commands.map((command) => command.name).join("|")})
      local name="$words[2]"
      shift words
      (( CURRENT-- ))
      "_sbx_$name"
      ;;
    *) _sbx_${DEFAULT_COMMAND} ;;
  esac
}

if [ "$funcstack[1]" = "_sbx" ]; then
  _sbx "$@"
else
  compdef _sbx sbx
fi
`;
}

function leafFunction(name: string, command: Command): string {
  const specs = [...(command.options ?? []), ...COMMON_OPTIONS].map(optionSpec);
  const { argument } = command;
  if (argument !== undefined) {
    specs.push(quote(`${argument.isVariadic ? "*" : "1"}:${escape(argument.help)}:${action(argument.completion)}`));
  }
  return `${name}() {\n  _arguments -s -S \\\n${specs.map((spec) => `    ${spec}`).join(" \\\n")}\n}`;
}

function groupFunction(group: Command): string {
  const subs = group.commands ?? [];
  return `_sbx_${group.name}() {
  if (( CURRENT == 2 )); then
    local -a commands
    commands=(
${subs.map((sub) => `      ${quote(`${sub.name}:${sub.summary}`)}`).join("\n")}
    )
    _describe -t commands 'command' commands
    return
  fi
  case "$words[2]" in
    ${subs.map((sub) => sub.name).join("|")})
      local name="$words[2]"
      shift words
      (( CURRENT-- ))
      "_sbx_${group.name}_$name"
      ;;
  esac
}`;
}

/** An option for \`_arguments\`: what it excludes, how it is spelled, what it does, what value it takes. */
function optionSpec(option: OptionSpec): string {
  const spellings = [...(option.short === undefined ? [] : [`-${option.short}`]), `--${option.long}`];
  const value = option.value === undefined ? "" : `:${option.value.replaceAll(":", "\\:")}:${action(option.completion ?? "nothing")}`;
  const suffix = (name: string) => option.value === undefined ? name : name.startsWith("--") ? `${name}=` : `${name}+`;
  const help = `[${escape(option.help)}]${value}`;
  const exclusion = option.isRepeatable ? "*" : `(${spellings.join(" ")})`;
  if (spellings.length === 1) return quote(`${option.isRepeatable ? "*" : ""}${suffix(`--${option.long}`)}${help}`);
  return `${quote(exclusion)}{${spellings.map(suffix).join(",")}}${quote(help)}`;
}

function action(completion: Completion): string {
  if (completion === "file") return "_files";
  return completion === "nothing" ? " " : `(${completion.join(" ")})`;
}

function escape(text: string): string {
  return text.replace(/[[\]:\\]/g, "\\$&");
}

function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
