/** A context without a process: what commands write is collected, what they run is up to the test. */
import { Buffer } from "node:buffer";
import type {
  CliCache,
  CliCheckpoint,
  CliContext,
  CliImages,
  CliScheduler,
  CliServer,
  CliSession,
  CliTerminal,
  OpenOptions,
} from "../../../src/cli/context.ts";
import type { Check } from "../../../src/cli/doctor_report.ts";
import { Line, type Output } from "../../../src/cli/output.ts";
import { runProgram } from "../../../src/cli/program.ts";
import type { RunRequest } from "../../../src/run/request.ts";
import type { SessionRequest } from "../../../src/run/session_request.ts";
import type { ExecutionResult } from "../../../src/base/result.ts";

/** An output that collects what is written. */
export class FakeOutput implements Output {
  readonly isTty: boolean;
  readonly columns: number;
  readonly hasColor: boolean;
  text = "";
  readonly #line: Line;

  /** Outputs with the same `line` lead to the same place. */
  constructor(options: { readonly isTty?: boolean; readonly hasColor?: boolean; readonly columns?: number; readonly line?: Line } = {}) {
    this.isTty = options.isTty ?? false;
    this.hasColor = options.hasColor ?? false;
    this.columns = options.columns ?? 80;
    this.#line = options.line ?? new Line();
  }

  write(text: string): void {
    this.text += text;
    this.#line.take(text);
  }

  writeBytes(bytes: Uint8Array): Promise<void> {
    this.write(Buffer.from(bytes).toString("utf8"));
    return Promise.resolve();
  }

  startLine(): void {
    if (!this.#line.isEmpty) this.write("\n");
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }
}

/** A successful result; `fields` replace its own. */
export function resultOf(fields: Partial<ExecutionResult> = {}): ExecutionResult {
  return {
    stdout: "",
    stderr: "",
    results: [],
    exitCode: 0,
    timedOut: false,
    executionTimeMs: 12,
    externalCpuTimeMs: 40,
    externalMemoryPeakMb: 61,
    timing: { setupMs: 3, bootMs: 41, executeMs: 12, totalMs: 58 },
    warmPoolHit: false,
    start: "template",
    exposedPorts: [],
    ...fields,
  };
}

/** What a test replaces of the world. */
export interface World {
  readonly stdin?: string | Uint8Array;
  readonly isStdinTty?: boolean;
  readonly stdout?: FakeOutput;
  readonly stderr?: FakeOutput;
  readonly signal?: AbortSignal;
  readonly run?: (request: RunRequest, options: OpenOptions) => Promise<ExecutionResult>;
  readonly open?: (options: OpenOptions) => Promise<CliScheduler>;
  readonly pin?: (...given: Parameters<CliScheduler["pinPackages"]>) => ReturnType<CliScheduler["pinPackages"]>;
  /** Those with a name. */
  readonly checkpoints?: readonly CliCheckpoint[];
  readonly session?: (request: SessionRequest, options: OpenOptions) => Promise<CliSession>;
  readonly terminal?: CliTerminal;
  readonly env?: Readonly<Record<string, string>>;
  readonly cache?: CliCache;
  readonly server?: CliServer;
  readonly checks?: readonly Check[];
  readonly images?: (arch: string | undefined) => CliImages;
}

/** What a run of the program left. */
export interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  /** Every request the scheduler got, in the order it got them. */
  readonly requests: readonly RunRequest[];
  /** How often a scheduler was opened and released. */
  readonly opened: number;
  readonly closed: number;
}

/** Runs the program on `args` in `world`. */
export async function sbx(args: readonly string[], world: World = {}): Promise<Ran> {
  const stdout = world.stdout ?? new FakeOutput(), stderr = world.stderr ?? new FakeOutput();
  const requests: RunRequest[] = [];
  let opened = 0, closed = 0;
  const schedulerFor = (options: OpenOptions): CliScheduler => ({
    run(request) {
      requests.push(request);
      return world.run?.(request, options) ?? Promise.resolve(resultOf());
    },
    prepare: () => Promise.resolve(),
    pinPackages: (language, names, options) =>
      world.pin?.(language, names, options) ?? Promise.reject(new Error("this test has no registry")),
    session: (request) => world.session?.(request, options) ?? Promise.reject(new Error("this test has no sessions")),
    checkpoints: () => Promise.resolve([...world.checkpoints ?? []]),
    [Symbol.asyncDispose]: () => {
      closed += 1;
      return Promise.resolve();
    },
  });
  const context: CliContext = {
    stdin: {
      isTty: world.isStdinTty ?? false,
      read: (maxBytes) => Promise.resolve(Buffer.from(world.stdin ?? "").subarray(0, maxBytes + 1)),
    },
    stdout,
    stderr,
    env: world.env ?? {},
    signal: world.signal ?? new AbortController().signal,
    async openScheduler(options) {
      opened += 1;
      return await world.open?.(options) ?? schedulerFor(options);
    },
    openCache: () => world.cache ? Promise.resolve(world.cache) : Promise.reject(new Error("this test has no cache")),
    openServer: () => world.server ? Promise.resolve(world.server) : Promise.reject(new Error("this test has no server")),
    doctorChecks: () => Promise.resolve({ checks: world.checks ?? [], [Symbol.asyncDispose]: () => Promise.resolve() }),
    openTerminal: () => world.terminal ? Promise.resolve(world.terminal) : Promise.reject(new Error("this test has no terminal")),
    openImages: (arch) => world.images ? Promise.resolve(world.images(arch)) : Promise.reject(new Error("this test has no images")),
  };
  const code = await runProgram(args, context);
  return { code, stdout: stdout.text, stderr: stderr.text, requests, opened, closed };
}
