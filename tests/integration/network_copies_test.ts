/** Copies of a session with a network: forks and rollbacks have its rules, connections of their own, and ports of their own or the same. */
import assert from "node:assert/strict";
import test from "node:test";
import { noLeftovers } from "../support/leftovers.ts";
import { httpService } from "../support/net_services.ts";
import { reasonToSkip, withScheduler } from "../support/scheduler.ts";

const options = () => {
  const skip = reasonToSkip();
  return skip === undefined ? { timeout: 300_000 } : { skip };
};
const GET = "curl -s -m 30 http://api.example.com/; echo $?";

test("copies: a fork reaches what its session may, a rollback too, and both have their ports", options(), async (t) => {
  const { port } = await httpService(t);
  await withScheduler(
    async (scheduler) => {
      await using session = await scheduler.session({ language: "raw", allowedDomains: ["api.example.com"], exposePorts: [8080] });
      assert.equal((await session.exec(GET)).stdout, "api.example.com /\n0\n");
      await using before = await session.checkpoint();
      const [fork] = await session.fork(1);
      assert.ok(fork);
      await using _fork = fork;
      assert.equal((await fork.exec(GET)).stdout, "api.example.com /\n0\n");
      assert.equal((await fork.exec("curl -s -m 30 http://other.example.com/; echo $?")).stdout, "6\n");
      assert.equal(fork.exposedPorts.length, 1);
      assert.notEqual(fork.exposedPorts[0]?.external, session.exposedPorts[0]?.external);
      await session.updateNetwork({ allowedDomains: ["other.example.com"] });
      assert.equal((await fork.exec(GET)).stdout, "api.example.com /\n0\n", "a copy has rules of its own");
      const ports = session.exposedPorts;
      await session.rollback(before);
      assert.deepEqual(session.exposedPorts, ports);
      assert.equal((await session.exec(GET)).stdout, "6\n", "a rollback brings no rule back");
      await session.updateNetwork({ allowedDomains: ["api.example.com"] });
      assert.equal((await session.exec(GET)).stdout, "api.example.com /\n0\n");
      await using strict = await before.restore({ allowNetwork: false });
      assert.equal((await strict.exec(GET)).stdout, "6\n");
    },
    {},
    { networkHosts: { "api.example.com": `127.0.0.1:${port}` } },
  );
});

noLeftovers();
