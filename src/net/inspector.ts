/** Inspector: holds what a guest sends back until it has shown which host it means. */
import type { NetworkReason } from "./policy.ts";

/** What may go on, and whether the connection ends. */
export interface Step {
  /** In order; views of what was pushed, or of what was held before. */
  readonly forward: readonly Uint8Array[];
  /** The connection must be cut, after nothing more than `forward`. */
  readonly refusal?: NetworkReason;
}

/** Looks at one connection. Bytes are hostile. */
export interface Inspector {
  /** The name shown last; undefined before the first. */
  readonly name: string | undefined;
  /** Bytes of the guest. Not called again after a refusal. */
  push(bytes: Uint8Array): Step;
  /** The guest says no more. */
  end(): Step;
  /** Bytes of the far side, before they go to the guest; they go in any case. */
  pushReply?(bytes: Uint8Array): Step;
}

/** Nothing more and no objection. */
export const GO_ON: Step = { forward: [] };
