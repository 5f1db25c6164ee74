/** Completion for fish. */
import { type Command, COMMON_OPTIONS, type Completion, DEFAULT_COMMAND, type OptionSpec } from "./command.ts";

/** The script, for fish 3.0 and newer. */
export function fishCompletion(commands: readonly Command[]): string {
  const lines = commands.flatMap((command) => {
    const first = `complete -c sbx -n __sbx_is_first -a ${command.name} -d ${quote(command.summary)}`;
    return [first, ...(command.commands === undefined ? leafLines(command.name, command) : groupLines(command))];
  });
  return `# fish completion for sbx; made by \`sbx completions fish\`.

# The command that is being typed; a first word that is no command means ${DEFAULT_COMMAND}.
function __sbx_command
    set -l words (commandline -opc)
    set -e words[1]
    switch "$words[1]"
        case ${commands.map((command) => command.name).join(" ")}
            switch "$words[1] $words[2]"
                case ${pairs(commands).join(" ") || "''"}
                    echo "$words[1] $words[2]"
                case '*'
                    echo $words[1]
            end
        case '*'
            echo ${DEFAULT_COMMAND}
    end
end

function __sbx_is
    test (__sbx_command) = "$argv"
end

function __sbx_is_first
    test (count (commandline -opc)) -eq 1
end

complete -c sbx -f
${lines.join("\n")}
`;
}

function pairs(commands: readonly Command[]): string[] {
  return commands.flatMap((command) => (command.commands ?? []).map((sub) => quote(`${command.name} ${sub.name}`)));
}

function groupLines(group: Command): string[] {
  return (group.commands ?? []).flatMap((sub) => [
    `complete -c sbx -n ${quote(`__sbx_is ${group.name}`)} -a ${sub.name} -d ${quote(sub.summary)}`,
    ...leafLines(`${group.name} ${sub.name}`, sub),
  ]);
}

function leafLines(path: string, command: Command): string[] {
  const condition = `complete -c sbx -n ${quote(`__sbx_is ${path}`)}`;
  const lines = [...(command.options ?? []), ...COMMON_OPTIONS].map((option) => `${condition} ${optionPart(option)}`);
  const { argument } = command;
  if (argument?.completion === "file") lines.push(`${condition} -F`);
  else if (typeof argument?.completion === "object") lines.push(`${condition} -a ${quote(argument.completion.join(" "))}`);
  return lines;
}

function optionPart(option: OptionSpec): string {
  const names = `${option.short === undefined ? "" : `-s ${option.short} `}-l ${option.long}`;
  return `${names}${option.value === undefined ? "" : valuePart(option.completion ?? "nothing")} -d ${quote(option.help)}`;
}

function valuePart(completion: Completion): string {
  if (completion === "file") return " -r -F";
  return completion === "nothing" ? " -x" : ` -x -a ${quote(completion.join(" "))}`;
}

function quote(text: string): string {
  return `'${text.replace(/['\\]/g, "\\$&")}'`;
}
