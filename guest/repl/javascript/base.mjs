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
// old closures see the same variable; declaring a name again replaces the accessor, and a function declared again is given to the blocks
// that declared it before. What declares and imports nothing runs as a strict script instead, at half the cost. A promise as the trailing value is awaited: `main()` belongs to its execution.
//
// A seed reaches Math.random and the stores of random UUIDs and integers. Not reached: Math.random of Workers and node:vm
// contexts, which draw their own seed from a generator inside the engine.
//
// SIGINT and process.exit() stop running code for good and keep the state as long as that code has not been resumed by a timer
// or by I/O. After that process.exit() ends the process (the agent starts a fresh REPL) and a busy loop cannot be interrupted.
//
// A final execution ends as a program does: with nothing left that Bun would wait for, or by process.exit(). Its `exit` listeners run
// before the reply, and nothing runs after it.
//
// The agent ships the parts in `javascript/` as one file, in the order of `JAVASCRIPT_SCRIPT` in `src/program.rs`: they share one scope, and
// one file starts faster than seven. What few executions need are modules of their own beside it, loaded at first use: the assist
// (`assist.mjs`, `scan.mjs`), standard input (`stdin.mjs`) and display data (`display.mjs`).
import { closeSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import vm from "node:vm";
import { drainMicrotasks, setRandomSeed } from "bun:jsc";

const CONTROL = 1000;
const MAGIC = 0x32584253;
const HEADER_BYTES = 24;
const NO_VALUE = 0xffffffff;
const FINAL = 1, STDIN = 2, COMPLETE = 4, IS_COMPLETE = 8;
const KIND_REPLY = 0, KIND_DISPLAY = 1, KIND_STDIN = 2;
const VALUE_LIMIT_BYTES = 32_768;
const SOURCES_LIMIT = 500;
const SOURCES_LIMIT_CHARS = 2 << 20;
const CUTS_LIMIT = 64;
const SUCCEEDED_LIMIT = 32;
const OUR_FILE = import.meta.path;
const OUR_DIRECTORY = import.meta.dir;


// Everything used after the start is taken here, because user code may replace or delete any of it.
const uncurry = (method) => Function.prototype.call.bind(method);
const mapSize = uncurry(Object.getOwnPropertyDescriptor(Map.prototype, "size").get);
const setSize = uncurry(Object.getOwnPropertyDescriptor(Set.prototype, "size").get);
const apply = uncurry(Function.prototype.apply);
const then = uncurry(Promise.prototype.then);
const resolved = Promise.resolve.bind(Promise);
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
const { file, inspect, resolveSync: resolve } = Bun;
const { stringify } = JSON;
const { random } = Math;
const { isArray } = Array;
const { isView } = ArrayBuffer;
const now = Date.now;
const { isMap, isNativeError, isPromise, isSet } = process.getBuiltinModule("node:util").types;
const emit = process.emit.bind(process);
const on = process.on.bind(process);
const off = process.off.bind(process);
const listenersOf = process.rawListeners.bind(process);
const listenerCount = process.listenerCount.bind(process);
const interruptSelf = process.kill.bind(process, process.pid, "SIGINT");
const exitProcess = process.exit.bind(process);
const leave = process.reallyExit.bind(process);
const getBuiltinModule = process.getBuiltinModule.bind(process);
const workingDirectory = process.cwd.bind(process);
const randomUUID = crypto.randomUUID.bind(crypto);
const loadPart = import.meta.require;
const requireCache = loadPart.cache;
const later = setImmediate;
const wait = Atomics.wait;
const ELEMENT = Symbol.for("react.transitional.element");
const FRAGMENT = Symbol.for("react.fragment");
const sleeper = new Int32Array(new SharedArrayBuffer(4));
const root = globalThis;
const { Uint8Array: Bytes, TypeError, BuildMessage, process: host, Bun: bun } = root;
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

/** A module that lies beside this file; loaded at its first use. */
const part = (name) => loadPart(`${OUR_DIRECTORY}/javascript_${name}.mjs`);

const readWord = (bytes, at) =>
  (bytes[at] | bytes[at + 1] << 8 | bytes[at + 2] << 16 | bytes[at + 3] << 24) >>> 0;

function writeWord(bytes, at, word) {
  for (let index = 0; index < 4; index++) bytes[at + index] = word >>> 8 * index & 0xff;
}

/** A message to the agent; `content` null: no value. */
function send(id, kind, exitCode, content) {
  const bytes = new Bytes(16 + (content?.length ?? 0));
  writeWord(bytes, 0, id);
  writeWord(bytes, 4, kind);
  writeWord(bytes, 8, exitCode);
  writeWord(bytes, 12, content === null ? NO_VALUE : content.length);
  if (content !== null) copyInto(bytes, content, 16);
  try {
    writeAll(CONTROL, bytes);
  } catch {
    leave(71);
  }
}
