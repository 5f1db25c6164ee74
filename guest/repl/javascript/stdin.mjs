// Stdin: standard input that the host sends. A module of its own, loaded by the JavaScript REPL at first use.
//
// Bun has no dup2, but a file that is opened gets the lowest free descriptor: descriptor 0 is closed and the FIFO opened in its place, so
// that fs, Bun.file(0) and children read it like any other. Bun's own process.stdin, Bun.stdin.stream(), lines of console and prompt() work
// once per process, or keep what they have read too much for the next execution; those made here do not.
import { closeSync, openSync, readSync, writeSync } from "node:fs";

const ATTEMPTS = 3;
const { file } = Bun;
const read = (reader) => reader.read();

/** Makes a file descriptor 0; false when another thread took that number each time. */
export function replace(path) {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    try {
      closeSync(0);
    } catch {
      // User code has closed it.
    }
    const descriptor = openSync(path);
    if (descriptor === 0) return true;
    closeSync(descriptor);
  }
  return false;
}

/** Makes what reads standard input read the descriptor as it is now. */
export function renew(console) {
  Bun.stdin = file(0);
  const lines = linesOf();
  console[Symbol.asyncIterator] = () => lines;
}

const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** The next byte, -1 at the end. */
function readByte() {
  const byte = new Uint8Array(1);
  for (;;) {
    try {
      return readSync(0, byte) === 0 ? -1 : byte[0];
    } catch (error) {
      if (error.code !== "EAGAIN" && error.code !== "EINTR") return -1; // Closed by user code.
      Atomics.wait(sleeper, 0, 0, 1);
    }
  }
}

/** As Bun's, but it reads no byte beyond its line, and takes a last line without an end. */
function prompt(message = "Prompt", fallback = null) {
  writeSync(1, `${message} ${fallback === null ? "" : `[${fallback}] `}`);
  const bytes = [];
  let byte;
  while ((byte = readByte()) >= 0 && byte !== 10) bytes.push(byte);
  if (bytes.at(-1) === 13) bytes.pop();
  return bytes.length === 0 ? fallback : new TextDecoder().decode(new Uint8Array(bytes));
}

const { value: native } = Object.getOwnPropertyDescriptor(globalThis, "prompt") ?? {};
if (typeof native === "function" && Function.prototype.toString.call(native).includes("[native code]")) globalThis.prompt = prompt;

/** Lines without their ends; a loop that is left may be taken up again. */
function linesOf() {
  const decoder = new TextDecoder();
  let reader, rest = "", isDone = false;
  const next = async () => {
    for (let end; (end = rest.indexOf("\n")) < 0 && !isDone;) {
      reader ??= file(0).stream().getReader();
      const { done, value } = await read(reader);
      isDone = done;
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
    }
    const end = rest.indexOf("\n");
    if (end < 0 && rest === "") return { done: true, value: undefined };
    const line = end < 0 ? rest : rest.slice(0, end);
    rest = end < 0 ? "" : rest.slice(end + 1);
    return { done: false, value: line.endsWith("\r") ? line.slice(0, -1) : line };
  };
  return { next, [Symbol.asyncIterator]: () => ({ next }) };
}

/** process.stdin. */
export function makeStream() {
  const { Readable } = process.getBuiltinModule("node:stream");
  let reader;
  const stream = new Readable({
    read() {
      reader ??= file(0).stream().getReader();
      read(reader).then(({ done, value }) => this.push(done ? null : value), (error) => this.destroy(error));
    },
  });
  const same = () => stream;
  return Object.assign(stream, { fd: 0, ref: same, unref: same });
}
