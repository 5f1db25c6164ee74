/** Waiting in tests: for a condition, never for a time. */
import assert from "node:assert/strict";

const POLL_MS = 10;
/** Long enough for a loaded machine; only a failing test ever waits so long. */
const GIVE_UP_MS = 30_000;

/** Resolves once `isTrue` says so; fails the test with `what` when it never does. */
export async function eventually(what: string, isTrue: () => boolean | Promise<boolean>): Promise<void> {
  const giveUpAt = Date.now() + GIVE_UP_MS;
  while (!(await isTrue())) {
    assert.ok(Date.now() < giveUpAt, `never came true: ${what}`);
    await sleep(POLL_MS);
  }
}

/** Lets `ms` pass; for things that must not happen meanwhile. */
export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** The value of `promise`; fails the test when it has not settled after a time that only a hang takes. */
export async function settled<T>(promise: Promise<T>, what: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new assert.AssertionError({ message: `never settled: ${what}` })), GIVE_UP_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
