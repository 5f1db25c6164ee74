/** Place and secret: where the server is met, and everything that makes such a place one that is not trusted. */
import assert from "node:assert/strict";
import { chmodSync, chownSync, mkdirSync, readFileSync, statSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import test from "node:test";
import { SocketAuthError } from "../../../src/base/errors.ts";
import { checkPlace, makePlace, placeOf, placeOfSocket } from "../../../src/link/place.ts";
import { isProven, makeSecret, newNonce, prove, readSecret } from "../../../src/link/secret.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

const isRoot = process.getuid?.() === 0;
const refusal = (says: RegExp) => (error: Error) => error instanceof SocketAuthError && says.test(error.message);

test("a cache directory has one place, and a short one where the system has no room for the socket's path", () => {
  assert.equal(placeOf("/home/u/.cache/exec-sandbox").socket, "/home/u/.cache/exec-sandbox/serve/sbx.sock");
  assert.deepEqual(placeOf("/a/b/../c"), placeOf("/a/c"));
  const long = `/home/${"x".repeat(100)}`;
  const places = [placeOf(long, {}), placeOf(long, { XDG_RUNTIME_DIR: "/run/user/1000" }), placeOf(long, { XDG_RUNTIME_DIR: "relative" })];
  for (const { socket } of places) assert.ok(socket.length <= 103 && socket.startsWith("/"), socket);
  assert.ok(places[1]?.socket.startsWith("/run/user/1000/exec-sandbox/"), places[1]?.socket);
  assert.notEqual(placeOf(long, {}).directory, placeOf(`${long}y`, {}).directory);
});

test("a place is made for us alone, and is checked", async (t) => {
  const place = placeOfSocket(path.join(temporaryDirectory(t), "a", "b", "s"));
  await makePlace(place);
  assert.equal(statSync(place.directory).mode & 0o777, 0o700);
  assert.equal(statSync(path.dirname(place.directory)).mode & 0o777, 0o700);
  await makePlace(place);
});

test("a directory that others can enter, a link, a file, nothing, and one in the reach of others are not trusted", (t) => {
  const parent = temporaryDirectory(t), directory = path.join(parent, "d");
  const check = (says: RegExp, at = directory) => assert.throws(() => checkPlace({ directory: at }), refusal(says));
  check(/Cannot look at .*ENOENT/);
  mkdirSync(directory, { mode: 0o700 });
  checkPlace({ directory });
  for (const mode of [0o750, 0o701, 0o777]) {
    chmodSync(directory, mode);
    check(/its mode must be 0700, got 07/);
  }
  chmodSync(directory, 0o700);
  symlinkSync(directory, path.join(parent, "link"));
  check(/must be a directory, got a symbolic link/, path.join(parent, "link"));
  writeFileSync(path.join(parent, "file"), "");
  check(/must be a directory, got something else/, path.join(parent, "file"));
  chmodSync(parent, 0o777);
  check(/everybody can write to .* above it/);
  chmodSync(parent, 0o1777);
  checkPlace({ directory });
});

test("what belongs to another user is not trusted", { skip: isRoot ? false : "only root can give files away" }, async (t) => {
  const parent = temporaryDirectory(t), directory = path.join(parent, "d"), secret = path.join(directory, "secret");
  mkdirSync(directory, { mode: 0o700 });
  await makeSecret(secret);
  chownSync(secret, 1234, 1234);
  await assert.rejects(readSecret(secret), refusal(/must belong to user 0, got user 1234/));
  chownSync(directory, 1234, 1234);
  assert.throws(() => checkPlace({ directory }), refusal(/must belong to user 0, got user 1234/));
  chownSync(directory, 0, 0);
  chownSync(parent, 1234, 1234);
  assert.throws(() => checkPlace({ directory }), refusal(/above it must belong to user 0 or root, got user 1234/));
  chownSync(parent, 0, 0);
});

test("a secret is new each time, ours alone, and read only as it was made", async (t) => {
  const file = path.join(temporaryDirectory(t), "secret");
  const first = await makeSecret(file);
  assert.deepEqual(new Uint8Array(await readSecret(file)), new Uint8Array(first));
  assert.equal(statSync(file).mode & 0o777, 0o600);
  assert.notDeepEqual(await makeSecret(file), first);
  chmodSync(file, 0o640);
  await assert.rejects(readSecret(file), refusal(/its mode must be 0600, got 0640/));
  chmodSync(file, 0o600);
  const text = readFileSync(file, "utf8");
  for (const damaged of ["", "0".repeat(63), `${text}0`, "z".repeat(64)]) {
    truncateSync(file, 0);
    writeFileSync(file, damaged);
    await assert.rejects(readSecret(file), refusal(/must hold 64 hexadecimal digits/), damaged);
  }
  symlinkSync(file, `${file}-link`);
  await assert.rejects(readSecret(`${file}-link`), SocketAuthError);
  await assert.rejects(readSecret(`${file}-none`), SocketAuthError);
  await assert.rejects(readSecret(path.dirname(file)), refusal(/must be a file/));
});

test("a proof holds for its secret, its role and both nonces, and for nothing else", async (t) => {
  const secret = await makeSecret(path.join(temporaryDirectory(t), "secret"));
  const words = { role: "client", clientNonce: newNonce(), serverNonce: newNonce() } as const, proof = prove(secret, words);
  assert.ok(isProven(secret, words, proof));
  assert.ok(!isProven(new Uint8Array(32), words, proof));
  assert.ok(!isProven(secret, { ...words, role: "server" }, proof));
  assert.ok(!isProven(secret, { ...words, clientNonce: newNonce() }, proof));
  assert.ok(!isProven(secret, { ...words, serverNonce: newNonce() }, proof));
  assert.ok(!isProven(secret, { role: "client", clientNonce: words.serverNonce, serverNonce: words.clientNonce }, proof));
  for (const wrong of ["", proof.slice(1), `${proof}0`, "é".repeat(32)]) assert.ok(!isProven(secret, words, wrong));
});

noLeftovers();
