/** The environment of this process, in tests that look at what it decides. */
import process from "node:process";

/** Runs `body` with `variables` set, and puts back what was there. */
export async function withEnv<T>(variables: Record<string, string>, body: () => Promise<T>): Promise<T> {
  const before = Object.keys(variables).map((name) => [name, process.env[name]] as const);
  Object.assign(process.env, variables);
  try {
    return await body();
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  }
}
