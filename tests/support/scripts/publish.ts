/** Script: stages a directory, says `staged`, publishes it when told, and says whose content is there. Arguments: parent, target, content. */
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { StagedDirectory } from "../../../src/host/files.ts";

const [parent = "", target = "", content = ""] = process.argv.slice(2);
{
  await using staged = await StagedDirectory.create(parent);
  writeFileSync(path.join(staged.path, "file"), content);
  process.stdout.write("staged\n");
  await new Promise((resolve) => process.stdin.once("data", resolve));
  await staged.publish(target);
  process.stdout.write(`sees ${readFileSync(path.join(target, "file"), "utf8")}\n`);
}
process.exit(0);
