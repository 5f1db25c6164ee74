/** REPL shell: an interactive shell of the guest in the user's terminal, key by key. */
import { abortable, settlesWithin } from "../base/async.ts";
import type { CliProcess, CliSession, CliTerminal } from "./context.ts";
import { InterruptedError } from "./failure.ts";
import type { Output } from "./output.ts";
import { Modes } from "./repl_modes.ts";

/** Terminals that the guest's terminfo database knows; others are near enough to xterm. */
const KNOWN_TERMS: ReadonlySet<string> = new Set([
  "linux",
  "screen",
  "screen-256color",
  "tmux",
  "tmux-256color",
  "vt100",
  "vt220",
  "xterm",
  "xterm-256color",
]);
const OTHER_TERM = "xterm-256color";
const OUTPUT_GRACE_MS = 2_000;

/** What the shell is connected to. */
export interface ShellPlace {
  readonly terminal: CliTerminal;
  readonly stdout: Output;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly signal: AbortSignal;
}

/** Runs a shell until it ends; returns its exit status. The terminal is then as it was before. Rejects when the session is lost or the terminal is gone. */
export async function runShell(session: CliSession, place: ShellPlace): Promise<number> {
  const { terminal, stdout, env, signal } = place;
  const size = () => ({ columns: terminal.columns, rows: terminal.rows });
  const process = await session.spawn("bash", ["-i"], { pty: size(), env: shellEnv(env), signal });
  const modes = new Modes();
  const input = process.stdin.getWriter();
  input.closed.catch(() => {}); // Its end is the process's own.
  const gone = new AbortController();
  using _terminal = terminal.takeOver({
    onBytes: (bytes) => void input.write(bytes.slice()).catch(() => {}), // The shell has ended; so does this.
    onResize: () => void process.resize(size().columns, size().rows).catch(() => {}), // As above.
    onEnd: () => gone.abort(new InterruptedError("SIGHUP", 1)),
  });
  try {
    const output = copyOutput(process, stdout, modes);
    output.catch(() => {}); // What ends it ends the process too, and that is told.
    const { exitCode } = await abortable(abortable(process.wait(), signal), gone.signal);
    await settlesWithin(output, OUTPUT_GRACE_MS);
    return exitCode;
  } finally {
    stdout.write(modes.undo());
    stdout.startLine();
    await process.detach().catch(() => {}); // It has ended, or its session has.
  }
}

/** Copies what the shell writes, no faster than the terminal takes it. */
async function copyOutput(process: CliProcess, stdout: Output, modes: Modes): Promise<void> {
  const decoder = new TextDecoder();
  for await (const bytes of process.stdout) {
    modes.take(decoder.decode(bytes, { stream: true }));
    await stdout.writeBytes(bytes);
  }
}

function shellEnv({ TERM: term = "", COLORTERM: colors }: ShellPlace["env"]): Record<string, string> {
  return {
    TERM: KNOWN_TERMS.has(term) ? term : OTHER_TERM,
    ...(colors === "truecolor" || colors === "24bit" ? { COLORTERM: colors } : {}),
    LANG: "C.UTF-8",
  };
}
