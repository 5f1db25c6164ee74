/** Layers: inputs, contents and installations of package layers, for tests that need no packages. */
import { writeFileSync } from "node:fs";
import type { LayerInputs } from "../../src/packages/layer_key.ts";
import { layerInputs } from "../../src/packages/layer_key.ts";
import type { LayerPlace } from "../../src/packages/layer_store.ts";
import type { ResolvedSet } from "../../src/packages/layer_files.ts";
import { parsePackages } from "../../src/packages/spec.ts";

/** What an installation of `INPUTS` resolves to. */
export const SET: ResolvedSet = {
  packages: [{ name: "idna", version: "3.10", hashes: [`sha256:${"1".repeat(64)}`] }, { name: "requests", version: "2.32.5", hashes: [] }],
  details: { modules: ["idna", "requests"] },
};

/** Inputs of a layer with these packages. */
export function inputsOf(...packages: readonly string[]): LayerInputs {
  return layerInputs({
    language: "python",
    arch: "x86_64",
    image: "a".repeat(64),
    runtime: { python: "3.14.2" },
    packages: parsePackages("python", packages.length === 0 ? ["requests==2.32.5"] : packages),
  });
}

/** Bytes that pass for an EROFS, with `text` at their beginning; always the same, and hard to pack. */
export function erofs(text: string, byteCount = 8192): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(byteCount);
  for (let at = 0, state = 1; at < byteCount; at++) bytes[at] = (state = Math.imul(state, 1_664_525) + 1_013_904_223) >>> 24;
  bytes.set(new TextEncoder().encode(text));
  new DataView(bytes.buffer).setUint32(1024, 0xe0f5e1e2, true);
  return bytes;
}

/** An installation that leaves `text` in the layer. */
export function installing(text = "layer", byteCount?: number): (place: LayerPlace) => Promise<ResolvedSet> {
  return (place) => {
    writeFileSync(place.layerFile, erofs(text, byteCount));
    return Promise.resolve(SET);
  };
}
