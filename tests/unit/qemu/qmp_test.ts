/** QMP: answers in order, refusals as they were said, and an end for everybody who waits, whatever the other side does. */
import assert from "node:assert/strict";
import { Duplex } from "node:stream";
import test from "node:test";
import fc from "fast-check";
import { CommunicationError } from "../../../src/base/errors.ts";
import { Qmp, QmpError } from "../../../src/qemu/qmp.ts";
import { eventually, settled, sleep } from "../../support/waiting.ts";

const GREETING = { QMP: { version: { qemu: { major: 10, minor: 0, micro: 13 }, package: "x" }, capabilities: [] } };

interface Command {
  readonly execute: string;
  readonly arguments?: Record<string, unknown>;
}

/** The wire boundary: a monitor that answers each command as `answer` says; undefined is no answer. */
function connect(answer: (command: Command, count: number) => unknown = () => ({ return: {} })) {
  const commands: Command[] = [];
  let rest = "";
  const pipe = new Duplex({
    read() {},
    write(chunk: Uint8Array, _encoding, done) {
      const lines = (rest + new TextDecoder().decode(chunk)).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        commands.push(JSON.parse(line));
        const reply = answer(JSON.parse(line), commands.length);
        if (reply !== undefined) say(reply);
      }
      done();
    },
  });
  const raw = (text: string) => void pipe.push(new TextEncoder().encode(text));
  const say = (message: unknown) => raw(`${JSON.stringify(message)}\r\n`);
  return { qmp: new Qmp(pipe), pipe, raw, say, commands };
}

const isLost = (error: unknown) => error instanceof CommunicationError;

test("qmp: the version is that of the greeting, and command mode is asked for at once", async () => {
  const { qmp, say, commands } = connect();
  say(GREETING);
  assert.equal(await qmp.version(), "10.0.13");
  assert.deepEqual(commands, [{ execute: "qmp_capabilities" }]);
});

test("qmp: commands may be sent ahead; each gets its own answer, events between them are no answers", async () => {
  const { qmp, say, commands } = connect(({ execute }) => execute === "qmp_capabilities" ? { return: {} } : undefined);
  const first = qmp.execute("one"), second = qmp.execute("two", { a: 1 }), third = qmp.execute("three");
  say(GREETING);
  say({ event: "RESUME", timestamp: {} });
  say({ return: 1 });
  say({ error: { class: "GenericError", desc: "no such thing" } });
  say({ event: "STOP" });
  say({ return: { three: 3 } });
  assert.equal(await first, 1);
  await assert.rejects(second, (error) => error instanceof QmpError && error.message === "no such thing");
  assert.deepEqual(await third, { three: 3 });
  assert.deepEqual(commands[2], { execute: "two", arguments: { a: 1 } });
});

test("qmp: a message may come in any pieces, also inside a character", async () => {
  const { qmp, pipe } = connect(() => undefined);
  const answer = qmp.execute("name");
  const bytes = new TextEncoder().encode(`{"return":{}}\n{"return":"🎈é"}\n`);
  for (const byte of bytes) pipe.push(new Uint8Array([byte]));
  assert.equal(await answer, "🎈é");
});

for (
  const [name, harm] of Object.entries<(connection: ReturnType<typeof connect>) => void>({
    "is closed": ({ pipe }) => void pipe.destroy(),
    "breaks": ({ pipe }) => void pipe.destroy(new Error("reset")),
    "says what is no JSON": ({ raw }) => raw("hello\n"),
    "says what is no object": ({ raw }) => raw("null\n"),
    "says a line without an end": ({ raw }) => raw("x".repeat(1_048_577)),
  })
) {
  test(`qmp: a monitor that ${name} ends every wait, and later ones at once`, async () => {
    const connection = connect(() => undefined);
    const waits = [connection.qmp.version(), connection.qmp.execute("one"), connection.qmp.execute("two")];
    harm(connection);
    for (const wait of waits) await settled(assert.rejects(wait, isLost), name);
    await settled(assert.rejects(connection.qmp.execute("three"), isLost), name);
  });
}

test("qmp: messages of any shape end no process, and hold up nobody for ever", async () => {
  const parts = fc.oneof(fc.constantFrom(null, 1, "x", [], {}, { qemu: null }, { version: null }, { desc: 1 }), fc.jsonValue());
  const messages = fc.array(fc.oneof(fc.jsonValue(), fc.dictionary(fc.constantFrom("QMP", "error", "return", "event"), parts)), {
    maxLength: 8,
  });
  await fc.assert(fc.asyncProperty(messages, async (said) => {
    const { qmp, pipe, say } = connect(() => undefined);
    const waits = [qmp.version(), qmp.execute("one"), qmp.saveState("file:x")];
    // All at once: a save may end before a wait that began earlier.
    const outcomes = Promise.all(
      waits.map((wait) => wait.then(() => {}, (error) => assert.ok(isLost(error) || error instanceof QmpError, String(error)))),
    );
    for (const message of said) say(message);
    setTimeout(() => pipe.destroy(), 1);
    await settled(outcomes, "the waits");
  }));
});

test("qmp: commands that fail before anybody awaits them are no uncaught exceptions", async () => {
  const { qmp, pipe } = connect(() => ({ error: { desc: "no" } }));
  const { signal } = new AbortController();
  const refused = [qmp.execute("one"), qmp.execute("two", undefined, signal), qmp.loadState("file:x")];
  await sleep(5);
  for (const command of refused) await assert.rejects(command, QmpError);
  pipe.destroy();
  await eventually("it is closed", () => qmp.execute("three").then(() => false, isLost));
  const late = [qmp.execute("four"), qmp.execute("five", undefined, signal)];
  await sleep(5);
  for (const command of late) await assert.rejects(command, isLost);
});

test("qmp: an answer nobody asked for is dropped, and an abort leaves the order of the others", async () => {
  const { qmp, say } = connect(() => undefined);
  const controller = new AbortController(), reason = new Error("enough");
  const aborted = qmp.execute("one", undefined, controller.signal), kept = qmp.execute("two");
  controller.abort(reason);
  await assert.rejects(aborted, (error) => error === reason);
  for (const value of ["capabilities", "one", "two", "nobody's"]) say({ return: value });
  assert.equal(await kept, "two");
});

test("qmp: a state is saved without memory and without a limit of speed, and its end is waited for", async () => {
  const states = ["setup", "active", "active", "completed"];
  const { qmp, commands } = connect(({ execute }) => ({ return: execute === "query-migrate" ? { status: states.shift() } : {} }));
  await qmp.saveState("file:/t/state");
  const names = commands.map(({ execute }) => execute);
  assert.deepEqual(names.slice(0, 4), ["qmp_capabilities", "migrate-set-capabilities", "migrate-set-parameters", "migrate"]);
  assert.equal(names.filter((name) => name === "query-migrate").length, 4);
  assert.deepEqual(commands[1]?.arguments, { capabilities: [{ capability: "x-ignore-shared", state: true }] });
  assert.ok(Number(commands[2]?.arguments?.["max-bandwidth"]) > 1e12);
  assert.deepEqual(commands[3]?.arguments, { uri: "file:/t/state" });
});

test("qmp: a save that fails says why", async () => {
  for (const status of ["failed", "cancelled"]) {
    const { qmp } = connect(({ execute }) => ({ return: execute === "query-migrate" ? { status, "error-desc": "no space" } : {} }));
    await assert.rejects(
      qmp.saveState("file:/t/state"),
      (error) => error instanceof QmpError && error.message === `migration ${status}: no space`,
    );
  }
});

test("qmp: a load that is refused rejects", async () => {
  const { qmp } = connect(({ execute }) => execute === "migrate-incoming" ? { error: { desc: "bad file" } } : { return: {} });
  await assert.rejects(qmp.loadState("file:/t/state"), (error) => error instanceof QmpError && error.message === "bad file");
});
