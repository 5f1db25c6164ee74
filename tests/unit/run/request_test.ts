/** Requests: every field right, wrong, at its limit and absurd; which error each gives; nothing is accepted by accident. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import {
  EnvVarValidationError,
  InputValidationError,
  PackageNotAllowedError,
  SandboxError,
  VmConfigError,
} from "../../../src/base/errors.ts";
import { CODE_MAX_BYTES } from "../../../src/base/limits.ts";
import { checkMemory, checkTimeout } from "../../../src/run/check.ts";
import { checkCode, checkLanguage, checkRequest, type RunRequest } from "../../../src/run/request.ts";

const DEFAULTS = { timeoutSeconds: 30, memoryMb: 256 };
const check = (request: unknown) => checkRequest(request as RunRequest, DEFAULTS);
const withField = (field: string, value: unknown) => check({ code: "x", language: "python", [field]: value });
/** Every kind of thing that is no string, number or boolean, and cannot always be turned into text. */
const STRANGE: readonly unknown[] = [null, {}, [], Symbol("s"), 10n, Object.create(null), new Date(NaN), () => {}, new Map()];

function refuses(work: () => unknown, type: typeof InputValidationError | typeof VmConfigError, says: RegExp): void {
  assert.throws(work, (error) => {
    assert.ok(SandboxError.is(error) && error instanceof type, String(error));
    assert.equal(error.constructor, type);
    assert.match(error.message, says);
    assert.match(error.message, /^Cannot /);
    assert.ok(error.message.length < 400, error.message);
    return true;
  });
}

test("request: what is not given comes from the defaults", () => {
  assert.deepEqual(check({ code: "x", language: "raw" }), {
    code: "x",
    language: "raw",
    timeoutSeconds: 30,
    memoryMb: 256,
    env: {},
    files: {},
    prepare: undefined,
    collect: undefined,
    network: { policy: { kind: "off" }, ports: [], onNetworkEvent: undefined, onExposedPorts: undefined },
    packages: undefined,
    check: false,
    signal: undefined,
    onStdout: undefined,
    onStderr: undefined,
    onBootLog: undefined,
  });
});

test("request: what is given is kept", () => {
  const request = {
    code: "x",
    language: "javascript" as const,
    timeoutSeconds: 7,
    memoryMb: 1000,
    env: { A: "1" },
    files: { "a/b.txt": "content" },
    prepare: () => Promise.resolve(),
    collect: () => Promise.resolve(),
    check: true,
    signal: new AbortController().signal,
    onStdout: () => {},
    onStderr: () => {},
    onBootLog: () => {},
  };
  const network = { policy: { kind: "off" }, ports: [], onNetworkEvent: undefined, onExposedPorts: undefined };
  assert.deepEqual(check(request), { ...request, network, packages: undefined });
  const unset = Object.fromEntries(Object.keys(request).map((field) => [field, undefined]));
  assert.deepEqual(check({ ...unset, code: "x", language: "raw" }), check({ code: "x", language: "raw" }));
});

test("request: packages are full pins of the request's language, imported ahead unless it has an environment", () => {
  const packages = ["Requests[socks]==2.32.5"], spec = { name: "requests", version: "2.32.5", extras: ["socks"] };
  const set = (fields: object) => check({ code: "x", language: "python", packages, ...fields }).packages;
  assert.deepEqual(set({}), { language: "python", packages: [spec], isPreloaded: true });
  assert.equal(set({ preload: false })?.isPreloaded, false);
  assert.equal(set({ env: { A: "1" } })?.isPreloaded, false);
  assert.equal(set({ language: "javascript", packages: ["lodash@4.17.21"] })?.isPreloaded, false);
  assert.equal(set({ packages: [] }), undefined);
  refuses(() => set({ language: "raw" }), PackageNotAllowedError, /packages are for python and javascript, got language "raw"/);
  for (
    const wrong of ["requests", "requests>=2", "requests==2.*", "--index-url=https://example.com", "a==1\nb==2", "./x", "git+https://x/y"]
  ) {
    refuses(() => set({ packages: [wrong] }), PackageNotAllowedError, /Cannot install /);
  }
  refuses(() => set({ packages: Array(51).fill("requests==2.32.5") }), PackageNotAllowedError, /at most 50 of them, got 51/);
  refuses(() => set({ packages: "requests==2.32.5" }), InputValidationError, /must be an array of texts/);
  refuses(() => set({ preload: "no" }), InputValidationError, /preload must be true or false/);
});

test("request: an unknown field is a VmConfigError that tells the known ones", () => {
  for (const field of ["Code", "memory", "timeout", "__proto__", "toString", ""]) {
    const request = { ...JSON.parse(`{${JSON.stringify(field)}:1}`), code: "x", language: "raw" };
    if (field === "__proto__") Object.defineProperty(request, field, { value: 1, enumerable: true });
    refuses(() => check(request), VmConfigError, /unknown field "/);
    assert.throws(
      () => check(request),
      (error) => error instanceof VmConfigError && /code, language, timeoutSeconds/.test(error.hint ?? ""),
    );
  }
});

test("request: it must be an object", () => {
  for (const value of [null, undefined, 5, "print(1)", true, Symbol("s")]) {
    refuses(() => check(value), InputValidationError, /must be an object, got /);
  }
  refuses(() => check({}), InputValidationError, /code must be a string, got undefined/);
});

test("request: each bad field gives the error of its kind", () => {
  for (const value of [...STRANGE.slice(1), 5, "x", true]) {
    refuses(() => withField("signal", value), InputValidationError, /signal must be an AbortSignal, got /);
  }
  for (const field of ["onStdout", "onStderr", "onBootLog"]) {
    for (const value of [null, {}, "x", 5, true, Symbol("s")]) {
      refuses(() => withField(field, value), InputValidationError, new RegExp(`${field} must be a function, got `));
    }
  }
  for (const value of ["no", 0, 1, {}, []]) {
    refuses(() => withField("check", value), InputValidationError, /check must be true or false, got /);
  }
  assert.throws(() => withField("env", { PATH: "" }), EnvVarValidationError);
  refuses(() => withField("memoryMb", 127), VmConfigError, /memoryMb/);
  refuses(() => withField("timeoutSeconds", 0), InputValidationError, /timeoutSeconds/);
  refuses(() => withField("language", "perl"), InputValidationError, /language/);
});

test("request: code is limited in bytes", () => {
  assert.equal(checkCode("x".repeat(CODE_MAX_BYTES)).length, CODE_MAX_BYTES);
  assert.equal(checkCode("ü".repeat(CODE_MAX_BYTES / 2)).length, CODE_MAX_BYTES / 2);
  assert.equal(checkCode("x"), "x");
  refuses(() => checkCode("x".repeat(CODE_MAX_BYTES + 1)), InputValidationError, /at most 1048576 bytes of UTF-8, got 1048577$/);
  refuses(() => checkCode("x".repeat(CODE_MAX_BYTES - 1) + "ü"), InputValidationError, /got 1048577$/);
  refuses(() => checkCode("x".repeat(50_000_000)), InputValidationError, /got 50000000$/);
});

test("request: code is a string", () => {
  for (const value of [...STRANGE, undefined, 5, true, new Uint8Array([120])]) {
    refuses(() => checkCode(value), InputValidationError, /code must be a string, got /);
  }
});

/** Unicode's property White_Space, complete. */
const WHITE_SPACE = [
  ...[0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x20, 0x85, 0xa0, 0x1680],
  ...Array.from({ length: 11 }, (_, at) => 0x2000 + at),
  ...[0x2028, 0x2029, 0x202f, 0x205f, 0x3000],
].map((code) => String.fromCodePoint(code));

test("request: code of white space alone is refused, whichever kind", () => {
  for (
    const blank of [...WHITE_SPACE, "", WHITE_SPACE.join(""), " ".repeat(CODE_MAX_BYTES), "\ufeff", "\ufeff\ufeff", "\ufeff \n", " \ufeff"]
  ) {
    refuses(() => checkCode(blank), InputValidationError, /more than white space$/);
    assert.equal(checkCode(`${blank.slice(0, 100)}x`).endsWith("x"), true);
  }
  // Invisible, but not white space: the language may say what it makes of them.
  for (const visible of ["\u200b", "\u2060", "\u180e", "#", "0"]) assert.equal(checkCode(visible), visible);
});

test("request: one leading byte-order mark is dropped, every other character is kept", () => {
  assert.equal(checkCode("\ufeffprint(1)"), "print(1)");
  assert.equal(checkCode("\ufeff\ufeffx"), "\ufeffx");
  assert.equal(checkCode("x\ufeff"), "x\ufeff");
  const all = "\t\r\n é\u2028🎓\u{10ffff}\x01\x1b\x7f\u0085 'x' \"y\" `z` $(w) \\";
  assert.equal(checkCode(all), all);
});

test("request: a NUL in the code is refused with its position", () => {
  for (const [code, at] of [["\0", 0], ["ab\0", 2], ["\ufeffa\0", 1], ["a\0b\0", 1], [`${"x".repeat(1_000_000)}\0`, 1_000_000]] as const) {
    refuses(() => checkCode(code), InputValidationError, new RegExp(`NUL character, got one at position ${at}$`));
  }
});

test("request: a lone surrogate in the code is refused", () => {
  for (const code of ["\ud83c", "\udf93", "x\ud83cy", "\udf93\ud83c"]) {
    refuses(() => checkCode(code), InputValidationError, /lone surrogate$/);
  }
  assert.equal(checkCode("\ud83c\udf93"), "🎓");
});

test("request: the language is one of three, exactly", () => {
  for (const language of ["python", "javascript", "raw"]) assert.equal(checkLanguage(language), language);
  const wrong = [
    "",
    "Python",
    "python ",
    "py",
    "ts",
    "bash",
    "python\0",
    "__proto__",
    "toString",
    "x".repeat(1_000_000),
    undefined,
    0,
    ...STRANGE,
  ];
  for (const language of wrong) refuses(() => checkLanguage(language), InputValidationError, /one of python, javascript, raw, got /);
});

test("request: the time-out is between its limits, whole or not", () => {
  for (const seconds of [1, 1.5, 30, 299.999, 300]) assert.equal(checkTimeout(seconds), seconds);
  for (const seconds of [0, 0.999, -1, 300.001, 301, 1e9, Infinity, -Infinity, NaN, "30", true, undefined, ...STRANGE]) {
    refuses(() => checkTimeout(seconds), InputValidationError, /timeoutSeconds must be between 1 and 300, got /);
  }
});

test("request: memory is a whole number of at least the minimum, with no upper bound", () => {
  for (const memoryMb of [128, 129, 256, 1_000_000, Number.MAX_SAFE_INTEGER]) assert.equal(checkMemory(memoryMb), memoryMb);
  for (const memoryMb of [127, 0, -256, 128.5, 127.999, 2 ** 53, 1e300, Infinity, NaN, "256", true, undefined, ...STRANGE]) {
    refuses(() => checkMemory(memoryMb), VmConfigError, /memoryMb must be a whole number of at least 128, got /);
  }
});

test("request: any object at all is accepted whole or refused with a typed error", () => {
  const field = fc.constantFrom("code", "language", "timeoutSeconds", "memoryMb", "env", "signal", "check", "onStdout", "other");
  fc.assert(fc.property(fc.dictionary(field, fc.anything()), fc.boolean(), (fields, isCoded) => {
    try {
      const checked = check(isCoded ? { code: "x", language: "raw", ...fields } : fields);
      assert.ok(checked.code.length > 0 && checked.memoryMb >= 128 && checked.timeoutSeconds >= 1);
    } catch (error) {
      assert.ok(SandboxError.is(error), String(error));
    }
  }));
});
