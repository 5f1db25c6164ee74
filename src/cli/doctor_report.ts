/** Doctor's report: checks, how they are run, and how people and programs read what they found. */
import { abortable, Deadline } from "../base/async.ts";
import { messageOf, SandboxError } from "../base/errors.ts";
import type { Output } from "./output.ts";
import { oneLine } from "./failure.ts";

/** What one check may take; a canary boot has a shorter deadline of its own. */
const CHECK_TIMEOUT_MS = 60_000;

/** What a check found. */
export interface CheckResult {
  readonly status: "ok" | "missing";
  /** What was found, and what it means where something is missing. */
  readonly detail: string;
  /** What mends it, best a command. */
  readonly hint?: string;
}

/** One thing that sbx needs, or is better with. */
export interface Check {
  readonly name: string;
  /** Without it nothing runs. */
  readonly isRequired: boolean;
  /** A check that throws counts as missing, with the error's message and hint. */
  run(signal: AbortSignal): Promise<CheckResult>;
}

/** Checks that share findings, and with them processes; disposing ends those. */
export interface DoctorChecks extends AsyncDisposable {
  /** In the order of the report. */
  readonly checks: readonly Check[];
}

/** A check with what it found. */
export interface Finding extends CheckResult {
  readonly name: string;
  readonly isRequired: boolean;
}

/** Runs all checks side by side and hands the findings over in the order of `checks`. */
export async function runChecks(checks: readonly Check[], signal: AbortSignal, onFinding: (finding: Finding) => void): Promise<Finding[]> {
  const running = checks.map((check) => runCheck(check, signal));
  const findings: Finding[] = [];
  for (const next of running) {
    const finding = await next;
    findings.push(finding);
    onFinding(finding);
  }
  return findings;
}

async function runCheck({ name, isRequired, run }: Check, signal: AbortSignal): Promise<Finding> {
  using deadline = new Deadline(CHECK_TIMEOUT_MS, () => new Error(`no answer within ${CHECK_TIMEOUT_MS / 1000} s`));
  try {
    const ending = AbortSignal.any([signal, deadline.signal]);
    return { name, isRequired, ...await abortable(run(ending), ending) };
  } catch (error) {
    const hint = SandboxError.is(error) ? error.hint : undefined;
    return { name, isRequired, status: "missing", detail: messageOf(error), ...(hint === undefined ? {} : { hint }) };
  }
}

/** Is everything there that sbx cannot do without? */
export function isFit(findings: readonly Finding[]): boolean {
  return findings.every((finding) => finding.status === "ok" || !finding.isRequired);
}

/** Writes one row of the table, and below it what would mend what is missing. */
export function writeFinding(stdout: Output, finding: Finding, nameWidth: number): void {
  const isBad = finding.status === "missing" && finding.isRequired;
  const color = finding.status === "ok" ? "32" : isBad ? "31" : "33";
  const status = finding.status.padEnd(7);
  const shown = stdout.hasColor ? `\x1b[${color}m${status}\x1b[0m` : status;
  const need = finding.isRequired ? "required" : "optional";
  stdout.write(`${shown}  ${need}  ${finding.name.padEnd(nameWidth)}  ${oneLine(finding.detail)}\n`);
  if (finding.status === "missing" && finding.hint !== undefined) {
    stdout.write(`${" ".repeat(7 + 2 + 8 + 2 + nameWidth)}  → ${oneLine(finding.hint)}\n`);
  }
}

/** The findings as `--json` prints them. */
export function findingsJson(findings: readonly Finding[]): Record<string, unknown> {
  return {
    ok: isFit(findings),
    checks: findings.map(({ name, isRequired, status, detail, hint }) => ({
      name,
      required: isRequired,
      status,
      detail,
      hint: hint ?? null,
    })),
  };
}
