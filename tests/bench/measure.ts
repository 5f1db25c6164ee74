/** Measure: samples, their median and 95th percentile, and a table of ratios to the floor of the same run. */

/** What one benchmark found. */
export interface Measurement {
  readonly name: string;
  readonly unit: "ms" | "µs" | "KB" | "MB" | "MB/s" | "/s";
  readonly samples: readonly number[];
}

/** Runs `sample` `count` times after `warmUps` unrecorded ones; each returns one figure. */
export async function measure(
  name: string,
  options: { readonly count: number; readonly warmUps?: number; readonly unit?: Measurement["unit"] },
  sample: (index: number) => Promise<number> | number,
): Promise<Measurement> {
  for (let index = 0; index < (options.warmUps ?? 1); index++) await sample(index);
  const samples: number[] = [];
  for (let index = 0; index < options.count; index++) samples.push(await sample(index));
  return { name, unit: options.unit ?? "ms", samples };
}

/** Milliseconds that `work` takes. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await work();
  return performance.now() - startedAt;
}

/** The value below which `fraction` of the samples lie. */
export function quantile(samples: readonly number[], fraction: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * fraction))] ?? Number.NaN;
}

/** The middle sample. */
export const median = (samples: readonly number[]): number => quantile(samples, 0.5);
