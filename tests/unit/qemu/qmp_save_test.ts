/** QMP saves: in which order a machine is saved and goes on, also when that fails or is given up. */
import assert from "node:assert/strict";
import { Duplex } from "node:stream";
import test from "node:test";
import { Qmp, QmpError } from "../../../src/qemu/qmp.ts";
import { settled } from "../../support/waiting.ts";

/** The wire boundary: a monitor whose migrations go through `states`, of which the last stays, and that refuses some commands. */
function connect(
  states: readonly Record<string, unknown>[],
  onCommand: (name: string) => void = () => {},
  refused: readonly string[] = [],
) {
  const commands: string[] = [];
  let looks = 0, rest = "";
  const pipe = new Duplex({
    read() {},
    write(chunk: Uint8Array, _encoding, done) {
      const lines = (rest + new TextDecoder().decode(chunk)).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const { execute } = JSON.parse(line);
        if (commands.at(-1) !== execute) commands.push(execute); // A look that is repeated counts once.
        const isLook = execute === "query-migrate" || execute === "query-status";
        const answer = isLook ? states[Math.min(looks++, states.length - 1)] : {};
        const message = refused.includes(execute) ? { error: { desc: "refused" } } : { return: answer };
        pipe.push(new TextEncoder().encode(`${JSON.stringify(message)}\n`));
        onCommand(execute);
      }
      done();
    },
  });
  pipe.push(new TextEncoder().encode(`${JSON.stringify({ QMP: { version: { qemu: { major: 10, minor: 0, micro: 0 } } } })}\n`));
  return { qmp: new Qmp(pipe), commands: () => commands.filter((name) => name !== "qmp_capabilities") };
}
const SETUP = ["migrate-set-capabilities", "migrate-set-parameters"];

test("qmp: a live save lets the machine run until QEMU stops it, any other stops it first; both let it go on", async () => {
  for (const isLive of [true, false]) {
    const { qmp, commands } = connect([{ status: "active" }, { status: "completed", downtime: 7 }]);
    const pauseMs = await settled(qmp.saveWhole("file:/x", { isLive }), "the save");
    assert.deepEqual(commands(), [...SETUP, ...(isLive ? [] : ["stop"]), "migrate", "query-migrate", "cont"]);
    if (isLive) assert.ok(pauseMs >= 7, "what QEMU says is counted");
  }
});

test("qmp: a save that fails tells why, and the machine goes on", async () => {
  const { qmp, commands } = connect([{ status: "active" }, { status: "failed", "error-desc": "No space left on device" }]);
  const saving = settled(qmp.saveWhole("file:/x", { isLive: true }), "the save");
  await assert.rejects(saving, (error) => error instanceof QmpError && error.message === "migration failed: No space left on device");
  assert.deepEqual(commands(), [...SETUP, "migrate", "query-migrate", "migrate_cancel", "query-migrate", "cont"]);
});

test("qmp: a save that is given up is cancelled, and the machine goes on", async () => {
  const stop = new AbortController();
  const { qmp, commands } = connect([{ status: "active" }, { status: "cancelled" }], (name) => {
    if (name === "query-migrate") stop.abort(new Error("given up"));
  });
  await assert.rejects(settled(qmp.saveWhole("file:/x", { isLive: true, signal: stop.signal }), "the save"), /given up/);
  assert.deepEqual(commands(), [...SETUP, "migrate", "query-migrate", "migrate_cancel", "query-migrate", "cont"]);
});

test("qmp: a save that is given up before its migration is known to run is cancelled too, and the machine goes on", async () => {
  for (const isLive of [true, false]) {
    for (const moment of [...SETUP, ...(isLive ? [] : ["stop"]), "migrate"]) {
      const stop = new AbortController();
      let looks: readonly Record<string, unknown>[] = [{}];
      if (moment === "migrate") looks = [{ status: "active" }, { status: "cancelled" }];
      const { qmp, commands } = connect(looks, (name) => {
        if (name === moment) stop.abort(new Error("given up"));
      });
      await assert.rejects(
        settled(qmp.saveWhole("file:/x", { isLive, signal: stop.signal }), `the save given up at ${moment}`),
        /given up/,
      );
      const sent = [...SETUP, ...(isLive ? [] : ["stop"]), "migrate"], all = sent.slice(0, sent.indexOf(moment) + 1);
      const hasBegun = !SETUP.includes(moment);
      assert.deepEqual(commands(), hasBegun ? [...all, "migrate_cancel", "query-migrate", "cont"] : all, `${moment}, live: ${isLive}`);
    }
  }
});

test("qmp: a machine whose migration is refused goes on", async () => {
  for (const isLive of [true, false]) {
    const { qmp, commands } = connect([{}], undefined, ["migrate"]);
    await assert.rejects(settled(qmp.saveWhole("file:/x", { isLive }), "the save"), (error) => error instanceof QmpError);
    assert.deepEqual(commands(), [...SETUP, ...(isLive ? [] : ["stop"]), "migrate", "migrate_cancel", "query-migrate", "cont"]);
  }
});

test("qmp: a machine that was saved whole goes on once it has loaded and its devices have had their turn", async () => {
  const { qmp, commands } = connect([{ status: "inmigrate" }, { status: "paused" }]);
  await settled(qmp.loadSaved("file:/x"), "the load");
  assert.deepEqual(commands(), ["migrate-set-capabilities", "migrate-incoming", "query-status", "cont"]);
});
