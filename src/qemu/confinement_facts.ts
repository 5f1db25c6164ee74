/** Confinement facts: what decides which layers this process may put on, cheap enough to ask before trusting a remembered verdict. */
import { readFileSync, readlinkSync } from "node:fs";

/** Lines of `/proc/self/status` with the rights of this process. */
const RIGHTS = /^(?:Uid|Gid|CapPrm|CapEff|CapBnd|NoNewPrivs|Seccomp):.*$/gm;
/** Files that forbid or allow layers; a group may be delegated to one login session and not to the next. */
const FILES: readonly string[] = [
  "/proc/sys/kernel/unprivileged_userns_clone",
  "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
  "/proc/sys/user/max_user_namespaces",
  "/proc/self/attr/current",
  "/proc/self/cgroup",
];
/** A container shares the host's kernel and boot, and often its files, but not these. */
const NAMESPACES: readonly string[] = ["user", "mnt", "pid", "cgroup"];

/** One text, equal for two processes of one boot only if the jail's probe would find the same for both. Takes about 0.2 ms; never throws. */
export function confinementFacts(): string {
  const rights = attempt(() => readFileSync("/proc/self/status", "latin1")).match(RIGHTS) ?? [];
  const namespaces = NAMESPACES.map((name) => attempt(() => readlinkSync(`/proc/self/ns/${name}`)));
  const files = FILES.map((file) => attempt(() => readFileSync(file, "latin1").trim()));
  return JSON.stringify([rights, namespaces, files]);
}

function attempt(read: () => string): string {
  try {
    return read();
  } catch {
    return ""; // This kernel has no such file, which is a fact, too.
  }
}
