/** Benchmarks: measures every case, prints medians, 95th percentiles and ratios to the floor, and says what falls short of its budget. */
import { readFileSync } from "node:fs";
import process from "node:process";
import type { Language } from "../../src/mod.ts";
import { coldBoot, commandLineRun, executeNothing, floor, idleMemory, openBench, schedulerOpen, version } from "./cases.ts";
import { destroy, manyAtOnce, manyWithPool, runFromSpare, runFromTemplate, runWarm, tenthClone } from "./ahead_cases.ts";
import { cacheList } from "./cache_cases.ts";
import { copies, savePause } from "./checkpoint_cases.ts";
import { type Measurement, median, quantile } from "./measure.ts";
import { runServed } from "./serve_cases.ts";
import { exposedRequests, networkRequests, networkStreams, policyDecision } from "./network_cases.ts";
import { executeBesideEcho, guestMemory, largeTransfers, longSession, outputDelay, smallFiles } from "./session_cases.ts";

const LANGUAGES: readonly Language[] = ["python", "javascript", "raw"];

/** Per name: the most, or the least, that the median may be, in its unit or as a ratio to the floor or to another case's median. */
interface Budget {
  readonly maxRatio?: number;
  readonly minRatio?: number;
  readonly max?: number;
  readonly ratioTo?: string;
}
const budgets: Record<string, Budget> = JSON.parse(readFileSync(new URL("budgets.json", import.meta.url), "utf8"));

const bench = await openBench();
const found: Measurement[] = [];
const add = (...measurements: Measurement[]) => {
  for (const measurement of measurements) {
    found.push(measurement);
    process.stderr.write(`${measurement.name}: ${median(measurement.samples).toFixed(1)} ${measurement.unit}\n`);
  }
};
const repetitions = Number(process.argv[2] ?? 20);
add(await floor(bench, 2 * repetitions), await schedulerOpen(repetitions));
for (const language of LANGUAGES) {
  add(
    await runFromTemplate(language, repetitions),
    await runFromSpare(language, repetitions),
    await runWarm(language, repetitions),
    await executeNothing(bench, language, 5 * repetitions),
    await idleMemory(bench, language, 3),
  );
  add(await coldBoot(bench, language, Math.ceil(repetitions / 4)));
}
add(await destroy(bench, repetitions), await tenthClone(bench), ...await manyAtOnce(repetitions), await manyWithPool(50 * repetitions));
add(...await version(repetitions), ...await cacheList(repetitions), ...await commandLineRun(repetitions), ...await runServed(repetitions));
add(...await executeBesideEcho(bench, 10 * repetitions), await outputDelay(bench, 3 * repetitions));
add(...await largeTransfers(bench, Math.ceil(repetitions / 4)), ...await guestMemory(bench, 2));
add(...await smallFiles(bench, Math.ceil(repetitions / 4)), ...await longSession(bench, 500 * repetitions));
add(...await networkStreams(bench, Math.ceil(repetitions / 4)), ...await networkRequests(Math.ceil(repetitions / 4)));
add(...await exposedRequests(repetitions), await policyDecision(repetitions));
add(await savePause(bench, repetitions), ...await copies(repetitions));
// A second look at the floor: the machine is shared, and a floor that moved says how far the ratios can be trusted.
add({ ...await floor(bench, 2 * repetitions), name: "F again, at the end" });

const floorMs = median(found[0]?.samples ?? []);
const rows = found.map(({ name, unit, samples }) => {
  const middle = median(samples), budget = budgets[name];
  const base = budget?.ratioTo === undefined ? floorMs : median(found.find((other) => other.name === budget.ratioTo)?.samples ?? []);
  const ratio = unit === "ms" || budget?.ratioTo !== undefined ? middle / base : undefined;
  const isOver = (budget?.maxRatio !== undefined && ratio !== undefined && ratio > budget.maxRatio) ||
    (budget?.minRatio !== undefined && ratio !== undefined && ratio < budget.minRatio) ||
    (budget?.max !== undefined && middle > budget.max);
  const wanted = budget?.maxRatio !== undefined
    ? `≤ ${budget.maxRatio} ×`
    : budget?.minRatio !== undefined
    ? `≥ ${budget.minRatio} ×`
    : budget?.max !== undefined
    ? `≤ ${budget.max} ${unit}`
    : "";
  return {
    name,
    median: `${middle.toFixed(1)} ${unit}`,
    p95: quantile(samples, 0.95).toFixed(1),
    ratio: ratio?.toFixed(2) ?? "",
    wanted,
    isOver,
  };
});
process.stdout.write("| case | median | p95 | ratio | budget | |\n|---|---|---|---|---|---|\n");
for (const { name, median: middle, p95, ratio, wanted, isOver } of rows) {
  process.stdout.write(`| ${name} | ${middle} | ${p95} | ${ratio} | ${wanted} | ${wanted === "" ? "" : isOver ? "over" : "met"} |\n`);
}
process.exitCode = rows.some(({ isOver }) => isOver) ? 1 : 0;
