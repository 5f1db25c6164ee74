/** Tables: lists as people read them. */

/** A size as people read it. */
export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Rows with their columns aligned, sizes to the right. */
export function table(rows: ReadonlyArray<readonly string[]>): string {
  const widths = rows.reduce<number[]>((most, row) => row.map((cell, at) => Math.max(most[at] ?? 0, cell.length)), []);
  const align = (cell: string, width: number) => /^[\d.]+ MB$/.test(cell) ? cell.padStart(width) : cell.padEnd(width);
  return rows.map((row) => `${row.map((cell, at) => align(cell, widths[at] ?? 0)).join("  ").trimEnd()}\n`).join("");
}
