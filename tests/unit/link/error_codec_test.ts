/** Error codec: what crosses the socket comes out as the same class, and as nothing else of the other side's choosing. */
import assert from "node:assert/strict";
import test from "node:test";
import {
  AssetError,
  CommunicationError,
  SandboxDependencyError,
  SandboxError,
  SessionClosedError,
  SnapshotError,
  SocketAuthError,
  VmCapacityError,
  VmConfigError,
  VmTimeoutError,
} from "../../../src/base/errors.ts";
import { decodeError, encodeError } from "../../../src/link/error_codec.ts";

test("every error that a start can end with keeps class, message, hint and advice", () => {
  const classes = [
    AssetError,
    CommunicationError,
    SandboxDependencyError,
    SessionClosedError,
    SnapshotError,
    SocketAuthError,
    VmCapacityError,
    VmConfigError,
    VmTimeoutError,
  ];
  for (const type of classes) {
    const error = new type("Cannot do it", { hint: "Do another.", retry: "unknown" });
    const decoded = decodeError(JSON.parse(JSON.stringify(encodeError(error))));
    assert.equal(decoded.constructor, type);
    assert.deepEqual([decoded.message, decoded.hint, decoded.retry, decoded.code], ["Cannot do it", "Do another.", "unknown", error.code]);
  }
});

test("other errors and unknown codes become errors of communication, cut to a bearable length", () => {
  const internal = decodeError(encodeError(new TypeError("x is undefined")));
  assert.ok(internal instanceof CommunicationError && /Internal error of the server: x is undefined/.test(internal.message));
  assert.ok(encodeError(new CommunicationError("x".repeat(1e6))).message.length <= 8_192);
  for (const code of ["SBX_NEW", "constructor", "__proto__"]) {
    const error = decodeError({ code, message: "m", retry: "never" });
    assert.ok(SandboxError.is(error) && error instanceof CommunicationError, code);
  }
});
