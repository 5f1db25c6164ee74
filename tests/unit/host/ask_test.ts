/** Ask: an answer in time, or a typed error that says what was in the way. */
import assert from "node:assert/strict";
import test from "node:test";
import { SandboxDependencyError, VmCapacityError } from "../../../src/base/errors.ts";
import { ask, spawnError } from "../../../src/host/ask.ts";
import { noLeftovers } from "../../support/leftovers.ts";

test("ask gives what the program said and how it ended", async () => {
  const { stdout, stderr, code } = await ask("Cannot ask", ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]);
  assert.deepEqual([stdout, stderr, code], ["out\n", "err\n", 3]);
});

test("ask gives up on a program that does not answer, and ends it", async () => {
  await assert.rejects(
    ask("Cannot ask", ["/bin/sleep", "300"], 50),
    (error) =>
      error instanceof SandboxDependencyError && error.message === "Cannot ask: /bin/sleep must answer 300 within 50 ms, got nothing",
  );
});

test("ask says which program does not run", async () => {
  for (const program of ["/no/such/program", "/etc", "/etc/passwd"]) {
    await assert.rejects(
      ask("Cannot ask", [program]),
      (error) => error instanceof SandboxDependencyError && error.message.startsWith(`Cannot ask: ${program} does not run (`),
    );
  }
});

test("a host that is exhausted is a matter of capacity, which may pass", () => {
  for (const code of ["EMFILE", "ENFILE", "EAGAIN", "ENOMEM"]) {
    const cause = Object.assign(new Error("spawn"), { code }), error = spawnError("Cannot start a VM", "/qemu", cause);
    assert.ok(error instanceof VmCapacityError && error.retry === "safe" && error.message.includes(code), code);
    assert.equal(error.cause, cause);
  }
  for (const cause of [Object.assign(new Error("spawn"), { code: "EACCES" }), new Error("no code"), "text", undefined]) {
    assert.ok(spawnError("Cannot start a VM", "/qemu", cause) instanceof SandboxDependencyError);
  }
  const own = new VmCapacityError("full");
  assert.equal(spawnError("Cannot start a VM", "/qemu", own), own);
});

noLeftovers();
