/** Bake: boots a machine once, warms it up and saves it as a template. */
import { randomBytes } from "node:crypto";
import path from "node:path";
import { CommunicationError, GuestAgentError, messageOf, OutcomeUnknownError, SandboxError, SnapshotError } from "../base/errors.ts";
import { abortable, settlesWithin } from "../base/async.ts";
import { describeExit, type ExitStatus } from "../host/process.ts";
import { type Logger, silentLogger } from "../base/log.ts";
import type { Hypervisor, LaunchRequest, TemplateFiles } from "../vm/hypervisor.ts";
import { launch } from "../vm/launch.ts";
import { type Template, type TemplateIdentity, type TemplateStore } from "../vm/template.ts";
import type { Vm } from "../vm/vm.ts";
import { preload } from "./preload.ts";
import type { Language } from "./request.ts";
import { WARM_STEPS, WARM_UP, type WarmUpStep } from "./warm_up.ts";

const WARM_UP_TIMEOUT_MS = 60_000;
const QUIT_TIMEOUT_MS = 5_000;
/** A lost channel is noticed before the death that broke it. */
const DEATH_TIMEOUT_MS = 200;

/** A step of a bake, as it begins. */
export interface BakeProgress {
  /** Whose template it is. */
  readonly language: string;
  /** Memory of the machine, in MB (2^20 bytes). */
  readonly memoryMb: number;
  /** What begins now; `waiting`: another process makes the same template. */
  readonly phase: "waiting" | "booting" | "importing" | "warming" | "saving" | "done";
  /** Since the bake began, in milliseconds. */
  readonly elapsedMs: number;
}

/** What a bake needs. */
export interface BakeOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: BakeProgress) => void;
  /** The disk with packages that its clones have. */
  readonly layer?: LaunchRequest["layer"];
  /** Modules of these that it imports. */
  readonly modules?: readonly string[];
  readonly log?: Logger;
  /** Checks the files the machine is made of, beside its boot; nothing is saved before it has succeeded. */
  readonly verify?: (signal: AbortSignal) => Promise<void>;
}

/** The template, baked now when there is none. Throws the launch's error, or `SnapshotError` when it cannot be saved. */
export async function ensureTemplate(
  hypervisor: Hypervisor,
  store: TemplateStore,
  identity: TemplateIdentity,
  options: BakeOptions = {},
): Promise<Template> {
  const startedAt = performance.now();
  const report = (phase: BakeProgress["phase"]) =>
    options.onProgress?.({
      language: identity.language,
      memoryMb: identity.memoryMiB,
      phase,
      elapsedMs: Math.ceil(performance.now() - startedAt),
    });
  try {
    return await store.findOrBake(identity, async (files) => {
      const log = await bake(hypervisor, identity, { ...options, files, report });
      report("done");
      return log;
    }, { ...options, onWait: () => report("waiting") });
  } catch (cause) {
    if (cause instanceof SandboxError || options.signal?.aborted) throw cause;
    throw new SnapshotError(`Cannot save a template for ${identity.language}: ${messageOf(cause)}`, { cause });
  }
}

interface BakeRun extends Pick<BakeOptions, "signal" | "verify" | "layer" | "modules" | "log"> {
  readonly files: TemplateFiles;
  readonly report: (phase: BakeProgress["phase"]) => void;
}

async function bake(hypervisor: Hypervisor, identity: TemplateIdentity, run: BakeRun): Promise<string> {
  run.report("booting");
  const origin = { kind: "bake", files: run.files } as const;
  await using vm = await launch(hypervisor, { language: identity.language, memoryMiB: identity.memoryMiB, origin, layer: run.layer });
  try {
    return await fill(vm, identity, run);
  } catch (cause) {
    if (run.signal?.aborted) throw cause;
    const isBooted = await vm.ready.then(() => true, () => false);
    throw explain(cause, { identity, run, isBooted, end: await endOf(vm) });
  }
}

/** How the machine ended, if it did. */
async function endOf(vm: Vm): Promise<ExitStatus | undefined> {
  return await settlesWithin(vm.child.exited, DEATH_TIMEOUT_MS) ? await vm.child.exited : undefined;
}

interface FailedBake {
  readonly identity: TemplateIdentity;
  readonly run: BakeRun;
  readonly isBooted: boolean;
  readonly end: ExitStatus | undefined;
}

/** What a failed bake means to somebody who wanted to run code. */
function explain(cause: unknown, { identity: { language }, run, isBooted, end }: FailedBake): unknown {
  // The machine's memory is a mapped file with holes: a write for which the disk has no room ends QEMU with this signal.
  if (end?.signal === "SIGBUS") {
    const place = path.dirname(path.dirname(run.files.ramFile));
    return new SnapshotError(`Cannot save a template for ${language}: no space is left in ${place}`, { cause });
  }
  if (!isBooted || !(cause instanceof OutcomeUnknownError || cause instanceof CommunicationError)) return cause;
  // Only our own code ran: whoever waits for the template may try again.
  return new CommunicationError(`Cannot make a template for ${language}: ${end ? `QEMU ${describeExit(end)}` : messageOf(cause)}`, {
    cause,
  });
}

/** Boots, warms up and saves; returns the boot log. */
async function fill(vm: Vm, identity: TemplateIdentity, run: BakeRun): Promise<string> {
  const signal = run.signal ? AbortSignal.any([run.signal, vm.lost]) : vm.lost;
  const verified = run.verify?.(signal);
  verified?.catch(() => {}); // Awaited below; a boot that fails first is told first.
  await abortable(vm.ready, run.signal);
  const { modules = [], log = silentLogger() } = run;
  if (modules.length > 0) {
    run.report("importing");
    await preload(vm, modules, { log, signal });
  }
  run.report("warming");
  const { prepare, rehearse } = WARM_UP[identity.language as Language];
  await takeSteps(vm, identity, { steps: prepare, signal });
  await vm.guest.quiesce(signal);
  // Our own emulator keeps the translations of what runs after this, for every clone: so what clones do first is done once here, from the
  // greeting on. Any other QEMU just stops for a moment.
  await vm.qmp.execute("stop", undefined, signal);
  await vm.qmp.execute("cont", undefined, signal);
  await vm.guest.hello({ id: `${vm.id}-rehearsal`, entropy: randomBytes(64), silenceMs: 0 }, signal);
  await takeSteps(vm, identity, { steps: rehearse, signal });
  await vm.guest.rehearseNetwork(signal);
  await vm.guest.quiesce(signal);
  await verified;
  run.report("saving");
  await vm.qmp.saveState(`file:${run.files.stateFile}`, signal);
  // The machine has stopped for good; a clean exit makes sure that everything has left QEMU's buffers.
  void vm.qmp.execute("quit").catch(() => {}); // The monitor closes while it answers.
  await settlesWithin(vm.child.exited, QUIT_TIMEOUT_MS);
  return vm.console.tail;
}

/**
 * Makes a clone warm: it executes once what its template has executed last, so that it has the translations and the pages that the next execution
 * needs; and once more after a new greeting, as it will be greeted by whoever gets it. Leaves no trace that the template does not have.
 */
export async function warmUp(vm: Vm, language: Language, signal: AbortSignal): Promise<void> {
  const steps = WARM_STEPS[language];
  await takeSteps(vm, { language }, { steps, signal });
  await vm.guest.ping(signal); // As whoever keeps it will do.
  await vm.renew(signal);
  await takeSteps(vm, { language }, { steps: steps.slice(0, 1), signal });
  await vm.guest.quiesce(signal);
}

async function takeSteps(
  vm: Vm,
  { language }: { readonly language: string },
  { steps, signal }: { readonly steps: readonly WarmUpStep[]; readonly signal: AbortSignal },
): Promise<void> {
  for (const step of steps) {
    const wanted = "code" in step ? step.exitCode : 0;
    const exitCode = "code" in step ? await runCode(vm, step.code, signal) : await runProgram(vm, step.argv, signal);
    if (exitCode !== wanted) throw new GuestAgentError(`Cannot warm up a ${language} VM: exit code ${exitCode} instead of ${wanted}`);
  }
}

async function runCode(vm: Vm, code: string, signal: AbortSignal): Promise<number> {
  return (await vm.guest.exec({ code, env: {}, timeoutMs: WARM_UP_TIMEOUT_MS }, { onOutput: () => {} }, signal)).exitCode;
}

async function runProgram(vm: Vm, argv: readonly string[], signal: AbortSignal): Promise<number> {
  const request = { argv, env: {}, cwd: "/home/user", hasStdin: false, pty: null, isBackground: false };
  const program = await vm.guest.processes.spawn(request, () => {}, signal);
  return await abortable(program.ended, AbortSignal.any([signal, AbortSignal.timeout(WARM_UP_TIMEOUT_MS)]));
}
