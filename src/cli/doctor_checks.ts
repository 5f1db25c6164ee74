/** Doctor's checks of the real host. */
import { constants } from "node:fs";
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { readPlatform } from "../host/platform.ts";
import type { Check, CheckResult } from "./doctor_report.ts";

/** Every check, in the order of the report. */
export function hostChecks(_env: Readonly<Record<string, string | undefined>>): readonly Check[] {
  return [
    { name: "platform", isRequired: true, run: () => Promise.resolve(platformResult()) },
    { name: "cgroups", isRequired: false, run: cgroupResult },
    { name: "network", isRequired: false, run: () => Promise.resolve(networkResult()) },
  ];
}

function platformResult(): CheckResult {
  const { os: system, arch, kernelRelease, cpus, memoryBytes } = readPlatform();
  const gib = (memoryBytes / 2 ** 30).toFixed(1);
  return { status: "ok", detail: `${system} ${kernelRelease} on ${arch}, ${cpus} CPUs, ${gib} GiB of memory` };
}

async function cgroupResult(): Promise<CheckResult> {
  const hint = "Start sbx in a delegated cgroup: systemd-run --user --scope -p Delegate=yes sbx …";
  const weaker = "VMs are limited by process limits alone";
  const own = /^0::(.*)$/m.exec(await fs.readFile("/proc/self/cgroup", "utf8").catch(() => ""))?.[1];
  if (own === undefined) {
    return { status: "missing", detail: `this host has no cgroup v2: ${weaker}`, hint: "Boot the host with cgroup v2." };
  }
  const directory = path.join("/sys/fs/cgroup", own);
  const controllers = (await fs.readFile(path.join(directory, "cgroup.controllers"), "utf8").catch(() => "")).split(/\s+/);
  const wanted = ["memory", "pids"].filter((name) => !controllers.includes(name));
  if (wanted.length > 0) {
    return { status: "missing", detail: `cgroup v2 lacks the controllers ${wanted.join(", ")} here: ${weaker}`, hint };
  }
  const isWritable = await fs.access(path.join(directory, "cgroup.subtree_control"), constants.W_OK).then(() => true, () => false);
  if (!isWritable) return { status: "missing", detail: `the cgroup ${own} belongs to somebody else: ${weaker}`, hint };
  return { status: "ok", detail: `cgroup v2 with ${controllers.filter(Boolean).join(", ")}` };
}

function networkResult(): CheckResult {
  const addresses = Object.entries(os.networkInterfaces()).flatMap(([name, list]) =>
    (list ?? []).filter((address) => !address.internal).map((address) => `${name} ${address.address}`)
  );
  if (addresses.length === 0) return { status: "missing", detail: "only loopback: code runs, but nothing can be downloaded" };
  return { status: "ok", detail: `host addresses: ${addresses.slice(0, 3).join(", ")}` };
}
