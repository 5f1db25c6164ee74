/** cpio: packs the initial RAM disk (format "newc", which the kernel unpacks). Pure. */
import { Buffer } from "node:buffer";

const MAGIC = "070701";
const TRAILER = "TRAILER!!!";
const ARCHIVE_ALIGNMENT = 512;

/** File types and permissions, as `stat` has them. */
export const MODE = { directory: 0o040755, program: 0o100755, characterDevice: 0o020600 } as const;

/** One member of the archive. */
export interface CpioEntry {
  /** Without a leading slash. */
  readonly name: string;
  readonly mode: number;
  readonly data?: Uint8Array;
  /** Major and minor number of a device. */
  readonly device?: readonly [number, number];
}

/** The archive of `entries`, in their order. Owner root, time 0: the same entries give the same bytes. */
export function packCpio(entries: readonly CpioEntry[]): Uint8Array {
  const parts: Buffer[] = [];
  entries.forEach((entry, index) => parts.push(...member(entry, index + 1)));
  parts.push(...member({ name: TRAILER, mode: 0 }, 0));
  const archive = Buffer.concat(parts);
  return Buffer.concat([archive, Buffer.alloc((ARCHIVE_ALIGNMENT - archive.length % ARCHIVE_ALIGNMENT) % ARCHIVE_ALIGNMENT)]);
}

function member(entry: CpioEntry, inode: number): Buffer[] {
  const name = Buffer.from(entry.name + "\0");
  const data = Buffer.from(entry.data ?? new Uint8Array());
  const [major, minor] = entry.device ?? [0, 0];
  const links = (entry.mode & 0o170000) === 0o040000 ? 2 : 1;
  // Fields: inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), length of the name, checksum.
  const fields = [inode, entry.mode, 0, 0, links, 0, data.length, 0, 0, major, minor, name.length, 0];
  const header = Buffer.from(MAGIC + fields.map((field) => field.toString(16).padStart(8, "0")).join(""));
  return [padded(Buffer.concat([header, name])), padded(data)];
}

function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc((4 - bytes.length % 4) % 4)]);
}
