let sources = create(null);
let sourceChars = 0;

/** Keeps an execution's source for later stacks, within bounds. */
function remember(number, unit) {
  sourceChars += unit.source.length - (sources[number]?.source.length ?? 0);
  if (sourceChars > SOURCES_LIMIT_CHARS) {
    sources = create(null);
    sourceChars = unit.source.length;
  }
  sources[number] = unit;
}

const FRAME = /(\/?)<input (\d+)>:(\d+):(\d+)/g;
const LINE = /[^\n]*\n?/g;
const OUR_FRAME = /^\s+at (?:(?:drainMicrotasks|runInThisContext) \(unknown\)|<parse> \(:0\))/;
const SHOWN_ELSEWHERE = /^(?:stack|message|name|cause|errors|line|column|sourceURL|originalLine|originalColumn)$/;

/** A stack with the user's own positions and no frame of ours; `first` gets the first position in a user's execution. */
function userStack(stack, first) {
  let result = "";
  eachMatch(LINE, stack, ({ 0: line }) => {
    if (includes(line, OUR_FILE) || exec(OUR_FRAME, line) !== null) return;
    let end = 0;
    eachMatch(FRAME, line, ({ 0: text, 1: slash, 2: name, 3: row, 4: from, index }) => {
      const unit = sources[name];
      let column = +from;
      const shifts = unit?.shifts ?? [];
      for (let index = 0; index < shifts.length; index++) {
        const { line, by, column: start } = shifts[index];
        if (+row === line && +from > start) column -= by;
      }
      if (column < 1) column = 1;
      first.unit ??= unit, first.name ??= name, first.line ??= +row, first.column ??= column;
      // A script's path has two slashes.
      const keptSlash = slash !== "" && line[index - 1] === "/" ? "" : slash;
      result += slice(line, end, index) + `${keptSlash}<input ${name}>:${row}:${column}`;
      end = index + text.length;
    });
    result += slice(line, end);
  });
  return result;
}

/** The line of an execution that an error points at, with a caret below. */
function excerpt(name, source, line, column) {
  let start = 0;
  for (let number = 1; number < line; number++) start = indexOf(source, "\n", start) + 1;
  const end = indexOf(source, "\n", start);
  const text = slice(source, start, end < 0 ? source.length : end);
  return text.length > 500 ? "" : `<input ${name}>:${line}\n${text}\n${repeat(" ", column - 1)}^\n`;
}

function describeError(error, depth = 0) {
  if (error instanceof BuildMessage) {
    const { position, message } = error;
    const match = position && exec(/<input (\d+)>$/, position.file);
    const name = match ? match[1] : running?.number;
    const unit = sources[name];
    // Bun points at the `export` of ours that makes the code a module.
    const isElsewhere = startsWith(message, "Top-level return");
    const own = position && unit && (match || position.file === "" || position.file === "input.tsx");
    const place = isElsewhere ? "" : own ? excerpt(name, unit.source, position.line, position.column) : position ? `${position.file}:${position.line}\n` : "";
    return `${place}SyntaxError: ${message}\n`;
  }
  if (!isNativeError(error)) {
    if (error?.errors?.length > 0 && depth === 0) return describeError(error.errors[0], 1);
    return `${depth ? "" : "Uncaught "}${inspect(error, { colors: false })}\n`;
  }
  const first = {};
  let text = userStack(`${error.stack}`, first);
  if (!startsWith(text, error.name) && !includes(text, error.message)) text = `${error.name}: ${error.message}\n${text}`;
  if (!endsWith(text, "\n")) text += "\n";
  if (depth === 0 && first.unit) text = excerpt(first.name, first.unit.source, first.line, first.column) + text;
  const extra = {};
  const names = keys(error);
  for (let index = 0; index < names.length; index++) {
    if (exec(SHOWN_ELSEWHERE, names[index]) === null) extra[names[index]] = error[names[index]];
  }
  if (keys(extra).length > 0) text += `${inspect(extra, { colors: false })}\n`;
  if (depth < 5 && error.cause !== undefined) text += `[cause]: ${describeError(error.cause, depth + 1)}`;
  for (let index = 0; depth < 5 && index < (error.errors?.length ?? 0); index++) {
    text += `[errors ${index}]: ${describeError(error.errors[index], depth + 1)}`;
  }
  return text;
}

function report(error) {
  let text;
  try {
    text = describeError(error);
  } catch {
    text = "Uncaught error that cannot be shown\n"; // Its own properties throw.
  }
  print(text);
}
