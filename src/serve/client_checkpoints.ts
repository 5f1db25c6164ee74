/** Client checkpoints: those that one client may use. Those without a name are its own, and live no longer than it. */
import { SnapshotError } from "../base/errors.ts";
import type { CheckpointRef, Request } from "../link/messages.ts";
import type { CheckpointIndex } from "../run/machine.ts";
import type { StoredCheckpoint } from "../vm/checkpoint_store.ts";

/** Requests about checkpoints. */
export type CheckpointRequest = Extract<Request, { method: `checkpoint_${string}` }>;

/** The checkpoints of one client. */
export class ClientCheckpoints {
  readonly #index: CheckpointIndex;
  readonly #own = new Map<string, StoredCheckpoint>();

  /** Of all that the server has. */
  constructor(index: CheckpointIndex) {
    this.#index = index;
  }

  /** Takes note of one that the client has made; returns it as the client is told. */
  add(stored: StoredCheckpoint): Record<string, unknown> {
    if (stored.name === undefined) this.#own.set(stored.id, stored);
    return told(stored);
  }

  /** The one that is meant. Throws `SnapshotError` when there is none, or when the name is another's by now. */
  async find({ id, name }: CheckpointRef): Promise<StoredCheckpoint> {
    const stored = name === null ? this.#own.get(id) : await this.#index.named(name);
    if (stored?.id === id) return stored;
    throw new SnapshotError(`Cannot restore the checkpoint ${name === null ? id : `"${name}"`}: it was removed`, { retry: "never" });
  }

  /** Answers a request. */
  async do(request: CheckpointRequest): Promise<Record<string, unknown>> {
    switch (request.method) {
      case "checkpoint_free":
        await this.#index.checkFree(request.name);
        return {};
      case "checkpoint_named":
        return told(await this.#index.named(request.name));
      case "checkpoint_list":
        return { checkpoints: (await this.#index.list()).map(told) };
      case "checkpoint_remove": {
        const { checkpoint } = request;
        const stored = await this.find(checkpoint).catch(() => undefined); // One that is gone need not be removed.
        if (stored) await this.#index.remove(stored);
        this.#own.delete(checkpoint.id);
        return {};
      }
    }
  }

  /** Removes those that end with the client. */
  async end(): Promise<void> {
    await Promise.all([...this.#own.values()].map((stored) => this.#index.remove(stored)));
    this.#own.clear();
  }
}

function told(stored: StoredCheckpoint): Record<string, unknown> {
  return { ...stored, name: stored.name ?? null };
}
