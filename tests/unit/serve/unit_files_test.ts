/** Unit files: what the service managers get, whatever is in paths and values. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import path from "node:path";
import test from "node:test";
import { unitFile, unitPath, type UnitRequest } from "../../../src/serve/unit_files.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

const REQUEST: UnitRequest = {
  manager: "systemd",
  command: ["/bin/echo", "serve", "--warm", "2"],
  env: { EXEC_SANDBOX_CACHE_DIR: "/var/c" },
  userEnv: { HOME: "/home/u" },
};
const NASTY = "a b\"c\\d%h$HOME<&>'";

test("a unit lies where its service manager looks for it", () => {
  assert.equal(unitPath("systemd", { HOME: "/home/u" }), "/home/u/.config/systemd/user/exec-sandbox.service");
  assert.equal(unitPath("systemd", { HOME: "/home/u", XDG_CONFIG_HOME: "/c" }), "/c/systemd/user/exec-sandbox.service");
  assert.equal(unitPath("systemd", { HOME: "/home/u", XDG_CONFIG_HOME: "c" }), "/home/u/.config/systemd/user/exec-sandbox.service");
  assert.equal(unitPath("launchd", { HOME: "/Users/u" }), "/Users/u/Library/LaunchAgents/dev.exec-sandbox.serve.plist");
});

test("a systemd unit starts the command with its variables, and everything is a word of its own", () => {
  const { path: file, text } = unitFile(REQUEST);
  assert.equal(file, "/home/u/.config/systemd/user/exec-sandbox.service");
  assert.match(text, /^ExecStart="\/bin\/echo" "serve" "--warm" "2"$/m);
  assert.match(text, /^Environment="EXEC_SANDBOX_CACHE_DIR=\/var\/c"$/m);
  const nasty = unitFile({ ...REQUEST, command: ["/bin/echo", NASTY], env: { X: "1\n[Service]\nExecStart=/bin/evil" } }).text;
  assert.ok(nasty.includes('"a b\\"c\\\\d%%h$$HOME<&>\''), nasty);
  assert.equal(nasty.match(/^ExecStart=/gm)?.length, 1, "a value cannot add a line");
});

const hasSystemd = spawnSync("systemd-analyze", ["--version"]).status === 0;
test("systemd finds nothing wrong with a unit", { skip: hasSystemd ? false : "systemd-analyze is not installed" }, (t) => {
  const file = path.join(temporaryDirectory(t), "exec-sandbox.service");
  writeFileSync(file, unitFile({ ...REQUEST, command: ["/bin/echo", NASTY], env: { X: NASTY } }).text);
  const { status, stderr } = spawnSync("systemd-analyze", ["verify", "--man=no", file], { encoding: "utf8" });
  assert.deepEqual([status, stderr.split("\n").filter((line) => line.includes("exec-sandbox.service"))], [0, []]);
});

test("a launchd agent starts the command with its variables, and everything is text", () => {
  const { text } = unitFile({ ...REQUEST, manager: "launchd", command: ["/bin/echo", NASTY], env: { X: "<&>" } });
  assert.ok(text.includes("<string>/bin/echo</string>") && text.includes("d%h$HOME&lt;&amp;&gt;'</string>"), text);
  assert.ok(text.includes("<key>X</key>\n    <string>&lt;&amp;&gt;</string>"));
  assert.equal(text.match(/<plist/g)?.length, 1);
});

noLeftovers();
