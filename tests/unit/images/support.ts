/** Small images directories for tests of what reads, verifies and publishes them. */
import { createHash } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { type Manifest, ROOT_IMAGE_NAMES } from "../../../src/images/assets.ts";

/** Hash of a text or bytes in lower-case hex. */
export const sha256 = (data: string | Uint8Array) => createHash("sha256").update(data).digest("hex");

/** Files of a whole set, with contents that differ by `mark`. */
export function smallFiles(mark = ""): Record<string, string> {
  const files: Record<string, string> = {};
  for (const name of ["vmlinux-sbx", "initrd-sbx.cpio", "qemu-sbx", "qboot.rom", "sbx-jail", ...Object.values(ROOT_IMAGE_NAMES)]) {
    files[name] = `content of ${name} ${mark}\n`.repeat(20);
  }
  return files;
}

const KINDS: Record<string, Manifest["files"][string]["kind"]> = {
  "vmlinux-sbx": "kernel",
  "initrd-sbx.cpio": "initrd",
  "qemu-sbx": "qemu",
  "qboot.rom": "firmware",
  "sbx-jail": "jail",
};

/** The manifest that describes `files`. */
export function manifestOf(files: Record<string, string>): Manifest {
  const entries: Manifest["files"] = {};
  for (const [name, text] of Object.entries(files)) {
    const language = (["python", "javascript", "raw"] as const).find((candidate) => ROOT_IMAGE_NAMES[candidate] === name);
    entries[name] = {
      size: text.length,
      sha256: sha256(text),
      kind: KINDS[name] ?? "rootfs",
      versions: { made: "1" },
      ...(language ? { language } : {}),
    };
  }
  return { schema: 1, version: "0.1.0", arch: "x86_64", files: entries };
}

/** Writes `files` into `directory`, without a manifest; returns name → path. */
export function writeFiles(directory: string, files: Record<string, string>): Map<string, string> {
  mkdirSync(directory, { recursive: true });
  const places = new Map<string, string>();
  for (const [name, text] of Object.entries(files)) {
    writeFileSync(path.join(directory, name), text);
    places.set(name, path.join(directory, name));
  }
  return places;
}

/** Writes a whole images directory, as a plain directory. */
export function writeImages(directory: string, files = smallFiles()): Record<string, string> {
  writeFiles(directory, files);
  writeFileSync(path.join(directory, "manifest.json"), JSON.stringify(manifestOf(files)));
  return files;
}
