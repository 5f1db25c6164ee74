/** Log: levels, and one line per entry whatever its fields hold. */
import assert from "node:assert/strict";
import test from "node:test";
import { lineLogger, LOG_LEVELS, type LogLevel, silentLogger } from "../../../src/base/log.ts";

function linesAt(level: LogLevel): string[] {
  const lines: string[] = [];
  const log = lineLogger(level, (line) => lines.push(line));
  for (const own of ["debug", "info", "warning", "error"] as const) log[own](own);
  return lines;
}

for (const [at, level] of LOG_LEVELS.entries()) {
  test(`log: level ${level} writes entries of at least its own weight`, () => {
    assert.deepEqual(linesAt(level), ["debug", "info", "warning", "error"].slice(at).map((own) => `sbx ${own}: ${own}`));
  });
}

test("log: fields follow the message; what could be misread is quoted", () => {
  const lines: string[] = [];
  const fields = {
    pid: 7,
    path: "/a/b-c.d",
    reason: "no room\nleft",
    empty: "",
    isSet: true,
    nothing: null,
    missing: undefined,
    quote: 'a"b',
  };
  lineLogger("debug", (line) => lines.push(line)).info("ended", fields);
  assert.deepEqual(lines, ['sbx info: ended pid=7 path=/a/b-c.d reason="no room\\nleft" empty="" isSet=true nothing=null quote="a\\"b"']);
});

test("log: the silent logger drops everything", () => {
  const log = silentLogger();
  for (const own of ["debug", "info", "warning", "error"] as const) log[own]("x", { y: 1 });
});
