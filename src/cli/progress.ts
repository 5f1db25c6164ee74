/** Progress: one updating line on a terminal, plain lines elsewhere. */
import type { ProgressEvent } from "./context.ts";
import { oneLine } from "./failure.ts";
import type { Output } from "./output.ts";

/** How often the line is drawn anew, so that the elapsed time moves. */
const REDRAW_MS = 200;

interface Task {
  readonly startedMs: number;
  message: string;
  percent: number | undefined;
}

/** Shows the progress of tasks that may run side by side. Leaves no line behind on a terminal but those of finished tasks. */
export class Progress implements Disposable {
  readonly #output: Output;
  readonly #isQuiet: boolean;
  readonly #nowMs: () => number;
  readonly #tasks = new Map<string, Task>();
  #timer: ReturnType<typeof setInterval> | undefined;
  #isLineShown = false;

  /** Nothing is written when `isQuiet`. `nowMs` is for tests. */
  constructor(output: Output, options: { readonly isQuiet: boolean; readonly nowMs?: () => number }) {
    this.#output = output;
    this.#isQuiet = options.isQuiet;
    this.#nowMs = options.nowMs ?? (() => performance.now());
  }

  /** Takes the next step in. */
  readonly update = (event: ProgressEvent): void => {
    if (this.#isQuiet) return;
    const task = this.#tasks.get(event.task) ?? { startedMs: this.#nowMs(), message: "", percent: undefined };
    const isNews = !this.#tasks.has(event.task) || (event.message !== undefined && event.message !== task.message);
    if (event.message !== undefined) task.message = oneLine(event.message);
    task.percent = event.percent;
    this.#tasks.set(event.task, task);
    if (event.isDone) this.#finish(event.task, task);
    else if (this.#output.isTty) this.#draw();
    else if (isNews && !event.isDetail) this.#say(`${event.task}: ${task.message || "started"}`);
  };

  /** Takes the line away so that other output can be written; the next step draws it again. */
  clear(): void {
    if (this.#isLineShown) this.#output.write("\r\x1b[K");
    this.#isLineShown = false;
  }

  /** Forgets a task that came to nothing: whoever asked for it is told otherwise. */
  drop(task: string): void {
    if (this.#tasks.delete(task)) this.clear();
    this.#rest();
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.clear();
    this.#tasks.clear();
  }

  #finish(name: string, task: Task): void {
    this.#tasks.delete(name);
    this.clear();
    this.#say(`${name}: ${task.message || "done"} (${this.#elapsed(task)})`);
    this.#rest();
  }

  #rest(): void {
    if (this.#tasks.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #say(line: string): void {
    this.#output.startLine();
    this.#output.write(`${line}\n`);
  }

  #draw(): void {
    if (this.#timer === undefined) {
      this.#timer = setInterval(() => this.#draw(), REDRAW_MS);
      this.#timer.unref?.();
    }
    const parts = [...this.#tasks].map(([name, task]) => {
      const percent = task.percent === undefined ? "" : ` ${Math.floor(task.percent)} %`;
      return `${name}: ${task.message || "working"}${percent} (${this.#elapsed(task)})`;
    });
    // One column stays free: a full line would wrap on some terminals, and could then not be taken back.
    const line = fitted(parts.join(" · "), Math.max(this.#output.columns - 1, 10));
    if (!this.#isLineShown) this.#output.startLine(); // What a program wrote stays.
    this.#output.write(`\r${line}\x1b[K`);
    this.#isLineShown = true;
  }

  #elapsed(task: Task): string {
    return `${((this.#nowMs() - task.startedMs) / 1000).toFixed(1)} s`;
  }
}

/** As much of `text` as surely fits: what lies beyond the scripts of one column counts as two. */
function fitted(text: string, columns: number): string {
  let end = 0, width = 0;
  for (const character of text) {
    width += (character.codePointAt(0) ?? 0) < 0x1100 ? 1 : 2;
    if (width > columns) break;
    end += character.length;
  }
  return text.slice(0, end);
}
