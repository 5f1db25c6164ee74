/** The `:commands` and colours of `sbx session`: in a real terminal, and where standard input is none. */
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import path from "node:path";
import test, { type TestContext } from "node:test";
import { service } from "../support/net_peer.ts";
import { noLeftovers, temporaryDirectory } from "../support/leftovers.ts";
import { reasonToSkip } from "../support/scheduler.ts";
import { ANSWER_MS, envOf, prompt, skipTerminal } from "./cli_prompt.ts";
import { type Ended, sbx } from "./cli_terminal.ts";

/** Baking under emulation on a loaded machine takes its time. */
const TIMEOUT_MS = 600_000;
const testTerminal = (name: string, body: (t: TestContext) => Promise<void>) =>
  test(name, { skip: skipTerminal, timeout: TIMEOUT_MS }, body);
const testPiped = (name: string, body: (t: TestContext) => Promise<void>) =>
  test(name, { skip: reasonToSkip() ?? false, timeout: TIMEOUT_MS }, body);
const piped = (directory: string, lines: readonly string[], args: readonly string[] = []): Promise<Ended> =>
  sbx(["session", ...args], { stdin: lines.map((line) => `${line}\n`).join(""), env: envOf(directory) });
/** A proxy that knows every host itself, and answers for it. */
async function proxyService(t: TestContext): Promise<{ readonly port: number; readonly requests: string[] }> {
  const requests: string[] = [];
  const port = await service(t, (socket) => {
    socket.once("data", (head) => {
      requests.push(String(head).split("\r\n")[0] ?? "");
      socket.write("HTTP/1.1 200 OK\r\n\r\n");
      socket.once("data", () => socket.end("HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\nfrom within\n"));
    });
  });
  return { port, requests };
}

/** A file of that many bytes, of which none takes room. */
async function sparse(file: string, byteCount: number): Promise<void> {
  await fs.writeFile(file, "");
  await fs.truncate(file, byteCount);
}

/** Text between its style and the next one; `^` stands for ESC. */
const painted = (style: string, text: string) => new RegExp(`\\^\\[${style}m(?:\\^\\[\\d+m)*${text}(?=\\^|$)`, "m");

testTerminal("colours: the prompt, code as it is typed, values and our own words; none where NO_COLOR is set", async (t) => {
  const directory = temporaryDirectory(t);
  {
    await using repl = await prompt({ directory, args: ["-q"], env: ["-u NO_COLOR"] });
    await repl.line("len('four')  # counts", /\n4\npy>$/);
    await repl.line(":timeout 30", /code may run 30 s\npy>$/);
    await repl.line("if True: 1 / 0", /\.\.\.$/);
    await repl.press("Enter", /ZeroDivisionError[^\n]*\npy>$/);
    await repl.terminal.type("del");
    await repl.terminal.shows(/py> del$/, ANSWER_MS);
    const screen = (await repl.terminal.screen(true)).replaceAll("\x1b", "^");
    // Bold and its colour may be told in one sequence or in two.
    const prompts = [...screen.matchAll(/\^\[1(?:m\^\[|;)(3[12])mpy> /g)].map((match) => match[1]);
    assert.deepEqual([prompts[0], prompts.at(-1)], ["32", "31"], screen);
    for (
      const [style, text] of [["32", "'four'"], ["90", "# counts"], ["36", "4"], ["90", "code may run 30 s"], ["35", "if"], ["35", "del"]]
    ) {
      assert.match(screen, painted(style ?? "", text ?? ""));
    }
    await repl.press("C-u", /py>$/);
    await repl.leave();
  }
  await using repl = await prompt({ directory, args: ["-q"], env: ["NO_COLOR=1"] });
  await repl.line("len('four')", /\n4\npy>$/);
  assert.ok(!(await repl.terminal.screen(true)).includes("\x1b["), "no style at all");
  await repl.leave();
});

testTerminal("JavaScript: braces are an object where they can be one, and a block where not", async (t) => {
  await using repl = await prompt({ directory: temporaryDirectory(t), args: ["-q", "-l", "js"] });
  await repl.line("{ a: 1, b: [2] }", /\n\{\n {2}a: 1,\n {2}b: \[ 2 \],\n\}\njs>$/);
  await repl.line("{ let a = 3; console.log(a) }", /\n3\njs>$/);
  await repl.line("{}", /\{\}\n\{\}\njs>$/);
  await repl.line("{ a: missing }", /ReferenceError: missing is not defined\n[^\n]*\njs>$/);
  await repl.leave();
});

testTerminal(":help, :processes and :quit do what the help says of them", async (t) => {
  const directory = temporaryDirectory(t);
  {
    await using repl = await prompt({ directory, args: ["-q"] });
    const help = await repl.line(":help", /Ctrl-D[^\n]*\npy>$/);
    const names = [
      "upload",
      "download",
      "files",
      "processes",
      "shell",
      "reset",
      "lang",
      "checkpoint",
      "rollback",
      "fork",
      "checkpoints",
      "forget",
      "network",
      "timeout",
      "help",
      "quit",
    ];
    for (const name of names) assert.match(help, new RegExp(`^:${name}\\b.* {2}\\S`, "m"), name);
    await repl.terminal.press("C-l");
    await repl.line(":help lang", /:lang LANGUAGE\n {2}start a VM of another language[^\n]*\npy>$/);
    await repl.line(":? nothing", /sbx: Cannot run :nothing: there is no such command\n[^]*py>$/);
    await repl.line(":processes", /:processes\nno processes beside the prompt\npy>$/);
    await repl.line(":ps now", /sbx: Cannot run :processes: wanted :processes\n[^]*py>$/);
    await repl.line(":files", /:files\nno files\npy>$/);
    await repl.terminal.type(":quit");
    await repl.press("Enter", /:quit\nicanon\n\[status 0\]$/);
  }
  await using repl = await prompt({ directory, args: ["-q"] });
  await repl.terminal.type(":q");
  await repl.press("Enter", /:q\nicanon\n\[status 0\]$/);
});

testTerminal("Ctrl-C ends a transfer in either direction: nothing has the final name, and the prompt comes back", async (t) => {
  const directory = temporaryDirectory(t), local = path.join(directory, "local");
  await fs.mkdir(local);
  await sparse(path.join(local, "large.bin"), 480_000_000);
  await using repl = await prompt({ directory, args: ["-m", "1200"], size: { columns: 160, rows: 40 } });
  await repl.line("import os; open('in.bin', 'w').truncate(480_000_000)", /\n480000000\npy>$/);
  await repl.line(`:upload ${local}/large.bin`, /upload \S*large\.bin: [\d.]+ MB of 480\.0 MB, \d+ % \(/);
  await repl.press("C-c", /:upload \S*large\.bin\s*(\^C)?\npy>$/);
  await repl.line("sorted(os.listdir('.'))", /\n\['in\.bin'\]\npy>$/);
  await repl.line(`:download in.bin ${local}/got.bin`, /download in\.bin: [\d.]+ MB of 480\.0 MB, \d+ % \(/);
  await repl.press("C-c", /:download in\.bin \S*got\.bin\s*(\^C)?\npy>$/);
  assert.deepEqual(await fs.readdir(local), ["large.bin"]);
  await repl.line("'alive'", /\n'alive'\npy>$/);
  await repl.leave();
});

testPiped("commands work without a terminal: files in and out, lists, another language, the end", async (t) => {
  const directory = temporaryDirectory(t), at = (name: string) => path.join(directory, name);
  await fs.writeFile(at("in.txt"), "from the host");
  const { code, stdout, stderr } = await piped(directory, [
    `:upload ${at("in.txt")} sub/in.txt`,
    "text = open('sub/in.txt').read()",
    "open('out.txt', 'w').write(text.upper())",
    ":files sub",
    `:download out.txt ${at("got.txt")}`,
    ":processes",
    ":timeout 1",
    "while True: pass",
    ":help files",
    ":dwonload x",
    ":shell",
    ":lang sh",
    "ls -A | wc -l; echo $BASH",
    ":quit",
    "echo never",
  ], ["-q"]);
  assert.equal(await fs.readFile(at("got.txt"), "utf8"), "FROM THE HOST");
  assert.match(stdout, /^13\n13 {2}\d{4}-\d\d-\d\d \d\d:\d\d {2}in\.txt\n:files \[DIR\]\n {2}list files of the VM\n0\n\S*\/bash\n$/);
  for (
    const says of [
      /in\.txt → sub\/in\.txt, 13 B\n/,
      /out\.txt → \S*got\.txt, 13 B\n/,
      /no processes beside the prompt\n/,
      /code may run 1 s\n/,
      /sbx: The code ran out of time and was ended\n/,
      /sbx: Cannot run :dwonload: there is no such command\n.*Did you mean :download\?/,
      /sbx: Cannot open a shell: standard input and standard error must be a terminal\n/,
    ]
  ) assert.match(stderr, says);
  assert.equal(code, 2, "the last that failed was a command that could not be run");
});

testTerminal(
  ":checkpoint, :rollback and :fork at a prompt: what was typed since is gone, and a copy is left for its original",
  async (t) => {
    const directory = temporaryDirectory(t);
    await using repl = await prompt({ directory, args: ["-q"], size: { columns: 140, rows: 40 } });
    await repl.line("n = 1", /n = 1\npy>$/);
    await repl.line(":checkpoint first", /\ncheckpoint first, [\d.]+ MB, kept until :forget[^]*\npy>$/);
    await repl.line("n = 2", /n = 2\npy>$/);
    await repl.line(":fork", /\nthis is a copy; :quit or Ctrl-D closes it[^\n]*\npy>$/);
    await repl.line("n += 40; n", /\n42\npy>$/);
    await repl.line(":quit", /\nback where the copy was made; the copy is gone\npy>$/);
    await repl.line("n", /py> n\n2\npy>$/);
    await repl.line(":rollback", /\nas it was at checkpoint first\npy>$/);
    await repl.line("n", /py> n\n1\npy>$/);
    await repl.leave();
  },
);

testTerminal(":network at a prompt: names come within reach and out of it while the VM lives", async (t) => {
  const { port, requests } = await proxyService(t);
  // Deno would look for a newer one of itself.
  const directory = temporaryDirectory(t),
    env = ["-u https_proxy", "-u NO_PROXY", "-u no_proxy", "DENO_NO_UPDATE_CHECK=1", `HTTPS_PROXY=http://127.0.0.1:${port}`];
  await using repl = await prompt({ directory, args: ["-q", "-l", "sh", "--no-serve"], env, size: { columns: 140, rows: 40 } });
  const get = "curl -s -m 60 http://inside.example.com/; echo is $?";
  await repl.line(":network", /\nnetwork: off\nsh>$/);
  await repl.line(get, /\nis 6\nsh>$/);
  await repl.line(":network allow other.example.com", /\nnetwork: other\.example\.com and nothing else\nsh>$/);
  await repl.terminal.type(":network al");
  await repl.press("Tab", /sh> :network allow$/);
  await repl.line("inside.example.com", /\nnetwork: other\.example\.com, inside\.example\.com and nothing else\nsh>$/);
  await repl.line(get, /\nfrom within\nis 0\nsh>$/);
  await repl.line(":network allow http://", /sbx: Cannot change the network: an allowed domain must be a name[^]*\nsh>$/);
  await repl.line(":network off", /\nnetwork: off\nsh>$/);
  await repl.terminal.press("C-l");
  await repl.line(get, /^sh> curl[^\n]*\nis 6\nsh>$/);
  await repl.line(":reset", /\nnew VM[^\n]*\nsh>$/);
  await repl.line(":network", /\nnetwork: off\nsh>$/);
  assert.deepEqual(requests, ["CONNECT inside.example.com:80 HTTP/1.1"]);
  await repl.leave();
});

testPiped("a checkpoint with a name is there for the next prompt, of the same language, until it is forgotten", async (t) => {
  const directory = temporaryDirectory(t);
  const made = await piped(directory, ["n = 7", ":checkpoint kept", ":checkpoints"], ["-q"]);
  assert.deepEqual([made.code, made.stderr.match(/checkpoint kept, [\d.]+ MB/)?.length], [0, 1], made.stderr);
  assert.match(made.stdout, /^kept {2}\d{4}-\d\d-\d\d \d\d:\d\d {2}python {6}256 MB of memory, [\d.]+ MB\n$/);
  const used = await piped(directory, [":rollback kept", "n", ":lang sh", ":rollback kept", ":forget kept", ":checkpoints"], ["-q"]);
  assert.equal(used.stdout, "7\n");
  assert.match(used.stderr, /must be of a raw session with 256 MB, got one of a python session with 256 MB/);
  assert.match(used.stderr, /checkpoint kept is removed\nno checkpoints\n$/);
});

testPiped("options reach the session's VM, and --debug shows its boot and the host's log", async (t) => {
  const directory = temporaryDirectory(t);
  const total = "round(__import__('os').sysconf('SC_PAGE_SIZE') * __import__('os').sysconf('SC_PHYS_PAGES') / 2**20)";
  const lines = ["import os", "print(os.environ['GREETING'], os.environ['BOTH'])", `print(90 < ${total} <= 128)`];
  const small = await piped(directory, lines, ["-m", "128", "-e", "GREETING=a=b c", "-e", "BOTH=1", "--env", "BOTH=2", "-q"]);
  assert.deepEqual([small.code, small.stdout, small.stderr], [0, "a=b c 2\nTrue\n", ""]);
  const debug = await piped(directory, ["print('ran')"], ["--debug"]);
  assert.deepEqual([debug.code, debug.stdout], [0, "ran\n"]);
  assert.match(debug.stderr, /Linux version \d/);
  for (const [option, value] of [["-m", "127"], ["-m", "1.5"], ["-e", "=x"], ["-e", "PATH=/"], ["-t", "301"]] as const) {
    const { code, stdout, stderr } = await piped(directory, ["print('never')"], [option, value]);
    assert.deepEqual([code, stdout], [2, ""], stderr);
    assert.match(stderr, /^sbx: Cannot /);
  }
});

noLeftovers();
