/** `sbx run`: options, exit statuses, output and JSON, without a VM. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  AssetError,
  CommunicationError,
  EnvVarValidationError,
  InputValidationError,
  OutputLimitError,
  PackageNotAllowedError,
  VmConfigError,
  VmTimeoutError,
} from "../../../src/base/errors.ts";
import { InterruptedError } from "../../../src/cli/failure.ts";
import { Line } from "../../../src/cli/output.ts";
import type { RunRequest } from "../../../src/run/request.ts";
import { FakeOutput, resultOf, sbx } from "./fake_context.ts";

const byCode = (table: Record<string, () => ReturnType<typeof resultOf>>) => (request: RunRequest) =>
  Promise.resolve().then(() => (table[request.code] ?? (() => resultOf()))());

test("options reach the request, and only those that were given", async () => {
  const args = ["run", "-t", "1.5", "-m", "128", "-e", "A=1", "--env", "B=x=y", "-e", "A=2", "-e", "C=", "1"];
  const { requests: [request] } = await sbx(args);
  assert.equal(request?.timeoutSeconds, 1.5);
  assert.equal(request?.memoryMb, 128);
  assert.deepEqual(request?.env, { A: "2", B: "x=y", C: "" });
  const { requests: [plain] } = await sbx(["run", "1"]);
  assert.deepEqual(Object.keys(plain ?? {}).filter((key) => plain?.[key as keyof RunRequest] !== undefined).sort(), [
    "code",
    "language",
    "onStderr",
    "onStdout",
    "signal",
  ]);
});

test("packages reach the request, names alone with the version that was found", async () => {
  const pin = (language: string, names: readonly string[], options?: { readonly isFresh?: boolean }) => {
    asked.push([language, names, options?.isFresh]);
    return Promise.resolve(new Map(names.map((name) => [name, { version: "1.2.3", isNew: name !== "known" }])));
  };
  const asked: unknown[] = [];
  const { requests: [given], stderr } = await sbx(["run", "-p", "Requests[socks]==2.32.5", "--no-preload", "1"], { pin });
  assert.deepEqual([given?.packages, given?.preload, asked, stderr], [["Requests[socks]==2.32.5"], false, [], ""]);
  const named = await sbx(["run", "-p", "pandas[xml]", "-p", "known", "--upgrade", "1"], { pin });
  assert.deepEqual(named.requests[0]?.packages, ["pandas[xml]==1.2.3", "known==1.2.3"]);
  assert.equal(named.requests[0]?.preload, undefined);
  assert.deepEqual(asked, [["python", ["pandas", "known"], true]]);
  assert.equal(named.stderr, "pandas → 1.2.3; pin it with -p pandas[xml]==1.2.3\n");
  const several = await sbx(["run", "-l", "js", "-p", "@types/node", "1", "2", "-q"], { pin });
  assert.deepEqual(several.requests.map(({ packages }) => packages), [["@types/node@1.2.3"], ["@types/node@1.2.3"]]);
  assert.deepEqual([asked.length, several.stderr], [2, ""], "looked up once for all sources");
});

test("packages that are none are refused with 126 before anything runs, also as JSON", async () => {
  for (const wrong of ["requests>=2", "requests==", "https://example.com/x.whl", "-e.", "a b"]) {
    const { code, requests, stderr } = await sbx(["run", `--package=${wrong}`, "1"]);
    assert.deepEqual([code, requests.length], [126, 0], wrong);
    assert.match(stderr, /^sbx: Cannot install /);
  }
  assert.equal((await sbx(["run", "-l", "sh", "-p", "requests==2.32.5", ":"])).code, 126);
  const { code, stdout } = await sbx(["run", "--json", "-p", "requests>=2", "1"]);
  assert.deepEqual([code, JSON.parse(stdout).error.code], [126, "SBX_PACKAGE_NOT_ALLOWED"]);
});

test("the catalog is not asked with --no-validation", async () => {
  const seen: Array<boolean | undefined> = [];
  const run = (_: RunRequest, { isValidated }: { readonly isValidated?: boolean }) => {
    seen.push(isValidated);
    return Promise.resolve(resultOf());
  };
  await sbx(["run", "--no-validation", "-p", "x==1", "1"], { run });
  await sbx(["run", "-p", "x==1", "1"], { run });
  assert.deepEqual(seen, [false, true]);
});

test("options may stand between and after sources, and -- ends them", async () => {
  const { requests } = await sbx(["run", "one", "-t", "5", "two", "--", "-t", "--json"]);
  assert.deepEqual(requests.map((request) => request.code), ["one", "two", "-t", "--json"]);
  assert.deepEqual(requests.map((request) => request.timeoutSeconds), [5, 5, 5, 5]);
});

test("time-out, memory and jobs are refused outside of their range before anything is opened", async () => {
  const wrong = [
    ...["0", "0.99", "300.1", "301", "-1", "x", "", "1e2", "Infinity", "0x10", " 5"].map((value) => ["--timeout", value]),
    ...["127", "0", "128.5", "-256", "x", "", "1e9", "99999999999999999999"].map((value) => ["--memory", value]),
    ...["0", "-1", "1.5", "x", ""].map((value) => ["--jobs", value]),
  ];
  for (const [option = "", value = ""] of wrong) {
    const { code, stderr, opened } = await sbx(["run", `${option}=${value}`, "1"]);
    assert.deepEqual([code, opened], [2, 0], `${option} ${value}`);
    assert.ok(stderr.startsWith(`sbx: Cannot set ${option}: must be `), stderr);
    assert.ok(stderr.includes(`got ${JSON.stringify(value)}`), stderr);
  }
  const huge = await sbx(["run", "--memory=99999999999999999999", "1"]);
  assert.match(huge.stderr, /between 128 and 9007199254740991 MB, got/, "the bound that was passed is the one that is told");
  for (const right of [["-t", "1"], ["-t", "300"], ["-m", "128"], ["-m", "1048576"], ["-j", "1"]]) {
    assert.equal((await sbx(["run", ...right, "1"])).code, 0, right.join(" "));
  }
});

test("a bad environment variable is a usage error that tells no value", async () => {
  for (
    const pair of [
      "NAME",
      "=secret",
      "A-B=secret",
      "1A=secret",
      "PATH=secret",
      "ld_preload=secret",
      "A=sec\x07ret",
      `A=${"s".repeat(32_769)}`,
    ]
  ) {
    const { code, stderr, opened } = await sbx(["run", "-e", pair, "1"]);
    assert.deepEqual([code, opened], [2, 0], pair.slice(0, 20));
    assert.match(stderr, /^sbx: Cannot set (--)?env/);
    assert.ok(!stderr.includes("secret") && !stderr.includes("sss"), stderr);
  }
});

test("the exit status is the program's own", async () => {
  for (const exitCode of [0, 1, 2, 42, 124, 137, 255]) {
    assert.equal((await sbx(["run", "1"], { run: () => Promise.resolve(resultOf({ exitCode })) })).code, exitCode);
  }
});

test("a time-out is 124 and says so, a lost status 125", async () => {
  const timedOut = await sbx(["run", "1"], { run: () => Promise.resolve(resultOf({ exitCode: -1, timedOut: true, stdout: "x" })) });
  assert.equal(timedOut.code, 124);
  assert.match(timedOut.stderr, /^sbx: The code ran out of time/);
  assert.equal((await sbx(["run", "1"], { run: () => Promise.resolve(resultOf({ exitCode: -1 })) })).code, 125);
});

test("every failure has its exit status", async () => {
  const failures: Array<[Error, number]> = [
    [new CommunicationError("x"), 125],
    [new VmTimeoutError("x"), 125],
    [new AssetError("x"), 125],
    [new OutputLimitError("x", { result: resultOf() }), 125],
    [new TypeError("x"), 125],
    [new PackageNotAllowedError("x"), 126],
    [new InputValidationError("x"), 2],
    [new EnvVarValidationError("x"), 2],
    [new VmConfigError("x"), 2],
  ];
  for (const [error, status] of failures) {
    assert.equal((await sbx(["run", "1"], { run: () => Promise.reject(error) })).code, status, error.name);
    assert.equal((await sbx(["run", "1"], { open: () => Promise.reject(error) })).code, status, error.name);
  }
});

test("a failure is one line and its hint; the stack is for --debug", async () => {
  const error = new AssetError("Cannot open\nthe images\x1b[2J", { hint: "Run this.", cause: new Error("deep") });
  const { stderr } = await sbx(["run", "1"], { run: () => Promise.reject(error) });
  assert.equal(stderr, "sbx: Cannot open the images\uFFFD[2J\nRun this.\n");
  const debug = await sbx(["run", "--debug", "1"], { run: () => Promise.reject(error) });
  assert.match(debug.stderr, /AssetError: Cannot open/);
  assert.match(debug.stderr, /caused by: Error: deep/);
  const bug = await sbx(["run", "1"], { run: () => Promise.reject(new TypeError("oops")) });
  assert.match(bug.stderr, /^sbx: internal error: oops\nThis is a bug in sbx/);
});

test("the output of one source passes through as it arrives", async () => {
  const stdout = new FakeOutput(), stderr = new FakeOutput();
  const seen: string[] = [];
  await sbx(["run", "1"], {
    stdout,
    stderr,
    run: (request) => {
      request.onStdout?.("a\x00\x1b[31m");
      seen.push(stdout.text);
      request.onStderr?.("b");
      seen.push(stderr.text);
      return Promise.resolve(resultOf({ stdout: "not printed again", stderr: "nor this" }));
    },
  });
  assert.deepEqual(seen, ["a\x00\x1b[31m", "b"]);
  assert.deepEqual([stdout.text, stderr.text], ["a\x00\x1b[31m", "b"]);
});

test("several sources run at once and are printed whole, in their order", async () => {
  const finish: Array<() => void> = [];
  const stdout = new FakeOutput();
  const running = sbx(["run", "a", "b", "c"], {
    stdout,
    run: (request) =>
      new Promise((resolve) => {
        request.onStdout?.("must not stream");
        finish.push(() =>
          resolve(resultOf({ stdout: `${request.code}\n`, stderr: `${request.code}!`, exitCode: request.code === "c" ? 0 : 3 }))
        );
      }),
  });
  while (finish.length < 3) await new Promise((resolve) => setTimeout(resolve, 1));
  finish[2]?.();
  finish[1]?.();
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(stdout.text, "");
  finish[0]?.();
  const { stderr, code } = await running;
  assert.equal(stdout.text, "a\nb\nc\n");
  assert.equal(stderr, "a!b!c!");
  assert.equal(code, 3);
});

test("a message of ours begins on a fresh line, and outputs are not touched for it", async () => {
  const limit = () => new OutputLimitError("too much", { result: resultOf({ stdout: "out", stderr: "err", exitCode: -1 }) });
  const line = new Line();
  const shared = { stdout: new FakeOutput({ line }), stderr: new FakeOutput({ line }) };
  const stream = (request: RunRequest, end: () => Error) => {
    request.onStdout?.("out");
    return Promise.reject(end());
  };
  // On one terminal the output of the program stands in the way, in a pipe of its own it does not.
  const together = await sbx(["run", "1"], { ...shared, run: (request) => stream(request, limit) });
  assert.deepEqual([together.stdout, together.stderr], ["out", "\nsbx: too much\n"]);
  const apart = await sbx(["run", "1"], { run: (request) => stream(request, limit) });
  assert.deepEqual([apart.stdout, apart.stderr], ["out", "sbx: too much\n"]);
  const several = await sbx(["run", "1", "2"], { run: () => Promise.reject(limit()) });
  assert.deepEqual([several.stdout, several.stderr], ["outout", "err\nsbx: 1: too much\nerr\nsbx: 2: too much\n"]);
  const whole = await sbx(["run", "1"], {
    run: (request) => {
      request.onStderr?.("whole\n");
      return Promise.reject(new CommunicationError("gone"));
    },
  });
  assert.equal(whole.stderr, "whole\nsbx: gone\n");
  const json = await sbx(["run", "--json", "1", "2"], { run: () => Promise.reject(limit()) });
  assert.deepEqual([json.stderr, JSON.parse(json.stdout).length], ["", 2]);
});

test("headers and progress begin on fresh lines of the terminal", async () => {
  const line = new Line();
  const stdout = new FakeOutput({ line }), stderr = new FakeOutput({ isTty: true, line });
  await sbx(["run", "a", "b"], { stdout, stderr, run: () => Promise.resolve(resultOf({ stdout: "x" })) });
  assert.deepEqual([stdout.text, stderr.text], ["xx", "── 1/2 a\n\n── 2/2 b\n"]);
  const log = await sbx(["run", "a"], {
    run: (request, { onLog, onProgress }) => {
      request.onStderr?.("partial");
      onLog("sbx warning: hm");
      request.onStderr?.("partial");
      onProgress({ task: "template", message: "booting" });
      return Promise.resolve(resultOf());
    },
  });
  assert.equal(log.stderr, "partial\nsbx warning: hm\npartial\ntemplate: booting\n");
});

test("-q reaches the log", async () => {
  for (const [args, isQuiet] of [[["run", "1"], false], [["run", "-q", "1"], true]] as const) {
    await sbx(args, {
      run: (_, options) => {
        assert.equal(options.isQuiet, isQuiet);
        return Promise.resolve(resultOf());
      },
    });
  }
});

test("headers tell sources apart on a terminal only", async () => {
  const run = byCode({ a: () => resultOf({ stderr: "" }) });
  assert.match((await sbx(["run", "a", "b"], { run, stderr: new FakeOutput({ isTty: true }) })).stderr, /── 1\/2 a\n── 2\/2 b\n/);
  assert.equal((await sbx(["run", "a", "b"], { run })).stderr, "");
  assert.equal((await sbx(["run", "-q", "a", "b"], { run, stderr: new FakeOutput({ isTty: true }) })).stderr, "");
});

test("of several sources the first failure in their order is the exit status", async () => {
  const run = byCode({
    ok: () => resultOf(),
    three: () => resultOf({ exitCode: 3 }),
    lost: () => {
      throw new CommunicationError("gone");
    },
  });
  assert.equal((await sbx(["run", "ok", "ok"], { run })).code, 0);
  assert.equal((await sbx(["run", "ok", "three", "lost"], { run })).code, 3);
  const { code, stderr } = await sbx(["run", "ok", "lost", "three"], { run });
  assert.equal(code, 125);
  assert.match(stderr, /^sbx: lost: gone\n/);
});

test("--jobs bounds how many run at once", async () => {
  for (const [jobs, most] of [[1, 1], [2, 2], [9, 5]] as const) {
    let running = 0, peak = 0;
    await sbx(["run", "-j", String(jobs), "a", "b", "c", "d", "e"], {
      run: async () => {
        peak = Math.max(peak, running += 1);
        await new Promise((resolve) => setTimeout(resolve, 3));
        running -= 1;
        return resultOf();
      },
    });
    assert.equal(peak, most);
  }
});

test("--json prints exactly the promised object and no stream", async () => {
  const { stdout, stderr, code } = await sbx(["run", "--json", "1"], {
    run: (request) => {
      assert.equal(request.onStdout, undefined);
      const port = { internal: 8080, external: 52341, host: "127.0.0.1", protocol: "tcp", url: "http://127.0.0.1:52341" } as const;
      return Promise.resolve(resultOf({ stdout: "é\n", stderr: "e", exitCode: 7, value: "1", exposedPorts: [port] }));
    },
  });
  assert.equal(stdout.split("\n").length, 2);
  assert.deepEqual(JSON.parse(stdout), {
    stdout: "é\n",
    stderr: "e",
    exit_code: 7,
    timed_out: false,
    execution_time_ms: 12,
    external_cpu_time_ms: 40,
    external_memory_peak_mb: 61,
    timing: { setup_ms: 3, boot_ms: 41, execute_ms: 12, total_ms: 58 },
    warm_pool_hit: false,
    start: "template",
    exposed_ports: [{ internal: 8080, external: 52341, host: "127.0.0.1", url: "http://127.0.0.1:52341" }],
  });
  assert.deepEqual([stderr, code], ["", 7]);
});

test("--json of several sources is an array in their order with index and source", async () => {
  const run = byCode({
    b: () => {
      throw new CommunicationError("gone", { hint: "Try again." });
    },
  });
  const { stdout, stderr, code } = await sbx(["run", "--json", "b", "-c", "a"], { run });
  const [first, second, ...rest] = JSON.parse(stdout);
  assert.deepEqual([first.index, first.source, first.exit_code], [0, "a", 0]);
  assert.deepEqual(second, {
    index: 1,
    source: "b",
    error: { code: "SBX_COMMUNICATION", type: "CommunicationError", message: "gone", hint: "Try again.", retry: "safe" },
  });
  assert.deepEqual([rest, stderr, code], [[], "", 125]);
});

test("--json prints failures of every kind, usage errors too", async () => {
  const wrong = [
    ["run", "--json", "--bogus"],
    ["run", "--bogus", "--json"],
    ["run", "--json"],
    ["run", "--json", "-t", "0", "1"],
    ["run", "missing.py", "--json"],
    ["--json", "missing.py"],
    ["run", "--json", "-c"],
  ];
  for (const args of wrong) {
    const { code, stdout, stderr, opened } = await sbx(args);
    assert.deepEqual([code, stderr, opened], [2, "", 0], args.join(" "));
    const { error } = JSON.parse(stdout);
    assert.deepEqual(Object.keys(error), ["code", "type", "message", "hint", "retry"]);
    assert.deepEqual([error.code, error.type, error.retry], ["SBX_USAGE", "UsageError", "never"]);
  }
  const { stdout, code } = await sbx(["run", "--json", "1"], { open: () => Promise.reject(new AssetError("missing")) });
  assert.deepEqual([JSON.parse(stdout).error.code, code], ["SBX_ASSET", 125]);
  assert.equal((await sbx(["run", "--bogus", "-c", "--json"])).stdout, "", "the value of an option is no option");
});

test("--json of an exceeded output limit has what fitted", async () => {
  const error = new OutputLimitError("too much", { result: resultOf({ stdout: "some", exitCode: -1 }) });
  const { stdout, code } = await sbx(["run", "--json", "1"], { run: () => Promise.reject(error) });
  const parsed = JSON.parse(stdout);
  assert.deepEqual([parsed.stdout, parsed.exit_code, parsed.error.code, code], ["some", -1, "SBX_OUTPUT_LIMIT", 125]);
  const several = await sbx(["run", "1", "2"], { run: () => Promise.reject(error) });
  assert.equal(several.stdout, "somesome");
});

test("an interrupt ends with the signal's status, once told, and the scheduler is released", async () => {
  for (const [signal, number] of [["SIGINT", 2], ["SIGTERM", 15], ["SIGHUP", 1]] as const) {
    for (const args of [["run", "a"], ["run", "a", "b"], ["run", "-j", "1", "a", "b"], ["run", "--json", "a"]]) {
      const ending = new AbortController();
      const { code, stderr, stdout, closed } = await sbx(args, {
        signal: ending.signal,
        run: (request) => {
          queueMicrotask(() => ending.abort(new InterruptedError(signal, number)));
          return new Promise((_, reject) => request.signal?.addEventListener("abort", () => reject(request.signal?.reason)));
        },
      });
      assert.equal(code, 128 + number);
      assert.equal(stderr, `sbx: Interrupted by ${signal}\n`);
      assert.equal(closed, 1);
      if (args.includes("--json")) assert.equal(JSON.parse(stdout).error.code, "SBX_INTERRUPTED");
    }
  }
});

test("--debug passes the boot log on without what a terminal would act on", async () => {
  const { stderr } = await sbx(["run", "--debug", "1"], {
    run: (request, options) => {
      assert.equal(options.isDebug, true);
      options.onLog("sbx debug: started");
      request.onBootLog?.("[0.1] kernel\r\n\x1b]0;title\x07");
      return Promise.resolve(resultOf());
    },
  });
  const [started, kernel, title, finished] = stderr.split("\n");
  assert.deepEqual([started, kernel], ["sbx debug: started", "[0.1] kernel"]);
  assert.equal(title, "\uFFFD]0;title\uFFFD");
  assert.match(finished ?? "", /^sbx debug: run finished index=0 start=template exitCode=0 setupMs=3 /);
  const { requests } = await sbx(["run", "1"]);
  assert.equal(requests[0]?.onBootLog, undefined);
});

test("the scheduler is released however the run ends", async () => {
  assert.deepEqual(await sbx(["run", "1"]).then(({ opened, closed }) => [opened, closed]), [1, 1]);
  const failed = await sbx(["run", "1"], { run: () => Promise.reject(new CommunicationError("x")) });
  assert.deepEqual([failed.opened, failed.closed], [1, 1]);
});
