/** REPL: the prompt. Reads a block, runs it, shows what it shows, again. */
import path from "node:path";
import { abortable } from "../base/async.ts";
import { SessionClosedError } from "../base/errors.ts";
import { VERSION } from "../config/version.ts";
import type { Language } from "../run/request.ts";
import type { CliSession, CliTerminal } from "./context.ts";
import { EXIT, exitCodeOf, printable, reportError } from "./failure.ts";
import type { Output } from "./output.ts";
import { Progress } from "./progress.ts";
import { leaving } from "./repl_blocks.ts";
import { runCommand } from "./repl_commands.ts";
import { type AssistSource, replAssist } from "./repl_complete.ts";
import type { Display } from "./repl_display.ts";
import { LineEditor, type TerminalEvent } from "./repl_editor.ts";
import { isCommand } from "./repl_highlight.ts";
import { History } from "./repl_history.ts";
import { CodeKilledError, exitCodeOfOutcome, note, reportOutcome, runBlock } from "./repl_run.ts";
import { runShell } from "./repl_shell.ts";
import { textWidth } from "./repl_width.ts";
import type { ReplVm } from "./repl_vm.ts";

/** Code that was interrupted and still runs after this time is told of. */
const INTERRUPT_PATIENCE_MS = 2_000;
const INDENTS: Readonly<Record<Language, number>> = { python: 4, javascript: 2, raw: 2 };
const PROMPTS: Readonly<Record<Language, string>> = { python: "py> ", javascript: "js> ", raw: "sh> " };
const CONTINUATION = "... ";
const NAMES: Readonly<Record<Language, string>> = { python: "Python", javascript: "JavaScript and TypeScript", raw: "bash" };

/** What a prompt works with. */
export interface ReplParts {
  readonly vm: ReplVm;
  readonly terminal: CliTerminal;
  readonly stdout: Output;
  readonly stderr: Output;
  readonly display: Display;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Aborts when sbx is to end. */
  readonly signal: AbortSignal;
  /** Where the history of each language is kept. */
  readonly historyDirectory: string;
  /** Asks what comes from the terminal as an answer. */
  readonly onAnswer: (text: string) => void;
  readonly timeoutSeconds: number | undefined;
  readonly isQuiet: boolean;
  readonly isDebug: boolean;
}

/** The prompt of one terminal. */
export class Repl {
  readonly #parts: ReplParts;
  readonly #editor: LineEditor;
  readonly #histories = new Map<Language, History>();
  /** What Ctrl-C does now; true when that is all it does. */
  #onInterrupt: (() => boolean) | undefined;
  #timeoutSeconds: number | undefined;
  #isFailed = false;
  #isHinted = false;
  #hasChanged = false;

  constructor(parts: ReplParts) {
    this.#parts = parts;
    this.#editor = new LineEditor(parts.terminal);
    this.#timeoutSeconds = parts.timeoutSeconds;
  }

  /** Reads and runs until the user leaves; returns the exit status. Rejects with the signal's reason when sbx is to end. */
  async run(): Promise<number> {
    const { vm, terminal, stderr, signal, isQuiet } = this.#parts;
    using _events = terminal.intercept((event) => this.#intercept(event));
    if (!isQuiet) note(stderr, `sbx ${VERSION} · ${NAMES[vm.language]} in a VM of its own · :help shows commands and keys`);
    const failed = new AbortController();
    // Without a first VM there is nothing to type for.
    vm.session().catch((error) => this.#hasChanged || failed.abort(error));
    try {
      for (;;) {
        const entered = await abortable(abortable(this.#read(), signal), failed.signal);
        if (entered.type === "end") {
          if (!this.#leaveCopy()) return EXIT.ok;
          continue;
        }
        if (entered.type === "cancelled") this.#hint(entered.text);
        else {
          const left = await this.#enter(entered.text);
          if (left !== undefined) return left;
        }
        signal.throwIfAborted();
      }
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (error !== failed.signal.reason) throw error;
      this.#editor.close();
      reportError(stderr, error, { isDebug: this.#parts.isDebug });
      return exitCodeOf(error);
    } finally {
      await Promise.all([...this.#histories.values()].map((history) => history.flush()));
    }
  }

  /** Writes text of ours, above the block that is typed. */
  print(text: string): void {
    this.#editor.printAbove(printable(text));
  }

  /** Shows what goes on in the background; empty for nothing. */
  setStatus(text: string): void {
    this.#editor.setStatus(text);
  }

  async #read() {
    const { vm, terminal, stderr } = this.#parts, { language } = vm;
    const history = await this.#history(language);
    stderr.startLine();
    const color = this.#isFailed ? "1;31" : "1;32", prompt = PROMPTS[language];
    return await this.#editor.read({
      prompt: { text: prompt, style: terminal.hasColor ? color : "" },
      continuation: { text: CONTINUATION.padStart(textWidth(prompt)), style: terminal.hasColor ? "90" : "" },
      history,
      assist: replAssist(this.#assistSource(language)),
      indent: INDENTS[language],
    });
  }

  async #history(language: Language): Promise<History> {
    let history = this.#histories.get(language);
    if (history === undefined) {
      history = await History.open(path.join(this.#parts.historyDirectory, `${language}.jsonl`));
      this.#histories.set(language, history);
    }
    return history;
  }

  #hint(text: string): void {
    if (text !== "" || this.#isHinted) return;
    this.#isHinted = true;
    note(this.#parts.stderr, "Ctrl-D leaves");
  }

  /** Returns the exit status when the user leaves. */
  async #enter(text: string): Promise<number | undefined> {
    if (text.trim() === "") return undefined;
    const left = leaving(text, this.#parts.vm.language);
    if (left !== undefined) return this.#leaveCopy() ? undefined : left.exitCode ?? EXIT.ok;
    if (isCommand(text)) return await this.#command(text) === "leave" && !this.#leaveCopy() ? EXIT.ok : undefined;
    await this.#execute(text);
    return undefined;
  }

  /** In a copy of a VM, leaving is going back. */
  #leaveCopy(): boolean {
    const { vm, stderr } = this.#parts, isCopy = vm.leave();
    if (isCopy) note(stderr, "back where the copy was made; the copy is gone");
    return isCopy;
  }

  async #command(line: string): Promise<"leave" | void> {
    const { stderr, isDebug, isQuiet } = this.#parts, stop = new AbortController();
    using _keys = this.#whileBusy(() => {
      stop.abort(new DOMException("Interrupted", "AbortError"));
      return true;
    });
    using progress = new Progress(stderr, { isQuiet });
    try {
      const { vm, stdout } = this.#parts;
      const signal = AbortSignal.any([stop.signal, this.#parts.signal]);
      const answer = await runCommand(line, {
        vm,
        stdout,
        stderr,
        progress,
        signal,
        setTimeout: (seconds) => void (this.#timeoutSeconds = seconds),
        changeVm: (language) => this.#changeVm(language),
        runShell: (session) => this.#shell(session),
      });
      this.#isFailed = false;
      return answer;
    } catch (error) {
      this.#isFailed = true;
      if (stop.signal.aborted || this.#parts.signal.aborted) return;
      if (error instanceof SessionClosedError) reportOutcome({ error }, stderr, this.#reporting());
      else reportError(stderr, error, { isDebug });
    }
  }

  async #changeVm(language: Language): Promise<void> {
    const { vm, stderr } = this.#parts;
    this.#hasChanged = true;
    vm.replace(language);
    note(stderr, `new VM: ${NAMES[language]}; the one before is gone, with its variables and files`);
    vm.session().catch(() => {}); // The next block tells.
  }

  async #shell(session: CliSession): Promise<void> {
    const { terminal, stdout, stderr, env, signal } = this.#parts;
    const exitCode = await runShell(session, { terminal, stdout, env, signal });
    note(stderr, exitCode === 0 ? "back at the prompt" : `the shell ended with ${exitCode}; back at the prompt`);
  }

  async #execute(code: string): Promise<void> {
    const { vm, stdout, stderr, display, signal } = this.#parts;
    const kill = new AbortController();
    const signals = AbortSignal.any([kill.signal, signal]);
    let session: CliSession | undefined, patience: ReturnType<typeof setTimeout> | undefined, isInterrupted = false;
    using _keys = this.#whileBusy(() => {
      stderr.write("^C");
      stderr.startLine();
      if (isInterrupted || session === undefined) kill.abort(new CodeKilledError());
      else void session.interrupt().catch(() => {}); // The execution tells what happened to the session.
      isInterrupted = true;
      patience ??= setTimeout(() => note(stderr, "it still runs; Ctrl-C again ends it"), INTERRUPT_PATIENCE_MS);
      return true;
    });
    try {
      session = await vm.session(signals);
      const timeoutSeconds = this.#timeoutSeconds;
      const outcome = await runBlock(session, code, { stdout, stderr, display, signal: signals, timeoutSeconds, isRestored: true });
      this.#isFailed = exitCodeOfOutcome(outcome) !== 0;
      clearTimeout(patience);
      if (!signal.aborted) reportOutcome(outcome, stderr, this.#reporting());
    } catch (error) {
      this.#isFailed = true;
      if (!signals.aborted) reportError(stderr, error, { isDebug: this.#parts.isDebug });
    } finally {
      clearTimeout(patience);
    }
  }

  #reporting() {
    return { language: this.#parts.vm.language, isDebug: this.#parts.isDebug, isInteractive: true };
  }

  #assistSource(language: Language): AssistSource {
    const { vm, signal } = this.#parts;
    return {
      language,
      checkpoints: async () => {
        const named = await vm.namedCheckpoints().catch(() => []); // The command itself tells.
        return [...[...vm.checkpoints.keys()].map(String), ...named.map(({ name }) => name ?? "")];
      },
      ask: async (question) => {
        const stop = new AbortController();
        using _keys = this.#whileBusy(() => {
          stop.abort(new DOMException("Interrupted", "AbortError"));
          return false; // It clears the block too.
        });
        try {
          const both = AbortSignal.any([stop.signal, signal]);
          return { answer: await question(await vm.session(both), both) };
        } catch {
          return stop.signal.aborted || signal.aborted ? "cancelled" : undefined;
        }
      },
    };
  }

  /** Until disposed, Ctrl-C does `onInterrupt`, and Ctrl-Z stops sbx at once. */
  #whileBusy(onInterrupt: () => boolean): Disposable {
    this.#onInterrupt = onInterrupt;
    return { [Symbol.dispose]: () => void (this.#onInterrupt = undefined) };
  }

  #intercept(event: TerminalEvent): boolean {
    if (event.type === "answer") {
      this.#parts.onAnswer(event.text);
      return true;
    }
    if (this.#onInterrupt === undefined) return false;
    if (event.type === "closed") {
      // Nobody is there to insist.
      void this.#onInterrupt();
      void this.#onInterrupt();
    }
    if (event.type !== "key") return false;
    if (event.name === "ctrl-z") {
      this.#parts.terminal.suspend();
      return true;
    }
    if (event.name !== "ctrl-c" && event.name !== "ctrl-\\") return false;
    const isAll = this.#onInterrupt();
    // What was typed ahead was meant for after what is interrupted: terminals forget it too.
    if (isAll) this.#parts.terminal.discardTyped();
    return isAll;
  }
}
