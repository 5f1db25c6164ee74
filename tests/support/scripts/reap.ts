/** Script: reaps a journal and says how many processes it ended. Arguments: root. */
import process from "node:process";
import { silentLogger } from "../../../src/base/log.ts";
import { reap } from "../../../src/vm/journal.ts";

process.stdout.write(`ended ${await reap(process.argv[2] ?? "", silentLogger())}\n`, () => process.exit(0));
