/** Processes of a session in tests: what they say, and what is there. */
import assert from "node:assert/strict";
import type { Session, SessionProcess } from "../../src/mod.ts";
import { settled } from "./waiting.ts";

/** Text as a process reads it. */
export const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

/** All of a stream. */
export const textOf = (stream: ReadableStream<Uint8Array>): Promise<string> => new Response(stream).text();

/** Both outputs and the exit code. */
export async function outcomeOf(started: SessionProcess): Promise<[string, string, number]> {
  const [out, err, { exitCode }] = await settled(
    Promise.all([textOf(started.stdout), textOf(started.stderr), started.wait()]),
    "the process",
  );
  return [out, err, exitCode];
}

/** Reads a stream piece by piece. */
export class Reading {
  /** What has come. */
  text = "";
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #decoder = new TextDecoder();

  /** Begins with what comes next. */
  constructor(stream: ReadableStream<Uint8Array>) {
    this.#reader = stream.getReader();
  }

  /** Reads on until `wanted` is there. */
  async until(wanted: string | RegExp): Promise<string> {
    const isThere = () => typeof wanted === "string" ? this.text.includes(wanted) : wanted.test(this.text);
    while (!isThere()) {
      const { done, value } = await settled(this.#reader.read(), `${wanted} after ${JSON.stringify(this.text.slice(-500))}`);
      assert.equal(done, false, `the end before ${wanted}: ${JSON.stringify(this.text.slice(-500))}`);
      this.text += this.#decoder.decode(value, { stream: true });
    }
    return this.text;
  }

  /** What comes from now on. */
  forget(): void {
    this.text = "";
  }
}

/** Processes of the user in the guest whose command line contains `text`. */
export async function countIn(session: Session, text: string): Promise<number> {
  const [out] = await outcomeOf(await session.spawn("pgrep", ["-fc", "--", text]));
  return Number(out);
}
