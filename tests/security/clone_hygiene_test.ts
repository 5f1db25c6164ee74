/** Clone hygiene: a thousand clones of one template share neither a draw of any generator nor the time at which it was made. */
import assert from "node:assert/strict";
import os from "node:os";
import test, { after, before } from "node:test";
import type { Language } from "../../src/mod.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

const CLONES = 1000;
/** Two at a time: so many machines, and so much memory, are in use. */
const AT_ONCE = 2;
const CLOCK_TOLERANCE_MS = 50;
const TIMEOUT_MS = 900_000;

/** Each prints the guest's clock in milliseconds, and then one word for each generator, of at least 52 bits. */
const DRAWS: Readonly<Record<Language, string>> = {
  python: "import os, random, secrets, tempfile, time, uuid\n" +
    "print(time.time() * 1000, random.getrandbits(64), random.Random().getrandbits(64), os.urandom(8).hex(), secrets.token_hex(8), " +
    "uuid.uuid4(), uuid.uuid1(), tempfile.mktemp())",
  javascript: "const { randomBytes, randomInt } = require('node:crypto');\n" +
    "console.log(Date.now(), Math.random(), crypto.randomUUID(), crypto.getRandomValues(new Uint32Array(3)).join('-'), " +
    "randomBytes(8).toString('hex'), randomInt(2 ** 47), Bun.randomUUIDv7())",
  raw: 'echo $(date +%s%3N) "$RANDOM-$RANDOM-$RANDOM-$RANDOM-$RANDOM" "$SRANDOM-$SRANDOM" $(od -An -N8 -tx8 /dev/urandom) ' +
    "$(cat /proc/sys/kernel/random/uuid) $(mktemp -u XXXXXXXXXXXX)",
};

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

for (const [language, code] of Object.entries(DRAWS) as Array<[Language, string]>) {
  test(`${CLONES} clones of a ${language} template draw nothing twice and have the host's time`, { timeout: TIMEOUT_MS }, async () => {
    const seen: Array<Set<string>> = [];
    let started = 0;
    const cloneOnAndOn = async () => {
      while (started < CLONES) {
        started += 1;
        const beforeMs = Date.now();
        const { stdout, stderr, exitCode, start } = await vms.scheduler.run({ language, code });
        const afterMs = Date.now();
        assert.equal(`${exitCode} ${stderr}`, "0 ");
        assert.equal(start, "template");
        const [clock, ...draws] = stdout.trim().split(" ");
        const clockMs = Number(clock);
        assert.ok(
          clockMs >= beforeMs - CLOCK_TOLERANCE_MS && clockMs <= afterMs + CLOCK_TOLERANCE_MS,
          `the guest's ${clock} lies between the host's ${beforeMs} and ${afterMs}, ${CLOCK_TOLERANCE_MS} ms more or less`,
        );
        for (const [at, draw] of draws.entries()) (seen[at] ??= new Set()).add(draw);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, cloneOnAndOn));
    assert.ok(seen.length >= 5, `some generators were asked, got ${seen.length}`);
    assert.deepEqual(seen.map(({ size }) => size), seen.map(() => CLONES), "as many different draws as clones, of each generator");
  });
}

test("a clone's identity says nothing of its host", async () => {
  const { stdout } = await vms.scheduler.run({
    language: "raw",
    code: "uname -n; hostname 2>/dev/null; cat /etc/hostname /etc/machine-id 2>/dev/null; true",
  });
  assert.ok(!stdout.includes(os.hostname()), stdout);
});
