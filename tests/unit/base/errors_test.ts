/** Errors: the table of CONTRACT, what every class carries, and that callers can branch on all of it. */
import assert from "node:assert/strict";
import test from "node:test";
import type { ExecutionResult } from "../../../src/base/result.ts";
import * as errors from "../../../src/base/errors.ts";
import {
  CleanupError,
  EnvVarValidationError,
  InputValidationError,
  messageOf,
  OutcomeUnknownError,
  PermanentError,
  type Retry,
  SandboxError,
  type SandboxErrorOptions,
  SandboxFileError,
  shown,
  TransientError,
  VmTimeoutError,
} from "../../../src/base/errors.ts";

type Make = (message: string, options?: SandboxErrorOptions) => SandboxError;
interface Row {
  readonly code: string;
  readonly retry: Retry;
  readonly branch: typeof TransientError | typeof PermanentError;
  readonly make: Make;
}

const T = TransientError, P = PermanentError;
const plain = (name: keyof typeof errors): Make => (message, options) =>
  new (errors[name] as unknown as new (...args: unknown[]) => SandboxError)(message, options);
const withResult = (name: keyof typeof errors): Make => (message, options) =>
  plain(name)(message, { result: {}, ...options } as SandboxErrorOptions);

/** Every class under "Errors" in CONTRACT. */
const TABLE: Readonly<Record<string, Row>> = {
  VmTimeoutError: { code: "SBX_VM_TIMEOUT", retry: "safe", branch: T, make: plain("VmTimeoutError") },
  ExecutionFailedError: { code: "SBX_EXECUTION_FAILED", retry: "never", branch: P, make: withResult("ExecutionFailedError") },
  VmCapacityError: { code: "SBX_VM_CAPACITY", retry: "safe", branch: T, make: plain("VmCapacityError") },
  VmConfigError: { code: "SBX_VM_CONFIG", retry: "never", branch: P, make: plain("VmConfigError") },
  SessionClosedError: { code: "SBX_SESSION_CLOSED", retry: "never", branch: P, make: plain("SessionClosedError") },
  CommunicationError: { code: "SBX_COMMUNICATION", retry: "safe", branch: T, make: plain("CommunicationError") },
  OutcomeUnknownError: { code: "SBX_OUTCOME_UNKNOWN", retry: "unknown", branch: T, make: plain("OutcomeUnknownError") },
  GuestAgentError: { code: "SBX_GUEST_AGENT", retry: "safe", branch: T, make: plain("GuestAgentError") },
  NoneAcceptedError: {
    code: "SBX_NONE_ACCEPTED",
    retry: "never",
    branch: P,
    make: (message, options) => new errors.NoneAcceptedError(message, { outcomes: [], ...options }),
  },
  OutputLimitError: { code: "SBX_OUTPUT_LIMIT", retry: "never", branch: P, make: withResult("OutputLimitError") },
  PackageInstallError: { code: "SBX_PACKAGE_INSTALL", retry: "never", branch: P, make: plain("PackageInstallError") },
  PackageNotAllowedError: { code: "SBX_PACKAGE_NOT_ALLOWED", retry: "never", branch: P, make: plain("PackageNotAllowedError") },
  SnapshotError: { code: "SBX_SNAPSHOT", retry: "safe", branch: T, make: plain("SnapshotError") },
  SandboxFileError: {
    code: "SBX_FILE",
    retry: "never",
    branch: P,
    make: (message, options) => new SandboxFileError(message, { side: "guest", path: "a/b", reason: "not-found" }, options),
  },
  InputValidationError: { code: "SBX_INPUT_VALIDATION", retry: "never", branch: P, make: plain("InputValidationError") },
  EnvVarValidationError: { code: "SBX_ENV_VAR_VALIDATION", retry: "never", branch: P, make: plain("EnvVarValidationError") },
  SocketAuthError: { code: "SBX_SOCKET_AUTH", retry: "never", branch: P, make: plain("SocketAuthError") },
  SandboxDependencyError: { code: "SBX_DEPENDENCY", retry: "never", branch: P, make: plain("SandboxDependencyError") },
  AssetError: { code: "SBX_ASSET", retry: "never", branch: P, make: plain("AssetError") },
};

test("errors: the module exports the classes of the table, the branches, the base and the one for releases", () => {
  const classes = Object.entries(errors)
    .filter(([, value]) => typeof value === "function" && value.prototype instanceof Error)
    .map(([name]) => name);
  assert.deepEqual(classes.sort(), [...Object.keys(TABLE), "CleanupError", "PermanentError", "SandboxError", "TransientError"].sort());
});

test("errors: every class writes its name out, so that a minified program has it too", () => {
  for (const name of Object.keys(TABLE)) {
    const Base = errors[name as keyof typeof errors] as unknown as new (message: string, options: object) => Error;
    const [Renamed] = [class extends Base {}];
    assert.ok(Renamed);
    assert.equal(new Renamed("m", {}).name, name);
  }
});

test("errors: no two classes share a code", () => {
  const codes = Object.values(TABLE).map(({ make }) => make("m").code);
  assert.equal(new Set(codes).size, codes.length);
});

for (const [name, row] of Object.entries(TABLE)) {
  test(`${name} has its code, branch, retry, name and message`, () => {
    const error = row.make("Cannot do it");
    assert.deepEqual([error.code, error.retry, error.name, error.message], [row.code, row.retry, name, "Cannot do it"]);
    const other = row.branch === TransientError ? PermanentError : TransientError;
    assert.ok(error instanceof row.branch && error instanceof SandboxError && error instanceof Error);
    assert.equal(error instanceof other, false);
    assert.deepEqual([error.hint, error.cause, "cause" in error], [undefined, undefined, false]);
    assert.match(String(error.stack), /Cannot do it/);
  });

  test(`${name} carries cause, hint and the retry it was given`, () => {
    const cause = new Error("below");
    for (const retry of ["safe", "never", "unknown"] as const) {
      const error = row.make("m", { cause, hint: "Do that.", retry });
      assert.deepEqual([error.cause, error.hint, error.retry], [cause, "Do that.", retry]);
    }
    // A failure can be any value, also a false one.
    assert.equal(row.make("m", { cause: 0 }).cause, 0);
  });

  test(`${name} is known by its brand, and by no other class`, () => {
    const error = row.make("m");
    assert.ok(SandboxError.is(error));
    const others = Object.keys(TABLE).filter((other) => other !== name && error instanceof (errors[other as keyof typeof errors] as never));
    assert.deepEqual(others, name === "EnvVarValidationError" ? ["InputValidationError"] : []);
  });
}

test("SandboxError.is knows errors of another copy of the library, and nothing else", async () => {
  const copy: typeof errors = await import(new URL("../../../src/base/errors.ts?copy", import.meta.url).href);
  const foreign = new copy.VmConfigError("m");
  assert.ok(SandboxError.is(foreign));
  for (const value of [new Error("m"), null, undefined, "SBX_VM_CONFIG", { code: "SBX_VM_CONFIG" }, { [Symbol.for("sbx.error")]: true }]) {
    assert.equal(SandboxError.is(value), false);
  }
});

test("VmTimeoutError says whether the code ran: with a result a second run is the caller's decision", () => {
  const result = { timedOut: true } as ExecutionResult;
  const before = new VmTimeoutError("never ready"), after = new VmTimeoutError("ran out of time", { result });
  assert.deepEqual([before.result, before.retry, after.result, after.retry], [undefined, "safe", result, "unknown"]);
  assert.equal(new VmTimeoutError("m", { result, retry: "never" }).retry, "never");
});

test("OutcomeUnknownError never advises a retry by itself, not even with a cause that does", () => {
  const error = new OutcomeUnknownError("m", { cause: new errors.CommunicationError("lost") });
  assert.equal(error.retry, "unknown");
});

test("Errors that end an execution carry its result", () => {
  const result = { stdout: "partial" } as ExecutionResult;
  assert.equal(new errors.OutputLimitError("m", { result }).result, result);
  assert.equal(new errors.ExecutionFailedError("m", { result }).result, result);
});

test("SandboxFileError names side, path and reason", () => {
  const error = new SandboxFileError("m", { side: "host", path: "/etc/x", reason: "permission" }, { hint: "h" });
  assert.deepEqual([error.side, error.path, error.reason, error.hint], ["host", "/etc/x", "permission", "h"]);
});

test("EnvVarValidationError is an InputValidationError with a code of its own", () => {
  const error: InputValidationError = new EnvVarValidationError("m");
  assert.ok(error instanceof InputValidationError);
  assert.equal(error.code, "SBX_ENV_VAR_VALIDATION");
});

test("CleanupError counts and names what is left, and keeps the first failure as its cause", () => {
  const cause = new Error("first");
  const error = new CleanupError({ failures: [{ step: "qemu", cause }, { step: "x", cause: "second" }], leftovers: ["qemu", "directory"] });
  assert.deepEqual([error.message, error.cause, error.retry], ["Cannot release 2 resources: qemu, directory", cause, "never"]);
});

test("errors: assert throws for a state that the code excludes, and narrows", () => {
  assert.throws(() => errors.assert(false, "two holders"), { message: "Internal error: two holders" });
  errors.assert(1, "never seen");
});

test("messageOf gives the text of anything that can be thrown", () => {
  for (
    const [thrown, text] of [[new Error("e"), "e"], ["s", "s"], [undefined, "undefined"], [null, "null"], [
      Symbol("x"),
      "Symbol(x)",
    ]] as const
  ) {
    assert.equal(messageOf(thrown), text);
  }
  assert.equal(typeof messageOf(Object.create(null)), "string");
});

test("shown writes any value on one short line and never throws", () => {
  const circular: unknown[] = [];
  circular.push(circular);
  const hostile = [
    Object.create(null),
    circular,
    {
      toJSON: () => {
        throw new Error("no");
      },
    },
    { toString: 1, valueOf: 1 },
    () => {},
    new Proxy({}, {
      get: () => {
        throw new Error("no");
      },
      getPrototypeOf: () => {
        throw new Error("no");
      },
    }),
  ];
  for (const value of hostile) assert.match(shown(value), /^.{1,120}$/);
  const exact: Array<[unknown, string]> = [
    [undefined, "undefined"],
    [null, "null"],
    [NaN, "NaN"],
    [-Infinity, "-Infinity"],
    [-0, "0"],
    [1.5, "1.5"],
    [10n, "10n"],
    [true, "true"],
    ["", '""'],
    ['a\n"b"', '"a\\n\\"b\\""'],
    [Symbol("s"), "Symbol(s)"],
    [[1, "a"], '[1,"a"]'],
    [{ a: 1 }, '{"a":1}'],
  ];
  for (const [value, text] of exact) assert.equal(shown(value), text);
  const long = shown("x".repeat(1_000_000));
  assert.ok(long.length <= 120 && long.includes("…"), long);
});
