/** Rehearsal: programs that use what programs commonly use. A bake runs them once, so that clones find it in memory and translated. */

/** Leaves no name: it runs in a namespace of its own. */
const PYTHON_PROGRAM = `
import collections, datetime, itertools, json, os, re, subprocess, sys
from dataclasses import dataclass, field

@dataclass
class Point:
    x: int
    y: float = 0.5
    tags: list = field(default_factory=list)

class Base:
    def __init__(self, name): self.name = name
    def __repr__(self): return f"{type(self).__name__}({self.name!r})"
    @property
    def upper(self): return self.name.upper()

class Derived(Base):
    def __len__(self): return len(self.name)

def primes(limit):
    for number in range(2, limit):
        if all(number % divisor for divisor in range(2, int(number ** 0.5) + 1)):
            yield number

points = sorted((Point(n % 7, n / 3) for n in range(60)), key=lambda point: (point.x, -point.y))
groups = {key: [point.y for point in items] for key, items in itertools.groupby(points, lambda point: point.x)}
words = collections.Counter("the quick brown fox jumps over the lazy dog".split())
text = json.dumps({"words": dict(words), "numbers": [1, 2.5, None, True], "groups": groups}, indent=1, sort_keys=True)
print(json.loads(text)["words"]["the"], re.sub(r"\\d+", "#", text)[:20], re.findall(r"(\\w+)=(\\d+)", "a=1 b=22"))
print(Derived("x").upper, len(Derived("abc")), [*primes(50)], sum(range(1000)), 2 ** 200, f"{3.14159:.2f} {42:05d} {'l':>4}")
print(datetime.datetime(2020, 1, 2, 3).isoformat(), datetime.date.today().year, round(2.567, 1), "a,b".split(","), " x ".strip())
path = "/tmp/rehearsal.txt"
with open(path, "w") as file: file.write("one\\ntwo\\n")
with open(path) as file: print([line.rstrip() for line in file], os.path.getsize(path), os.listdir("/tmp"))
os.remove(path)
for action in (lambda: [][1], lambda: {}["x"], lambda: 1 / 0, lambda: int("x")):
    try: action()
    except Exception as error: print(type(error).__name__, error, file=sys.stderr)
print({1, 2} | {3}, (1, *range(3)), [*zip("ab", [1, 2])], dict(enumerate("ab")), *map(str, filter(None, [0, 1])), sep="|")
print(subprocess.run(["ls", "/"], capture_output=True, text=True).stdout)
`;

const PYTHON_ASYNCHRONOUS = `
import asyncio
async def wait(): return await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.001))
asyncio.run(wait())
`;

/** For the Python REPL. */
export const PYTHON_REHEARSAL = `exec(${JSON.stringify(PYTHON_PROGRAM)}, {"__name__": "rehearsal"})`;

const JAVASCRIPT_PROGRAM = `{
  class Shape { constructor(name) { this.name = name } get upper() { return this.name.toUpperCase() } toString() { return \`<\${this.name}>\` } }
  class Square extends Shape { #side = 2; area() { return this.#side ** 2 } }
  const points = Array.from({ length: 60 }, (_, n) => ({ x: n % 7, y: n / 3 })).sort((a, b) => a.x - b.x || b.y - a.y);
  const groups = new Map(); for (const { x, y } of points) groups.set(x, [...(groups.get(x) ?? []), y]);
  const text = JSON.stringify({ groups: Object.fromEntries(groups), list: [1, 2.5, null, true] }, null, 1);
  console.log(JSON.parse(text).list.length, text.replace(/\\d+/g, "#").slice(0, 20), "a=1 b=22".match(/\\w+=(\\d+)/), new Set([1, 1, 2]).size);
  console.log(new Square("s").upper, String(new Square("q")), new Square("r").area(), points[0], [1, [2, { a: 3 }]], new Date(0).toISOString());
  console.log([3, 1, 2].map((n) => n * 2).filter((n) => n > 2).reduce((a, b) => a + b, 0), "a,b".split(","), 10n ** 20n, (3.14159).toFixed(2));
  try { null.x } catch (error) { console.error(error.message) }
  await Promise.all([1, 2].map(async (n) => { await new Promise((done) => setTimeout(done, n)); return n }));
  const fs = await import("node:fs/promises"); await fs.writeFile("/tmp/rehearsal.txt", "one"); console.log(await fs.readFile("/tmp/rehearsal.txt", "utf8"));
  await fs.rm("/tmp/rehearsal.txt");
}
`;

/**
 * A program beside the REPL: it leaves nothing but what the system remembers of its files. Run in the REPL itself it would have
 * JavaScriptCore compile the REPL's functions in every clone (measured: a log then takes 146 ms of CPU time instead of 33).
 */
export const JAVASCRIPT_PROCESS: readonly string[] = ["bun", "-e", JAVASCRIPT_PROGRAM];

/** The same: asyncio loads OpenSSL, whose generator would have to be reseeded in every clone of a REPL that has it. */
export const PYTHON_PROCESS: readonly string[] = ["python3", "-I", "-c", PYTHON_ASYNCHRONOUS];

/** For the shell; a subshell, so that nothing of it stays. */
export const SHELL_REHEARSAL = `(
ls -la / | grep -c . | sed s/x/y/ | awk '{print $1}' | tr a b | sort -r | uniq | head -n 1 | cat; date; id; uname -a; env | wc -l; pwd
greet() { local name=$1; echo "hello \${name^^} \${#name} \${name%x}"; }
declare -A map=([a]=1 [b]=2); list=(x y z)
for word in "\${list[@]}"; do greet "$word"; done | sort | uniq -c; echo "\${map[a]} \${!map[@]}" $((6 * 7)) "$(printf '%05d' 42)"
if [[ abc =~ ^a(.)c$ ]]; then echo "\${BASH_REMATCH[1]}"; fi; case x in x) true ;; esac
while read -r line; do echo "$line"; done <<< $'one\\ntwo'; cat <<END > /tmp/rehearsal.txt
text
END
wc -c < /tmp/rehearsal.txt; cp /tmp/rehearsal.txt /tmp/rehearsal.2; mv /tmp/rehearsal.2 /tmp/rehearsal.3; rm /tmp/rehearsal.*; mkdir -p /tmp/r/s && rmdir /tmp/r/s /tmp/r
cut -d: -f1 /etc/passwd | tail -n 1; seq 3 | xargs echo; find /etc/ssl -maxdepth 1 | head -n 1; echo '{"a":1}' | jq .a; sleep 0.01 & wait; basename /a/b; dirname /a/b
false || echo failed >&2
)
`;
