/** Known mistakes of sandboxes like this one, which other tests do not show: what children inherit, what clones share, what kernels probe. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import type { ExecutionResult, Language, RunRequest } from "../../src/mod.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

const run = (language: Language, code: string, more: Partial<RunRequest> = {}): Promise<ExecutionResult> =>
  vms.scheduler.run({ language, code, ...more });

test("children inherit the three standard descriptors and no other", async () => {
  // `ls` has its own directory handle as 3.
  const look: Record<Language, string> = {
    python: "import subprocess; print(subprocess.check_output(['ls', '/proc/self/fd'], text=True, close_fds=False), end='')",
    javascript: "console.log(require('child_process').execFileSync('ls', ['/proc/self/fd']).toString().trim())",
    raw: "ls /proc/self/fd",
  };
  for (const [language, code] of Object.entries(look) as [Language, string][]) {
    assert.equal((await run(language, code)).stdout, "0\n1\n2\n3\n", language);
  }
  const forked = "import os, sys\nif os.fork() == 0:\n  os.execvp('ls', ['ls', '/proc/self/fd'])\nos.wait()";
  assert.equal((await run("python", forked)).stdout, "0\n1\n2\n3\n");
});

test("env is no code before the code: lines count from the user's first, and #! stays first", async () => {
  const env = { ONE: "1", TWO: "2" };
  assert.match((await run("python", "\nraise ValueError('why')", { env })).stderr, /line 2\b/);
  assert.match((await run("javascript", "const x = 1;\nthrow new Error('why')", { env })).stderr, /:2\b/);
  assert.match((await run("raw", "\nnosuchcommand", { env })).stderr, /line 2\b/);
  assert.equal((await run("raw", '#!/bin/sh\necho "$ONE$TWO"', { env })).stdout, "12\n");
});

test("a time zone in env is the program's, though its clone was warm before", async () => {
  const env = { TZ: "XYZ-9" };
  assert.equal((await run("python", "import time; print((time.localtime().tm_hour - time.gmtime().tm_hour) % 24)", { env })).stdout, "9\n");
  assert.equal((await run("raw", "echo $(( (10#$(date +%H) - 10#$(date -u +%H) + 24) % 24 ))", { env })).stdout, "9\n");
});

test("clones share no draw of the generators behind the libraries", async () => {
  const draw: Record<Language, string> = {
    python: "import random, secrets, ssl, tempfile, uuid\n" +
      "print(ssl.RAND_bytes(16).hex(), tempfile.mktemp(), uuid.uuid1(), random.Random().random(), secrets.token_hex(8))",
    javascript: "const c = require('crypto'); const key = c.generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' }).x;\n" +
      "console.log(key, c.randomInt(2 ** 47), Bun.randomUUIDv7(), crypto.getRandomValues(new Uint32Array(4)).join('-'), Math.random())",
    raw: "echo $(mktemp -u) $(shuf -i 1-1000000000000 -n 1) $(cat /proc/sys/kernel/random/uuid) $SRANDOM",
  };
  for (const [language, code] of Object.entries(draw) as [Language, string][]) {
    const draws = await Promise.all([1, 2, 3, 4].map(async () => (await run(language, code)).stdout.trim().split(" ")));
    const wordCount = draws[0]?.length ?? 0;
    assert.ok(wordCount >= 4, JSON.stringify(draws));
    for (let at = 0; at < wordCount; at++) {
      assert.equal(new Set(draws.map((words) => words[at])).size, 4, `${language}: ${JSON.stringify(draws)}`);
    }
  }
});

test("the kernel knows no hardware that is not there, so it waits for none", async () => {
  const { stdout } = await run("raw", "ls /sys/bus /sys/class 2>/dev/null; tail -n +2 /proc/devices; cat /proc/partitions");
  assert.match(stdout, /virtio/, "the list is a list");
  assert.doesNotMatch(stdout, /\b(pci|usb|scsi\w*|ata|ide\w*|serio|i2c\S*|fd|floppy|sr|md|loop\d*|ram\d+)\b/);
});
