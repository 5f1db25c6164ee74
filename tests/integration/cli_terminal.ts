/** The program as users run it: from source under this runtime, or `dist/sbx` where SBX_TEST_PROGRAM names it; in pipes or in a terminal. */
import { execFile, spawn, spawnSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** The repository. */
export const ROOT = path.dirname(path.dirname(path.dirname(fileURLToPath(import.meta.url))));

/** The command line that starts sbx. */
export function program(): [string, ...string[]] {
  const compiled = process.env["SBX_TEST_PROGRAM"];
  if (compiled) return [path.resolve(compiled)];
  const isDeno = path.basename(process.execPath).startsWith("deno");
  return [process.execPath, ...(isDeno ? ["run", "-A", "--no-check"] : []), path.join(ROOT, "main.ts")];
}

/** What a process left. */
export interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** How `start` starts the program. */
export interface StartOptions {
  readonly stdin?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

/** A running program. */
export interface Started {
  readonly pid: number;
  readonly ended: Promise<Ended>;
  kill(signal: NodeJS.Signals): void;
  /** Resolves when standard output or error has this text; rejects when the program ends first. */
  says(text: string): Promise<void>;
  /** Resolves when the process has ended, whatever is still in its pipes. */
  readonly exited: Promise<Pick<Ended, "code" | "signal">>;
  /** Reads no more of its standard output. */
  pauseStdout(): void;
}

/** Starts sbx with pipes. */
export function start(args: readonly string[], options: StartOptions = {}): Started {
  const [command, ...rest] = program();
  const child = spawn(command, [...rest, ...args], {
    cwd: options.cwd ?? ROOT,
    env: { ...process.env, NO_COLOR: "", ...options.env },
    stdio: ["pipe", "pipe", "pipe"],
  });
  let stdout = "", stderr = "";
  const watchers = new Set<() => void>();
  const collect = (stream: NodeJS.ReadableStream, add: (text: string) => void) => {
    stream.setEncoding("utf8");
    stream.on("data", (text: string) => {
      add(text);
      for (const watcher of watchers) watcher();
    });
  };
  collect(child.stdout, (text) => stdout += text);
  collect(child.stderr, (text) => stderr += text);
  child.stdin.on("error", () => {}); // It may end without having read.
  child.stdin.end(options.stdin ?? "");
  const ended = new Promise<Ended>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
  return {
    pid: child.pid ?? -1,
    ended,
    // Not child.kill(): Deno then reports the signal as the end, whatever the process made of it.
    kill: (signal) => void process.kill(child.pid ?? -1, signal),
    exited: new Promise((resolve) => child.once("exit", (code, signal) => resolve({ code, signal }))),
    pauseStdout: () => void child.stdout.pause(),
    says: (text) =>
      new Promise((resolve, reject) => {
        const look = () => {
          if (!stdout.includes(text) && !stderr.includes(text)) return;
          watchers.delete(look);
          resolve();
        };
        watchers.add(look);
        look();
        ended.then(() => reject(new Error(`it ended without saying ${JSON.stringify(text)}: ${stdout}${stderr}`)), reject);
      }),
  };
}

/** Runs sbx to its end. */
export async function sbx(args: readonly string[], options?: StartOptions): Promise<Ended> {
  return await start(args, options).ended;
}

/** Runs a line of `sh` to its end. */
export function shell(line: string, env: Readonly<Record<string, string>> = {}): { readonly stdout: string; readonly stderr: string } {
  // By a variable: Deno rewrites the argument of `sh -c` when its own program occurs in it, and loses quotes.
  const { stdout, stderr } = spawnSync("sh", ["-c", 'eval "$SBX_TEST_LINE"'], {
    encoding: "utf8",
    env: { ...process.env, ...env, SBX_TEST_LINE: line },
  });
  return { stdout, stderr };
}

/** Is `name` on PATH? */
export function hasProgram(name: string): boolean {
  return (process.env["PATH"] ?? "").split(path.delimiter).some((directory) => existsSync(path.join(directory, name)));
}

/** A terminal of a known size with a program in it. */
export class Terminal implements AsyncDisposable {
  readonly #socket: string;
  readonly #directory: string;

  private constructor(socket: string, directory: string) {
    this.#socket = socket;
    this.#directory = directory;
  }

  /** Starts `command`, a line for `sh`, in the repository. */
  static async open(
    command: string,
    size: { readonly columns: number; readonly rows: number } = { columns: 100, rows: 30 },
  ): Promise<Terminal> {
    const directory = await fs.mkdtemp(path.join(os.tmpdir(), "sbx-terminal-"));
    const terminal = new Terminal(`sbx-${randomUUID()}`, directory);
    // The shell outlives the program, whatever ends that, so that its last words and its status can be read.
    const line = `trap : INT TERM HUP; ${command}; echo "[status $?]"; trap - HUP; read -r _`;
    const { columns, rows } = size;
    await terminal.#tmux(["-f", "/dev/null", "new-session", "-d", "-x", String(columns), "-y", String(rows), "-c", ROOT, line]);
    return terminal;
  }

  /** Types `text` as it is. */
  async type(text: string): Promise<void> {
    await this.#tmux(["send-keys", "-l", text]);
  }

  /** Presses a key by its tmux name: `Enter`, `Tab`, `C-c` … */
  async press(key: string): Promise<void> {
    await this.#tmux(["send-keys", key]);
  }

  /** Pastes `text`, marked as a paste where the program asked for that. */
  async paste(text: string): Promise<void> {
    await this.#tmux(["set-buffer", "--", text]);
    await this.#tmux(["paste-buffer", "-p"]);
  }

  /** Gives the terminal another size. */
  async resize(columns: number, rows: number): Promise<void> {
    await this.#tmux(["resize-window", "-x", String(columns), "-y", String(rows)]);
  }

  /** Keeps everything that the program writes from now on, byte by byte, in `file`. */
  async record(file: string): Promise<void> {
    await this.#tmux(["pipe-pane", "-O", `cat > ${quoted(file)}`]);
  }

  /** What is on the screen, without empty lines at its end; with `isStyled` the escape sequences of colours too. */
  async screen(isStyled = false): Promise<string> {
    return (await this.#tmux(["capture-pane", "-p", ...(isStyled ? ["-e"] : [])])).trimEnd();
  }

  /** What programs have switched in the terminal: flags, and the last row of the scroll region. */
  async state(): Promise<Readonly<Record<"alternate" | "cursor" | "mouse" | "wrap" | "regionEnd", string>>> {
    const format = "#{alternate_on} #{cursor_flag} #{mouse_any_flag} #{wrap_flag} #{scroll_region_lower}";
    const [alternate = "", cursor = "", mouse = "", wrap = "", regionEnd = ""] = (await this.#tmux(["display-message", "-p", format]))
      .trim().split(" ");
    return { alternate, cursor, mouse, wrap, regionEnd };
  }

  /** Waits until the screen matches. */
  async shows(pattern: RegExp, timeoutMs = 20_000): Promise<string> {
    const until = performance.now() + timeoutMs;
    for (;;) {
      const screen = await this.screen();
      if (pattern.test(screen)) return screen;
      if (performance.now() > until) throw new Error(`The terminal never showed ${pattern}; it shows:\n${screen}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** Waits for the program's end; returns its exit status. */
  async exitCode(timeoutMs?: number): Promise<number> {
    return Number(/\[status (\d+)\]/.exec(await this.shows(/\[status \d+\]/, timeoutMs))?.[1]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#tmux(["kill-server"]);
    await fs.rm(this.#directory, { recursive: true, force: true });
  }

  #tmux(args: readonly string[]): Promise<string> {
    const env = { ...process.env, TMUX_TMPDIR: this.#directory, LANG: "C.UTF-8", TERM: "xterm-256color", TMUX: "" };
    return new Promise((resolve, reject) => {
      execFile("tmux", ["-L", this.#socket, ...args], { env }, (error, stdout) => error ? reject(error) : resolve(stdout));
    });
  }
}

/** Quotes `argument` for `sh`. */
export function quoted(argument: string): string {
  return `'${argument.replaceAll("'", `'\\''`)}'`;
}

/** The command line of sbx with `args`, for `sh`. */
export function commandLine(args: readonly string[]): string {
  return [...program(), ...args].map(quoted).join(" ");
}
