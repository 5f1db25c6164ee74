/** Connections of a session that is copied: they go on in the session, and in the copy whoever uses one finds it reset. */
import assert from "node:assert/strict";
import test from "node:test";
import type { Session } from "../../src/mod.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { echo, service } from "../support/net_peer.ts";
import { reasonToSkip, withScheduler } from "../support/scheduler.ts";

const options = () => {
  const skip = reasonToSkip();
  return skip === undefined ? { timeout: 300_000 } : { skip };
};
const SET_UP = `
import socket
def dial():
    s = socket.create_connection(("db.example.com", 5432), 60)
    s.sendall(b"x")
    assert s.recv(1) == b"x"
    return s
def said(s, byte):
    try:
        s.sendall(byte)
        return s.recv(1) or "end"
    except OSError as error:
        return type(error).__name__
open = dial()`;

async function value(session: Session, code: string): Promise<string | undefined> {
  const result = await session.exec(code);
  assert.deepEqual([result.exitCode, result.stderr], [0, ""], code);
  return result.value;
}

/** The connection is over, and new ones can be had. */
async function isCutOff(session: Session, what: string): Promise<void> {
  assert.match(await value(session, 'said(open, b"y")') ?? "", /^'(end|ConnectionResetError)'$/, what);
  assert.equal(await value(session, 'said(dial(), b"z")'), "b'z'", what);
}

test("connections of a copy are reset, those of its session go on, and both can have new ones", options(), async (t) => {
  const port = await service(t, echo);
  await withScheduler(
    async (scheduler) => {
      await using session = await scheduler.session({ language: "python", allowedDomains: ["db.example.com:5432"] });
      assert.equal((await session.exec(SET_UP)).exitCode, 0);
      await using before = await session.checkpoint();
      const [fork] = await session.fork(1);
      assert.ok(fork);
      await using _fork = fork;
      await isCutOff(fork, "a fork");
      assert.equal(await value(session, 'said(open, b"y")'), "b'y'", "the session's goes on");
      await using restored = await before.restore();
      await isCutOff(restored, "a restored checkpoint");
      await session.rollback(before);
      await isCutOff(session, "a rollback");
    },
    {},
    { networkHosts: { "db.example.com:5432": `127.0.0.1:${port}` } },
  );
});

noLeftovers();
