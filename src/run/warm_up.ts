/** Warm-up: what a template has executed before it is saved, so that its clones need not do it for the first time. */
import { JAVASCRIPT_PROCESS, PYTHON_PROCESS, PYTHON_REHEARSAL, SHELL_REHEARSAL } from "./rehearsal.ts";
import type { Language } from "./request.ts";

/** One step of a bake: code for the REPL, or a program beside it, and the exit code that says it did what it should. */
export type WarmUpStep = { readonly code: string; readonly exitCode: number } | { readonly argv: readonly string[] };

/**
 * Modules that programs commonly import; each takes 20 to 500 ms under emulation. None draws a random number or reads `env` for good.
 * Not asyncio: it loads OpenSSL, whose generator must then be reseeded in every clone, for 5,000 blocks of translated code.
 */
const PYTHON_MODULES: readonly string[] = [
  "argparse",
  "base64",
  "collections",
  "contextlib",
  "copy",
  "csv",
  "dataclasses",
  "datetime",
  "decimal",
  "enum",
  "functools",
  "hashlib",
  "heapq",
  "io",
  "itertools",
  "json",
  "math",
  "os",
  "pathlib",
  "pickle",
  "random",
  "re",
  "shutil",
  "signal",
  "statistics",
  "string",
  "subprocess",
  "sys",
  "tempfile",
  "textwrap",
  "threading",
  "time",
  "traceback",
  "typing",
  "urllib.parse",
  "uuid",
];

const ok = (code: string): WarmUpStep => ({ code, exitCode: 0 });

/** What a bake executes. */
export interface WarmUp {
  /** Brings into memory what programs commonly need. */
  readonly prepare: readonly WarmUpStep[];
  /**
   * Our own emulator keeps the translations of these. What every execution needs comes first, so that it lies together in their file, and
   * what leaves memory as a real execution wants to find it comes last.
   */
  readonly rehearse: readonly WarmUpStep[];
}

/** Per language. No step leaves a name behind or draws a random number. */
export const WARM_UP: Readonly<Record<Language, WarmUp>> = {
  python: {
    prepare: [ok(`all([__import__(name) for name in ${JSON.stringify(PYTHON_MODULES)}])`)],
    rehearse: [
      ok("print('warm')"),
      ok("print('warm')\nprint('warm', file=__import__('sys').stderr)\n1 + 1\n"),
      { code: "def _fail():\n    raise ValueError('warm')\ntry:\n    _fail()\nfinally:\n    del _fail\n", exitCode: 1 },
      { code: "(", exitCode: 1 },
      ok(PYTHON_REHEARSAL),
      { argv: PYTHON_PROCESS },
      ok("print('warm')\n1 + 1\n"),
      ok("print('warm')"),
      ok("pass"),
    ],
  },
  javascript: {
    prepare: [],
    // No more than this in the REPL: each further run brings JavaScriptCore nearer to compiling our own functions, and code that is compiled
    // at run time is translated anew in every clone (measured: 21,000 blocks for a print after these two, 58,000 after four).
    rehearse: [
      ok("console.log('warm'); console.error('warm'); 1 + 1\n"),
      { code: "throw new RangeError('warm')", exitCode: 1 },
      { argv: JAVASCRIPT_PROCESS },
    ],
  },
  raw: {
    prepare: [],
    rehearse: [
      ok("echo warm"),
      ok("echo warm; echo warm >&2; /bin/true\n"),
      { code: "no_such_command", exitCode: 127 },
      { code: "if (", exitCode: 2 },
      ok(SHELL_REHEARSAL),
      ok("echo warm"),
      ok(":"),
    ],
  },
};

/**
 * What a clone executes before it counts as warm: a fifth of a second of a processor for each, which a busy host has to find between the runs. So no processes
 * beside the REPL, which take most of a bake's time. JavaScript's is repeated until JavaScriptCore has compiled the REPL's own functions and QEMU the result (blocks of a
 * log then: 127, 724, 145, 35, 29, 12).
 */
export const WARM_STEPS: Readonly<Record<Language, readonly WarmUpStep[]>> = {
  python: WARM_UP.python.rehearse.filter((step) => "code" in step),
  javascript: [
    ...WARM_UP.javascript.rehearse.filter((step) => "code" in step),
    ...Array.from({ length: 6 }, () => ok("console.log('warm')")),
  ],
  raw: WARM_UP.raw.rehearse.filter((step) => "code" in step && step.code !== SHELL_REHEARSAL),
};

/** The whole of it as one text: part of a template's key. */
export function warmUpText(language: Language): string {
  return JSON.stringify(WARM_UP[language]);
}
