/** cpio: the archive is what the newc format says, byte for byte. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import test from "node:test";
import fc from "fast-check";
import { type CpioEntry, MODE, packCpio } from "../../../src/images/cpio.ts";

interface Member {
  name: string;
  mode: number;
  data: string;
  device: [number, number];
  owner: [number, number];
  mtime: number;
}

/** Reads an archive by the format's description, independently of the code that writes it. */
function unpack(archive: Uint8Array): Member[] {
  const bytes = Buffer.from(archive), members: Member[] = [];
  for (let at = 0;;) {
    assert.equal(bytes.toString("latin1", at, at + 6), "070701");
    const field = (index: number) => parseInt(bytes.toString("latin1", at + 6 + index * 8, at + 14 + index * 8), 16);
    const name = bytes.toString("utf8", at + 110, at + 110 + field(11) - 1);
    assert.equal(bytes[at + 110 + field(11) - 1], 0);
    if (name === "TRAILER!!!") return members;
    const start = Math.ceil((at + 110 + field(11)) / 4) * 4, size = field(6);
    members.push({
      name,
      mode: field(1),
      data: bytes.toString("latin1", start, start + size),
      device: [field(9), field(10)],
      owner: [field(2), field(3)],
      mtime: field(5),
    });
    at = Math.ceil((start + size) / 4) * 4;
  }
}

test("directories, devices and programs come out as they went in, owned by root at time 0", () => {
  const archive = packCpio([
    { name: "dev", mode: MODE.directory },
    { name: "dev/console", mode: MODE.characterDevice, device: [5, 1] },
    { name: "init", mode: MODE.program, data: Buffer.from("#!/bin/true\n") },
  ]);
  assert.equal(archive.length % 512, 0);
  assert.deepEqual(unpack(archive), [
    { name: "dev", mode: 0o040755, data: "", device: [0, 0], owner: [0, 0], mtime: 0 },
    { name: "dev/console", mode: 0o020600, data: "", device: [5, 1], owner: [0, 0], mtime: 0 },
    { name: "init", mode: 0o100755, data: "#!/bin/true\n", device: [0, 0], owner: [0, 0], mtime: 0 },
  ]);
});

test("any names and contents survive, whatever their length", () => {
  const entry = fc.record({ name: fc.stringMatching(/^[a-z]{1,40}$/), data: fc.uint8Array({ maxLength: 40 }) });
  fc.assert(fc.property(fc.array(entry, { maxLength: 5 }), (entries) => {
    const packed = packCpio(entries.map((each): CpioEntry => ({ ...each, mode: MODE.program })));
    const expected = entries.map(({ name, data }) => [name, Buffer.from(data).toString("latin1")]);
    assert.deepEqual(unpack(packed).map(({ name, data }) => [name, data]), expected);
  }));
});
