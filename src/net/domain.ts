/** Domains: names in one spelling, and the rules that a user writes about them. */
import { InputValidationError, shown } from "../base/errors.ts";

/** RFC 1035, without the dot at the end. */
export const NAME_MAX_CHARS = 253;
const LABEL_MAX_CHARS = 63;
/** A rule longer than that is not even looked at. */
const RULE_MAX_CHARS = 1024;
const LABEL = /^[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?$/;

/** What one entry of an allowlist allows. */
export interface DomainRule {
  /** Lower case, ASCII, no dot at the end. */
  readonly name: string;
  /** `*.name`: names below, not `name` itself. */
  readonly isBelowOnly: boolean;
  /** The one TCP port that it opens; undefined: 80 and 443. */
  readonly port: number | undefined;
  /** As it would be written. */
  readonly text: string;
}

/**
 * The one spelling of a host name: lower case, no dot at the end. Undefined for what is none: empty or long labels, other characters, and
 * whatever a program might take for a number of an address (`127.1`, `0x7f.1`, `2130706433`).
 */
export function normalName(text: string): string | undefined {
  const name = (text.endsWith(".") ? text.slice(0, -1) : text).toLowerCase();
  if (name.length === 0 || name.length > NAME_MAX_CHARS) return undefined;
  const labels = name.split(".");
  if (!labels.every((label) => label.length <= LABEL_MAX_CHARS && LABEL.test(label))) return undefined;
  return isNumeric(labels.at(-1) ?? "") ? undefined : name;
}

/** The rule that `text` is. Throws `InputValidationError`; `action` is what cannot be done then. */
export function parseRule(text: unknown, action: string): DomainRule {
  const refuse = (wanted: string) => new InputValidationError(`Cannot ${action}: ${wanted}, got ${shown(text)}`, { hint: RULE_HINT });
  if (typeof text !== "string") throw refuse("an allowed domain must be a string");
  if (text.length > RULE_MAX_CHARS) throw refuse(`an allowed domain must have at most ${NAME_MAX_CHARS} characters`);
  if (text.includes("://") || text.includes("/")) throw refuse("an allowed domain must be a name without scheme and path");
  if (/[[\]]/.test(text) || (text.match(/:/g)?.length ?? 0) > 1) throw refuse("an allowed domain must be a name and no address");
  const [, host = "", portText] = /^([^:]*)(?::(.*))?$/s.exec(text) ?? [];
  const port = portText === undefined ? undefined : portOf(portText);
  if (port === null) throw refuse("the port of an allowed domain must be a whole number between 1 and 65535");
  const isBelowOnly = host.startsWith("*.");
  const bare = isBelowOnly ? host.slice(2) : host;
  if (bare.includes("*")) throw refuse('"*" may only stand for all that is below a name, as in *.example.com');
  const name = ruleName(bare);
  if (typeof name !== "string") throw refuse(name.wanted);
  return { name, isBelowOnly, port, text: `${isBelowOnly ? "*." : ""}${name}${port === undefined ? "" : `:${port}`}` };
}

const RULE_HINT =
  "Write api.example.com (with all below it), *.example.com (only what is below), or db.example.com:5432 (another TCP port).";

/** True when `rule` covers `name`, which is in its normal spelling, whatever the port. */
export function covers(rule: DomainRule, name: string): boolean {
  if (!name.endsWith(rule.name)) return false;
  const before = name.length - rule.name.length;
  return before === 0 ? !rule.isBelowOnly : name[before - 1] === ".";
}

/** What of `name` a guest could choose freely although the rule is there: all before the rule's own name. */
export function freePart(rule: DomainRule, name: string): string {
  return name === rule.name ? "" : name.slice(0, -rule.name.length - 1);
}

function ruleName(text: string): string | { readonly wanted: string } {
  if (text === "" || text === ".") return { wanted: "an allowed domain must not be empty" };
  // deno-lint-ignore no-control-regex
  if (/[\s\x00-\x1f\x7f@?#%\\,;]/.test(text)) return { wanted: "an allowed domain must be one name without spaces and other signs" };
  const ascii = asciiName(text);
  const name = ascii === undefined ? undefined : normalName(ascii);
  if (name === undefined) {
    return isNumeric((text.endsWith(".") ? text.slice(0, -1) : text).split(".").at(-1)?.toLowerCase() ?? "")
      ? { wanted: "an allowed domain must be a name and no address" }
      : { wanted: "an allowed domain must be a valid name: labels of 1 to 63 letters, digits and hyphens, 253 characters in all" };
  }
  if (name.split(".").some((label) => label.startsWith("-") || label.endsWith("-"))) {
    return { wanted: "a label of an allowed domain must not begin or end with a hyphen" };
  }
  if (name === "localhost" || name.endsWith(".localhost")) return { wanted: "an allowed domain must not be this machine's own name" };
  if (!name.includes(".")) return { wanted: "an allowed domain must have at least two labels" };
  return name;
}

/** UTS 46, as browsers do it; undefined where they would refuse the name. */
function asciiName(text: string): string | undefined {
  const name = text.endsWith(".") ? text.slice(0, -1) : text;
  if (/^[\w.-]+$/.test(name) && !/(?:^|\.)xn--/i.test(name)) return name;
  try {
    return new URL(`http://${name}`).hostname;
  } catch {
    return undefined; // Not a name in any script.
  }
}

/** The URL standard's "ends in a number": resolvers and browsers take such a name for an address. */
function isNumeric(label: string): boolean {
  return /^\d+$/.test(label) || /^0x[0-9a-f]*$/.test(label);
}

function portOf(text: string): number | null {
  if (!/^[1-9]\d{0,4}$/.test(text)) return null;
  const port = Number(text);
  return port <= 65535 ? port : null;
}
