/** Secret: how both ends of the private socket prove that they can read one file that only we can. */
import { Buffer } from "node:buffer";
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { constants } from "node:fs";
import fs from "node:fs/promises";
import process from "node:process";
import { messageOf, SocketAuthError } from "../base/errors.ts";
import { writeFileAtomic } from "../host/files.ts";

const SECRET_BYTES = 32;
const NONCE_BYTES = 16;
const HEX = /^[0-9a-f]{64}$/;

/** Writes a new secret, readable by us alone, and returns it. */
export async function makeSecret(file: string): Promise<Uint8Array> {
  const secret = randomBytes(SECRET_BYTES);
  await writeFileAtomic(file, secret.toString("hex"), 0o600);
  return secret;
}

/** Reads the secret. Throws `SocketAuthError` unless it is a file of ours that is closed to others and holds one. */
export async function readSecret(file: string): Promise<Uint8Array> {
  const refuse = (wanted: string, cause?: unknown) => new SocketAuthError(`Cannot use the server's secret ${file}: ${wanted}`, { cause });
  let handle;
  try {
    handle = await fs.open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    throw refuse(messageOf(error), error);
  }
  try {
    const found = await handle.stat(), uid = process.getuid?.() ?? 0, mode = found.mode & 0o777;
    if (!found.isFile()) throw refuse("it must be a file, got something else");
    if (found.uid !== uid) throw refuse(`it must belong to user ${uid}, got user ${found.uid}`);
    if (mode !== 0o600) throw refuse(`its mode must be 0600, got 0${mode.toString(8)}`);
    const buffer = new Uint8Array(2 * SECRET_BYTES + 1);
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, 0);
    const text = new TextDecoder().decode(buffer.subarray(0, bytesRead));
    if (!HEX.test(text)) throw refuse(`it must hold ${2 * SECRET_BYTES} hexadecimal digits, got ${bytesRead} bytes that are not`);
    return Buffer.from(text, "hex");
  } finally {
    await handle.close();
  }
}

/** What nobody has said before, in hex. */
export function newNonce(): string {
  return randomBytes(NONCE_BYTES).toString("hex");
}

/** Who proves, and what both had said before. */
export interface ProofWords {
  readonly role: "server" | "client";
  readonly clientNonce: string;
  readonly serverNonce: string;
}

/** Proves the knowledge of `secret`; of no use for any other words. In hex. */
export function prove(secret: Uint8Array, { role, clientNonce, serverNonce }: ProofWords): string {
  return createHmac("sha256", secret).update(JSON.stringify([role, clientNonce, serverNonce])).digest("hex");
}

/** Is `proof` that of `words`? Takes the same time whatever it is. */
export function isProven(secret: Uint8Array, words: ProofWords, proof: string): boolean {
  const wanted = Buffer.from(prove(secret, words)), got = Buffer.from(proof);
  return wanted.length === got.length && timingSafeEqual(wanted, got);
}
