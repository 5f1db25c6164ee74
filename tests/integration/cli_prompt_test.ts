/** The prompt of `sbx session` and what happens around it: typing ahead, code that plays with the terminal, transfers. */
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { ANSWER_MS, prompt, skipTerminal } from "./cli_prompt.ts";

const testTerminal = (name: string, body: (t: TestContext) => Promise<void>) => test(name, { skip: skipTerminal, timeout: 600_000 }, body);

testTerminal("what is typed ahead of the VM or of running code is a block like any other", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["-q"] });
  const ahead = async (...lines: readonly string[]) => {
    for (const line of lines) {
      await repl.terminal.type(line);
      await repl.terminal.press("Enter");
      await new Promise((resolve) => setTimeout(resolve, 150));
    }
  };
  await ahead("import time; time.sleep(3)", "def double(n):", "return n * 2", "", "double(21)");
  await repl.terminal.shows(/double\(n\):\n\.\.\. {5}return n \* 2\n\.\.\.\npy> double\(21\)\n42\npy>$/, ANSWER_MS);
  await repl.leave();
});

testTerminal("what is typed before sbx is there runs", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["-q"], waitFor: /^/ });
  await repl.line("6 * 7", /\n42\npy>$/);
  await repl.leave();
});

testTerminal("what code does to the terminal ends with it, and answers of the terminal are no input", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["-q"] });
  const ask = "\\x1b[6n\\x1b[c\\x1b[>c\\x1b]11;?\\x1b\\\\\\x1b[21t\\x1b[5n\\x1bP$qm\\x1b\\\\";
  await repl.line(`print("${ask}", flush=True); import time; time.sleep(1)`, /\npy>$/);
  await repl.line("'asked'", /\npy> 'asked'\n'asked'\npy>$/);
  await repl.line(
    'print("\\x1b[?1049h\\x1b[?25l\\x1b[?1003;1006h\\x1b[?2004l\\x1b[?7l\\x1b(0\\x1b[1;5r\\x1b[7m\\x1b]0;open", end=""); "over"',
    /'over'\npy>$/,
  );
  assert.deepEqual(await repl.terminal.state(), { alternate: "0", cursor: "1", mouse: "0", wrap: "1", regionEnd: "29" });
  // Letters are letters again, and a paste is one block.
  await repl.line("'qqq'", /'asked'[^]*\npy> 'qqq'\n'qqq'\npy>$/);
  await repl.terminal.paste("for i in range(2):\n    print(i)\n\n    print(-i)\n");
  await repl.terminal.shows(/print\(-i\)\n\.\.\.$/, ANSWER_MS);
  await repl.press("Enter", /\n0\n0\n1\n-1\npy>$/);
  await repl.leave();
});

testTerminal("Ctrl-Z does nothing where no shell could continue sbx", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["-q"] });
  await repl.terminal.type("4 + ");
  await repl.terminal.press("C-z");
  await repl.line("5", /4 \+ 5\n9\npy>$/);
  await repl.line("import time; print('runs', flush=True); time.sleep(1); 6", /\nruns$/);
  await repl.press("C-z", /runs\n6\npy>$/);
  process.kill(repl.pid(), "SIGTSTP");
  await repl.line("7", /\n7\npy>$/);
  await repl.leave();
});

testTerminal("what runs in the background prints, though code is judged while it does", async (t) => {
  const directory = temporaryDirectory(t);
  for (
    const [language, start, one] of [
      ["js", "setTimeout(() => console.log('la' + 'ter'), 100); 0", "1"],
      ["py", "import threading; threading.Timer(.1, lambda: print('la' + 'ter')).start()", "1"],
      ["sh", "(sleep .1; echo la''ter) &", "echo 1"],
    ] as const
  ) {
    await using repl = await prompt({ directory, args: ["-q", "-l", language] });
    await repl.line(start, /\n(js|py|sh)>$/);
    await new Promise((resolve) => setTimeout(resolve, 500));
    // Each line is judged before it runs, and what the last of them finds has been printed by then.
    await repl.line(one, /1\n(js|py|sh)>$/);
    await repl.until(one, /\nlater\n[^]*1\n(js|py|sh)>$/);
    await repl.leave();
  }
});

testTerminal("of a transfer its result alone stays on the screen", async (t) => {
  const directory = temporaryDirectory(t);
  await fs.writeFile(path.join(directory, "漢.bin"), new Uint8Array(20_000_000));
  await using repl = await prompt({ directory, size: { columns: 200, rows: 30 } });
  await repl.line("1", /\n1\npy>$/);
  await repl.line(`:upload ${directory}/漢.bin`, /:upload \S*漢\.bin\n\S*漢\.bin → 漢\.bin, 20\.0 MB\npy>$/);
  await repl.line(`:download 漢.bin ${directory}/`, /:download [^\n]*\n漢\.bin → \S*漢\.bin, 20\.0 MB\npy>$/);
  await repl.leave();
});

noLeftovers();
