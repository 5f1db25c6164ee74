/** Script: opens a journal, says its token, and closes it when told. Arguments: root. */
import process from "node:process";
import { silentLogger } from "../../../src/base/log.ts";
import { Journal } from "../../../src/vm/journal.ts";

{
  await using journal = await Journal.open(process.argv[2] ?? "", silentLogger());
  process.stdout.write(`${journal.token}\nopen\n`);
  await new Promise((resolve) => process.stdin.once("data", resolve));
}
process.stdout.write("closed\n", () => process.exit(0));
