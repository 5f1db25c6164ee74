/** Packs the sources of an image build into `dist/sources.pack`, which a compiled program carries. */
import fs from "node:fs/promises";
import path from "node:path";
import { PACK_NAME, packSources } from "../src/images/sources.ts";

const root = path.resolve(import.meta.dirname ?? ".", "..");
await fs.mkdir(path.join(root, "dist"), { recursive: true });
await fs.writeFile(path.join(root, "dist", PACK_NAME), JSON.stringify(await packSources(root)));
