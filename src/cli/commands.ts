/** The command tree: a command is one file and its line here; each is loaded only when it is needed. */
import type { Command } from "./command.ts";

/** Every command by name, in the order of the help. */
export const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  run: async () => (await import("./run.ts")).run,
  session: async () => (await import("./session.ts")).session,
  prefetch: async () => (await import("./prefetch.ts")).prefetch,
  images: async () => (await import("./images.ts")).images,
  cache: async () => (await import("./cache.ts")).cache,
  doctor: async () => (await import("./doctor.ts")).doctor,
  serve: async () => (await import("./serve.ts")).serve,
  completions: async () => (await import("./completions.ts")).completions,
};

/** Loads all commands, for the help of the whole program and for completions. */
export async function loadCommands(): Promise<readonly Command[]> {
  return await Promise.all(Object.values(COMMANDS).map((load) => load()));
}
