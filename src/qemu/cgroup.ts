/** Cgroup: one group (version 2) per VM, where the host lets us make them. The jail makes and enters it, its owner removes it. */
import fs from "node:fs/promises";
import path from "node:path";
import { delay } from "../base/async.ts";
import type { ConfinementLayers } from "./confine.ts";

/** A group cannot be removed before the kernel has buried its last process, which takes a few milliseconds after its end. */
const REMOVE_TIMEOUT_MS = 2_000;
const REMOVE_POLL_MS = 5;
const PREFIX = "sbx-";

/** The group of one VM; disposed after the VM's process has ended. */
export class VmCgroup implements AsyncDisposable {
  /** For `ConfinedCommand.cgroupDirectory`. Need not exist. */
  readonly directory: string;

  private constructor(directory: string) {
    this.directory = directory;
  }

  /** The group for the VM named `id`, or undefined where the host delegates none. */
  static of(confinement: ConfinementLayers, id: string): VmCgroup | undefined {
    if (!confinement.cgroup) return undefined;
    return new VmCgroup(path.join(confinement.cgroup.parent, PREFIX + id));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (let waitedMs = 0;; waitedMs += REMOVE_POLL_MS) {
      try {
        return await fs.rmdir(this.directory);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code === "ENOENT") return; // Never made, or removed before.
        if (code !== "EBUSY" || waitedMs >= REMOVE_TIMEOUT_MS) throw error;
      }
      await delay(REMOVE_POLL_MS);
    }
  }
}

/** Removes the groups that dead owners left empty; those with living processes stay. */
export async function sweepCgroups(confinement: ConfinementLayers): Promise<void> {
  if (!confinement.cgroup) return;
  const { parent } = confinement.cgroup;
  const names = await fs.readdir(parent).catch(() => []); // Taken away meanwhile: nothing is left.
  for (const name of names.filter((candidate) => candidate.startsWith(PREFIX))) {
    await fs.rmdir(path.join(parent, name)).catch(() => {}); // In use, or another process was faster.
  }
}
