/** Running: whether a server runs at a place, and as which process; the lock that there is one at most. */
import { existsSync } from "node:fs";
import process from "node:process";
import { delay } from "../base/async.ts";
import { PermanentError, SocketAuthError } from "../base/errors.ts";
import { FileLock, isSameProcess, lockHolder, type ProcessIdentity } from "../host/files.ts";
import { checkPlace, type ServerPlace } from "../link/place.ts";

/** Ending its VMs takes a server milliseconds; what it has of its own accord to wait for, ten seconds. */
const STOP_TIMEOUT_MS = 15_000;
const POLL_MS = 20;

/** A server runs already. */
export class ServerRunningError extends PermanentError {
  /** The class, also in minified programs. */
  override readonly name = "ServerRunningError";
  /** Stable; branch on it. */
  readonly code = "SBX_SERVER_RUNNING";
}

/** Takes the lock of `place`. Throws `ServerRunningError` while another holds it. */
export async function lockPlace(place: ServerPlace): Promise<FileLock> {
  const held = new AbortController();
  const onWait = (pid: number) =>
    held.abort(
      new ServerRunningError(`Cannot serve: a server runs already, as process ${pid}`, {
        hint: "`sbx serve --status` shows it, `sbx serve --stop` ends it.",
      }),
    );
  return await FileLock.acquire(place.lock, { signal: held.signal, onWait });
}

/** The process of the server that runs at `place`; undefined when none does. Throws `SocketAuthError` when the place cannot be trusted. */
export async function findRunning(place: ServerPlace): Promise<ProcessIdentity | undefined> {
  if (!existsSync(place.directory)) return undefined;
  checkPlace(place);
  return await lockHolder(place.lock);
}

/** Ends the server in order and waits until its process has gone; false when it still runs after a time in which it should have. */
export async function stopRunning(server: ProcessIdentity): Promise<boolean> {
  try {
    process.kill(server.pid, "SIGTERM");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EPERM") throw new SocketAuthError(`Cannot stop the server: process ${server.pid} must be ours`, { cause: error });
    if (code !== "ESRCH") throw error;
  }
  for (const giveUpAt = performance.now() + STOP_TIMEOUT_MS; performance.now() < giveUpAt; await delay(POLL_MS)) {
    if (!isSameProcess(server)) return true;
  }
  return false;
}
