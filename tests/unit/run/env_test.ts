/** Environment for the guest: every limit at it and beyond it, and the names that change how programs start. */
import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { EnvVarValidationError, InputValidationError } from "../../../src/base/errors.ts";
import { ENV_NAME_MAX_BYTES, ENV_VALUE_MAX_BYTES, ENV_VARS_MAX } from "../../../src/base/limits.ts";
import { checkEnv, REFUSED_NAMES, REFUSED_PREFIXES } from "../../../src/run/env.ts";

/** Asserts a refusal whose message is short, fits `says`, and does not show the value. */
function refuses(env: unknown, says: RegExp, secret?: string): void {
  assert.throws(() => checkEnv(env), (error) => {
    assert.ok(error instanceof EnvVarValidationError && error instanceof InputValidationError, String(error));
    assert.equal(error.code, "SBX_ENV_VAR_VALIDATION");
    assert.match(error.message, /^Cannot set env: /);
    assert.match(error.message, says);
    assert.ok(error.message.length < 300, error.message);
    if (secret !== undefined) assert.equal(error.message.includes(secret), false, error.message);
    return true;
  });
}

test("env: ordinary names and values come out as they went in", () => {
  const env = {
    A: "",
    _: "x",
    a1_B: "ü🎓",
    LONG: "a\tb\nc\r\n",
    LDAP: "no prefix",
    PATHS: "no name",
    MALLOCX: "neither",
    ENVIRONMENT: "nor this",
  };
  assert.deepEqual(checkEnv(env), env);
  assert.deepEqual(checkEnv({}), {});
});

test("env: what comes out is a copy", () => {
  const env: Record<string, string> = { A: "1" };
  const checked = checkEnv(env);
  env["A"] = "2";
  assert.deepEqual(checked, { A: "1" });
});

test("env: a variable called __proto__ is a variable", () => {
  const checked = checkEnv(JSON.parse('{"__proto__":"x"}'));
  assert.deepEqual([Object.entries(checked), Object.getPrototypeOf(checked) === Object.prototype], [[["__proto__", "x"]], true]);
});

for (const value of [null, undefined, 5, "A=1", [], ["A=1"], true, () => {}, 1n]) {
  test(`env: ${typeof value} ${String(value)} is no environment`, () => refuses(value, /must be an object of strings, got /));
}

test("env: a list is refused without showing what is in it", () => refuses(["TOKEN=secret-value"], /got an array$/, "secret-value"));

test("env: the number of variables is limited", () => {
  const of = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, at) => [`V${at}`, ""]));
  assert.equal(Object.keys(checkEnv(of(ENV_VARS_MAX))).length, 100);
  refuses(of(ENV_VARS_MAX + 1), /at most 100 variables, got 101$/);
  refuses(of(100_000), /at most 100 variables, got 100000$/);
});

test("env: the length of a name is limited", () => {
  assert.ok(checkEnv({ ["N".repeat(ENV_NAME_MAX_BYTES)]: "" }));
  refuses({ ["N".repeat(ENV_NAME_MAX_BYTES + 1)]: "" }, /at most 256 bytes, got 257 in "NNN/);
  refuses({ ["N".repeat(1_000_000)]: "" }, /at most 256 bytes, got 1000000/);
  // 129 characters, 258 bytes: the limit counts bytes, whatever else is wrong with the name.
  refuses({ ["ü".repeat(129)]: "" }, /at most 256 bytes, got 258/);
});

test("env: the length of a value is limited, in bytes", () => {
  assert.ok(checkEnv({ A: "v".repeat(ENV_VALUE_MAX_BYTES), B: "ü".repeat(ENV_VALUE_MAX_BYTES / 2) }));
  refuses({ A: "v".repeat(ENV_VALUE_MAX_BYTES + 1) }, /A must be at most 32768 bytes, got 32769$/, "vvv");
  refuses({ A: "v".repeat(ENV_VALUE_MAX_BYTES - 1) + "ü" }, /A must be at most 32768 bytes, got 32769$/);
  refuses({ A: "v".repeat(10_000_000) }, /got 10000000$/, "vvv");
});

for (
  const name of [
    "",
    " ",
    "1A",
    "A B",
    "A=B",
    "A-B",
    "A.B",
    "A\n",
    "\nA",
    "A\0",
    "A\u0000B",
    "Ä",
    "А",
    "ａ",
    "A\u200b",
    "$A",
    "A;B",
    "A`",
    "()",
    "\ud800",
  ]
) {
  test(`env: the name ${JSON.stringify(name)} is refused and shown`, () => {
    refuses({ [name]: "secret-value" }, /a name must match \[A-Za-z_\]\[A-Za-z0-9_\]\*, got "/, "secret-value");
  });
}

/** A name as an attacker would spell it. */
const spellings = (
  name: string,
) => [name, name.toLowerCase(), name[0] + name.slice(1).toLowerCase(), [...name].map((c, at) => at % 2 ? c.toLowerCase() : c).join("")];

for (const name of REFUSED_NAMES) {
  test(`env: ${name} is refused in any case, and only as a whole`, () => {
    for (const spelling of spellings(name)) {
      refuses({ [spelling]: "secret-value" }, /is refused, it changes how programs start$/, "secret-value");
    }
    assert.ok(checkEnv({ [`X${name}`]: "", [`${name}_X`]: "" }));
  });
}

for (const prefix of REFUSED_PREFIXES) {
  test(`env: what begins with ${prefix} is refused in any case`, () => {
    for (const rest of ["", "X", "PRELOAD", "func"]) {
      for (const spelling of spellings(prefix + rest)) refuses({ [spelling]: "" }, /is refused/);
    }
    assert.ok(checkEnv({ [`X${prefix}Y`]: "", [prefix.slice(0, -1)]: "" }));
  });
}

test("env: the refused names and prefixes are those of CONTRACT", () => {
  const contract =
    "PATH IFS LD_* GLIBC_TUNABLES MALLOC_* BASH_ENV ENV SHELLOPTS BASHOPTS PS4 PROMPT_COMMAND BASH_FUNC_* PYTHONSTARTUP PYTHONHOME " +
    "PYTHONPATH PYTHONINSPECT NODE_OPTIONS NODE_PATH BUN_OPTIONS";
  assert.deepEqual([...REFUSED_NAMES, ...REFUSED_PREFIXES.map((prefix) => `${prefix}*`)].sort(), contract.split(" ").sort());
});

for (let code = 0; code < 0x20; code++) {
  const isText = [0x09, 0x0a, 0x0d].includes(code);
  test(`env: control character ${code} in a value is ${isText ? "text" : "refused"}`, () => {
    const value = `secret${String.fromCharCode(code)}value`;
    if (isText) assert.deepEqual(checkEnv({ A: value }), { A: value });
    else refuses({ A: value }, /A must contain no control characters but tab and newlines$/, "secret");
  });
}

test("env: delete is a control character", () => refuses({ A: "\x7f" }, /control characters/));

test("env: a value is a string of whole characters", () => {
  for (const value of [1, null, undefined, true, {}, ["x"], () => "x", Symbol("x"), 1n]) refuses({ A: value }, /A must be a string, got /);
  for (const value of ["\ud800", "a\udc00", "\udc00\ud800"]) refuses({ A: value }, /A must be valid Unicode, got a lone surrogate$/);
  assert.ok(checkEnv({ A: "\u{10ffff}\ufeff\u2028" }));
});

test("env: one bad variable among many is found", () => {
  const env: Record<string, string> = Object.fromEntries(Array.from({ length: 99 }, (_, at) => [`V${at}`, "x"]));
  refuses({ ...env, PATH: "/evil" }, /PATH is refused/, "/evil");
});

test("env: whatever is given is either returned unchanged or refused with the typed error", () => {
  fc.assert(
    fc.property(
      fc.dictionary(fc.string({ unit: "binary", maxLength: 8 }), fc.oneof(fc.string({ unit: "binary" }), fc.anything())),
      (env) => {
        try {
          const checked = checkEnv(env);
          assert.deepEqual(Object.entries(checked), Object.entries(env));
          for (const [name, value] of Object.entries(checked)) assert.match(`${name}=${value}\0`, /^[A-Za-z_][A-Za-z0-9_]*=[^\0]*\0$/);
        } catch (error) {
          assert.ok(error instanceof EnvVarValidationError, String(error));
        }
      },
    ),
  );
});
