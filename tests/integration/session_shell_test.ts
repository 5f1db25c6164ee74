/** The shell in sessions, in real VMs: what lasts between executions, what ends them, standard input, and what it says about code being typed. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import type { ExecOptions, ExecutionResult, Session } from "../../src/mod.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";
import { settled, sleep } from "../support/waiting.ts";

let vms: TestScheduler;
before(async () => void (vms = await openTestScheduler()));
after(() => vms.close());

/** A test with a session of its own. */
function testShell(name: string, body: (session: Session) => Promise<void>): void {
  test(`raw: ${name}`, async () => {
    await using session = await vms.scheduler.session({ language: "raw" });
    await body(session);
  });
}

/** Runs code and returns stdout; anything on stderr and another exit code than `exitCode` fail. */
async function shown(session: Session, code: string, { exitCode = 0, ...options }: ExecOptions & { exitCode?: number } = {}) {
  const result = await session.exec(code, options);
  assert.deepEqual([result.stderr, result.exitCode, result.timedOut], ["", exitCode, false], code);
  return result.stdout;
}

/** Starts code, waits for its first output, interrupts it: again as long as it runs, for a child that is just being made misses it. */
async function interrupted(session: Session, code: string): Promise<ExecutionResult> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const result = session.exec(code, { onStdout: () => resolve() });
  await settled(promise, "the code runs");
  assert.equal(await session.interrupt(), true);
  const again = setInterval(() => void session.interrupt().catch(() => {}), 1_000);
  return await settled(result, `the interrupted ${code}`).finally(() => clearInterval(again));
}

testShell("variables, arrays, functions, aliases, options, directory and exports last", async (session) => {
  await shown(session, "x='a b'; a=(1 'two three' [9]=ten); declare -A m=([key]=value [k2]='v 2'); declare -i n=5; readonly r=ro");
  await shown(session, 'outer() { inner() { echo inner "$1"; }; inner "$1"; }; by_name() { local -n ref=$1; ref=set; }; by_name named');
  await shown(session, "mkdir -p d/e; cd d/e; export E=exported; shopt -s expand_aliases extglob; alias hi='echo alias'; set -- p1 'p 2'");
  const look = 'n+=1; echo "$x|${a[1]}|${#a[@]}|${m[k2]}|$n|$r|$named|$PWD|$1|$2|$(printenv E)"; outer z; inner y\nhi';
  const lines = (count: number) => `a b|two three|3|v 2|${count}|ro|set|/home/user/d/e|p1|p 2|exported\ninner z\ninner y\nalias\n`;
  assert.equal(await shown(session, look), lines(6));
  // `exit` ends a bash: the next one has it all.
  assert.equal(await shown(session, "exit 9", { exitCode: 9 }), "");
  assert.equal(await shown(session, look), lines(7));
  assert.equal(await shown(session, "[[ aab == +(a)b ]] && (exit 4)", { exitCode: 4 }), "");
});

testShell("$? is that of the execution before, also over exit, errors and questions; $! and $_ are sane", async (session) => {
  assert.equal(await shown(session, 'echo "$? $_"; (exit 7)', { exitCode: 7 }), "0 bash\n");
  assert.equal((await session.isComplete("if true")).state, "incomplete");
  assert.equal((await session.complete("ech")).candidates.includes("echo"), true);
  assert.equal(await shown(session, "echo $?; exit 8", { exitCode: 8 }), "7\n");
  assert.equal(await shown(session, "echo $?"), "8\n");
  const invalid = await session.exec("echo never; )");
  assert.deepEqual([invalid.exitCode, invalid.stdout], [2, ""]);
  assert.match(invalid.stderr, /^bash: .*line 1: syntax error near unexpected token `\)'/);
  assert.equal(await shown(session, "echo $?; sleep 60 & echo $(( $! > 0 ))"), "2\n1\n");
  assert.equal(await shown(session, "kill $!; wait $!", { exitCode: 143 }), "");
});

testShell("messages count lines from 1 and name no file of ours", async (session) => {
  const { stderr, exitCode } = await session.exec("echo one >&2\n\nno_such_command\nf() {\n  nor_this\n}\nf; echo $LINENO >&2");
  assert.equal(exitCode, 0);
  assert.equal(
    stderr,
    "one\nbash: line 3: no_such_command: command not found\nbash: line 5: nor_this: command not found\n7\n",
  );
});

testShell("set -e, set -u, ${x:?} and a failed exec end an execution, not the session", async (session) => {
  assert.equal(await shown(session, "kept=1; set -e; echo a; false; echo b", { exitCode: 1 }), "a\n");
  assert.equal(await shown(session, "echo $kept $? $-; set +e"), "1 1 ehBc\n");
  const unset = await session.exec("set -u; echo $nothing; echo b");
  assert.deepEqual([unset.exitCode, unset.stdout], [127, ""]);
  assert.match(unset.stderr, /nothing: unbound variable/);
  const missing = await session.exec("set +u; : ${nothing:?is missing}; echo b");
  assert.match(missing.stderr, /nothing: is missing/);
  assert.deepEqual([missing.exitCode, missing.stdout], [127, ""]);
  assert.equal(await shown(session, "echo $kept"), "1\n");
  const failed = await session.exec("exec /no/such/program; echo b");
  assert.match(failed.stderr, /No such file/);
  assert.deepEqual([failed.exitCode, failed.stdout], [127, ""]);
  assert.equal(await shown(session, "echo [$kept]"), "[]\n");
});

testShell("set -x traces the code and nothing of ours", async (session) => {
  const { stderr, stdout } = await session.exec('set -x\necho "a b"');
  assert.deepEqual([stderr, stdout], ["++ echo 'a b'\n", "a b\n"]);
  const next = await session.exec("set +x");
  assert.deepEqual([next.stderr, next.stdout], ["+ builtin eval 'set +x'\n++ set +x\n", ""]);
});

testShell("functions named as the builtins that run the code hide them from the code alone", async (session) => {
  await shown(session, "eval() { echo mine; }; read() { :; }; unset() { :; }; printf() { :; }; kept=1");
  assert.equal(await shown(session, "eval x; echo $kept"), "mine\n1\n");
  assert.equal((await session.exec("exit 3")).exitCode, 3);
  assert.equal(await shown(session, "builtin unset -f eval unset; eval 'echo $kept'; type -t read"), "1\nfunction\n");
});

testShell("heredocs, subshells, process and command substitutions, pipes", async (session) => {
  assert.equal(await shown(session, "v=val\ncat <<E | tr a-z A-Z\n  $v $(echo sub)\nE\ncat <<'E'\n$v\nE"), "  VAL SUB\n$v\n");
  assert.equal(
    await shown(session, "diff <(echo a) <(echo a) && (v=inner; echo $v); echo $v; read -r w < <(echo 1 2); echo $w"),
    "inner\nval\n1 2\n",
  );
  assert.equal(await shown(session, "tee >(cat >copy) <<<text >/dev/null; wait $!; cat copy; echo ${ echo five; }"), "text\nfive\n");
});

testShell("background jobs run on between executions, and wait knows them", async (session) => {
  assert.equal(await shown(session, "(until [ -e go ]; do sleep 0.1; done; echo done > mark; exit 3) & job=$!; echo started"), "started\n");
  assert.equal(await shown(session, "jobs -r | grep -c Running"), "1\n");
  assert.equal(await shown(session, "touch go; wait $job; echo $?; cat mark"), "3\ndone\n");
  await shown(session, "(sleep 0.3; echo late) & echo now");
  await sleep(600);
  assert.match(await shown(session, "wait; echo next"), /^(late\n)?next\n(late\n)?$/);
  await shown(session, "(sleep 1; echo survived > over) & exit 0");
  assert.equal(await shown(session, "until [ -s over ]; do sleep 0.1; done; cat over"), "survived\n");
});

testShell("a function that is left in the middle takes its redirections with it", async (session) => {
  const now = "echo out; echo err >&2; cat; readlink /proc/$$/fd/0; ls /proc/$$/fd";
  const before = await session.exec(now);
  for (
    const [code, exitCode] of [
      ["f() { exit 3; }; f >log 2>&1", 3],
      ["f() { exit 4; }; g() { f 2>/dev/null; }; g >log", 4],
      ["f() { exit 5; } >log 2>&1 </etc/hostname; f", 5],
      ["f() { set -e; false; }; f >&2", 1],
      ["x=${ exit 6; }", 6],
      ["{ exit 7; } >log 2>&1", 7],
    ] as const
  ) {
    assert.equal((await session.exec(code)).exitCode, exitCode, code);
    const { stdout, stderr } = await session.exec(`set +e; ${now}`);
    assert.deepEqual([stdout, stderr], [before.stdout, before.stderr], code);
  }
  const running = session.exec("f() { while :; do :; done; }; f >log 2>&1");
  await session.interrupt();
  assert.equal((await running).exitCode, 130);
  assert.equal(await shown(session, "echo back"), "back\n");
  // What the code itself moved stays moved.
  await session.exec("f() { exit 8; }; exec {kept}>&1 >own; f 2>/dev/null");
  assert.equal(await shown(session, "echo to own; exec >&$kept; cat own"), "to own\n");
});

testShell("a function that is left in the middle takes its variables with it", async (session) => {
  await shown(
    session,
    "x=1; list=(a b); declare -i n=5; declare -A map=([k]=v); export E=1; readonly R=9; only=7; declare -n ref=only; empty=",
  );
  await shown(session, "f() { local x=2 secret=3 IFS=, n; local -a list=(z); local -i E=4; g 1 2; }; g() { local x=8 y=7; only=10; $1; }");
  const now =
    'echo $x "${list[*]}" $n ${map[k]} $E $R $only $ref "[${empty-unset}]" "${secret-no}${y-no}" $# "[${IFS@Q}]"; n+=1; echo $n; env | grep -c ^E=1; ((RANDOM != RANDOM || RANDOM != RANDOM)) && echo drawn';
  const wanted = "1 a b 5 v 1 9 10 10 [] nono 0 [$' \\t\\n']\n6\n1\ndrawn\n";
  for (const [code, exitCode] of [["g 'exit 3'", 3], ["f", 0], ["set -e; h() { local x=5; f; false; }; h a", 1]] as const) {
    const source = code === "f" ? "g() { local x=8 y=7; exit 4; }; f" : code;
    assert.equal((await session.exec(source)).exitCode, code === "f" ? 4 : exitCode, code);
    assert.equal(await shown(session, `set +e; ${now}; n=5`), wanted, code);
    await shown(session, "g() { local y=7; only=10; }");
  }
  assert.equal(await shown(session, "declare -F; compgen -v __sbx; true"), "declare -f f\ndeclare -f g\ndeclare -f h\n");
});

testShell("exec redirections and what children inherit", async (session) => {
  assert.equal(await shown(session, "exec 5>&1 >file; echo into"), "");
  assert.equal(await shown(session, "echo more"), "");
  assert.equal(
    await shown(session, "exec >&5 5>&-; cat file; sh -c 'for n in 3 4 5 6 9 10 11 62 63; do [ ! -e /proc/$$/fd/$n ] || echo $n; done'"),
    "into\nmore\n",
  );
  assert.equal(await shown(session, "read line; echo $? [$line]; cat; wc -c; bash -c 'readlink /proc/self/fd/0'"), "1 []\n0\n/dev/null\n");
});

testShell("standard input reaches builtins and children, and is at its end in the next execution", async (session) => {
  const code =
    'read first; echo "<$first>"; sh -c \'read second; echo "<$second>"\'; mapfile -t rest; echo ${#rest[@]} ${rest[1]}; read more; echo $?';
  assert.equal(await shown(session, code, { stdin: "one\ntwo\n3\nfour 4\n" }), "<one>\n<two>\n2 four 4\n1\n");
  assert.equal(await shown(session, "read x; echo $? [$x]; cat"), "1 []\n");
  const large = new Uint8Array(300_000).fill(120);
  assert.equal(await shown(session, "wc -c; wc -c", { stdin: large }), "300000\n0\n");
  assert.equal(await shown(session, "echo unread", { stdin: large }), "unread\n");
  assert.equal(await shown(session, "cat", { stdin: "" }), "");
  assert.equal(await shown(session, "cat; exit 3", { stdin: "over exit", exitCode: 3 }), "over exit");
  assert.equal(await shown(session, "cat"), "");
  assert.equal(await shown(session, "#!/usr/bin/tr a-z A-Z\n", { stdin: "" }), "");
  assert.equal(await shown(session, "#!/bin/cat -\n", { stdin: "script's" }), "script's#!/bin/cat -\n");
  // What the code put in its place stays.
  assert.equal(await shown(session, "echo kept > in; exec < in", { stdin: "gone" }), "");
  assert.equal(await shown(session, "cat; exec < /dev/null"), "kept\n");
  const parts = new ReadableStream<Uint8Array>({
    async start(controller) {
      controller.enqueue(new TextEncoder().encode("par"));
      await sleep(200);
      controller.enqueue(new TextEncoder().encode("ts\n"));
      controller.close();
    },
  });
  assert.equal(await shown(session, "echo on; read x; echo $x", { stdin: parts }), "on\nparts\n");
});

testShell("traps: of signals they last, of EXIT they run at the end, of ERR and DEBUG see the code", async (session) => {
  assert.equal(await shown(session, "trap 'echo usr' USR1; kill -USR1 $$; echo after"), "usr\nafter\n");
  assert.equal(await shown(session, "kill -USR1 $$; exit 0"), "usr\n");
  assert.equal(await shown(session, "kill -USR1 $$"), "usr\n");
  assert.equal(await shown(session, "trap 'echo bye $?' EXIT; echo body; (exit 3)", { exitCode: 3 }), "body\nbye 3\n");
  assert.equal(await shown(session, "echo $?"), "3\n");
  assert.equal(await shown(session, "trap 'echo bye; exit 5' EXIT; echo body", { exitCode: 5 }), "body\nbye\n");
  assert.equal(await shown(session, "trap 'echo \"err $LINENO\"' ERR; x=1\nfalse\ntrue"), "err 2\n");
  assert.equal(await shown(session, "false || true; trap - ERR"), "");
  // Nothing follows: an `exit` with such a trap is the end of that bash.
  assert.equal(await shown(session, "trap 'echo bye' EXIT; exit 6", { exitCode: 6 }), "bye\n");
  assert.equal(await shown(session, "echo [$x]"), "[]\n");
});

testShell("a signal ends the shell with 128 + N and the state is new; an interrupt keeps it", async (session) => {
  for (const [signal, exitCode] of [["TERM", 143], ["KILL", 137], ["HUP", 129], ["USR2", 140], ["SEGV", 139], ["ABRT", 134]] as const) {
    await shown(session, "kept=1");
    const result = await session.exec(`echo before; kill -${signal} $$; sleep 1; echo after`);
    assert.deepEqual([result.exitCode, result.stdout], [exitCode, "before\n"], signal);
    assert.equal(await shown(session, "echo [$kept]"), "[]\n", signal);
  }
  await shown(session, "kept=1; f() { echo on; while :; do :; done; }");
  for (
    const code of [
      "echo on; sleep 60",
      "f",
      "echo on; read x < <(sleep 60)",
      "echo on; (while :; do :; done)",
      "echo on; cat | cat < <(sleep 60)",
    ]
  ) {
    const result = await interrupted(session, code);
    assert.deepEqual([result.exitCode, result.stdout], [130, "on\n"], code);
    assert.equal(await shown(session, "echo $? $kept"), "130 1\n", code);
  }
  const caught = await interrupted(session, "trap 'got=1; echo caught' INT; echo on; until [ $got ]; do :; done; echo after");
  assert.deepEqual([caught.exitCode, caught.stdout], [0, "on\ncaught\nafter\n"]);
  assert.equal(await shown(session, "exit 2", { exitCode: 2 }), "");
  assert.match(await shown(session, "trap -p INT"), /echo caught/);
  assert.equal(await shown(session, "trap - INT; echo $kept"), "1\n");
});

testShell("nothing of ours has a name", async (session) => {
  await shown(session, "mine=1; f() { :; }; exit 0");
  const names = await shown(session, "set; declare -p; declare -F; compgen -A variable; compgen -A function; alias; env; hash");
  assert.doesNotMatch(names, /__sbx|run\/sbx/);
  assert.equal(await shown(session, "declare -F; declare -p mine; echo ${REPLY-unset}"), 'declare -f f\ndeclare -- mine="1"\nunset\n');
});

testShell("variables of an execution are those of it alone", async (session) => {
  await shown(session, "A=mine; declare -ai B=(1 2)");
  const env = { A: "it's\n$x", B: "b", C: "" };
  assert.equal(
    await shown(session, 'printf "<%s>" "$A" "$B" "${C-unset}"; printenv A B; A=changed', { env }),
    "<it's\n$x><b><>it's\n$x\nb\n",
  );
  assert.equal(
    await shown(session, 'echo "$A ${B[1]} ${C-unset}"; declare -p A B; printenv A || echo none'),
    [
      "mine 2 unset",
      'declare -- A="mine"',
      'declare -ai B=([0]="1" [1]="2")',
      "none\n",
    ].join("\n"),
  );
  assert.equal(await shown(session, "exit 4", { env, exitCode: 4 }), "");
  assert.equal(await shown(session, "echo $A ${C-unset}"), "mine unset\n");
  assert.equal(await shown(session, "trap 'echo $C' EXIT", { env: { C: "there" } }), "there\n");
  assert.equal(await shown(session, "echo ${C-unset}"), "unset\n");
});

testShell("a script runs under its interpreter and leaves the shell alone", async (session) => {
  assert.equal(await shown(session, "x=1; f() { :; }"), "");
  assert.equal(await shown(session, "#!/bin/sh\nx=2; cd /; echo ${0##*/} $x; exit 3", { exitCode: 3 }), "script 2\n");
  assert.equal(await shown(session, "echo $? $x $PWD"), "3 1 /home/user\n");
  assert.equal(await shown(session, "#!/usr/bin/awk -f\nBEGIN { print 6 * 7 }"), "42\n");
  assert.match((await session.exec("#!/no/such/interpreter\n")).stderr, /bad interpreter|No such file/);
});

testShell("break, continue and return at the top harm nobody", async (session) => {
  await shown(session, "kept=1");
  for (const word of ["break", "continue", "return", "break 3", "for i in 1; do continue 2; done"]) await session.exec(word);
  assert.equal(await shown(session, "echo $kept; for i in 1 2 3; do [ $i = 2 ] && break; done; echo $i"), "1\n2\n");
});

testShell("a run is a script: background jobs are not waited for, the EXIT trap runs", async () => {
  const result = await vms.scheduler.run({
    language: "raw",
    code: "trap 'echo trapped' EXIT; sleep 60 & echo main; exit_later() { exit 4; }; exit_later",
  });
  assert.deepEqual([result.stdout, result.exitCode], ["main\ntrapped\n", 4]);
  const plain = await vms.scheduler.run({ language: "raw", code: "trap 'echo trapped' EXIT; (sleep 60) & echo main" });
  assert.deepEqual([plain.stdout, plain.exitCode], ["main\ntrapped\n", 0]);
  assert.ok(plain.timing.executeMs < 30_000, String(plain.timing.executeMs));
});

testShell("completion knows commands, functions, variables and files, in every kind of quotes", async (session) => {
  await shown(
    session,
    "mkdir -p dir/inner 'two words'; touch file1 file2 \"it's\" 'two words/é x' '🎈loon'; my_variable=1; my_function() { :; }",
  );
  await shown(session, "shopt -s expand_aliases; alias my_alias=ls; touch .hidden");
  const cases: Array<[string, number, string[]]> = [
    ["my_", 0, ["my_alias", "my_function"]],
    ["x=1 my_f", 4, ["my_function"]],
    ["if true; then my_f", 14, ["my_function"]],
    ["echo $(my_f", 7, ["my_function"]],
    ["ls | my_f", 5, ["my_function"]],
    ["type my_f", 5, ["my_function"]],
    ["echo $my_", 6, ["my_variable"]],
    ['echo "a ${my_', 10, ["my_variable}"]],
    ["export my_", 7, ["my_function", "my_variable"]],
    ["cat fi", 4, ["file1", "file2"]],
    ["cat <fi", 5, ["file1", "file2"]],
    ["cat dir/", 8, ["inner/"]],
    ["cd ", 3, ["dir/", "two\\ words/"]],
    ["cat i", 4, ["it\\'s"]],
    ['cat "i', 4, ['"it\'s"']],
    ["cat 'two words/", 15, ["é x'"]],
    ["cat two\\ words/é", 15, ["é\\ x"]],
    ["ls ~/d", 5, ["dir/"]],
    ["ls $HOME/d", 9, ["dir/"]],
    ["echo 🎈; ls 🎈", 12, ["🎈loon"]],
    ["cat .h", 4, [".hidden"]],
    ["# fi", 4, []],
    ["ls --", 5, []],
    ["__sbx", 0, []],
    ["cat nothing_like_it", 4, []],
  ];
  for (const [code, start, candidates] of cases) {
    const { start: from, candidates: found } = await session.complete(code);
    assert.deepEqual({ start: candidates.length > 0 ? from : start, candidates: found }, { start, candidates }, code);
  }
  assert.ok((await session.complete("ec")).candidates.includes("echo"));
  assert.deepEqual((await session.complete("cat fi; more", 6)).candidates, ["file1", "file2"]);
  await shown(session, "mkdir many; (cd many; touch f{0001..1500})");
  const many = (await session.complete("ls many/")).candidates;
  assert.ok(many.length === 1000 && many[0] === "f0001", `${many.length}`);
});

testShell("code is judged finished, unfinished or wrong without being run", async (session) => {
  const finished = [
    "echo hi",
    "if a; then b; fi",
    "f() { a; }",
    "cat <<E\nx\nE",
    "case x in a) ;; esac",
    "# if \\",
    "echo a \\\\",
    "exit 3",
    "set -n",
  ];
  const unfinished: Array<[string, string]> = [
    ["if true; then", "  "],
    ["  while true; do", "    "],
    ["if a; then\n  b", "  "],
    ["f() {", "  "],
    ["case x in", "  "],
    ["for i in 1 2", ""],
    ["echo 'a", ""],
    ['echo "a', ""],
    ["cat <<E\n  x", ""],
    ["echo $(ls", ""],
    ["a=(1", ""],
    ["ls |", ""],
    ["ls &&", ""],
    ["ls \\", ""],
  ];
  for (const code of finished) assert.deepEqual(await session.isComplete(code), { state: "complete", indent: "" }, code);
  for (const [code, indent] of unfinished) assert.deepEqual(await session.isComplete(code), { state: "incomplete", indent }, code);
  for (const code of ["fi", "echo )", "if; then", "a | | b", "done"]) assert.equal((await session.isComplete(code)).state, "invalid", code);
});

testShell("questions count for nothing: no output, no status, no variable, no execution", async (session) => {
  await shown(session, "set -eu; a=1; touch before; trap 'echo trapped' DEBUG ERR");
  const before = session.execCount;
  for (
    const code of ["touch made; ls $(touch made) ", "echo ${a:=2} `touch made` fi", "cd dir; ", "ech", "$((a=5))", "x=$(", 'ls "${b:=']
  ) {
    await session.complete(code);
    await session.isComplete(code);
  }
  assert.equal(session.execCount, before);
  const { stdout } = await session.exec("trap - DEBUG ERR; set +eu; echo $? $a ${b-unset} $(ls)");
  assert.match(stdout, /(^|\n)0 1 unset before\n$/);
  assert.equal(await shown(session, "(exit 5)", { exitCode: 5 }), "");
  await session.complete("ls ");
  await session.isComplete("if");
  assert.equal(await shown(session, "echo $?"), "5\n");
});
