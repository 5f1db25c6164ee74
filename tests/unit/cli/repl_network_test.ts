/** `:network` at a prompt and without one. */
import assert from "node:assert/strict";
import test from "node:test";
import type { SessionRequest } from "../../../src/run/session_request.ts";
import { noLeftovers } from "../../support/leftovers.ts";
import { sbx } from "./fake_context.ts";
import { openRepl } from "./fake_repl.ts";
import { FakeSession } from "./fake_session.ts";
import { ctrl, KEYS } from "./fake_terminal.ts";

const PORT = { internal: 8080, external: 9000, host: "127.0.0.1", protocol: "tcp", url: "http://127.0.0.1:9000" } as const;

test(":network shows what may be reached, and changes it", async (t) => {
  const repl = openRepl(t, { exposedPorts: [PORT] });
  const line = async (text: string, pattern: RegExp) => {
    await repl.terminal.type(text, KEYS.enter);
    await repl.shows(pattern);
  };
  await line(":network", /py> :network\s+network: off\s+port 8080 → http:\/\/127\.0\.0\.1:9000\s+py> ?$/);
  await line(":network on", /network: on, but for private and other special addresses\s+py> ?$/);
  await line(":network allow API.example.com", /network: api\.example\.com and nothing else\s+py> ?$/);
  await line(
    ":network allow *.b.test c.test:22 api.example.com",
    /network: api\.example\.com, \*\.b\.test, c\.test:22 and nothing else\s+py> ?$/,
  );
  assert.deepEqual(repl.sessions[0]?.networkAccess, { allowedDomains: ["api.example.com", "*.b.test", "c.test:22"] });
  await line(":network off", /:network off\s+network: off\s+py> ?$/);
  await line(":network", /:network\s+network: off\s+port[^\n]*\s+py> ?$/);
  assert.deepEqual(repl.sessions[0]?.networkAccess, { allowNetwork: false });
  void repl.terminal.type(ctrl("d"));
  assert.equal((await repl.ended).code, 0);
});

test(":network says what it wants, and changes nothing then", async (t) => {
  const repl = openRepl(t, { access: { allowedDomains: [] } });
  const cases: ReadonlyArray<readonly [line: string, says: RegExp]> = [
    [":network of", /sbx: Cannot change the network: must be one of off, on, allow, got "of"\s+\S*Did you mean :network off\?/],
    [":network example.com", /got "example\.com"\s+\S*:network allow DOMAIN allows a domain\./],
    [":network allow", /sbx: Cannot change the network: wanted :network allow DOMAIN…/],
    [":network on example.com", /nothing may follow :network on, got "example\.com"/],
    [":network allow http://x.test", /Cannot change the network: an allowed domain must be a name without scheme and path, got/],
    [":network allow a.test *", /"\*" may only stand for all that is below a name/],
    [":network allow 10.0.0.1", /an allowed domain must be a name and no address/],
  ];
  for (const [line, says] of cases) {
    await repl.terminal.type(line, KEYS.enter);
    await repl.shows(says);
  }
  await repl.terminal.type(":network", KEYS.enter);
  await repl.shows(/network: off, for no domain is allowed\s+py> ?$/);
  void repl.terminal.type(ctrl("d"));
  await repl.ended;
});

test(":network completes its words, and :help tells of them", async (t) => {
  const repl = openRepl(t);
  await repl.terminal.type(":net", KEYS.tab, "al", KEYS.tab);
  await repl.shows(/py> :network allow ?$/);
  await repl.terminal.type("x.test ", KEYS.tab, "y.test", KEYS.enter);
  await repl.shows(/network: x\.test, y\.test and nothing else\s+py> ?$/);
  await repl.terminal.type(":help network", KEYS.enter);
  await repl.shows(/:network \[off\|on\|allow DOMAIN…\]\s+show what code may reach/);
  void repl.terminal.type(ctrl("d"));
  await repl.ended;
});

test("what was changed by :network stays for the VM that takes the place of another, and a copy has its own", async (t) => {
  const requests: SessionRequest[] = [], sessions: FakeSession[] = [];
  const repl = openRepl(t, {
    args: ["--allow-domain", "first.test", "--expose", "8080"],
    world: {
      session: (request) => {
        requests.push(request);
        const { allowNetwork, allowedDomains } = request;
        const access = allowedDomains ? { allowedDomains } : { allowNetwork: allowNetwork === true };
        const session = new FakeSession({ language: request.language, access });
        sessions.push(session);
        return Promise.resolve(session);
      },
    },
  });
  const lines = async (...texts: readonly string[]) => {
    for (const text of texts) await repl.terminal.type(text, KEYS.enter);
    await repl.shows(/> ?$/);
  };
  await lines(":reset", ":network", ":network off", ":lang js", ":network", ":network allow a.test", ":fork", ":network on");
  await repl.shows(/:network on\s+network: on[^\n]*\s+js> ?$/);
  await lines(":quit", ":network");
  await repl.shows(/the copy is gone\s+js> :network\s+network: a\.test and nothing else\s+js> ?$/);
  await lines(":reset", ":network");
  await repl.shows(/new VM[^\n]*\s+js> :network\s+network: a\.test and nothing else\s+js> ?$/);
  void repl.terminal.type(ctrl("d"));
  await repl.ended;
  assert.deepEqual(requests.map(({ allowNetwork, allowedDomains, exposePorts }) => ({ allowNetwork, allowedDomains, exposePorts })), [
    { allowNetwork: undefined, allowedDomains: ["first.test"], exposePorts: [{ internal: 8080 }] },
    { allowNetwork: undefined, allowedDomains: ["first.test"], exposePorts: [{ internal: 8080 }] },
    { allowNetwork: false, allowedDomains: undefined, exposePorts: [{ internal: 8080 }] },
    { allowNetwork: undefined, allowedDomains: ["a.test"], exposePorts: [{ internal: 8080 }] },
  ]);
});

test(":network works without a terminal", async () => {
  const { code, stdout, stderr } = await sbx(["session", "-q"], {
    stdin: ":network\n:network allow a.test\n:network\n:network allow ?\n",
    session: () => Promise.resolve(new FakeSession()),
  });
  assert.equal(stdout, "network: off\nnetwork: a.test and nothing else\n");
  assert.match(stderr, /^network: a\.test and nothing else\nsbx: Cannot change the network: /);
  assert.equal(code, 2);
});

noLeftovers();
