/** Mapped RAM: where QEMU's migration format of that name has the guest's memory. Pure; the file was written by a QEMU that a guest may have taken over. */
import { Buffer } from "node:buffer";

/** The bytes before the first page, all that has to be read to find it. */
export const MAPPED_RAM_HEAD_BYTES = 2 ** 20;
const PAGE_BYTES = 4096;
const HEADER_VERSION = 1;
/** Version, page size, offset of the bitmap, offset of the pages. */
const HEADER_BYTES = 4 + 3 * 8;

/** One block of memory in the file. */
export interface MappedRam {
  /** One bit for each page, 1 when it is in the file. A page whose bit is 0 is all zeros, whatever the file has in its place. */
  readonly bitmapOffset: number;
  readonly bitmapBytes: number;
  /** Page n is at `pagesOffset + n * 4096`. */
  readonly pagesOffset: number;
  readonly ramBytes: number;
}

/** The guest's memory in a file that begins with `head`. Undefined when there is none that makes sense. */
export function findMappedRam(head: Uint8Array, block: { readonly name: string; readonly bytes: number }): MappedRam | undefined {
  const bytes = asBuffer(head), wanted = Buffer.alloc(1 + block.name.length + 8);
  wanted.writeUInt8(block.name.length, 0);
  wanted.write(block.name, 1, "latin1");
  wanted.writeBigUInt64BE(BigInt(block.bytes), 1 + block.name.length);
  const at = bytes.indexOf(wanted), ram = at < 0 ? undefined : readBlock(bytes, at);
  return ram && ram.pagesOffset <= MAPPED_RAM_HEAD_BYTES ? ram : undefined;
}

/**
 * One block's description: its name with a length byte before it, its size, and the header (QEMU's `migration/ram.c`,
 * `mapped_ram_setup_ramblock`), big endian.
 */
function readBlock(bytes: Buffer, at: number): MappedRam | undefined {
  const nameBytes = bytes[at] ?? 0, headerAt = at + 1 + nameBytes + 8;
  if (nameBytes === 0 || headerAt + HEADER_BYTES > bytes.length) return undefined;
  const ramBytes = Number(bytes.readBigUInt64BE(headerAt - 8)), version = bytes.readUInt32BE(headerAt);
  const [pageBytes = 0, bitmapOffset = 0, pagesOffset = 0] = [4, 12, 20].map((field) => Number(bytes.readBigUInt64BE(headerAt + field)));
  const bitmapBytes = Math.ceil(ramBytes / PAGE_BYTES / 64) * 8;
  const isSound = version === HEADER_VERSION && pageBytes === PAGE_BYTES && ramBytes % PAGE_BYTES === 0 && pagesOffset % PAGE_BYTES === 0 &&
    bitmapOffset >= headerAt + HEADER_BYTES && pagesOffset >= bitmapOffset + bitmapBytes &&
    Number.isSafeInteger(pagesOffset + ramBytes);
  return isSound ? { bitmapOffset, bitmapBytes, pagesOffset, ramBytes } : undefined;
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
