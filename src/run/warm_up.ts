/** Warm-up: what a template has executed before it is saved, so that its clones need not do it for the first time. */
import type { Language } from "./request.ts";

/** One execution of a bake, and the exit code that says it did what it should. */
export interface WarmUpStep {
  readonly code: string;
  readonly exitCode: number;
}

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

/**
 * Per language: ordinary executions and a failing one. They leave no name behind, draw no random number, and the last ones take the path
 * of a real execution: code to compile, output on both streams, a value.
 */
export const WARM_UP: Readonly<Record<Language, readonly WarmUpStep[]>> = {
  python: [
    ok(`all([__import__(name) for name in ${JSON.stringify(PYTHON_MODULES)}])`),
    { code: "def _fail():\n    raise ValueError('warm')\ntry:\n    _fail()\nfinally:\n    del _fail\n", exitCode: 1 },
    { code: "(", exitCode: 1 },
    ok("print('warm')\nprint('warm', file=__import__('sys').stderr)\n1 + 1\n"),
    ok("print('warm')"),
    ok("pass"),
  ],
  // No more than this: each further run brings JavaScriptCore nearer to compiling our own functions, and code that is compiled at run
  // time is translated anew in every clone (measured: 21,000 blocks for a print after these two, 58,000 after four).
  javascript: [
    ok("console.log('warm'); console.error('warm'); 1 + 1\n"),
    { code: "throw new RangeError('warm')", exitCode: 1 },
  ],
  raw: [
    ok(
      "ls / | grep -c . | sed s/x/y/ | awk '{print $1}' | tr a b | sort | head -n 1 | cat > /dev/null; date; id; uname -a; env > /dev/null",
    ),
    { code: "no_such_command", exitCode: 127 },
    { code: "if (", exitCode: 2 },
    ok("echo warm; echo warm >&2; /bin/true\n"),
    ok("echo warm"),
    ok(":"),
  ],
};

/** The whole of it as one text: part of a template's key. */
export function warmUpText(language: Language): string {
  return JSON.stringify(WARM_UP[language]);
}
