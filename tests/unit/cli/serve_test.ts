/** `sbx serve` without a server: what is asked of it, what is shown, and who decides whether a command uses one. */
import assert from "node:assert/strict";
import test from "node:test";
import type { CliServer, OpenOptions } from "../../../src/cli/context.ts";
import type { FoundServer } from "../../../src/serve/host_server.ts";
import { resultOf, sbx } from "./fake_context.ts";

const STATUS = { version: "1.2.3", pid: 7, uptimeSeconds: 3_725, clients: 3, vms: 4, waiting: 1, memoryMb: 80.2 };
const FOUND: FoundServer = { pid: 7, socket: "/c/serve/sbx.sock", status: STATUS, reason: "" };

/** A server that does nothing. */
function serverOf(more: Partial<CliServer> = {}): { readonly server: CliServer } {
  const refuse = () => Promise.reject(new Error("this test has not asked for it"));
  const server: CliServer = { start: refuse, find: refuse, stop: refuse, install: refuse, uninstall: refuse, ...more };
  return { server };
}

test("what does not go together is a usage error, and nothing is done", async () => {
  for (
    const args of [
      ["--status", "--stop"],
      ["--install", "--uninstall"],
      ["--json"],
      ["--stop", "--json"],
      ["--stop", "--warm", "1"],
      ["--warm", "-1"],
      ["--warm", "1.5"],
      ["--warm", "1025"],
      ["more"],
    ]
  ) {
    const { code, stderr } = await sbx(["serve", ...args], { server: serverOf().server });
    assert.equal(code, 2, `${args.join(" ")}: ${stderr}`);
  }
});

test("--status shows the server, says that there is none, or why it does not answer", async () => {
  const status = (found: FoundServer | undefined, ...args: string[]) =>
    sbx(["serve", "--status", ...args], { server: serverOf({ find: () => Promise.resolve(found) }).server });
  const shown = await status(FOUND);
  assert.deepEqual([shown.code, shown.stderr], [0, ""]);
  assert.equal(
    shown.stdout,
    "server   version 1.2.3, process 7, up 1 h 2 min\nsocket   /c/serve/sbx.sock\nclients  2\nVMs      4 in use, 1 waited for\nmemory   81 MB, VMs apart\n",
  );
  const none = await status(undefined);
  assert.deepEqual([none.code, none.stdout, none.stderr], [1, "", "No server runs. Start one with `sbx serve`.\n"]);
  const mute = await status({ ...FOUND, status: undefined, reason: "it must be\nof version 9" });
  assert.deepEqual([mute.code, mute.stderr], [1, "A server runs as process 7, and does not answer: it must be of version 9\n"]);
  const json = JSON.parse((await status(FOUND, "--json")).stdout);
  assert.deepEqual([json.running, json.answers, json.pid, json.vms, json.clients, json.problem], [true, true, 7, 4, 2, null]);
  assert.deepEqual(JSON.parse((await status(undefined, "--json")).stdout).running, false);
});

test("--stop, --install and --uninstall say what was done, and what is left to do", async () => {
  const stopped = await sbx(["serve", "--stop"], { server: serverOf({ stop: () => Promise.resolve(7) }).server });
  assert.deepEqual([stopped.code, stopped.stderr], [0, "The server, process 7, has ended.\n"]);
  const none = await sbx(["serve", "--stop"], { server: serverOf({ stop: () => Promise.resolve(undefined) }).server });
  assert.deepEqual([none.code, none.stderr], [0, "No server runs.\n"]);
  const asked: unknown[] = [];
  const install = (next: string[]) =>
    sbx(["serve", "--install", "--warm", "2"], {
      server: serverOf({
        install: (args) => {
          asked.push(args);
          return Promise.resolve({ path: "/u.service", next });
        },
      }).server,
    });
  const done = await install([]), left = await install(["systemctl --user daemon-reload"]);
  assert.deepEqual(asked, [["--warm", "2"], ["--warm", "2"]]);
  assert.deepEqual([done.code, done.stdout, done.stderr], [0, "/u.service\n", "The server starts when you log in.\n"]);
  assert.match(left.stderr, /Run next:\n {2}systemctl --user daemon-reload\n$/);
  const undone = await sbx(["serve", "--uninstall"], { server: serverOf({ uninstall: () => Promise.resolve(undefined) }).server });
  assert.deepEqual([undone.code, undone.stderr], [0, "No unit of sbx is installed.\n"]);
});

test("a run uses a server unless the option or the variable says no", async () => {
  const used = async (args: readonly string[], env: Record<string, string> = {}) => {
    const seen: OpenOptions[] = [];
    await sbx(["run", ...args, "print(1)"], {
      env,
      open: (options) => {
        seen.push(options);
        return Promise.resolve({
          run: () => Promise.resolve(resultOf()),
          session: () => Promise.reject(new Error("none")),
          prepare: () => Promise.resolve(),
          checkpoints: () => Promise.resolve([]),
          pinPackages: () => Promise.reject(new Error("none")),
          [Symbol.asyncDispose]: () => Promise.resolve(),
        });
      },
    });
    return seen.map(({ isServerUsed }) => isServerUsed);
  };
  assert.deepEqual(await used([]), [true]);
  assert.deepEqual(await used([], { EXEC_SANDBOX_SERVE: "1" }), [true]);
  assert.deepEqual(await used(["--no-serve"]), [false]);
  for (const value of ["0", "false", " No ", "OFF"]) assert.deepEqual(await used([], { EXEC_SANDBOX_SERVE: value }), [false]);
});
