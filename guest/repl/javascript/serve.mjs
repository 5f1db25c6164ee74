let received = new Bytes(0);

function takeRequest() {
  if (running !== null || received.length < HEADER_BYTES) return;
  const id = readWord(received, 4), seedBytes = readWord(received, 12);
  const envBytes = readWord(received, 16), codeBytes = readWord(received, 20);
  if (readWord(received, 0) !== MAGIC || (seedBytes !== 0 && seedBytes !== 32)) leave(70);
  const seedAt = HEADER_BYTES, envAt = seedAt + seedBytes, codeAt = envAt + envBytes, end = codeAt + codeBytes;
  if (received.length < end) return;
  const flags = readWord(received, 8), source = decode(subarray(received, codeAt, end));
  const seed = subarray(received, seedAt, envAt), block = subarray(received, envAt, codeAt);
  received = subarray(received, end);
  if (seed.length > 0) {
    reseed(seed);
    restartClock();
    if (declared === 0) count = 0; // A clone's first execution is its number 1, whatever the template has run.
  }
  if (flags & (COMPLETE | IS_COMPLETE)) assist(id, flags, source);
  else execute(id, flags, block, source[0] === "\ufeff" ? slice(source, 1) : source);
}

const isOurs = (getter) => getter.mark === mark;
const parsers = [(text) => transform(transpilers.tsx, text), (text) => transform(transpilers.ts, text)];

/** Answers a question about code that somebody types: it is no execution, and runs nothing. */
function assist(id, flags, source) {
  let answer;
  try {
    const { complete, isComplete } = part("assist");
    answer = flags & COMPLETE ? complete(source, isOurs) : isComplete(source, parsers);
  } catch {
    // Built-in methods that the session has replaced.
    answer = flags & COMPLETE ? `{"start":${source.length},"candidates":[]}` : '{"state":"complete","indent":""}';
  }
  send(id, KIND_REPLY, 0, encode(answer));
  later(takeRequest);
}

function execute(id, flags, block, source) {
  const before = setEnvironment(block);
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
  const execution = { id, flags, number, path, before, unit: null, promise: null, published: [], code: null, value: null, isOver: false, hasRejected: false };
  running = execution;
  shownBytes = 0;
  if (flags & STDIN) {
    openStdin(`${OUR_DIRECTORY}/stdin`);
    send(id, KIND_STDIN, 0, new Bytes(0));
  }
  remember(number, { source, shifts: [] });
  try {
    // Bun keeps the source map of a module by its path for ever and would apply it to a script of that path: a script gets one of its own.
    execution.unit = instrument(source, `${directory}//<input ${number}>`);
  } catch (error) {
    execution.flags &= ~FINAL;
    return fail(execution, error);
  }
  if (execution.flags & FINAL) {
    if (mayOutlive(execution.unit)) beginFinal();
    else execution.flags ^= FINAL;
  }
  remember(number, { source: execution.unit.source, shifts: execution.unit.shifts });
  if (execution.unit.script !== null) startScript(execution);
  else startModule(execution, execution.unit.capturing ?? execution.unit.plain);
}

function onUncaught(error, origin) {
  if (listenerCount("uncaughtException") > 0) return emit("uncaughtException", error, origin);
  report(error);
  if (running === null) return;
  if (running.code === 0 && running.flags & FINAL) exitProcess(1);
  else finish(running, 1);
}

function onRejection(reason) {
  if (listenerCount("unhandledRejection") > 1) return;
  report(reason);
  if (running === null) return;
  if (running.code !== 0) finish(running, 1);
  else if (running.flags & FINAL) running.hasRejected = true; // Bun goes on and ends with 1.
  else running.code = 1;
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
  if (!inside) {
    isExiting = true;
    if (isEnding) conclude(running, code ?? host.exitCode ?? 0); // From an exit listener.
    return exitProcess(code);
  }
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
    "NODE_EXTRA_CA_CERTS",
  ]
) delete environment[name];
const exported = {};
for (const [name, value] of [["module", { exports: exported }], ["exports", exported]]) {
  defineProperty(root, name, { __proto__: null, configurable: true, writable: true, value });
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
  exec(OUTLIVES, WARM_UP_SOURCE);
  // What a final execution does with the control socket's reader.
  const warm = new ReadableStream().getReader();
  then(warm.read(), undefined, () => {});
  warm.releaseLock();
  delete requireCache[execution.path];
  delete root.warm;
  delete sources[1];
  running = null;
  count = declared = 0;
  writeAll(CONTROL, encode("R"));
}

const reader = Bun.file(CONTROL).stream().getReader();
const read = reader.read.bind(reader);
const releaseLock = reader.releaseLock.bind(reader);
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
const onReadError = () => isReading && leave(71);
let isReading = true;

/** Bun waits no more for the control socket; what it reads next, nobody gets. */
function stopReading() {
  isReading = false;
  releaseLock();
}

then(read(), onChunk, onReadError);
execute(WARM_UP, 0, new Bytes(0), WARM_UP_SOURCE);
