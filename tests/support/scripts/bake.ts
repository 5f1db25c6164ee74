/** Script: finds or bakes a template; says `baking`, `waiting` and `template …`. Arguments: root, key, `go` | `wait` | `fail`. */
import { writeFileSync } from "node:fs";
import process from "node:process";
import { TemplateStore } from "../../../src/vm/template.ts";

const [root = "", key = "", how = "go"] = process.argv.slice(2);
const say = (line: string) => process.stdout.write(`${line}\n`);
try {
  const template = await new TemplateStore(root).findOrBake({ language: "raw", memoryMiB: 1, key }, async ({ ramFile, stateFile }) => {
    writeFileSync(ramFile, `baked by ${process.pid}`, { flag: "r+" });
    say("baking");
    if (how === "fail") throw new Error("the bake failed");
    if (how === "wait") await new Promise((resolve) => process.stdin.once("data", resolve));
    writeFileSync(stateFile, "state");
    return "boot log";
  }, { onWait: (pid) => say(`waiting for ${pid}`) });
  say(`template ${template.bakeId}`);
} catch (error) {
  say(`failed: ${(error as Error).message}`);
}
process.exit(0);
