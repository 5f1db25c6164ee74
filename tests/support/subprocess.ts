/** Subprocess: other processes of this same runtime that run a script of the tests, for races between processes. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import process from "node:process";
import type { TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { settled } from "./waiting.ts";

/** What a finished script left. */
export interface ScriptEnd {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A script that runs. */
export interface Script {
  readonly raw: ChildProcess;
  readonly pid: number;
  readonly ended: Promise<ScriptEnd>;
  /** Resolves when the script has printed `line`; fails the test when it ends without. */
  said(line: string): Promise<void>;
  /** Writes a line to its standard input. */
  tell(line: string): void;
}

/** Starts a script of `tests/support/scripts/` with this runtime; it is killed when the test ends. */
export function startScript(t: TestContext, name: string, args: readonly string[] = [], env: Record<string, string> = {}): Script {
  const script = fileURLToPath(new URL(`./scripts/${name}`, import.meta.url));
  const runtimeArgs = process.versions["deno"] === undefined ? [] : ["run", "-A", "--quiet", "--no-check"];
  const raw = spawn(process.execPath, [...runtimeArgs, script, ...args], {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, NODE_NO_WARNINGS: "1", ...env },
  });
  const lines: string[] = [], waiting: Array<() => void> = [];
  let stderr = "";
  const wake = () => waiting.splice(0).forEach((check) => check());
  createInterface({ input: raw.stdout }).on("line", (line) => {
    lines.push(line);
    wake();
  });
  raw.stderr.setEncoding("utf8").on("data", (chunk) => stderr += chunk);
  raw.stdin.on("error", () => {}); // It may end before it reads what it is told.
  const ended = new Promise<ScriptEnd>((resolve) =>
    raw.once("close", (code, signal) => resolve({ code, signal, stdout: lines.map((line) => `${line}\n`).join(""), stderr }))
  );
  void ended.then(wake);
  t.after(async () => {
    if (raw.exitCode === null && raw.signalCode === null) raw.kill("SIGKILL");
    await ended;
  });
  const said = async (line: string) => {
    let isOver = false;
    void ended.then(() => isOver = true);
    while (!lines.includes(line)) {
      if (isOver) throw new Error(`${name} ended and never said "${line}": ${stderr}`);
      await new Promise<void>((resolve) => waiting.push(resolve));
    }
  };
  return {
    raw,
    pid: raw.pid ?? -1,
    ended,
    said: (line) => settled(said(line), `${name} says "${line}"`),
    tell: (line) => void raw.stdin.write(`${line}\n`),
  };
}
