/** Completion for bash. */
import { type Command, COMMON_OPTIONS, type Completion, DEFAULT_COMMAND, type OptionSpec } from "./command.ts";

/** The script, for bash 3.2 and newer, without the bash-completion package. */
export function bashCompletion(commands: readonly Command[]): string {
  const pairs = commands.flatMap((command) => (command.commands ?? []).map((sub) => ({ path: `${command.name} ${sub.name}`, sub })));
  const cases = [...commands.map((command) => caseOf(command.name, command)), ...pairs.map(({ path, sub }) => caseOf(path, sub))];
  const names = commands.map((command) => command.name);
  return `# bash completion for sbx; made by \`sbx completions bash\`.
_sbx() {
    local cur prev command words options values files line
    cur=\${COMP_WORDS[COMP_CWORD]}
    prev=\${COMP_WORDS[COMP_CWORD-1]}
    # bash takes "--option=value" apart at "=".
    if [ "$cur" = "=" ]; then
        cur=
    elif [ "$prev" = "=" ]; then
        prev=\${COMP_WORDS[COMP_CWORD-2]}
    fi
    command=${DEFAULT_COMMAND} words= options= values= files=
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="${names.join(" ")}"
    else
        case "\${COMP_WORDS[1]}" in
        ${names.join("|")}) command=\${COMP_WORDS[1]} ;;
        esac
    fi${pairs.length === 0 ? "" : pairLines(pairs.map(({ path }) => path))}
    case "$command" in
${cases.join("\n")}
    esac
    COMPREPLY=()
    if [ "$values" = - ]; then
        return
    elif [ -n "$values" ]; then
        words=$values files=
    elif [ "\${cur#-}" != "$cur" ]; then
        words=$options files=
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    if [ -n "$files" ]; then
        compopt -o filenames 2>/dev/null
        while IFS= read -r line; do
            COMPREPLY+=("$line")
        done < <(compgen -f -- "$cur")
    fi
}
complete -F _sbx sbx
`;
}

function pairLines(paths: readonly string[]): string {
  return `
    if [ "$COMP_CWORD" -gt 2 ]; then
        case "$command \${COMP_WORDS[2]}" in
        ${paths.map((path) => `"${path}"`).join("|")}) command="$command \${COMP_WORDS[2]}" ;;
        esac
    fi`;
}

function caseOf(path: string, command: Command): string {
  const options = [...(command.options ?? []), ...COMMON_OPTIONS];
  const lines = [`    "${path}")`, `        options="${options.flatMap(spellings).join(" ")}"`];
  const { argument } = command;
  if (argument?.completion === "file") lines.push("        files=1");
  const choices = typeof argument?.completion === "object" ? argument.completion : (command.commands ?? []).map((sub) => sub.name);
  if (choices.length > 0) lines.push(`        words="$words ${choices.join(" ")}"`);
  const valued = options.filter((option) => option.value !== undefined);
  if (valued.length > 0) {
    lines.push('        case "$prev" in');
    for (const option of valued) {
      lines.push(`        ${spellings(option).join("|")}) ${valueAction(option.completion)} ;;`);
    }
    lines.push("        esac");
  }
  return [...lines, "        ;;"].join("\n");
}

function spellings(option: OptionSpec): string[] {
  return [...(option.short === undefined ? [] : [`-${option.short}`]), `--${option.long}`];
}

/** `-` says that there is a value and nothing to offer for it. */
function valueAction(completion: Completion = "nothing"): string {
  if (completion === "file") return "files=1 words=";
  return completion === "nothing" ? "values=-" : `values="${completion.join(" ")}"`;
}
