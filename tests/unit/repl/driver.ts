/** Driver: plays the agent for a REPL that runs on this host, with the real interpreter and the real protocol. */
import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import {
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import type { Socket } from "node:net";
import path from "node:path";
import process from "node:process";
import type { TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { temporaryDirectory } from "../../support/leftovers.ts";
import { settled } from "../../support/waiting.ts";

const MAGIC = 0x32584253;
const HEADER_BYTES = 24;
const MESSAGE_BYTES = 16;
const KIND_REPLY = 0;
const KIND_DISPLAY = 1;
const KIND_STDIN = 2;
const NO_VALUE = 0xffffffff;
/** The protocol's descriptor; node's `stdio` would need 1,001 entries, so bash moves descriptor 3 there. */
const WRAPPER = 'out=$1 err=$2; shift 2; exec >>"$out" 2>>"$err" 1000<&3 3<&-; exec "$@"';
/** The same with a pipe as stdout, as the agent has it; what comes through lies in the file a little later. */
const PIPED_WRAPPER = WRAPPER.replace('>>"$out"', '> >(exec cat >>"$out" 3<&-)');
const REPL_DIRECTORY = fileURLToPath(new URL("../../../guest/repl", import.meta.url));
/** Says which parts make the JavaScript REPL, and what lies beside it. */
const PROGRAM_SOURCE = fileURLToPath(new URL("../../../guest/src/program.rs", import.meta.url));

/** What an execution left. */
export interface Execution {
  readonly exitCode: number;
  readonly value: string | null;
  readonly displays: readonly unknown[];
  readonly stdout: string;
  readonly stderr: string;
}

/** What an execution is asked for with; `stdin` needs its flag too. */
export interface ExecutionOptions {
  readonly env?: Record<string, string>;
  readonly seed?: Uint8Array;
  readonly flags?: number;
  readonly stdin?: string;
}

/** How a REPL process ended. */
export interface ReplEnd {
  readonly code: number | null;
  readonly signal: string | null;
}

/** An interpreter that can run a REPL, or why there is none. */
export interface Interpreter {
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly skip: string | false;
  /** Puts the scripts together in a directory, as the agent does; returns further arguments. */
  readonly install?: (directory: string) => readonly string[];
}

/** CPython 3.14: `SBX_TEST_PYTHON`, else `python3.14` on the path. */
export function findPython(): Interpreter {
  const program = process.env["SBX_TEST_PYTHON"] || "python3.14";
  const version = outputOf(program, ["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]);
  const skip = version === "3.14" ? false : `needs CPython 3.14: set SBX_TEST_PYTHON (${program}: ${version ?? "not found"})`;
  return { command: [program, "-I", "-X", "utf8"], env: {}, skip, install: installPython };
}

function installPython(directory: string): readonly string[] {
  for (const name of readdirSync(REPL_DIRECTORY).filter((name) => name.endsWith(".py"))) {
    copyFileSync(path.join(REPL_DIRECTORY, name), path.join(directory, name));
  }
  return [path.join(directory, "python.py")];
}

/** Bun 1.4 or later: `SBX_TEST_BUN`, else `bun` on the path. */
export function findBun(): Interpreter {
  const program = process.env["SBX_TEST_BUN"] || "bun";
  const version = outputOf(program, ["--version"]);
  const [major = 0, minor = 0] = (version ?? "").split(".").map(Number);
  const skip = major > 1 || (major === 1 && minor >= 4) ? false : `needs Bun 1.4: set SBX_TEST_BUN (${program}: ${version ?? "not found"})`;
  const env = {
    BUN_GC_TIMER_DISABLE: "1",
    BUN_JSC_useConcurrentJIT: "0",
    BUN_FEATURE_FLAG_DISABLE_ASYNC_TRANSPILER: "1",
    BUN_RUNTIME_TRANSPILER_CACHE_PATH: "0",
    BUN_DISABLE_TRANSPILED_SOURCE_CODE_PREVIEW: "1",
  };
  return { command: [program, "--no-install"], env, skip, install: installJavaScript };
}

function installJavaScript(directory: string): readonly string[] {
  const source = readFileSync(PROGRAM_SOURCE, "utf8");
  const list = /const JAVASCRIPT_SCRIPT: &str = concat!\(([^]*?)\);/.exec(source)?.[1] ?? "";
  const parts = [...list.matchAll(/include_str!\("\.\.\/repl\/(javascript\/\w+\.mjs)"\)/g)].map((match) => match[1] ?? "");
  assert.ok(parts.length > 1, "the parts of the JavaScript REPL are named in program.rs");
  const script = path.join(directory, "javascript.mjs");
  writeFileSync(script, parts.map((part) => readFileSync(path.join(REPL_DIRECTORY, part), "utf8")).join(""));
  for (
    const [, name = "", part = ""] of source.matchAll(/\("(javascript_\w+\.mjs)", include_str!\("\.\.\/repl\/(javascript\/\w+\.mjs)"\)\)/g)
  ) {
    copyFileSync(path.join(REPL_DIRECTORY, part), path.join(directory, name));
  }
  return [script];
}

function outputOf(program: string, args: readonly string[]): string | undefined {
  try {
    return execFileSync(program, [...args], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  } catch {
    return undefined;
  }
}

/** A running REPL; killed when its test ends. */
export class Repl {
  readonly home: string;
  readonly ended: Promise<ReplEnd>;
  readonly #child: ChildProcess;
  readonly #socket: Socket;
  readonly #directory: string;
  readonly #files: readonly string[];
  readonly #read = [0, 0];
  #received: Buffer = Buffer.alloc(0);
  #wake = () => {};
  #id = 0;

  private constructor(t: TestContext, { command, env, install }: Interpreter, wrapper: string) {
    const directory = temporaryDirectory(t);
    this.#directory = directory;
    const scripts = install?.(directory) ?? [];
    this.home = path.join(directory, "home");
    mkdirSync(this.home);
    this.#files = ["stdout", "stderr"].map((name) => path.join(directory, name));
    this.#child = spawn("bash", ["-c", wrapper, "bash", ...this.#files, ...command, ...scripts], {
      cwd: this.home,
      env: { PATH: process.env["PATH"] ?? "", HOME: this.home, LANG: "C.UTF-8", TMPDIR: directory, ...env },
      stdio: ["ignore", "ignore", "ignore", "pipe"],
    });
    this.ended = new Promise((resolve) => this.#child.once("exit", (code, signal) => resolve({ code, signal })));
    this.#socket = this.#child.stdio[3] as Socket;
    this.#socket.on("data", (chunk: Buffer) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#wake();
    });
    this.#socket.on("error", () => {}); // It ended while we wrote; `ended` says how.
    t.after(async () => {
      this.#child.kill("SIGKILL");
      await this.ended;
      this.#socket.destroy();
    });
  }

  /** Starts `interpreter`; resolves when it said that it is ready. */
  static async start(t: TestContext, interpreter: Interpreter, options: { piped?: boolean } = {}): Promise<Repl> {
    const repl = new Repl(t, interpreter, options.piped ? PIPED_WRAPPER : WRAPPER);
    assert.equal((await repl.#take(1)).toString(), "R");
    return repl;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Where its standard output goes. */
  get stdoutFile(): string {
    return this.#files[0] ?? "";
  }

  /** Runs `code`; fails the test when the REPL ends instead of replying. */
  async exec(code: string, options: ExecutionOptions = {}): Promise<Execution> {
    const source = Buffer.from(code);
    const block = Buffer.from(Object.entries(options.env ?? {}).map(([name, value]) => `${name}=${value}\0`).join(""));
    const seed = options.seed ?? new Uint8Array(0);
    const header = Buffer.alloc(HEADER_BYTES);
    const words = [MAGIC, ++this.#id, options.flags ?? 0, seed.length, block.length, source.length];
    words.forEach((word, index) => header.writeUInt32LE(word, index * 4));
    const fifo = options.stdin === undefined ? undefined : this.#makeFifo();
    this.send(Buffer.concat([header, seed, block, source]));
    const displays: unknown[] = [];
    let message = await this.#message();
    for (; message.kind !== KIND_REPLY; message = await this.#message()) {
      if (message.kind === KIND_DISPLAY) displays.push(JSON.parse((await this.#take(message.size)).toString()));
      else {
        assert.deepEqual(message, { kind: KIND_STDIN, exitCode: 0, size: 0 });
        writeSync(fifo ?? -1, options.stdin ?? "");
        closeSync(fifo ?? -1);
      }
    }
    const value = message.size === NO_VALUE ? null : (await this.#take(message.size)).toString();
    // Printed to files: what was flushed before the reply is there, without waiting.
    const [stdout, stderr] = this.#files.map((file, index) => {
      const bytes = readFileSync(file).subarray(this.#read[index]);
      this.#read[index] = (this.#read[index] ?? 0) + bytes.length;
      return bytes.toString();
    });
    return { exitCode: message.exitCode, value, displays, stdout: stdout ?? "", stderr: stderr ?? "" };
  }

  /** As the agent does: an end of ours keeps it open until the REPL has opened its own. */
  #makeFifo(): number {
    const fifo = path.join(this.#directory, "stdin");
    rmSync(fifo, { force: true });
    execFileSync("mkfifo", [fifo]);
    return openSync(fifo, constants.O_RDWR | constants.O_NONBLOCK);
  }

  async #message(): Promise<{ kind: number; exitCode: number; size: number }> {
    const bytes = await this.#take(MESSAGE_BYTES);
    assert.equal(bytes.readUInt32LE(0), this.#id, "the message is about this request");
    return { kind: bytes.readUInt32LE(4), exitCode: bytes.readInt32LE(8), size: bytes.readUInt32LE(12) };
  }

  /** The value of code that must succeed. */
  async value(code: string): Promise<string | null> {
    const { exitCode, value, stderr } = await this.exec(code);
    assert.equal(exitCode, 0, stderr);
    return value;
  }

  send(bytes: Uint8Array): void {
    this.#socket.write(bytes);
  }

  /** Closes the agent's side. */
  hangUp(): void {
    this.#socket.destroy();
  }

  interrupt(): void {
    process.kill(this.pid, "SIGINT");
  }

  async #take(size: number): Promise<Buffer> {
    let end: ReplEnd | undefined;
    this.ended.then((how) => {
      end = how;
      this.#wake();
    });
    while (this.#received.length < size) {
      if (end !== undefined) assert.fail(`the REPL ended instead of replying: ${JSON.stringify(end)} ${this.#lastWords()}`);
      await settled(new Promise<void>((resolve) => this.#wake = resolve), "the REPL's reply");
    }
    const bytes = this.#received.subarray(0, size);
    this.#received = this.#received.subarray(size);
    return bytes;
  }

  #lastWords(): string {
    const file = this.#files[1] ?? "";
    return existsSync(file) ? readFileSync(file, "utf8") : "";
  }
}
