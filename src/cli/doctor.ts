/** `sbx doctor`: what this host has of what sbx needs, and what mends the rest. */
import type { Command, Input } from "./command.ts";
import type { CliContext } from "./context.ts";
import { findingsJson, isFit, runChecks, writeFinding } from "./doctor_report.ts";
import { EXIT } from "./failure.ts";
import { writeJson } from "./result_json.ts";

/** The command. */
export const doctor: Command = {
  name: "doctor",
  summary: "check accelerator, QEMU, images, confinement, cgroups and network; say what mends what is missing",
  options: [{ long: "json", help: "print machine-readable findings" }],
  examples: [["sbx doctor", "a table; the exit status is 1 when something required is missing"]],
  run: execute,
};

async function execute(context: CliContext, input: Input): Promise<number> {
  const { stdout, stderr, signal } = context;
  const isJson = input.has("json");
  await using host = await context.doctorChecks();
  const { checks } = host;
  const nameWidth = Math.max(...checks.map((check) => check.name.length));
  const findings = await runChecks(checks, signal, (finding) => {
    if (!isJson) writeFinding(stdout, finding, nameWidth);
  });
  signal.throwIfAborted();
  if (isJson) writeJson(stdout, findingsJson(findings));
  else if (!isFit(findings)) stderr.write("Something required is missing: sbx cannot run code on this host yet.\n");
  return isFit(findings) ? EXIT.ok : EXIT.failed;
}
