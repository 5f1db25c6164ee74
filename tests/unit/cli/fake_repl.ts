/** `sbx session` at a terminal in memory, with sessions that the test plays. */
import type { TestContext } from "node:test";
import { Line } from "../../../src/cli/output.ts";
import { temporaryDirectory } from "../../support/leftovers.ts";
import { eventually } from "../../support/waiting.ts";
import { FakeOutput, type Ran, sbx, type World } from "./fake_context.ts";
import { FakeSession, type FakeSessionOptions } from "./fake_session.ts";
import { FakeTerminal, KEYS } from "./fake_terminal.ts";

/** A screen on which the editor and both outputs write. */
class Screen extends FakeOutput {
  readonly #terminal: FakeTerminal;

  constructor(terminal: FakeTerminal, line: Line) {
    super({ isTty: true, columns: terminal.columns, line });
    this.#terminal = terminal;
  }

  override write(text: string): void {
    super.write(text);
    this.#terminal.write(text.replaceAll("\n", "\r\n"));
  }
}

/** What was started. */
export interface OpenedRepl {
  readonly terminal: FakeTerminal;
  readonly sessions: FakeSession[];
  readonly ended: Promise<Ran>;
  /** Waits until the screen matches. */
  shows(pattern: RegExp): Promise<void>;
  /** Types lines, each ended by Enter. */
  enter(...lines: readonly string[]): void;
}

/** Starts `sbx session`. */
export function openRepl(t: TestContext, options: FakeSessionOptions & { args?: readonly string[]; world?: World } = {}): OpenedRepl {
  const terminal = new FakeTerminal({ columns: 200, rows: 40 });
  const line = new Line(), sessions: FakeSession[] = [];
  const ended = sbx(["session", "-q", ...options.args ?? []], {
    isStdinTty: true,
    stdout: new Screen(terminal, line),
    stderr: new Screen(terminal, line),
    terminal,
    env: { EXEC_SANDBOX_CACHE_DIR: temporaryDirectory(t), ...options.world?.env },
    session: (request) => {
      const session = new FakeSession({ ...options, language: request.language });
      sessions.push(session);
      return Promise.resolve(session);
    },
    ...options.world,
  });
  const shows = (pattern: RegExp) =>
    eventually(`the screen matches ${pattern}; it is:\n${terminal.screen()}`, () => pattern.test(terminal.screen()));
  return { terminal, sessions, ended, shows, enter: (...lines) => void terminal.type(...lines.flatMap((text) => [text, KEYS.enter])) };
}
