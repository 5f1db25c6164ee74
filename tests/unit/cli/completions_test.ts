/** Completions: the committed files are what the generators print. What shells make of them is tested in real shells. */
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import { test } from "node:test";
import { COMMON_OPTIONS } from "../../../src/cli/command.ts";
import { loadCommands } from "../../../src/cli/commands.ts";
import { sbx } from "./fake_context.ts";

const FILES = { bash: "sbx.bash", zsh: "_sbx", fish: "sbx.fish" } as const;

for (const [shell, file] of Object.entries(FILES)) {
  test(`completions/${file} is what \`sbx completions ${shell}\` prints`, async () => {
    const { code, stdout, stderr } = await sbx(["completions", shell]);
    assert.deepEqual([code, stderr], [0, ""]);
    assert.equal(stdout, await fs.readFile(new URL(`../../../completions/${file}`, import.meta.url), "utf8"));
  });

  test(`the ${shell} completion knows every command and every option`, async () => {
    const { stdout } = await sbx(["completions", shell]);
    for (const command of (await loadCommands()).flatMap((each) => [each, ...(each.commands ?? [])])) {
      assert.ok(stdout.includes(command.name), command.name);
      for (const option of [...(command.options ?? []), ...COMMON_OPTIONS]) {
        assert.ok(stdout.includes(shell === "fish" ? `-l ${option.long}` : `--${option.long}`), option.long);
      }
    }
  });
}
