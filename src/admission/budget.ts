/** Budget: what this host may be asked to hold, and what is given up for a request that does not fit. Pure. */

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

/** Room held by something that nobody uses yet. */
export interface Reclaimable {
  readonly amount: number;
  /** What is worth least goes first; among equals what was reserved first. */
  readonly worth: number;
}

/** What to give up so that `missing` more becomes free: as little as will do, in the order of worth. Nothing where all of it would not do. */
export function toReclaim<T extends Reclaimable>(reserved: Iterable<T>, missing: number): T[] {
  const chosen: T[] = [];
  let freed = 0;
  for (const each of [...reserved].sort((a, b) => a.worth - b.worth)) {
    if (freed >= missing) break;
    chosen.push(each);
    freed += each.amount;
  }
  if (freed < missing) return [];
  // The last ones may have freed enough for some of the first to stay.
  return chosen.filter(({ amount }) => {
    if (freed - amount < missing) return true;
    freed -= amount;
    return false;
  });
}
