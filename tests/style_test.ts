/** Style test: what STYLE and ARCHITECTURE promise about the source and a program can check. */
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import path from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";

/** A file may import its own folder or a strictly lower rank; siblings of one rank never. */
const RANK: Readonly<Record<string, number>> = {
  base: 0,
  host: 1,
  config: 2,
  channel: 2,
  qemu: 2,
  images: 2,
  admission: 2,
  cache: 2,
  link: 2,
  net: 3,
  vm: 3,
  packages: 3,
  testing: 3,
  run: 4,
  serve: 5,
  ".": 5,
  cli: 6,
};
const FILE_MAX_LINES = 420;
const FUNCTION_MAX_LINES = 75;
const IMPORT = /(?:import|export)[^;'"]*?from\s*["']([^"']+)["']|import\s*\(\s*["']([^"']+)["']|^import\s*["']([^"']+)["']/gm;
const ROOT = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

interface SourceFile {
  /** Relative to the repository, with slashes. */
  readonly name: string;
  readonly text: string;
  readonly lines: readonly string[];
  /** What it imports, as written. */
  readonly imports: readonly string[];
}

async function readSources(folder: string): Promise<SourceFile[]> {
  const entries = await fs.readdir(path.join(ROOT, folder), { recursive: true });
  const names = entries.map((entry) => entry.replaceAll(path.sep, "/")).filter((entry) => entry.endsWith(".ts")).sort();
  return await Promise.all(names.map(async (name) => await readSource(`${folder}/${name}`)));
}

async function readSource(name: string): Promise<SourceFile> {
  const text = await fs.readFile(path.join(ROOT, name), "utf8");
  const code = text.replace(/^\s*(?:\/\/|\/?\*).*$/gm, ""); // Examples in comments import too.
  const imports = [...code.matchAll(IMPORT)].map((match) => match[1] ?? match[2] ?? match[3] ?? "");
  return { name, text, lines: text.split("\n"), imports };
}

/** `qemu` for `src/qemu/probe.ts`, `.` for `src/mod.ts`. */
function folderOf(name: string): string {
  const parts = name.split("/");
  return parts.length > 2 ? parts[1] ?? "." : ".";
}

function targetsOf(file: SourceFile): string[] {
  const own = file.imports.filter((target) => target.startsWith(".") && target.endsWith(".ts"));
  return own.map((target) => path.posix.join(path.posix.dirname(file.name), target));
}

function cyclesIn(graph: ReadonlyMap<string, readonly string[]>): string[] {
  const state = new Map<string, "open" | "done">();
  const found: string[] = [];
  const visit = (node: string, trail: readonly string[]) => {
    if (state.get(node) === "open") return void found.push([...trail.slice(trail.indexOf(node)), node].join(" -> "));
    if (state.has(node)) return;
    state.set(node, "open");
    for (const next of graph.get(node) ?? []) visit(next, [...trail, node]);
    state.set(node, "done");
  };
  for (const node of graph.keys()) visit(node, []);
  return found;
}

/** Functions and methods that are too long. The formatter sees to it that a body ends at the indentation it began at. */
function longFunctions(file: SourceFile): string[] {
  return file.lines.flatMap((line, start) => {
    const indentation = /^(\s*).*(?:\(.*\)(?:: .+)?|=>) \{$/.exec(line)?.[1];
    if (indentation === undefined || /^\s*(?:\} else )?(?:if|for|while|switch|catch)\b/.test(line)) return [];
    const end = file.lines.findIndex((candidate, at) => at > start && candidate.startsWith(`${indentation}}`));
    const length = end - start + 1;
    return length > FUNCTION_MAX_LINES ? [`${file.name}:${start + 1} has ${length} lines`] : [];
  });
}

/** Lines of `file` that match `pattern`, as `file:line: text`. */
function linesLike(file: SourceFile, pattern: RegExp, isAllowed: (line: string, at: number) => boolean = () => false): string[] {
  return file.lines.flatMap((line, at) => pattern.test(line) && !isAllowed(line, at) ? [`${file.name}:${at + 1}: ${line.trim()}`] : []);
}

const src = await readSources("src");
const images = await readSources("images");
const tests = await readSources("tests");
const main = await readSource("main.ts");
const shipped = [...src, ...images, main];

test("every folder of src has a rank, and imports point down", () => {
  assert.ok(src.length > 20, "the source was found");
  const bad = src.flatMap((file) => {
    const from = folderOf(file.name), rank = RANK[from];
    if (rank === undefined) return [`${file.name}: its folder has no rank`];
    return targetsOf(file)
      .filter((target) => target.startsWith("src/") && folderOf(target) !== from && (RANK[folderOf(target)] ?? Infinity) >= rank)
      .map((target) => `${file.name} imports ${target}`);
  });
  assert.deepEqual(bad, []);
});

test("nothing in src imports from outside of it but the manifest", () => {
  const outside = (file: SourceFile) =>
    file.imports
      .filter((target) => target.startsWith("."))
      .map((target) => path.posix.join(path.posix.dirname(file.name), target))
      .filter((target) => !target.startsWith("src/") && target !== "deno.json")
      .map((target) => `${file.name} imports ${target}`);
  assert.deepEqual(src.flatMap(outside), []);
});

test("no import cycles, type imports included", () => {
  assert.deepEqual(cyclesIn(new Map([...src, main].map((file) => [file.name, targetsOf(file)]))), []);
});

test("every import names a file that exists", async () => {
  const missing = await Promise.all(
    [...shipped, ...tests].flatMap((file) =>
      targetsOf(file).map(async (target) => {
        const isThere = await fs.access(path.join(ROOT, target)).then(() => true, () => false);
        return isThere ? [] : [`${file.name} imports ${target}`];
      })
    ),
  );
  assert.deepEqual(missing.flat(), []);
});

test("every file says its role in its first line", () => {
  const first = (file: SourceFile) => file.lines[0]?.startsWith("#!") ? file.lines[1] ?? "" : file.lines[0] ?? "";
  assert.deepEqual([...shipped, ...tests].filter((file) => !/^\/\*\*? ?\S/.test(first(file))).map((file) => file.name), []);
});

test(`no file has more than ${FILE_MAX_LINES} lines`, () => {
  const long = [...shipped, ...tests].filter((file) => file.lines.length - 1 > FILE_MAX_LINES);
  assert.deepEqual(long.map((file) => `${file.name}: ${file.lines.length - 1}`), []);
});

test(`no function has more than ${FUNCTION_MAX_LINES} lines`, () => {
  assert.deepEqual(shipped.flatMap(longFunctions), []);
});

test("file names are snake_case", () => {
  const isSnake = (file: SourceFile) => /^[a-z0-9]+(?:_[a-z0-9]+)*\.ts$/.test(path.posix.basename(file.name));
  assert.deepEqual([...shipped, ...tests].filter((file) => !isSnake(file)).map((file) => file.name), []);
});

test("nothing is mutable at module level", () => {
  // A collection made once and typed read-only is a constant; anything else is state that two schedulers would share.
  const isReadonly = (line: string) => /: (?:Readonly|readonly )/.test(line) || /Object\.freeze\(/.test(line) || /as const/.test(line);
  const state =
    /^(?:export )?(?:let|var) |^(?:export )?const \w+(?:: [^=]+)? = new (?:Weak)?(?:Map|Set)\b|^(?:export )?const \w+(?:: [^=]+)? = (?:\[\]|\{\});/;
  assert.deepEqual(src.flatMap((file) => linesLike(file, state, isReadonly)), []);
});

test("only src/host and images start processes", () => {
  const starts = src.filter((file) => folderOf(file.name) !== "host" && file.imports.includes("node:child_process"));
  assert.deepEqual([...starts, ...(main.imports.includes("node:child_process") ? [main] : [])].map((file) => file.name), []);
});

test("nothing is asked of one runtime alone", () => {
  const bare = new Set(["@aws-sdk/client-s3", "commander", "zod", "fast-check"]);
  const foreign = (file: SourceFile) =>
    file.imports.filter((target) => !target.startsWith("node:") && !target.startsWith(".") && !bare.has(target)).map((target) =>
      `${file.name}: ${target}`
    );
  assert.deepEqual([...src, main].flatMap(foreign), []);
  assert.deepEqual(
    [...src, main].flatMap((file) => linesLike(file, /\b(?:Deno|Bun)\.\w/, (line) => /^\s*(?:\/\/|\*|\/\*)/.test(line))),
    [],
  );
});

test("every export is documented", () => {
  const isDocumented = (file: SourceFile) => (_line: string, at: number) => {
    let above = at - 1;
    while (/^\s*\/\/ deno-lint-ignore/.test(file.lines[above] ?? "")) above -= 1;
    return (file.lines[above] ?? "").trimEnd().endsWith("*/");
  };
  const declaration = /^export (?:default )?(?:abstract )?(?:async )?(?:function|class|interface|type \w+(?:<.*>)? =|const)/;
  assert.deepEqual(src.flatMap((file) => linesLike(file, declaration, isDocumented(file))), []);
});

test("every error class writes its name out: minifiers rename classes, and programs read the name", () => {
  const nameless = src.flatMap((file) => {
    const text = file.lines.join("\n");
    return [...text.matchAll(/^(?:export )?class (\w+) extends \w*Error\b[^{]*\{([^]*?)^\}/gm)]
      .filter(([, name, body]) => !body?.match(new RegExp(`override readonly name(?:: string)? = "${name}";`)))
      .map(([, name]) => `${file.name}: ${name}`);
  });
  assert.deepEqual(nameless, []);
});

test("no failure is dropped without a reason", () => {
  const isExplained = (file: SourceFile) => (line: string, at: number) => line.includes("//") || /^\s*\/\//.test(file.lines[at - 1] ?? "");
  const dropped = /catch\s*(?:\(\w*\)\s*)?\{\s*\}|\.catch\(\(\) => (?:\{\}|undefined|null)\)/;
  assert.deepEqual(shipped.flatMap((file) => linesLike(file, dropped, isExplained(file))), []);
});

test("nothing is left for later", () => {
  assert.deepEqual(
    [...shipped, ...tests].filter((file) => file.name !== "tests/style_test.ts").flatMap((file) =>
      linesLike(file, /\b(?:TODO|FIXME|XXX|HACK)\b/)
    ),
    [],
  );
});
