/** Place: where the server of one cache directory is met, and the proof that nobody else can have put something there. */
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { lstatSync, realpathSync } from "node:fs";
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import { messageOf, SocketAuthError } from "../base/errors.ts";

/** The shortest limit of the systems we run on (macOS, with its ending NUL); Linux takes four bytes more. */
const SOCKET_PATH_MAX_BYTES = 103;
const SOCKET_NAME = "sbx.sock";
/** `nobody`, by which a user namespace shows owners from outside, the host's root among them. */
const OVERFLOW_UID = 65_534;

/** The files of one server. */
export interface ServerPlace {
  /** Ours alone, mode 0700. */
  readonly directory: string;
  readonly socket: string;
  /** What both sides prove that they can read; made anew by each server. */
  readonly secret: string;
  /** Held by the server that runs. */
  readonly lock: string;
}

/** The place of the server of a cache directory. Only computed: nothing is looked at. */
export function placeOf(cacheDir: string, env: Readonly<Record<string, string | undefined>> = process.env): ServerPlace {
  const below = path.join(path.resolve(cacheDir), "serve");
  if (Buffer.byteLength(path.join(below, SOCKET_NAME)) <= SOCKET_PATH_MAX_BYTES) return placeIn(below);
  // A path that the system's socket addresses have no room for: a short one that both sides come to.
  const name = createHash("sha256").update(path.resolve(cacheDir)).digest("hex").slice(0, 16);
  const runtime = env["XDG_RUNTIME_DIR"];
  if (runtime && path.isAbsolute(runtime)) {
    const directory = path.join(runtime, "exec-sandbox", name);
    if (Buffer.byteLength(path.join(directory, SOCKET_NAME)) <= SOCKET_PATH_MAX_BYTES) return placeIn(directory);
  }
  return placeIn(path.join("/tmp", `exec-sandbox-${os.userInfo().uid}`, name));
}

/** The place whose socket is `socket`. */
export function placeOfSocket(socket: string): ServerPlace {
  const absolute = path.resolve(socket);
  return { ...placeIn(path.dirname(absolute)), socket: absolute };
}

function placeIn(directory: string): ServerPlace {
  const at = (name: string) => path.join(directory, name);
  return { directory, socket: at(SOCKET_NAME), secret: at("secret"), lock: at("lock") };
}

/** Makes the directory where it is missing, and checks it. Throws `SocketAuthError`. */
export async function makePlace({ directory }: ServerPlace): Promise<void> {
  // Each missing parent gets the same mode: one below /tmp is as much ours as the last.
  await fs.mkdir(directory, { recursive: true, mode: 0o700 });
  checkPlace({ directory });
}

/**
 * Checks that the directory is one, is ours, is closed to others, and can be replaced by nobody but us and root. Throws `SocketAuthError`
 * that says what is wrong and what was wanted.
 */
export function checkPlace({ directory }: Pick<ServerPlace, "directory">): void {
  const uid = process.getuid?.() ?? 0;
  const refuse = (what: string, hint: string) => new SocketAuthError(`Cannot trust the server's directory ${directory}: ${what}`, { hint });
  const remove = `Remove it: \`rm -r ${directory}\`; sbx serve makes it anew.`;
  let found;
  try {
    found = lstatSync(directory);
  } catch (error) {
    throw new SocketAuthError(`Cannot look at the server's directory ${directory}: ${messageOf(error)}`, { cause: error });
  }
  if (!found.isDirectory()) {
    throw refuse(`it must be a directory, got ${found.isSymbolicLink() ? "a symbolic link" : "something else"}`, remove);
  }
  if (found.uid !== uid) throw refuse(`it must belong to user ${uid}, got user ${found.uid}`, remove);
  const mode = found.mode & 0o777;
  if (mode !== 0o700) throw refuse(`its mode must be 0700, got 0${mode.toString(8)}`, `Mend it: \`chmod 700 ${directory}\`.`);
  let real = path.dirname(realpathSync(directory));
  for (;; real = path.dirname(real)) {
    const { mode, uid: owner } = lstatSync(real);
    const canOthersWrite = (mode & 0o002) !== 0 && (mode & 0o1000) === 0;
    if (canOthersWrite) throw refuse(`everybody can write to ${real} above it`, `Mend it: \`chmod o-w ${real}\`.`);
    if (![uid, 0, OVERFLOW_UID].includes(owner)) {
      throw refuse(`${real} above it must belong to user ${uid} or root, got user ${owner}`, "Choose another EXEC_SANDBOX_CACHE_DIR.");
    }
    if (real === path.dirname(real)) return;
  }
}
