// The JavaScript REPL: runs under Bun in the guest as uid 1000 and speaks the REPL protocol on descriptor 1000.
//
// Start it with `bun --no-install javascript.mjs`, HOME and working directory /home/user, descriptor 0 at end of file, 1 and 2
// pipes, a writable /tmp, and in the environment BUN_GC_TIMER_DISABLE=1 (no wake-ups while idle), BUN_JSC_useConcurrentJIT=0 (no
// second thread on one processor), BUN_FEATURE_FLAG_DISABLE_ASYNC_TRANSPILER=1 (imported files compile at once, so that an
// interrupt reaches them), BUN_RUNTIME_TRANSPILER_CACHE_PATH=0, BUN_DISABLE_TRANSPILED_SOURCE_CODE_PREVIEW=1. User code does not
// see these five. Exit status: 0 the agent closed the control socket, 70 a malformed request, 71 the control socket or an output
// is unusable; else what user code exited with.
//
// Each execution is a module of its own: strict, top-level await, native imports, TypeScript, JSX, exact lines in stacks. Its
// top-level names become accessors of the global object that read and write the module's own bindings, so later executions and
// old closures see the same variable; declaring a name again replaces the accessor. What declares and imports nothing runs as a
// strict script instead, at half the cost. A promise as the trailing value is awaited: `main()` belongs to its execution.
//
// A seed reaches Math.random and the stores of random UUIDs and integers. Not reached: Math.random of Workers and node:vm
// contexts, which draw their own seed from a generator inside the engine.
//
// SIGINT and process.exit() stop running code for good and keep the state as long as that code has not been resumed by a timer
// or by I/O. After that process.exit() ends the process (the agent starts a fresh REPL) and a busy loop cannot be interrupted.
import { fstatSync, writeSync } from "node:fs";
import vm from "node:vm";
import { drainMicrotasks, setRandomSeed } from "bun:jsc";

const CONTROL = 1000;
const MAGIC = 0x32584253;
const HEADER_BYTES = 24;
const NO_VALUE = 0xffffffff;
const VALUE_LIMIT_BYTES = 65_536;
const SOURCES_LIMIT = 500;
const SOURCES_LIMIT_CHARS = 2 << 20;
const CUTS_LIMIT = 64;
const OUR_FILE = import.meta.path;

// Everything used after the start is taken here, because user code may replace or delete any of it.
const uncurry = (method) => Function.prototype.call.bind(method);
const then = uncurry(Promise.prototype.then);
const exec = uncurry(RegExp.prototype.exec);
const slice = uncurry(String.prototype.slice);
const startsWith = uncurry(String.prototype.startsWith);
const endsWith = uncurry(String.prototype.endsWith);
const includes = uncurry(String.prototype.includes);
const indexOf = uncurry(String.prototype.indexOf);
const repeat = uncurry(String.prototype.repeat);
const subarray = uncurry(Uint8Array.prototype.subarray);
const copyInto = uncurry(Uint8Array.prototype.set);
const encode = TextEncoder.prototype.encode.bind(new TextEncoder());
const decode = TextDecoder.prototype.decode.bind(new TextDecoder("utf-8", { ignoreBOM: true }));
const { Script } = vm;
const runScript = uncurry(Script.prototype.runInThisContext);
const transform = uncurry(Bun.Transpiler.prototype.transformSync);
const scan = uncurry(Bun.Transpiler.prototype.scan);
const { defineProperty, getOwnPropertyDescriptor, create, keys } = Object;
const { inspect, resolveSync: resolve } = Bun;
const { stringify } = JSON;
const { random } = Math;
const { isNativeError, isPromise } = process.getBuiltinModule("node:util").types;
const emit = process.emit.bind(process);
const on = process.on.bind(process);
const listenerCount = process.listenerCount.bind(process);
const interruptSelf = process.kill.bind(process, process.pid, "SIGINT");
const exitProcess = process.exit.bind(process);
const leave = process.reallyExit.bind(process);
const getBuiltinModule = process.getBuiltinModule.bind(process);
const workingDirectory = process.cwd.bind(process);
const randomUUID = crypto.randomUUID.bind(crypto);
const requireCache = import.meta.require.cache;
const later = setImmediate;
const wait = Atomics.wait;
const ELEMENT = Symbol.for("react.transitional.element");
const FRAGMENT = Symbol.for("react.fragment");
const sleeper = new Int32Array(new SharedArrayBuffer(4));
const { Uint8Array: Bytes, TypeError, BuildMessage, process: host, Bun: bun } = globalThis;
const environment = process.env;

/** Writes everything, also to a pipe that a child process has made non-blocking. */
function writeAll(descriptor, bytes) {
  let offset = 0;
  while (offset < bytes.length) {
    try {
      offset += writeSync(descriptor, bytes, offset);
    } catch (error) {
      if (error.code !== "EAGAIN" && error.code !== "EINTR") throw error;
      wait(sleeper, 0, 0, 1);
    }
  }
}

function print(text) {
  try {
    writeAll(2, encode(text));
  } catch {
    leave(71); // Nobody can read this REPL's output any more.
  }
}

/**
 * process.stdout and process.stderr that write at once, in order with console.log and before the reply; Bun's own keep what a
 * full pipe refuses and make the pipe non-blocking. Made at first use: most programs only use console.
 */
function defineOutput(name, descriptor) {
  let stream;
  const make = () => {
    const { Writable } = process.getBuiltinModule("node:stream");
    const output = new Writable({
      decodeStrings: true,
      write(chunk, _encoding, done) {
        writeAll(descriptor, chunk);
        done();
      },
      destroy(_error, done) {
        done(null);
        stream = undefined; // Ended by user code: the next access gets a new one.
      },
    });
    return Object.assign(output, { fd: descriptor, _type: "pipe", _isStdio: true });
  };
  process[name] = undefined; // Unlike defineProperty, an assignment does not bring Bun's own stream into being.
  defineProperty(process, name, {
    __proto__: null,
    configurable: true,
    enumerable: true,
    get: () => stream ??= make(),
    set: (value) => stream = value,
  });
}

const transpilers = {
  tsx: new Bun.Transpiler({ loader: "tsx", deadCodeElimination: false, trimUnusedImports: false }),
  ts: new Bun.Transpiler({ loader: "ts", deadCodeElimination: false, trimUnusedImports: false }),
};

function parse(source) {
  try {
    return { loader: "tsx", printed: transform(transpilers.tsx, source) };
  } catch (error) {
    try {
      // `<T>value` is a type assertion in TypeScript, but JSX in TSX.
      return { loader: "ts", printed: transform(transpilers.ts, source) };
    } catch {
      throw error;
    }
  }
}

/** Calls `visit` with every match; immune to changes of the iteration protocol. */
function eachMatch(pattern, text, visit) {
  pattern.lastIndex = 0;
  for (let match; (match = exec(pattern, text)) !== null;) {
    visit(match);
    if (match[0] === "") pattern.lastIndex++;
  }
}

function replaceEach(pattern, text, replacement) {
  let result = "", end = 0;
  eachMatch(pattern, text, (match) => {
    result += slice(text, end, match.index) + replacement;
    end = match.index + match[0].length;
  });
  return result + slice(text, end);
}

// The printer puts top-level statements, and nothing else but the text of template literals, at the start of a line.
const EXPORTED = /^export (?:default (?=(?:async )?function\b\*? *[\w$]|class [\w$])|(?=const|let|var|function|async function|class))/gm;
const EXPORT_LIST = /^export (?:\{[^}]*\}|\*[^"\n]*)(?: from "[^"\n]*")?;?$/gm;
const CONSTANT = /^(?=const\b)/gm;
const VARIABLE = /^(?=(?:let|var|function|async function|class)\b)/gm;
const IMPORTED = /^import ([^"]*?) from "/gm;
const NAME = /(?:^|[\s,{*])([\p{ID_Start}$_][\p{ID_Continue}$]*)(?=\s*(?:,|\}|$))/gu;

const DECLARATION = /^(?:export|import|const|let|var|function|async function|class)\b/m;

/** The top-level names of a printed module: `{constant: [...], variable: [...]}`. */
function declarations(transpiler, printed) {
  if (exec(DECLARATION, printed) === null) return { constant: [], variable: [] };
  const plain = replaceEach(EXPORT_LIST, replaceEach(EXPORTED, printed, ""), "");
  let imported = "";
  eachMatch(IMPORTED, plain, (match) => {
    eachMatch(NAME, match[1], (name) => imported += name[1] + ",");
  });
  const names = (text) => without(scan(transpiler, text).exports, "default");
  return {
    // An export of a name that is not declared is dropped by the parser: a template literal cannot fake an import.
    constant: names(replaceEach(CONSTANT, plain, "export ") + (imported && `\nexport {${imported}}`)),
    variable: names(exportEach(transpiler, plain)),
  };
}

function without(names, excluded) {
  const kept = [];
  for (let index = 0; index < names.length; index++) {
    if (names[index] !== excluded) kept[kept.length] = names[index];
  }
  return kept;
}

/** Exports every variable; `var` may be repeated, but an export may not, so then each is tried by itself. */
function exportEach(transpiler, plain) {
  const all = replaceEach(VARIABLE, plain, "export ");
  try {
    scan(transpiler, all);
    return all;
  } catch {
    let text = plain, added = 0;
    eachMatch(VARIABLE, plain, ({ index }) => {
      const attempt = slice(text, 0, index + added) + "export " + slice(text, index + added);
      try {
        scan(transpiler, attempt);
      } catch {
        return;
      }
      text = attempt;
      added += "export ".length;
    });
    return text;
  }
}

const STATEMENT = /^(?:(?:const|let|var|function|async function|class|export|if|for|while|do|switch|try|throw|with|debugger)\b|import(?! ?[(.])|[\w$]+:|[{;@])/;
const BOUNDARY = /[\n;}]/;
const BLANK_LINES = /\n\n+/g;
const SIMPLE = /^[^\n;/]*;?\s*$/;

/** Where the last top-level statement of a printed module begins. */
function lastStatement(printed) {
  let begin = printed.length - 1;
  while (begin > 0 && (printed[begin - 1] !== "\n" || includes(" \n)]}`", printed[begin]))) begin--;
  return begin < 0 ? 0 : begin;
}

/** Where the trailing expression stands in the source: `[start, end]`, or null when there is none. */
function trailingExpression(transpiler, source, printed) {
  const begin = lastStatement(printed);
  if (printed === "" || exec(STATEMENT, slice(printed, begin)) !== null) return null;
  if (startsWith(slice(printed, begin), "console.")) return null; // No value, the most frequent last statement.
  if (begin === 0 && exec(SIMPLE, source) !== null) return [0, source.length];
  const whole = replaceEach(BLANK_LINES, printed, "\n");
  const print = (text) => {
    try {
      return replaceEach(BLANK_LINES, transform(transpiler, text), "\n");
    } catch {
      return null;
    }
  };
  const rest = replaceEach(BLANK_LINES, slice(printed, 0, begin), "\n");
  let end = source.length;
  for (let start = source.length - 1, cuts = 0; start >= -1; start--) {
    if (start >= 0 && exec(BOUNDARY, source[start]) === null) continue;
    if (++cuts > CUTS_LIMIT) {
      if (begin > 0) return null;
      start = -1; // One statement: only its beginning can be right.
    }
    const last = print(slice(source, start + 1, end));
    if (last === "") end = start + 1;
    // The right cut is the one before which the source prints as the whole does. The tail may differ (inlined enums).
    if (!last || (cuts > 8 && !endsWith(whole, last))) continue;
    if ((start < 0 ? "" : print(slice(source, 0, start + 1))) === rest) return exec(STATEMENT, last) === null ? [start + 1, end] : null;
  }
  return null;
}

/** JSX compiles to calls of React's runtime; without React its elements are still made, as plain objects of the same shape. */
function provideJsx() {
  try {
    resolve("react/jsx-dev-runtime", workingDirectory());
  } catch {
    const element = (type, { key: inner, ...props }, key = inner) => ({ $$typeof: ELEMENT, type, key: key ?? null, props });
    const exports = { jsx: element, jsxs: element, jsxDEV: element, Fragment: FRAGMENT };
    build.module("react/jsx-dev-runtime", () => ({ exports, loader: "object" }));
    build.module("react/jsx-runtime", () => ({ exports, loader: "object" }));
  }
}

const CALL = /\bimport\b|\bnew\b|[\w$)\]}"'`?]\s*[(`]/;
const CONSOLE_CALL = /\bconsole\.\w+\(/g;

/**
 * Whether the code may run for long: to let SIGINT stop it costs a thread. What only assigns, computes and logs needs none;
 * a getter or a coercion that never ends is then the agent's to kill.
 */
function mayRunLong(printed) {
  return exec(CALL, replaceEach(CONSOLE_CALL, printed, "")) !== null;
}

const TRAILING_SEMICOLON = /;?\s*$/;
const LEADING_SPACE = /^\s*/;
const LINK = "$$sbx.link($$names);";
const CAPTURE = "$$sbx.value=(";

// Words whose meaning a script and a module do not share, and calls that TypeScript reads as generic.
const MODULE_ONLY = /\b(?:await|this|import|require|module|exports|__dirname|__filename|arguments)\b|[\w$]\s*<[^<>()]*>\s*\(/;
const STRICT = '"use strict";';

/** The module of an execution. Lines stay where the user wrote them; columns too, but for what `shifts` tells. */
function instrument(source, path) {
  if (startsWith(source, "#!")) source = "//" + slice(source, 2);
  const { loader, printed } = parse(source);
  const transpiler = transpilers[loader];
  const long = mayRunLong(printed);
  if (exec(DECLARATION, printed) === null && exec(MODULE_ONLY, source) === null) {
    // Nothing to keep and nothing to import: as a script it is the same at half the cost, if it is plain JavaScript.
    try {
      const hasValue = printed !== "" && exec(STATEMENT, slice(printed, lastStatement(printed))) === null;
      const script = new Script(STRICT + source, { __proto__: null, filename: path });
      return { source, script, shifts: [{ line: 1, column: 0, by: STRICT.length }], long, hasValue };
    } catch {
      // TypeScript or JSX.
    }
  }
  if (includes(printed, "jsx")) provideJsx();
  const { constant, variable } = declarations(transpiler, printed);
  let cases = "";
  for (let index = 0; index < constant.length; index++) {
    cases += `case ${stringify(constant[index])}:return ${constant[index]};`;
  }
  for (let index = 0; index < variable.length; index++) {
    const name = variable[index];
    cases += `case ${stringify(name)}:return set?${name}=value:${name};`;
  }
  const head = cases === "" ? "" : LINK;
  const tail = cases === "" ? "\nexport{}" : `\nexport function $$names(name,set,value){switch(name){${cases}}}`;
  const unit = { loader, source, constant, variable, plain: head + source + tail, capturing: null, script: null, shifts: [], long };
  unit.shifts[0] = { line: 1, column: 0, by: head.length };
  const cut = trailingExpression(transpiler, source, printed);
  if (cut !== null) {
    const start = cut[0] + exec(LEADING_SPACE, slice(source, cut[0], cut[1]))[0].length;
    const text = slice(source, start, cut[1]);
    const expression = slice(text, 0, exec(TRAILING_SEMICOLON, text).index);
    unit.capturing = `${head}${slice(source, 0, start)}${CAPTURE}${expression}\n)${slice(source, cut[1])}${tail}`;
    let line = 1, column = start;
    for (let index = 0; index < start; index++) {
      if (source[index] === "\n") line++, column = start - index - 1;
    }
    unit.shifts[1] = { line, column: (line === 1 ? head.length : 0) + column, by: CAPTURE.length };
  }
  return unit;
}

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

const FRAME = /<input (\d+)>:(\d+):(\d+)/g;
const LINE = /[^\n]*\n?/g;
const OUR_FRAME = /^\s+at (?:(?:drainMicrotasks|runInThisContext) \(unknown\)|<parse> \(:0\))/;
const SHOWN_ELSEWHERE = /^(?:stack|message|name|cause|errors|line|column|sourceURL|originalLine|originalColumn)$/;

/** A stack with the user's own positions and no frame of ours; `first` gets the first position in a user's execution. */
function userStack(stack, first) {
  let result = "";
  eachMatch(LINE, stack, ({ 0: line }) => {
    if (includes(line, OUR_FILE) || exec(OUR_FRAME, line) !== null) return;
    let end = 0;
    eachMatch(FRAME, line, (match) => {
      const unit = sources[match[1]];
      let column = +match[3];
      const shifts = unit?.shifts ?? [];
      for (let index = 0; index < shifts.length; index++) {
        const { line, by, column: from } = shifts[index];
        if (+match[2] === line && +match[3] > from) column -= by;
      }
      if (column < 1) column = 1;
      first.unit ??= unit, first.name ??= match[1], first.line ??= +match[2], first.column ??= column;
      result += slice(line, end, match.index) + `<input ${match[1]}>:${match[2]}:${column}`;
      end = match.index + match[0].length;
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
    const own = position && unit && (match || position.file === "" || position.file === "input.tsx");
    const place = own ? excerpt(name, unit.source, position.line, position.column) : position ? `${position.file}:${position.line}\n` : "";
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

let build;
let count = 0;
let declared = 0;
let running = null;
let inside = false;
let exitRequested = null;
const builtins = create(null);

/** Makes one top-level name of the running module visible to later executions. */
function publish(name, constant, access) {
  const before = getOwnPropertyDescriptor(globalThis, name);
  if (before?.configurable === false) return;
  if (before !== undefined && !(name in builtins)) builtins[name] = before.get?.mark === mark ? undefined : before;
  const builtin = builtins[name];
  const get = () => {
    try {
      return access(name);
    } catch (error) {
      // Not initialised yet: code that needs the global of that name meanwhile still finds it.
      if (builtin === undefined) throw error;
      return builtin.get ? builtin.get() : builtin.value;
    }
  };
  defineProperty(get, "mark", { __proto__: null, value: mark });
  const set = constant
    ? () => {
      throw new TypeError(`Assignment to constant variable '${name}'.`);
    }
    : (value) => access(name, true, value);
  running.published[running.published.length] = { name, before, access };
  defineProperty(globalThis, name, { __proto__: null, configurable: true, enumerable: true, get, set });
  declared++;
}
const mark = {};

/** After a failure, names that never got a value mean again what they meant before. */
function takeBackUninitialised({ published }) {
  for (let index = 0; index < published.length; index++) {
    const { name, before, access } = published[index];
    try {
      access(name);
    } catch {
      if (before === undefined) delete globalThis[name];
      else defineProperty(globalThis, name, { __proto__: null, ...before });
    }
  }
}

const load = (path) => import(path);
const hooks = create(null);
hooks.start = () => {
  running.promise = load(running.path);
  drainMicrotasks();
};
hooks.link = (access) => {
  if (running === null) return;
  const { constant, variable } = running.unit;
  for (let index = 0; index < constant.length; index++) publish(constant[index], true, access);
  for (let index = 0; index < variable.length; index++) publish(variable[index], false, access);
};
hooks.value = undefined;
defineProperty(globalThis, "$$sbx", { __proto__: null, value: hooks });
const starter = new Script("$$sbx.start()", { filename: OUR_FILE });
const UNARMED = { __proto__: null, displayErrors: false };
const ARMED = { __proto__: null, displayErrors: false, breakOnSigint: true };

/** Evaluates a plain script. */
function startScript(execution) {
  const { script, long, hasValue } = execution.unit;
  inside = long;
  let value, error, thrown = false;
  try {
    value = runScript(script, long ? ARMED : UNARMED);
  } catch (caught) {
    error = caught;
    thrown = true;
  }
  inside = false;
  if (exitRequested !== null || (thrown && error?.code === "ERR_SCRIPT_EXECUTION_INTERRUPTED")) stop(execution);
  else if (thrown) fail(execution, error);
  else succeed(execution, hasValue ? value : undefined);
}

/** Evaluates a module's text; SIGINT stops it for good until it first waits for a timer or for I/O. */
function startModule(execution, contents) {
  const { path, unit } = execution;
  build.module(path, () => ({ contents, loader: unit.loader }));
  bun.main = path; // import.meta.main and require.main === module hold, as in a program.
  hooks.value = undefined;
  inside = unit.long;
  let stopped = false;
  try {
    if (unit.long) runScript(starter, ARMED);
    else hooks.start();
  } catch {
    stopped = true;
  }
  inside = false;
  if (stopped || execution.promise === null) return stop(execution);
  then(execution.promise, () => {
    const value = hooks.value;
    hooks.value = undefined;
    succeed(execution, value);
  }, (error) => {
    delete requireCache[path];
    const unparsable = error instanceof BuildMessage || error?.errors?.[0] instanceof BuildMessage;
    if (unparsable && contents === unit.capturing) startModule(execution, unit.plain);
    else fail(execution, error);
  });
}

/** After a termination: by SIGINT, or by process.exit(). */
function stop(execution) {
  const status = exitRequested ?? 130;
  exitRequested = null;
  finish(execution, status);
}

function succeed(execution, value) {
  // `main()` at the end of a script: its work belongs to this execution.
  if (isPromise(value)) then(value, (result) => finish(execution, 0, result), (error) => fail(execution, error));
  else finish(execution, 0, value);
}

function fail(execution, error) {
  report(error);
  finish(execution, 1);
}

/** Ends an execution once; the reply leaves after the promises rejected by it had their chance to be reported. */
function finish(execution, code, value) {
  if (running !== execution || execution.code !== null) return;
  execution.code = code;
  if (code !== 0) takeBackUninitialised(execution);
  else if (value !== undefined) execution.value = describe(value);
  later(reply, execution);
}

function describe(value) {
  let text;
  try {
    text = isNativeError(value) ? userStack(`${value.stack}`, {}) : inspect(value, { colors: false });
  } catch {
    text = "<value that cannot be shown>"; // Its own inspect method throws.
  }
  const bytes = encode(slice(text, 0, VALUE_LIMIT_BYTES));
  if (bytes.length <= VALUE_LIMIT_BYTES && text.length <= VALUE_LIMIT_BYTES) return bytes;
  let end = VALUE_LIMIT_BYTES - 3;
  while ((bytes[end] & 0xc0) === 0x80) end--;
  return encode(decode(subarray(bytes, 0, end)) + "…");
}

function reply(execution) {
  if (execution.id === WARM_UP) return endWarmUp(execution);
  let status = 0;
  try {
    status = host.exitCode | 0;
    host.exitCode = 0;
  } catch {
    // Redefined by user code.
  }
  const code = execution.code || status & 0xff;
  restoreEnvironment(execution.before);
  delete requireCache[execution.path];
  listen();
  if (!outputsIntact(execution.unit?.source)) leave(code);
  const size = execution.value === null ? NO_VALUE : execution.value.length;
  const bytes = new Bytes(16 + (execution.value?.length ?? 0));
  writeWord(bytes, 0, execution.id);
  writeWord(bytes, 8, code);
  writeWord(bytes, 12, size);
  if (execution.value !== null) copyInto(bytes, execution.value, 16);
  running = null;
  try {
    writeAll(CONTROL, bytes);
  } catch {
    leave(71);
  }
  takeRequest();
}

// Bun has no dup2, so an output that user code closed cannot be put back: the process then ends with the code's own status.
const outputs = [fstatSync(1).ino, fstatSync(2).ino];
function outputsIntact(source) {
  if (source === undefined || !includes(source, "close")) return true;
  try {
    return fstatSync(1).ino === outputs[0] && fstatSync(2).ino === outputs[1];
  } catch {
    return false;
  }
}

function setEnvironment(block) {
  const before = [];
  let begin = 0;
  for (let index = 0; index < block.length; index++) {
    if (block[index] !== 0) continue;
    const entry = decode(subarray(block, begin, index));
    begin = index + 1;
    const equals = indexOf(entry, "=");
    if (equals <= 0) continue;
    const name = slice(entry, 0, equals);
    before[before.length] = { name, value: environment[name] };
    environment[name] = slice(entry, equals + 1);
  }
  return before;
}

function restoreEnvironment(before) {
  for (let index = before.length - 1; index >= 0; index--) {
    const { name, value } = before[index];
    if (value === undefined) delete environment[name];
    else environment[name] = value;
  }
}

// Bun takes random UUIDs from a store of 128; node:crypto has one of its own, and one for random integers.
const DRAWING = /andom|rypto|uuid|UUID|import|require|eval|Function/;
let mayHaveDrawn = false;
const UUIDS_STORED = 128;
const INTEGERS_STORED = 2048;

/** Makes clones of one memory image draw different numbers. The kernel's generator is the agent's task. */
function reseed(seed) {
  setRandomSeed(readWord(seed, 0));
  for (let skip = readWord(seed, 4) & 63; skip > 0; skip--) random(); // The seed has 32 bits only: add six.
  for (let drawn = 0; drawn <= UUIDS_STORED; drawn++) randomUUID();
  if (!mayHaveDrawn) return; // A template: loading node:crypto would cost every clone more than all the rest.
  const nodeCrypto = getBuiltinModule("node:crypto");
  for (let drawn = 0; drawn <= UUIDS_STORED; drawn++) nodeCrypto.randomUUID();
  for (let drawn = 0; drawn <= INTEGERS_STORED; drawn++) nodeCrypto.randomInt(2);
}

const readWord = (bytes, at) =>
  (bytes[at] | bytes[at + 1] << 8 | bytes[at + 2] << 16 | bytes[at + 3] << 24) >>> 0;

function writeWord(bytes, at, word) {
  for (let index = 0; index < 4; index++) bytes[at + index] = word >>> 8 * index & 0xff;
}

let received = new Bytes(0);

function takeRequest() {
  if (running !== null || received.length < HEADER_BYTES) return;
  const id = readWord(received, 4), seedBytes = readWord(received, 12);
  const envBytes = readWord(received, 16), codeBytes = readWord(received, 20);
  if (readWord(received, 0) !== MAGIC || (seedBytes !== 0 && seedBytes !== 32)) leave(70);
  const seedAt = HEADER_BYTES, envAt = seedAt + seedBytes, codeAt = envAt + envBytes, end = codeAt + codeBytes;
  if (received.length < end) return;
  let source = decode(subarray(received, codeAt, end));
  if (source[0] === "\ufeff") source = slice(source, 1);
  const seed = subarray(received, seedAt, envAt), block = subarray(received, envAt, codeAt);
  received = subarray(received, end);
  execute(id, seed, block, source);
}

function execute(id, seed, block, source) {
  const before = setEnvironment(block);
  if (seed.length > 0) {
    reseed(seed);
    if (declared === 0) count = 0; // A clone's first execution is its number 1, whatever the template has run.
  }
  count++;
  mayHaveDrawn ||= exec(DRAWING, source) !== null;
  let directory = "/home/user";
  try {
    directory = workingDirectory();
  } catch {
    // Deleted by user code.
  }
  // Names come round again: Bun never forgets a module's name and source map, it only replaces them.
  const number = (count - 1) % SOURCES_LIMIT + 1;
  const path = `${directory}/<input ${number}>`;
  const execution = { id, number, path, before, unit: null, promise: null, published: [], code: null, value: null };
  running = execution;
  remember(number, { source, shifts: [] });
  try {
    execution.unit = instrument(source, path);
  } catch (error) {
    return fail(execution, error);
  }
  remember(number, { source: execution.unit.source, shifts: execution.unit.shifts });
  if (execution.unit.script !== null) startScript(execution);
  else startModule(execution, execution.unit.capturing ?? execution.unit.plain);
}

function onUncaught(error, origin) {
  if (listenerCount("uncaughtException") > 0) return emit("uncaughtException", error, origin);
  report(error);
  if (running !== null) finish(running, 1);
}

function onRejection(reason) {
  if (listenerCount("unhandledRejection") > 1) return;
  report(reason);
  if (running !== null) {
    if (running.code === 0) running.code = 1;
    else finish(running, 1);
  }
}

function onInterrupt() {
  if (running !== null) finish(running, 130);
}

/** Listens to what would otherwise end the process; again after each execution, as user code may have removed it. */
function listen() {
  if (listenerCount("SIGINT", onInterrupt) === 0) on("SIGINT", onInterrupt);
  if (listenerCount("unhandledRejection", onRejection) === 0) on("unhandledRejection", onRejection);
}

host.setUncaughtExceptionCaptureCallback(onUncaught);
host.exit = function exit(code) {
  if (!inside) return exitProcess(code);
  if (exitRequested === null) {
    exitRequested = (code ?? host.exitCode ?? 0) & 0xff;
    emit("exit", exitRequested);
  }
  // A termination by signal cannot be caught by the code that called us, and keeps the state.
  interruptSelf();
  for (let waited = 0; waited < 2000; waited++) wait(sleeper, 0, 0, 1);
  return exitProcess(code);
};
defineOutput("stdout", 1);
defineOutput("stderr", 2);
host.argv = [host.execPath, "<input>"];
for (
  const name of [
    "BUN_GC_TIMER_DISABLE",
    "BUN_JSC_useConcurrentJIT",
    "BUN_FEATURE_FLAG_DISABLE_ASYNC_TRANSPILER",
    "BUN_RUNTIME_TRANSPILER_CACHE_PATH",
    "BUN_DISABLE_TRANSPILED_SOURCE_CODE_PREVIEW",
  ]
) delete environment[name];
for (const [name, value] of [["module", { exports: {} }], ["exports", {}]]) {
  defineProperty(globalThis, name, { __proto__: null, configurable: true, writable: true, value });
}
Bun.plugin({ name: "sbx", setup: (builder) => build = builder });
const addModule = build.module.bind(build);
build = { __proto__: null, module: addModule };
listen();

// Before it is ready, the REPL runs what the agent's own first execution may not touch: a module with a name, a call, an await
// and a value. Bun sets these things up on first use; a template then has them, and its clones need not do it again.
const WARM_UP = -1;
const WARM_UP_SOURCE = "const warm = (value) => value;\nawait warm(1);\nwarm(2)\n";

function endWarmUp(execution) {
  describeError(new TypeError("warm", { cause: new TypeError("warm") }));
  describe({ warm: [1, "warm"] });
  delete requireCache[execution.path];
  delete globalThis.warm;
  delete sources[1];
  running = null;
  count = declared = 0;
  writeAll(CONTROL, encode("R"));
}

const reader = Bun.file(CONTROL).stream().getReader();
const read = reader.read.bind(reader);
const onChunk = ({ done, value }) => {
  if (done) leave(0);
  then(read(), onChunk, onReadError); // Before running anything: a pending read also keeps the process alive.
  if (received.length === 0) received = value;
  else {
    const joined = new Bytes(received.length + value.length);
    copyInto(joined, received, 0);
    copyInto(joined, value, received.length);
    received = joined;
  }
  takeRequest();
};
const onReadError = () => leave(71);
then(read(), onChunk, onReadError);
execute(WARM_UP, new Bytes(0), new Bytes(0), WARM_UP_SOURCE);
