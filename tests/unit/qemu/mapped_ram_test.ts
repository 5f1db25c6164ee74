/** Mapped RAM: where the guest's memory is in a file of QEMU's, and that nothing a file says is believed unseen. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import test from "node:test";
import fc from "fast-check";
import { findMappedRam, MAPPED_RAM_HEAD_BYTES } from "../../../src/qemu/mapped_ram.ts";

const RAM_BYTES = 256 * 2 ** 20;
const BLOCK = { name: "ram", bytes: RAM_BYTES };

/** The head of a file: something else, the block's description as QEMU 10 writes it, and what follows. */
function headOf(change: Partial<Record<"version" | "pageBytes" | "bitmapOffset" | "pagesOffset", number>> = {}, before = 57): Buffer {
  const { version = 1, pageBytes = 4096, bitmapOffset = 104, pagesOffset = MAPPED_RAM_HEAD_BYTES } = change;
  const bytes = Buffer.alloc(MAPPED_RAM_HEAD_BYTES, 0xee);
  let at = before;
  at = bytes.writeUInt8(3, at);
  at += bytes.write("ram", at, "latin1");
  at = bytes.writeBigUInt64BE(BigInt(RAM_BYTES), at);
  at = bytes.writeUInt32BE(version, at);
  for (const value of [pageBytes, bitmapOffset, pagesOffset]) at = bytes.writeBigUInt64BE(BigInt(value), at);
  return bytes;
}

test("mapped RAM: the block of that name and size is found wherever it stands", () => {
  for (const before of [0, 57, 60]) {
    assert.deepEqual(findMappedRam(headOf({ bitmapOffset: before + 47 }, before), BLOCK), {
      bitmapOffset: before + 47,
      bitmapBytes: 8192,
      pagesOffset: MAPPED_RAM_HEAD_BYTES,
      ramBytes: RAM_BYTES,
    });
  }
});

test("mapped RAM: another name, size, version or page size, and places that cannot be, are no memory", () => {
  assert.ok(findMappedRam(headOf(), BLOCK));
  assert.equal(findMappedRam(headOf(), { name: "rom", bytes: RAM_BYTES }), undefined);
  assert.equal(findMappedRam(headOf(), { name: "ram", bytes: RAM_BYTES / 2 }), undefined);
  for (
    const change of [
      { version: 2 },
      { pageBytes: 65_536 },
      { bitmapOffset: 12 },
      { bitmapOffset: MAPPED_RAM_HEAD_BYTES - 8 },
      { pagesOffset: 104 },
      { pagesOffset: MAPPED_RAM_HEAD_BYTES - 1 },
      { pagesOffset: 2 * MAPPED_RAM_HEAD_BYTES },
      { pagesOffset: Number.MAX_SAFE_INTEGER },
    ]
  ) assert.equal(findMappedRam(headOf(change), BLOCK), undefined, JSON.stringify(change));
  assert.equal(findMappedRam(headOf().subarray(0, 80), BLOCK), undefined, "it ends within the description");
});

test("mapped RAM: whatever a file has, what is found lies within the head and in order", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), fc.nat(300), fc.boolean(), (noise, at, isBlock) => {
    const head = isBlock ? headOf() : Buffer.alloc(MAPPED_RAM_HEAD_BYTES);
    head.set(noise, at);
    const found = findMappedRam(head, BLOCK);
    if (!found) return;
    assert.equal(found.ramBytes, RAM_BYTES);
    assert.ok(found.bitmapOffset + found.bitmapBytes <= found.pagesOffset && found.pagesOffset <= MAPPED_RAM_HEAD_BYTES);
  }));
});
