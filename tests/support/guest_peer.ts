/** Guest peer: the wire boundary of the channel's tests, where the other end answers each frame as the test says. */
import assert from "node:assert/strict";
import { Duplex } from "node:stream";
import { SandboxError } from "../../src/base/errors.ts";
import { type ExecRequest, GuestChannel } from "../../src/channel/guest.ts";
import { encodeFrame, type Frame, FrameDecoder, KIND, type Kind } from "../../src/channel/wire.ts";
import { settled } from "./waiting.ts";

/** Short where only an answer that never comes is waited for. */
export const SHORT = { killMs: 5, cancelMs: 5, resultMs: 15 };
export const REQUEST: ExecRequest = { code: "x", env: {}, timeoutMs: 20 };
export const PATIENT: ExecRequest = { ...REQUEST, timeoutMs: 60_000 };
export const REPLY = { exitCode: 0, timedOut: false, executionUs: 812, reset: false, outputLimit: null, value: null };
export const IDENTITY = { id: "vm-1", entropy: new Uint8Array(64).fill(0xab), silenceMs: 0 };
export const ANNOUNCEMENT = { protocol: 1, agent: "0.1.0", language: "python", versions: { python: "3.14" } };
export const json = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));
export const parsed = (frame: Frame | undefined) => JSON.parse(new TextDecoder().decode(frame?.payload));

/** The wire boundary: the host's channel, and a peer that answers each frame as `onFrame` says. */
export function connect(onFrame: (frame: Frame, peer: Peer) => void = () => {}, graces = SHORT) {
  const received: Frame[] = [], decoder = new FrameDecoder();
  const pipe = new Duplex({
    read() {},
    write(chunk: Uint8Array, _encoding, done) {
      for (const frame of decoder.push(chunk)) {
        received.push(frame);
        onFrame(frame, peer);
      }
      done();
    },
  });
  const peer = {
    pipe,
    raw: (bytes: Uint8Array) => void pipe.push(bytes),
    send: (stream: number, kind: Kind, payload: Uint8Array = new Uint8Array(0), flags = 0) =>
      void pipe.push(encodeFrame({ stream, kind, flags, payload })),
  };
  return { channel: new GuestChannel(pipe, graces), peer, received };
}
export interface Peer {
  readonly pipe: Duplex;
  raw(bytes: Uint8Array): void;
  send(stream: number, kind: Kind, payload?: Uint8Array, flags?: number): void;
}
export const quiet = { onOutput: () => {} };
/** A peer that answers every OPEN with `payload` as `kind`. */
export const answering = (payload: Uint8Array, kind: Kind = KIND.result) => (frame: Frame, peer: Peer) => {
  if (frame.kind === KIND.open) peer.send(frame.stream, kind, payload);
};

/** Asserts a typed error of exactly that class whose message fits, and that it comes. */
export async function rejectsWith(
  promise: Promise<unknown>,
  type: new (...args: never[]) => SandboxError,
  says: RegExp = /^Cannot /,
): Promise<void> {
  await assert.rejects(settled(promise, "a typed error"), (error) => {
    assert.ok(SandboxError.is(error) && error.constructor === type, `${String(error)} is a ${type.name}`);
    assert.match(error.message, says);
    assert.ok(error.message.length < 2200);
    return true;
  });
}
