/** REPL network: the command that shows what code at a prompt may reach, and changes it while the VM lives. */
import type { NetworkAccess } from "../run/network_request.ts";
import type { CliSession } from "./context.ts";
import { oneLine, UsageError } from "./failure.ts";
import { exposedText } from "./network_options.ts";
import type { ReplWorld } from "./repl_command.ts";
import { note } from "./repl_run.ts";
import { nearest } from "./repl_words.ts";

/** What may follow `:network`. */
export const NETWORK_WORDS: readonly string[] = ["off", "on", "allow"];

/** `:network [off|on|allow DOMAIN…]`. Connections that are not allowed any more are cut. */
export async function network([word, ...domains]: readonly string[], { vm, stdout, stderr, signal }: ReplWorld): Promise<void> {
  if (word === undefined) {
    const session = await vm.session(signal);
    stdout.startLine();
    return stdout.write(`network: ${accessText(session.networkAccess)}\n${exposedText(session.exposedPorts)}`);
  }
  checkWords(word, domains);
  const session = await vm.session(signal);
  const access = accessOf(word, domains, session);
  await session.updateNetwork(access);
  // Another VM in place of this one must not reach more, nor less.
  vm.setAccess(access);
  note(stderr, `network: ${accessText(session.networkAccess)}`);
}

function checkWords(word: string, domains: readonly string[]): void {
  if (!NETWORK_WORDS.includes(word)) {
    const near = nearest(word, NETWORK_WORDS);
    throw new UsageError(`Cannot change the network: must be one of ${NETWORK_WORDS.join(", ")}, got ${JSON.stringify(word)}`, {
      hint: near === undefined ? ":network allow DOMAIN allows a domain." : `Did you mean :network ${near}?`,
    });
  }
  if (word === "allow" && domains.length === 0) {
    throw new UsageError("Cannot change the network: wanted :network allow DOMAIN…", {
      hint: ":network on allows everything but private and other special addresses.",
    });
  }
  if (word !== "allow" && domains.length > 0) {
    throw new UsageError(`Cannot change the network: nothing may follow :network ${word}, got ${JSON.stringify(domains.join(" "))}`, {
      hint: ":network allow DOMAIN… allows domains.",
    });
  }
}

/** Domains are added to those that are allowed; in place of everything, or nothing, they are all. */
function accessOf(word: string, domains: readonly string[], { networkAccess: { allowedDomains = [] } }: CliSession): NetworkAccess {
  if (word === "allow") return { allowedDomains: [...new Set([...allowedDomains, ...domains])] };
  return { allowNetwork: word === "on" };
}

/** What may be reached, in words. */
function accessText({ allowNetwork, allowedDomains }: NetworkAccess): string {
  if (!allowedDomains) return allowNetwork === true ? "on, but for private and other special addresses" : "off";
  return allowedDomains.length === 0 ? "off, for no domain is allowed" : `${oneLine(allowedDomains.join(", "))} and nothing else`;
}
