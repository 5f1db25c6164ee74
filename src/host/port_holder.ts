/** Port holder: which program listens on a port of this host, as far as Linux tells this user. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** `state` of a listening TCP socket, and of a UDP socket that is bound. */
const STATE = { tcp: "0A", udp: "07" } as const;

/** The holder in words, such as `nginx (process 812)`; undefined where it cannot be found. */
export function portHolder(port: number, protocol: "tcp" | "udp"): string | undefined {
  const inodes = [`/proc/net/${protocol}`, `/proc/net/${protocol}6`].flatMap((table) => inodesOf(table, port, STATE[protocol]));
  if (inodes.length === 0) return undefined;
  const wanted = new Set(inodes.map((inode) => `socket:[${inode}]`));
  const pid = entries("/proc").filter((name) => /^\d+$/.test(name)).find((candidate) =>
    entries(`/proc/${candidate}/fd`).some((fd) => wanted.has(linkOf(`/proc/${candidate}/fd/${fd}`)))
  );
  return pid === undefined ? undefined : `${textOf(`/proc/${pid}/comm`).trim() || "a program"} (process ${pid})`;
}

/** Lines are `sl local_address rem_address st … inode`, the fourth of what comes before and the tenth. */
function inodesOf(table: string, port: number, state: string): string[] {
  return textOf(table).split("\n").slice(1).flatMap((line) => {
    const fields = line.trim().split(/\s+/), inode = fields[9];
    const isIt = Number.parseInt(fields[1]?.split(":")[1] ?? "", 16) === port && fields[3] === state;
    return isIt && inode !== undefined && inode !== "0" ? [inode] : [];
  });
}

function textOf(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return ""; // Not Linux, not ours to see, or gone.
  }
}

function entries(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return []; // The same.
  }
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return ""; // The same.
  }
}
