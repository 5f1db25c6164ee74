/** Schema: how values are checked that a program checks once. */

/**
 * For the `parse` functions of zod. What is compiled pays for itself from some hundred values of one schema on; most programs check one of
 * each, and then it is most of the cost.
 */
export const ONCE = { jitless: true } as const;
