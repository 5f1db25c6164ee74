/** Answers: what the guest says when a stream ends, checked before it is believed. */
import { GuestAgentError, type SandboxErrorOptions, shown } from "../base/errors.ts";
import type { Answer } from "./mux.ts";

/** Of what the agent says in its own words, so much goes into an error. */
const MESSAGE_MAX_CHARS = 1024;

const decoder = new TextDecoder();

/** A JSON object of the guest's. Nothing is known of its fields. */
export type JsonObject = Record<string, unknown>;

/** What an ERROR says. */
export interface Refusal {
  /** One of `tests/fixtures/error_codes.json`, or anything. */
  readonly code: string;
  /** In the agent's words, fit for a message. */
  readonly message: string;
}

/** The payload of a RESULT. Throws `GuestAgentError` for an ERROR. */
export function resultOf(answer: Answer, method: string): Uint8Array {
  const refusal = refusalOf(answer);
  if (refusal === undefined) return answer.payload;
  throw refusalError(refusal, method);
}

/** What an ERROR says, or undefined when the answer is a RESULT. */
export function refusalOf(answer: Answer): Refusal | undefined {
  if (answer.kind === "result") return undefined;
  const { code, message } = answerObject(answer.payload);
  return { code: quotable(code), message: quotable(message) };
}

/** A refusal for which there is no better class. */
export function refusalError({ code, message }: Refusal, method: string): GuestAgentError {
  const options: SandboxErrorOptions = code === "busy" ? { retry: "safe" } : { retry: "unknown" };
  return new GuestAgentError(`Cannot ${method} in the guest: ${message} (${code})`, options);
}

/** What the guest wrote, fit for a message: a terminal must not obey it. */
export function quotable(value: unknown): string {
  return typeof value === "string" ? value.slice(0, MESSAGE_MAX_CHARS).replace(/\p{Cc}+/gu, " ") : shown(value);
}

/** The JSON object in `payload`, or undefined when it is none. */
export function parseObject(payload: Uint8Array): JsonObject | undefined {
  try {
    const value: unknown = JSON.parse(decoder.decode(payload));
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value as JsonObject : undefined;
  } catch {
    return undefined; // Not JSON and not an object are the same mistake of the peer.
  }
}

/** The JSON object in `payload`. Throws `GuestAgentError` when it is none. */
export function answerObject(payload: Uint8Array): JsonObject {
  const message = parseObject(payload);
  if (message) return message;
  throw unreadable(payload);
}

/** True for a whole number that a count, size or id may be. */
export function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** The error for an answer that no agent of ours would give. */
export function unreadable(answer: Uint8Array): GuestAgentError {
  return new GuestAgentError(`Cannot read the guest's answer: ${quotable(decoder.decode(answer.subarray(0, 256)))}`, { retry: "unknown" });
}
