/** Preload: a template's Python imports the packages' modules before it is saved, so that clones find them imported. */
import type { Logger } from "../base/log.ts";
import type { Vm } from "../vm/vm.ts";

/** An import that takes longer is left to whoever wants it. Under emulation large packages take tens of seconds. */
const IMPORT_TIMEOUT_MS = 180_000;
const RESET_TIMEOUT_MS = 60_000;

/**
 * What a process has that a clone cannot take over whole: threads besides the main one, and sockets. Runs in a namespace of its own, and
 * prints two numbers.
 */
const COUNT_CODE = `exec("""
import os
def sockets():
    count = 0
    for name in os.listdir('/proc/self/fd'):
        try:
            count += os.readlink('/proc/self/fd/' + name).startswith('socket:')
        except OSError:
            pass
    return count
print(len(os.listdir('/proc/self/task')), sockets())
""", {})`;

/** What a module does that keeps it out, or undefined. */
type Verdict = { readonly reason: string; readonly isSpoilt: boolean } | undefined;

/**
 * Imports `modules` into the language's process of a machine that bakes. What fails, takes too long, starts threads or leaves sockets open is left
 * out, with a warning that says so; the process is then a new one. Returns what is imported.
 */
export async function preload(
  vm: Vm,
  modules: readonly string[],
  { log, signal }: { readonly log: Logger; readonly signal: AbortSignal },
): Promise<readonly string[]> {
  let wanted = modules;
  // Each round leaves one module out, or is the last.
  for (;;) {
    const out = new Map<string, string>();
    let isSpoilt = false;
    const before = await count(vm, signal);
    for (const module of wanted) {
      const verdict = await importModule(vm, module, { before, signal });
      if (!verdict) continue;
      out.set(module, verdict.reason);
      isSpoilt = verdict.isSpoilt;
      if (isSpoilt) break;
    }
    for (const [module, reason] of out) log.warning("a module is not imported ahead of time", { module, reason });
    wanted = wanted.filter((module) => !out.has(module));
    if (!isSpoilt) return wanted;
    await run(vm, "__import__('os')._exit(0)", { timeoutMs: RESET_TIMEOUT_MS, signal });
  }
}

async function importModule(
  vm: Vm,
  module: string,
  { before, signal }: { readonly before: readonly [number, number]; readonly signal: AbortSignal },
): Promise<Verdict> {
  // All but the last line of a traceback is of no use to whoever reads the warning.
  const { exitCode, timedOut, stderr } = await run(vm, `__import__(${JSON.stringify(module)})\nNone`, {
    timeoutMs: IMPORT_TIMEOUT_MS,
    signal,
  });
  if (timedOut) return { reason: `it takes more than ${IMPORT_TIMEOUT_MS / 1000} s`, isSpoilt: true };
  const [threads, sockets] = await count(vm, signal);
  if (exitCode !== 0) {
    const reason = stderr.trim().split("\n").at(-1)?.slice(0, 300) || `it ended with status ${exitCode}`;
    return { reason, isSpoilt: exitCode > 1 || threads > before[0] || sockets > before[1] };
  }
  if (threads > before[0]) return { reason: `it starts ${threads - before[0]} threads`, isSpoilt: true };
  if (sockets > before[1]) return { reason: `it leaves ${sockets - before[1]} sockets open`, isSpoilt: true };
  return undefined;
}

async function count(vm: Vm, signal: AbortSignal): Promise<readonly [number, number]> {
  const { stdout } = await run(vm, COUNT_CODE, { timeoutMs: RESET_TIMEOUT_MS, signal });
  const [, threads, sockets] = /^(\d+) (\d+)\s*$/.exec(stdout) ?? [];
  return [Number(threads ?? 0), Number(sockets ?? 0)];
}

async function run(vm: Vm, code: string, { timeoutMs, signal }: { readonly timeoutMs: number; readonly signal: AbortSignal }) {
  const output = { stdout: "", stderr: "" }, decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  const onOutput = (name: "stdout" | "stderr", bytes: Uint8Array) => {
    output[name] = (output[name] + decoders[name].decode(bytes, { stream: true })).slice(-10_000);
  };
  const { exitCode, timedOut } = await vm.guest.exec({ code, env: {}, timeoutMs }, { onOutput }, signal);
  return { exitCode, timedOut, ...output };
}
