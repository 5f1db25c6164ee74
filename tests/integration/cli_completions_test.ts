/** Completions in the shells themselves. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import { test } from "node:test";
import { noLeftovers } from "../support/leftovers.ts";
import { hasProgram, quoted, ROOT, Terminal } from "./cli_terminal.ts";

const script = (name: string) => path.join(ROOT, "completions", name);
const skip = (...programs: string[]) => {
  const missing = programs.filter((name) => !hasProgram(name));
  return missing.length > 0 ? `${missing.join(", ")} is not installed` : false;
};

function run(program: string, args: readonly string[], cwd: string): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(program, args, { cwd, env: { PATH: process.env["PATH"] ?? "", HOME: cwd } }, (error, stdout, stderr) => {
      if (error || stderr) reject(error ?? new Error(stderr));
      else resolve(stdout);
    });
  });
}

async function inDirectory(work: (directory: string) => Promise<void>): Promise<void> {
  const directory = await fs.mkdtemp(path.join(os.tmpdir(), "sbx-completions-"));
  try {
    await fs.writeFile(path.join(directory, "script one.py"), "");
    await fs.writeFile(path.join(directory, "script-two.js"), "");
    await work(directory);
  } finally {
    await fs.rm(directory, { recursive: true });
  }
}

/** Words typed, the last one unfinished → what bash offers. */
async function bashOffers(words: readonly string[], cwd: string): Promise<string[]> {
  const line = `source ${quoted(script("sbx.bash"))}; COMP_WORDS=(${words.map(quoted).join(" ")}); COMP_CWORD=${words.length - 1}; _sbx; ` +
    'for reply in "${COMPREPLY[@]}"; do printf "%s\\n" "$reply"; done';
  return (await run("bash", ["--norc", "--noprofile", "-c", line], cwd)).split("\n").filter(Boolean).sort();
}

/** A line typed → what fish offers. */
async function fishOffers(line: string, cwd: string): Promise<string[]> {
  const text = await run("fish", ["--no-config", "-c", `source ${quoted(script("sbx.fish"))}; complete -C ${quoted(line)}`], cwd);
  return text.split("\n").filter(Boolean).map((offer) => offer.split("\t")[0] ?? "").sort();
}

const LANGUAGES = ["bash", "javascript", "js", "py", "python", "raw", "sh", "ts"];

test("bash offers commands, options, values and files", { skip: skip("bash") }, async () => {
  await inDirectory(async (cwd) => {
    assert.deepEqual(await bashOffers(["sbx", "do"], cwd), ["doctor"]);
    assert.deepEqual(await bashOffers(["sbx", "script"], cwd), ["script one.py", "script-two.js"]);
    assert.deepEqual(await bashOffers(["sbx", "run", "script-"], cwd), ["script-two.js"]);
    assert.deepEqual(await bashOffers(["sbx", "run", "--js"], cwd), ["--json"]);
    assert.deepEqual(await bashOffers(["sbx", "--la"], cwd), ["--language"]);
    assert.deepEqual(await bashOffers(["sbx", "code", "--la"], cwd), ["--language"], "a first word that is no command means run");
    assert.deepEqual(await bashOffers(["sbx", "run", "-l", ""], cwd), LANGUAGES);
    assert.deepEqual(await bashOffers(["sbx", "run", "--language", "=", "py"], cwd), ["py", "python"]);
    assert.deepEqual(await bashOffers(["sbx", "run", "--language", "="], cwd), LANGUAGES);
    assert.deepEqual(await bashOffers(["sbx", "run", "-t", ""], cwd), [], "a number cannot be offered");
    assert.deepEqual(await bashOffers(["sbx", "doctor", "-"], cwd), ["--help", "--json", "--version", "-V", "-h"]);
    assert.deepEqual(await bashOffers(["sbx", "doctor", ""], cwd), []);
    assert.deepEqual(await bashOffers(["sbx", "completions", ""], cwd), ["bash", "fish", "zsh"]);
  });
});

test("fish offers commands, options, values and files", { skip: skip("fish") }, async () => {
  await inDirectory(async (cwd) => {
    assert.deepEqual(await fishOffers("sbx do", cwd), ["doctor"]);
    assert.deepEqual(await fishOffers("sbx run script-", cwd), ["script-two.js"]);
    assert.deepEqual(await fishOffers("sbx script-", cwd), ["script-two.js"]);
    assert.deepEqual(await fishOffers("sbx run --js", cwd), ["--json"]);
    assert.deepEqual(await fishOffers("sbx code --la", cwd), ["--language"]);
    assert.deepEqual(await fishOffers("sbx run -l ", cwd), LANGUAGES);
    assert.deepEqual(await fishOffers("sbx run --language=py", cwd), ["--language=py", "--language=python"]);
    assert.deepEqual(await fishOffers("sbx run -t ", cwd), []);
    assert.deepEqual(await fishOffers("sbx doctor --", cwd), ["--help", "--json", "--version"]);
    assert.deepEqual(await fishOffers("sbx doctor ", cwd), []);
    assert.deepEqual(await fishOffers("sbx completions ", cwd), ["bash", "fish", "zsh"]);
  });
});

test("zsh offers commands, options, values and files", { skip: skip("zsh", "tmux") }, async () => {
  await inDirectory(async (cwd) => {
    await using terminal = await Terminal.open(`cd ${quoted(cwd)} && PS1='> ' exec zsh -f`);
    await terminal.type(`autoload -U compinit; compinit -u -D; source ${quoted(script("_sbx"))}; PS1='# '; clear`);
    await terminal.press("Enter");
    const offers = async (line: string, pattern: RegExp) => {
      await terminal.press("C-u");
      await terminal.press("C-l");
      await terminal.shows(/^# *$/);
      await terminal.type(line);
      await terminal.press("Tab");
      await terminal.shows(pattern);
    };
    await offers("sbx do", /^# sbx doctor/);
    await offers("sbx script-", /^# sbx script-two\.js/);
    await offers("sbx run script\\ ", /^# sbx run script\\ one\.py/);
    await offers("sbx run --", /--json +-- print a machine-readable result[^]*--timeout/);
    await offers("sbx code --la", /^# sbx code --language/);
    await offers("sbx run -l ", /bash +javascript +js +py +python +raw +sh +ts/);
    await offers("sbx doctor --j", /^# sbx doctor --json/);
    await offers("sbx completions ", /bash +fish +zsh/);
  });
});

noLeftovers();
