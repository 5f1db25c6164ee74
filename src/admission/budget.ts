/** Budget: what this host may be asked to hold. Pure. */

/** Memory in MiB and CPU slots. */
export interface Budget {
  readonly memoryMiB: number;
  readonly cpus: number;
}

/** Ratios of the configuration. */
export interface BudgetRatios {
  readonly memoryOvercommitRatio: number;
  readonly cpuOvercommitRatio: number;
  readonly hostMemoryReserveRatio: number;
}

/** `host × (1 − reserve) × ratio` of memory, `cpus × ratio` slots; at least one slot. */
export function budgetOf(host: { readonly memoryBytes: number; readonly cpus: number }, ratios: BudgetRatios): Budget {
  const memoryMiB = host.memoryBytes / 1_048_576 * (1 - ratios.hostMemoryReserveRatio) * ratios.memoryOvercommitRatio;
  return { memoryMiB: Math.floor(memoryMiB), cpus: Math.max(1, Math.floor(host.cpus * ratios.cpuOvercommitRatio)) };
}
