/** Program: which command a command line means, help, version and usage errors. */
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import { test } from "node:test";
import { COMMANDS, loadCommands } from "../../../src/cli/commands.ts";
import { FakeOutput, sbx } from "./fake_context.ts";

const paths = async () =>
  (await loadCommands()).flatMap((command) => [[command.name], ...(command.commands ?? []).map((sub) => [command.name, sub.name])]);

test("a first argument that is no command means run", async () => {
  for (const args of [["print(1)"], ["-c", "print(1)"], ["--", "print(1)"], ["-q", "print(1)"], ["run", "print(1)"]]) {
    const { requests, code } = await sbx(args);
    assert.deepEqual([requests[0]?.code, code], ["print(1)", 0], args.join(" "));
  }
  for (const name of ["constructor", "toString", "__proto__", "Run", ""]) {
    assert.equal((await sbx([name])).requests[0]?.code, name);
  }
  assert.equal((await sbx(["run", "doctor"])).requests[0]?.code, "doctor");
});

test("-V and --version answer everywhere with the manifest's version", async () => {
  const { version } = JSON.parse(await fs.readFile(new URL("../../../deno.json", import.meta.url), "utf8"));
  for (const path of await paths()) {
    for (const option of ["-V", "--version"]) {
      assert.deepEqual(await sbx([...path, option]).then(({ code, stdout, stderr }) => [code, stdout, stderr]), [0, `${version}\n`, ""]);
    }
  }
});

test("-h and --help answer everywhere, on standard output, with every option", async () => {
  for (const path of await paths()) {
    for (const args of [[...path, "-h"], [...path, "--help"], ["help", ...path]]) {
      const { code, stdout, stderr } = await sbx(args);
      assert.deepEqual([code, stderr], [0, ""], args.join(" "));
      assert.ok(stdout.startsWith(`Usage: sbx ${path.join(" ")} `), stdout);
    }
  }
  const { stdout } = await sbx(["run", "--help"], { stdout: new FakeOutput({ columns: 120 }) });
  for (const option of ["language", "code", "timeout", "memory", "env", "json", "quiet", "debug", "jobs", "help", "version"]) {
    assert.ok(stdout.includes(`--${option}`), option);
  }
});

test("the help of the program names every command with its summary", async () => {
  for (const args of [["-h"], ["--help"], ["help"]]) {
    const { code, stdout, stderr } = await sbx(args, { stdout: new FakeOutput({ columns: 200 }) });
    assert.deepEqual([code, stderr], [0, ""]);
    for (const command of await loadCommands()) assert.ok(stdout.includes(command.summary.slice(0, 40)), command.name);
    assert.match(stdout, /A first argument that is no command means run/);
  }
});

test("help on what is no command is a usage error that names the commands", async () => {
  const names = (await loadCommands()).map((command) => command.name).join(", ");
  const wrong: Array<[string[], string]> = [
    [["nothing"], `the commands are ${names}`],
    [["print(1)"], `the commands are ${names}`],
    [["--json"], `the commands are ${names}`],
    [["__proto__"], `the commands are ${names}`],
    [["images", "nothing"], "images has build, list, verify, remove"],
    [["run", "build"], "run has no commands"],
  ];
  for (const [words, wanted] of wrong) {
    const { code, stdout, stderr, opened } = await sbx(["help", ...words]);
    assert.deepEqual([code, stdout, opened], [2, "", 0]);
    assert.equal(stderr, `sbx: Cannot help with ${JSON.stringify(words.join(" "))}: ${wanted}\nSee sbx --help.\n`);
  }
});

test("nothing at all is a usage error, answered with the help on standard error", async () => {
  const { code, stdout, stderr } = await sbx([]);
  assert.deepEqual([code, stdout], [2, ""]);
  assert.match(stderr, /^Usage: sbx \[command\]/);
});

test("an unknown option is a usage error with the nearest known one", async () => {
  const { code, stdout, stderr, opened } = await sbx(["run", "--jsn", "1"]);
  assert.deepEqual([code, stdout, opened], [2, "", 0]);
  assert.equal(stderr, "sbx: Cannot read the command line: unknown option '--jsn'\nDid you mean --json? See sbx run --help.\n");
});

test("wrong arguments of the other commands are usage errors", async () => {
  for (
    const args of [
      ["completions"],
      ["completions", "tcsh"],
      ["completions", "bash", "zsh"],
      ["completions", "__proto__"],
      ["doctor", "x"],
      ["doctor", "--bogus"],
    ]
  ) {
    const { code, stdout, stderr } = await sbx(args);
    assert.deepEqual([code, stdout], [2, ""], args.join(" "));
    assert.match(stderr, /^sbx: Cannot .+\n/);
  }
});

test("every command carries the name it is registered under, a summary, and help for each option", async () => {
  for (const [name, load] of Object.entries(COMMANDS)) {
    const command = await load();
    assert.equal(command.name, name);
    for (const each of [command, ...(command.commands ?? [])]) {
      assert.match(each.summary, /^[a-z].*[^.]$/);
      assert.equal(each.run === undefined, each.commands !== undefined, `${each.name} either does something or is a group`);
      const longs = (each.options ?? []).map((option) => option.long);
      assert.equal(new Set(longs).size, longs.length);
    }
  }
});

test("help is coloured for no pipe", async () => {
  const { stdout } = await sbx(["--help"]);
  // deno-lint-ignore no-control-regex
  assert.ok(!/\x1b/.test(stdout));
});
