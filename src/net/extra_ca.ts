/** Extra CA: certificates that this host trusts and the guest does not know, for networks that look into TLS. */
import { Buffer } from "node:buffer";
import fs from "node:fs/promises";
import tls from "node:tls";
import { messageOf } from "../base/errors.ts";
import { STREAM_CREDIT_BYTES } from "../base/limits.ts";
import type { Logger } from "../base/log.ts";

/** Where a host's environment names files of certificates. */
const VARIABLES = ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"] as const;
const BLOCK = /-----BEGIN CERTIFICATE-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END CERTIFICATE-----/g;

/** PEM of the certificates in the files that `env` names, but for those that everybody trusts: at most 262,144 bytes. Never rejects. */
export async function extraCertificates(env: Readonly<Record<string, string | undefined>>, log: Logger): Promise<Uint8Array> {
  const paths = new Set(VARIABLES.map((name) => env[name]).filter((path) => path !== undefined && path !== ""));
  const texts = await Promise.all([...paths].map(async (path) => {
    try {
      return await fs.readFile(path ?? "", "latin1");
    } catch (error) {
      log.warning("certificates of the host cannot be read, and the guest does not get them", { reason: messageOf(error) });
      return "";
    }
  }));
  const { pem, leftOut } = selectCertificates(texts, tls.rootCertificates);
  if (leftOut > 0) log.warning("the host trusts too many certificates for the guest to get them all", { leftOut });
  return Buffer.from(pem, "latin1");
}

/** Each certificate of `texts` once, none of `known`; whole ones only, as many as fit. */
export function selectCertificates(texts: readonly string[], known: readonly string[]): { readonly pem: string; readonly leftOut: number } {
  const seen = new Set(known.flatMap(bodiesOf));
  let pem = "", leftOut = 0;
  for (const body of texts.flatMap(bodiesOf)) {
    if (seen.has(body)) continue;
    seen.add(body);
    const block = `-----BEGIN CERTIFICATE-----\n${body.match(/.{1,64}/g)?.join("\n")}\n-----END CERTIFICATE-----\n`;
    if (pem.length + block.length > STREAM_CREDIT_BYTES) leftOut += 1;
    else pem += block;
  }
  return { pem, leftOut };
}

function bodiesOf(text: string): string[] {
  return [...text.matchAll(BLOCK)].map(([, body = ""]) => body.replace(/\s+/g, "")).filter((body) => body !== "");
}
