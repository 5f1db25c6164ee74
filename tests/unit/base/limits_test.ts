/** Limits: the figures of CONTRACT, and the file that the guest's tests read too. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import * as limits from "../../../src/base/limits.ts";
import { REFUSED_NAMES, REFUSED_PREFIXES } from "../../../src/run/env.ts";

const shared = JSON.parse(readFileSync(new URL("../../fixtures/limits.json", import.meta.url), "utf8"));

test("limits: every limit that both sides check is the same on both", () => {
  const ours = {
    protocolVersion: limits.PROTOCOL_VERSION,
    framePayloadBytes: limits.FRAME_MAX_BYTES,
    initialCreditBytes: limits.STREAM_CREDIT_BYTES,
    openStreams: limits.STREAMS_MAX,
    codeBytes: limits.CODE_MAX_BYTES,
    stdoutBytes: limits.STDOUT_MAX_BYTES,
    stderrBytes: limits.STDERR_MAX_BYTES,
    envVars: limits.ENV_VARS_MAX,
    envNameBytes: limits.ENV_NAME_MAX_BYTES,
    envValueBytes: limits.ENV_VALUE_MAX_BYTES,
    envRefusedNames: REFUSED_NAMES,
    envRefusedPrefixes: REFUSED_PREFIXES,
    timeoutMinMs: limits.TIMEOUT_MIN_SECONDS * 1000,
    timeoutMaxMs: limits.TIMEOUT_MAX_SECONDS * 1000,
    cancelGraceMs: limits.CANCEL_GRACE_MS,
    killGraceMs: limits.GUEST_KILL_GRACE_MS,
    packages: limits.PACKAGES_MAX,
    exposedPorts: limits.EXPOSED_PORTS_MAX,
    fileBytes: limits.FILE_MAX_BYTES,
    pathBytes: limits.PATH_MAX_BYTES,
    pathComponentBytes: limits.PATH_COMPONENT_MAX_BYTES,
    memoryMinMiB: limits.MEMORY_MIN_MIB,
    guestProcesses: limits.GUEST_PROCESSES_MAX,
    sessionProcesses: limits.SESSION_PROCESSES_MAX,
    argumentsBytes: limits.ARGUMENTS_MAX_BYTES,
  };
  assert.deepEqual(ours, Object.fromEntries(Object.keys(ours).map((name) => [name, shared[name]])));
});

test("limits: the figures are those of CONTRACT, section 4", () => {
  assert.deepEqual(
    [limits.CODE_MAX_BYTES, limits.STDOUT_MAX_BYTES, limits.STDERR_MAX_BYTES, limits.PACKAGES_MAX, limits.ENV_VARS_MAX],
    [1_048_576, 1_000_000, 100_000, 50, 100],
  );
  assert.deepEqual(
    [limits.EXPOSED_PORTS_MAX, limits.FILE_MAX_BYTES, limits.PATH_MAX_BYTES, limits.PATH_COMPONENT_MAX_BYTES],
    [10, 524_288_000, 4096, 255],
  );
  assert.deepEqual(
    [limits.TIMEOUT_MIN_SECONDS, limits.TIMEOUT_MAX_SECONDS, limits.MEMORY_MIN_MIB, limits.GUEST_PROCESSES_MAX],
    [1, 300, 128, 1024],
  );
  assert.deepEqual([limits.ENV_NAME_MAX_BYTES, limits.ENV_VALUE_MAX_BYTES, limits.CALLBACK_CHUNK_MAX_BYTES], [256, 32_768, 65_536]);
});
