let build;
let count = 0;
let declared = 0;
let running = null;
let inside = false;
let exitRequested = null;
let isExiting = false;
const builtins = create(null);

/** Makes one top-level name of the running module visible to later executions. */
function publish(name, constant, access) {
  const before = getOwnPropertyDescriptor(root, name);
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
  const succeeds = succession(name, constant ? undefined : access, before?.get);
  defineProperty(get, "succeeds", { __proto__: null, value: succeeds });
  const set = constant
    ? () => {
      throw new TypeError(`Assignment to constant variable '${name}'.`);
    }
    : (value) => {
      for (let index = 1; index < succeeds.length; index++) succeeds[index](name, true, value);
      access(name, true, value);
    };
  running.published[running.published.length] = { name, before, access };
  defineProperty(root, name, { __proto__: null, configurable: true, enumerable: true, get, set });
  declared++;
}
const mark = {};

/**
 * The bindings that follow a function declared by `access`, its own first: earlier code that calls a function of its own block by this name
 * calls the newest one, as the name alone would. Empty for what is no function yet when its module starts.
 */
function succession(name, access, before) {
  const succeeds = [];
  let declared;
  try {
    declared = access?.(name);
  } catch {
    // Not initialised yet: no function.
  }
  if (typeof declared !== "function") return succeeds;
  succeeds[0] = access;
  const older = before?.mark === mark ? before.succeeds : [];
  for (let index = 0; index < older.length && index < SUCCEEDED_LIMIT; index++) {
    older[index](name, true, declared);
    succeeds[index + 1] = older[index];
  }
  return succeeds;
}

/** After a failure, names that never got a value mean again what they meant before. */
function takeBackUninitialised({ published }) {
  for (let index = 0; index < published.length; index++) {
    const { name, before, access } = published[index];
    try {
      access(name);
    } catch {
      if (before === undefined) delete root[name];
      else defineProperty(root, name, { __proto__: null, ...before });
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
for (const name of ["start", "link"]) defineProperty(hooks, name, { __proto__: null, writable: false, configurable: false });
hooks.value = undefined;
defineProperty(root, "$$sbx", { __proto__: null, value: hooks });
const starter = new Script("$$sbx.start()", { filename: OUR_FILE });
const UNARMED = { __proto__: null, displayErrors: false };
const ARMED = { __proto__: null, displayErrors: false, breakOnSigint: true };

/** A final execution need not survive an interrupt: SIGINT ends its process, and process.exit() is Bun's own. */
function isArmed({ flags, unit }) {
  if (!unit.long || !(flags & FINAL)) return unit.long;
  // Twice: after a script was armed, Bun 1.4.5 gives SIGINT its default back only at the second time.
  off("SIGINT", onInterrupt);
  on("SIGINT", onInterrupt);
  off("SIGINT", onInterrupt);
  return false;
}

/** Evaluates a plain script. */
function startScript(execution) {
  const { script, hasValue } = execution.unit, long = isArmed(execution);
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
  const { path, unit } = execution, long = isArmed(execution);
  build.module(path, () => ({ contents, loader: unit.loader }));
  bun.main = path; // import.meta.main and require.main === module hold, as in a program.
  hooks.value = undefined;
  inside = long;
  let stopped = false;
  try {
    if (long) runScript(starter, ARMED);
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
  execution.isOver = true;
  // `main()` at the end of a script: its work belongs to this execution.
  if (isPromise(value)) then(value, (result) => present(execution, result), (error) => fail(execution, error));
  else present(execution, value);
}

/** The value of an execution may say itself how it is shown. */
function present(execution, value) {
  if (value === undefined || value === null) return finish(execution, 0, value);
  let bundle = null;
  try {
    bundle = bundleOf(value);
  } catch (error) {
    return fail(execution, error);
  }
  if (bundle === null) return finish(execution, 0, value);
  const shown = (bundle) => {
    if (running === execution) showBundle(bundle);
    finish(execution, 0, value);
  };
  if (isPromise(bundle)) then(bundle, shown, (error) => fail(execution, error));
  else shown(bundle);
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
  if (!(execution.flags & FINAL)) later(reply, execution);
  else if (code !== 0) exitProcess(code); // Else it goes on until nothing is left to wait for.
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
  if (execution.flags & STDIN) openStdin("/dev/null");
  if (!outputsIntact(execution.unit?.source)) leave(code);
  running = null;
  send(execution.id, KIND_REPLY, code, execution.value);
  takeRequest();
}

// Code without any of these words leaves nothing to wait for and listens to no end. (One that makes them out of pieces, in a string that
// it evaluates, is not waited for.)
const OUTLIVES =
  /\b(?:await|async|Promise|set(?:Timeout|Interval|Immediate)|queueMicrotask|fetch|Bun|process|require|import|\w*Worker|\w*Socket|EventSource|\w*Channel|Abort\w+|Atomics|FinalizationRegistry|crypto|Blob|File|Response|Request|\w*Stream|navigator|[pP]erformance\w*|eval|\w*Function|constructor|globalThis|window|self|global|this|WebAssembly|Reflect|HTMLRewriter|display|Symbol|stdin|prompt|alert|confirm)\b|\\u|\bconsole\s*(?!\.(?:log|error|info|warn|debug|table|dir|assert|count|group|groupEnd)\()/;

/** Whether a final execution has to wait for the end of Bun's loop, which costs a fifth of a short run. */
const mayOutlive = ({ script, long, source }) => count > 1 || ((script === null || long) && exec(OUTLIVES, source) !== null);

/** From here on nothing of ours keeps the process alive. */
function beginFinal() {
  on("exit", onExit);
  on("beforeExit", onBeforeExit);
  stopReading();
}

/** The loop is empty. What Bun does between this and `exit` costs more than all the rest; nobody needs it here. */
function onBeforeExit(code) {
  if (listenerCount("beforeExit") !== 1) return;
  if (isQuiet) return endProgram(code, listenersOf("exit"), 0);
  isQuiet = true;
  later(() => {}); // A rejection of the last turn is told in the next one.
}
let isQuiet = false;

/** The end of a final execution, in place of the process's own: the agent would take that for a loss. */
function onExit(code) {
  const listeners = listenersOf("exit");
  let index = 0;
  while (index < listeners.length && listeners[index++] !== onExit);
  endProgram(code, listeners, index);
}

let isEnding = false;

/** Calls the listeners from `index` on, replies, and waits for the end of the machine. */
function endProgram(code, listeners, index) {
  const execution = running;
  if (execution === null) return;
  let status = code;
  try {
    isEnding = true;
    for (; index < listeners.length; index++) {
      if (listeners[index] !== onExit) apply(listeners[index], host, [code]);
    }
    status = host.exitCode ?? code;
  } catch (error) {
    report(error);
    status = 1;
  }
  if (!execution.isOver && execution.code === null && !isExiting) {
    print("Error: the code awaits a promise, and nothing is left that could settle it\n");
    status = 13; // As Node.js ends.
  }
  conclude(execution, status);
}

/** Does not return. */
function conclude(execution, status) {
  running = null;
  send(execution.id, KIND_REPLY, status & 0xff || (execution.hasRejected ? 1 : 0), execution.value);
  leave(readSync(CONTROL, new Bytes(1)) === 0 ? 0 : 70);
}
