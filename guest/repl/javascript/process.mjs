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
  const get = () => stream ??= make();
  defineProperty(get, "mark", { __proto__: null, value: mark }); // Completion may call it.
  defineProperty(process, name, {
    __proto__: null,
    configurable: true,
    enumerable: true,
    get,
    set: (value) => stream = value,
  });
}

// process.stdin of the execution that runs; Bun's own would be that of its first use for ever.
let stdin;
const { console: hostConsole } = globalThis;
process.stdin = undefined;
defineProperty(process, "stdin", {
  __proto__: null,
  configurable: true,
  enumerable: true,
  get: () => stdin ??= part("stdin").makeStream(),
  set: (value) => stdin = value,
});

/** Standard input for one execution, or its end again. */
function openStdin(path) {
  const { replace, renew } = part("stdin");
  if (!replace(path)) print("Error: cannot open standard input: descriptor 0 is taken\n");
  stdin = undefined;
  renew(hostConsole);
}

// performance.now() and its like count from the first execution of a clone, not from the start of the template.
const { performance } = globalThis;
const clock = performance.now.bind(performance);
const uptime = process.uptime.bind(process);
let startedAt = 0, timeOrigin = performance.timeOrigin, uptimeAtStart = 0;
performance.now = function now() {
  return clock() - startedAt;
};
process.uptime = () => uptime() - uptimeAtStart;
defineProperty(Performance.prototype, "timeOrigin", { __proto__: null, configurable: true, enumerable: true, get: () => timeOrigin });

function restartClock() {
  startedAt = clock();
  uptimeAtStart = uptime();
  timeOrigin = now();
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
