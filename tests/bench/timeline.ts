/** Timeline: where the time of one run goes, phase by phase, as a picture: `deno run -A tests/bench/timeline.ts FILE.svg [RUNS]`. */
import { writeFileSync } from "node:fs";
import process from "node:process";
import { type Language, Scheduler } from "../../src/mod.ts";
import { launch } from "../../src/vm/launch.ts";
import { type Bench, openBench, templateOf } from "./cases.ts";
import { median } from "./measure.ts";

const PRINT: Readonly<Record<Language, string>> = { python: "print('hello')", javascript: "console.log('hello')", raw: "echo hello" };
const PHASES = [
  { name: "spawn: the host starts the jail", color: "#9aa5b1" },
  { name: "QEMU comes up: jail, machine, monitor's greeting", color: "#6b8fb5" },
  { name: "load: device state, the guest wakes and has HELLO and code", color: "#4f9d8f" },
  { name: "execution: agent, REPL, first output", color: "#d9a441" },
  { name: "result: end of output, reply", color: "#c9704f" },
  { name: "death of QEMU, which nobody waits for", color: "#d8dde2" },
] as const;
const WIDTH = 900, LEFT = 96, BAR = 26, GAP = 14, TOP = 40;

/** Milliseconds since the call at which each phase was over. */
type Ends = readonly number[];

async function oneRun(bench: Bench, language: Language, memoryMiB = 256): Promise<Ends> {
  const template = await templateOf(bench, language, memoryMiB);
  const startedAt = performance.now();
  const since = () => performance.now() - startedAt;
  await using vm = await launch(bench.hypervisor, { language, memoryMiB, origin: { kind: "clone", files: template } });
  const spawned = since();
  let greeted = 0, shown = 0;
  void vm.qmp.version().then(() => greeted = since());
  const onOutput = () => void (shown ||= since());
  const reply = await vm.guest.exec({ code: PRINT[language], env: {}, timeoutMs: 30_000, isFinal: true }, { onOutput });
  const finished = since();
  if (reply.exitCode !== 0) throw new Error(`${language}: the run ended with ${reply.exitCode}`);
  await vm[Symbol.asyncDispose]();
  // The guest says how long it executed; what lies before is its waking and HELLO.
  const arrived = Math.max(greeted, finished - reply.executionUs / 1000);
  return [spawned, greeted, arrived, Math.max(arrived, shown), finished, since()];
}

/** The median end of each phase. */
async function phasesOf(bench: Bench, language: Language, count: number): Promise<Ends> {
  const runs: Ends[] = [];
  for (let index = 0; index < count + 3; index++) runs.push(await oneRun(bench, language));
  return PHASES.map((_, phase) => median(runs.slice(3).map((ends) => ends[phase] ?? 0)));
}

function picture(rows: ReadonlyArray<{ readonly label: string; readonly ends: Ends }>): string {
  const totalMs = Math.max(...rows.map(({ ends }) => ends.at(-1) ?? 0));
  const x = (ms: number) => LEFT + ms / totalMs * (WIDTH - LEFT - 20);
  const height = TOP + rows.length * (BAR + GAP) + 34 + PHASES.length * 20;
  const bars = rows.flatMap(({ label, ends }, row) => {
    const y = TOP + row * (BAR + GAP);
    return [
      `<text x="${LEFT - 10}" y="${y + 18}" text-anchor="end">${label}</text>`,
      ...PHASES.map(({ name, color }, phase) => {
        const from = phase === 0 ? 0 : ends[phase - 1] ?? 0, to = ends[phase] ?? 0;
        return `<rect x="${x(from).toFixed(1)}" y="${y}" width="${(x(to) - x(from)).toFixed(1)}" height="${BAR}" fill="${color}">` +
          `<title>${name}: ${(to - from).toFixed(1)} ms</title></rect>`;
      }),
      `<text x="${(x(ends[4] ?? 0) + 4).toFixed(1)}" y="${y + 18}" font-weight="bold">${(ends[4] ?? 0).toFixed(0)} ms</text>`,
    ];
  });
  const axisY = TOP + rows.length * (BAR + GAP);
  const stepMs = totalMs > 80 ? 20 : totalMs > 30 ? 10 : 5;
  const ticks = Array.from({ length: Math.floor(totalMs / stepMs) + 1 }, (_, index) => index * stepMs).map((ms) =>
    `<line x1="${x(ms).toFixed(1)}" x2="${x(ms).toFixed(1)}" y1="${TOP - 8}" y2="${axisY - 6}" stroke="#e3e7eb"/>` +
    `<text x="${x(ms).toFixed(1)}" y="${axisY + 10}" text-anchor="middle" fill="#66707a">${ms} ms</text>`
  );
  const legend = PHASES.map(({ name, color }, phase) => {
    const y = axisY + 28 + phase * 20;
    const times = rows.map(({ ends }) => ((ends[phase] ?? 0) - (phase === 0 ? 0 : ends[phase - 1] ?? 0)).toFixed(1)).join(" · ");
    return `<rect x="${LEFT}" y="${y}" width="12" height="12" fill="${color}"/><text x="${LEFT + 20}" y="${
      y + 11
    }">${name}: ${times} ms</text>`;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="system-ui, sans-serif" font-size="13">`,
    `<rect width="${WIDTH}" height="${height}" fill="#fff"/>`,
    `<text x="${LEFT}" y="20" font-size="15">From the call to the result: a print in a clone of a template, medians (emulated)</text>`,
    ...ticks,
    ...bars,
    ...legend,
    "</svg>\n",
  ].join("\n");
}

const file = process.argv[2];
if (file === undefined) throw new Error("Usage: timeline.ts FILE.svg [RUNS]");
const bench = await openBench();
const rows: Array<{ label: string; ends: Ends }> = [];
for (const language of ["python", "javascript", "raw"] as const) {
  {
    await using scheduler = await Scheduler.open();
    await scheduler.prepare(language);
  }
  const ends = await phasesOf(bench, language, Number(process.argv[3] ?? 20));
  rows.push({ label: language === "raw" ? "shell" : language, ends });
  process.stderr.write(`${language}: ${ends.map((ms) => ms.toFixed(1)).join(" ")}\n`);
}
writeFileSync(file, picture(rows));
