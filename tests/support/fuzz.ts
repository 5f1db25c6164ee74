/** Fuzzing: how many inputs a property gets, and inputs that are nearly right. `SBX_FUZZ_RUNS=100000` makes it run long. */
import process from "node:process";
import fc from "fast-check";

/** Parameters of a property that gets `few` inputs in an everyday run. */
export function fuzzRuns(few: number): { numRuns: number } {
  return { numRuns: Number(process.env["SBX_FUZZ_RUNS"]) || few };
}

/** An entry of `corpus` with some bytes changed, removed or put in. */
export function mutations(corpus: readonly Uint8Array[]): fc.Arbitrary<Uint8Array> {
  const edit = fc.record({
    kind: fc.constantFrom("set", "delete", "insert", "cut"),
    at: fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }),
    bytes: fc.uint8Array({ minLength: 1, maxLength: 8 }),
  });
  return fc.tuple(fc.constantFrom(...corpus), fc.array(edit, { maxLength: 4 })).map(([seed, edits]) => {
    let bytes = [...seed];
    for (const { kind, at: part, bytes: given } of edits) {
      const at = Math.floor(part * bytes.length);
      if (kind === "cut") bytes = bytes.slice(0, at);
      else bytes.splice(at, kind === "insert" ? 0 : given.length, ...(kind === "delete" ? [] : given));
    }
    return Uint8Array.from(bytes);
  });
}

/** `bytes` in pieces, cut at any places. */
export function pieces(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const at = [0, ...cuts.map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return at.slice(1).map((end, index) => bytes.slice(at[index], end)).filter((piece) => piece.length > 0);
}

/** Bytes of hexadecimal text. */
export function fromHex(hex: string): Uint8Array {
  return Uint8Array.from(hex.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}
