/** The catalogs of the images that were built: everyday packages are in them, and misspellings are not. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { PackageNotAllowedError } from "../../src/base/errors.ts";
import { openAssets } from "../../src/images/assets.ts";
import { Catalog } from "../../src/packages/catalog.ts";
import { parsePackages } from "../../src/packages/spec.ts";
import { imagesDirectory, reasonToSkip } from "../support/scheduler.ts";

const options = { skip: reasonToSkip() ?? false };
const EVERYDAY = {
  python: ["requests==2.32.5", "numpy==2.3.5", "pandas==2.3.3", "Flask==3.1.2", "PyYAML==6.0.3", "httpx==0.28.1"],
  javascript: ["lodash@4.17.21", "react@19.2.0", "typescript@5.9.3", "@types/node@24.0.0", "zod@4.1.12"],
} as const;
const MISSPELLED = { python: ["reqeusts==2.32.5", "requests"], javascript: ["lodahs@4.17.21", "lodash"] } as const;

for (const language of ["python", "javascript"] as const) {
  test(`${language}: everyday packages are known, and a misspelling gets the right name`, options, async () => {
    const file = (await openAssets(imagesDirectory())).catalog(language);
    assert.ok(file, "the images have a catalog");
    const catalog = new Catalog(language, readFileSync(file.path, "utf8"));
    assert.ok(catalog.size >= 1_000 && catalog.size <= 10_000, `${catalog.size} names`);
    catalog.check(parsePackages(language, EVERYDAY[language]));
    const [wrong, right] = MISSPELLED[language];
    assert.throws(() => catalog.check(parsePackages(language, [wrong])), (error) => {
      assert.ok(error instanceof PackageNotAllowedError);
      assert.ok(error.hint?.startsWith("Did you mean") && error.hint.includes(right), error.hint);
      return true;
    });
  });
}
