/** Warm-up: what a template has executed before it is saved, so that its clones need not do it for the first time. */
import type { Language } from "./request.ts";

/**
 * One ordinary execution per language. It leaves no name behind, draws no random number and takes the path of a real execution:
 * code to compile, output on both streams, a value.
 */
export const WARM_UP: Readonly<Record<Language, string>> = {
  python: "import sys\nprint('warm')\nprint('warm', file=sys.stderr)\ndel sys\n1 + 1\n",
  javascript: "console.log('warm'); console.error('warm'); 1 + 1\n",
  raw: "echo warm; echo warm >&2; /bin/true\n",
};
