/** Faults while a template is made: QEMU dies in each phase, or the process in the midst of publishing. The next run makes it whole. */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import process from "node:process";
import test from "node:test";
import { type BakeProgress, CommunicationError, Scheduler, type SchedulerConfig, type SchedulerHooks } from "../../src/mod.ts";
import { noLeftovers, processesWith, temporaryDirectory } from "../support/leftovers.ts";
import { imagesDirectory, reasonToSkip, reasonToSkipTwice } from "../support/scheduler.ts";
import { startScript } from "../support/subprocess.ts";
import { descendants } from "../support/vm.ts";
import { eventually } from "../support/waiting.ts";

const IMAGES = imagesDirectory();
const skip = reasonToSkip() ?? false;
/** Baking under emulation on a loaded machine takes its time. */
const TIMEOUT_MS = 600_000;

const log = { debug() {}, info() {}, warning() {}, error() {} };
const open = (config: SchedulerConfig, hooks: SchedulerHooks = {}) =>
  Scheduler.open({ imagesDir: IMAGES, autoDownloadAssets: false, ...config }, { log, ...hooks });
const isTemplate = (name: string) => /^raw-256-[0-9a-f]{32}$/.test(name);

/** Runs code with the templates of `cache`, and waits until nothing but the whole template is in it. */
async function worksAgain(scheduler: Scheduler, cache: string, what: string): Promise<void> {
  const result = await scheduler.run({ language: "raw", code: "echo again" });
  assert.deepEqual([result.stdout, result.start], ["again\n", "template"], what);
  await eventually(`only the template is left after ${what}: ${readdirSync(cache)}`, () => {
    const names = readdirSync(cache);
    return names.length === 1 && names.every(isTemplate);
  });
}

/** Kills the only QEMU of this process. */
function killQemu(): void {
  const pids = descendants().filter((line) => line.includes("qemu")).map((line) => Number.parseInt(line));
  assert.equal(pids.length, 1, "the baker's machine and no other");
  for (const pid of pids) process.kill(pid, "SIGKILL");
}

for (const phase of ["warming", "saving"] as const satisfies ReadonlyArray<BakeProgress["phase"]>) {
  test(
    `a QEMU that dies while a template is ${phase} fails the run, which may be tried again`,
    { skip, timeout: TIMEOUT_MS },
    async (t) => {
      const cache = temporaryDirectory(t);
      let isKilled = false;
      const scheduler = await open({ snapshotCacheDir: cache }, {
        onProgress: (progress) => {
          if (progress.phase !== phase || isKilled) return;
          isKilled = true;
          killQemu();
        },
      });
      await assert.rejects(scheduler.run({ language: "raw", code: "echo never" }), (error) => {
        assert.ok(error instanceof CommunicationError, String(error));
        assert.deepEqual([error.message, error.retry], ["Cannot make a template for raw: QEMU was ended by SIGKILL", "safe"]);
        return true;
      });
      assert.ok(isKilled);
      assert.deepEqual([readdirSync(cache), descendants()], [[], []], "no file and no process is left");
      await worksAgain(scheduler, cache, phase);
      await scheduler.close();
    },
  );
}

test(
  "a process killed before any step of publishing a template leaves nothing that blocks or stays",
  { skip: reasonToSkipTwice() ?? false, timeout: TIMEOUT_MS },
  async (t) => {
    const env = { EXEC_SANDBOX_IMAGES_DIR: IMAGES };
    const places = new Set<string>();
    for (let call = 0;; call += 1) {
      const cache = temporaryDirectory(t);
      const { stdout, signal, stderr } = await startScript(t, "killed_while_publishing.ts", [cache, String(call)], env).ended;
      if (stdout.startsWith("survived")) {
        assert.equal(stdout, `survived ${call}\n`);
        break;
      }
      assert.equal(signal, "SIGKILL", stderr);
      places.add(stdout.replace(/^killing before (\w+).*\n$/, "$1"));
      await eventually("no QEMU of the dead is left", () => processesWith(cache).length === 0);
      await using scheduler = await open({ snapshotCacheDir: cache });
      await worksAgain(scheduler, cache, stdout.trim());
    }
    assert.ok(places.has("rename") && places.has("chmod") && places.has("writeFile"), [...places].join());
  },
);

noLeftovers();
