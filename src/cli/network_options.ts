/** Network options: what code may reach, which of its ports can be reached, and what is told of both. */
import fs from "node:fs";
import { messageOf } from "../base/errors.ts";
import type { ExposedPort } from "../base/result.ts";
import type { NetworkEvent } from "../net/events.ts";
import { type Observed, observed } from "../net/observe.ts";
import { checkNetwork, type NetworkFields, type PortRequest } from "../run/network_request.ts";
import type { Input, OptionSpec } from "./command.ts";
import { oneLine, UsageError } from "./failure.ts";
import type { Output } from "./output.ts";

/** The options. */
export const NETWORK_OPTIONS: readonly OptionSpec[] = [
  { long: "network", help: "allow outbound network, but for private and other special addresses; default: none" },
  {
    long: "allow-domain",
    value: "DOMAIN",
    isRepeatable: true,
    help: "allow this domain and nothing else: api.example.com, *.example.com or db.example.com:5432; repeatable",
  },
  {
    long: "expose",
    value: "PORT",
    isRepeatable: true,
    help: "make a port of the VM reachable on 127.0.0.1: PORT[:HOST_PORT][/udp], by default on a free port; repeatable",
  },
  {
    long: "network-log",
    value: "FILE",
    completion: "file",
    help: "append a line of JSON for each name asked for and each connection made or refused",
  },
];

/** Only where code ends. */
export const OBSERVE_OPTION: OptionSpec = {
  long: "network-observe",
  help: "allow outbound network and say at the end which --allow-domain options would have been enough",
};

/** What the options say, checked. */
export interface NetworkOptions {
  /** As fields of a request; those that were not given are absent. */
  readonly fields: Pick<NetworkFields, "allowNetwork" | "allowedDomains" | "exposePorts">;
  readonly logPath: string | undefined;
  readonly isObserved: boolean;
}

/** Reads the options. Throws `UsageError`, `InputValidationError` for a domain, `VmConfigError` for a port. */
export function parseNetworkOptions(input: Input, { hasObserve = false, sourceCount = 1 } = {}): NetworkOptions {
  const domains = input.values("allow-domain"), ports = input.values("expose").map(parseExpose);
  const isObserved = hasObserve && input.has("network-observe");
  if (isObserved && domains.length > 0) {
    throw new UsageError("Cannot observe the network: --network-observe and --allow-domain exclude each other");
  }
  const fields = {
    ...(input.has("network") || isObserved ? { allowNetwork: true } : {}),
    ...(domains.length > 0 ? { allowedDomains: domains } : {}),
    ...(ports.length > 0 ? { exposePorts: ports } : {}),
  };
  checkNetwork("run", fields);
  const fixed = ports.find(({ external }) => external !== undefined);
  if (fixed && sourceCount > 1) {
    throw new UsageError(
      `Cannot set --expose: with ${sourceCount} sources host ports must be left free, got ${fixed.internal}:${fixed.external}`,
    );
  }
  return { fields, logPath: input.value("network-log"), isObserved };
}

/** `INTERNAL[:EXTERNAL][/tcp|udp]`. */
function parseExpose(text: string): PortRequest {
  const [, internal, external, protocol] = /^(\d{1,6})(?::(\d{1,6}))?(?:\/(tcp|udp))?$/.exec(text) ?? [];
  if (internal === undefined) {
    throw new UsageError(`Cannot set --expose: must be PORT, PORT:HOST_PORT, either with /tcp or /udp, got ${JSON.stringify(text)}`);
  }
  return {
    internal: Number(internal),
    ...(external === undefined ? {} : { external: Number(external) }),
    ...(protocol === undefined ? {} : { protocol: protocol as "tcp" | "udp" }),
  };
}

/** Tells of what VMs do on the network: into the log, and at the end. */
export class NetworkWatch implements Disposable {
  readonly #events: NetworkEvent[] = [];
  readonly #isObserved: boolean;
  #log: number | undefined;
  #failure: unknown;

  /** Opens the log. Throws `UsageError` when it cannot. */
  constructor({ logPath, isObserved }: NetworkOptions) {
    this.#isObserved = isObserved;
    if (logPath === undefined) return;
    try {
      this.#log = fs.openSync(logPath, "a", 0o600);
    } catch (cause) {
      throw new UsageError(`Cannot set --network-log: the file must be one that can be written: ${messageOf(cause)}`, { cause });
    }
  }

  /** For requests; empty where nobody wants to know. */
  get hooks(): Pick<NetworkFields, "onNetworkEvent"> {
    if (this.#log === undefined && !this.#isObserved) return {};
    return { onNetworkEvent: (event) => this.#take(event) };
  }

  /** What was needed so far; undefined unless that was asked for. */
  get observed(): Observed | undefined {
    return this.#isObserved ? observed(this.#events) : undefined;
  }

  /** Why the log is not whole. */
  get failure(): string | undefined {
    return this.#failure === undefined ? undefined : `The network log is not whole: ${messageOf(this.#failure)}`;
  }

  [Symbol.dispose](): void {
    if (this.#log !== undefined) fs.closeSync(this.#log);
    this.#log = undefined;
  }

  #take(event: NetworkEvent): void {
    if (this.#isObserved) this.#events.push(event);
    if (this.#log === undefined || this.#failure !== undefined) return;
    try {
      fs.writeSync(this.#log, `${JSON.stringify(eventJson(event))}\n`);
    } catch (error) {
      this.#failure = error; // Such as a full disk: the code goes on.
    }
  }
}

/** An event with the field names of the command line. */
export function eventJson(event: NetworkEvent): Record<string, unknown> {
  const { sentBytes, receivedBytes, durationMs, count, ...others } = event;
  const numbers = { sent_bytes: sentBytes, received_bytes: receivedBytes, duration_ms: durationMs };
  return { ...others, ...numbers, ...(count === undefined ? {} : { count }) };
}

/** What was observed, for people: options to copy. */
export function observedText({ domains, others }: Observed): string {
  const options = domains.map((domain) => `--allow-domain ${domain}`).join(" ");
  const lines = [domains.length === 0 ? "No name was connected to: no --allow-domain is needed" : `This was enough: ${oneLine(options)}`];
  if (others.length > 0) lines.push(`No allowlist gives: ${oneLine(others.join(", "))}`);
  return `${lines.join("\n")}\n`;
}

/** Where ports are, for people. */
export function exposedText(ports: readonly ExposedPort[]): string {
  return ports.map(({ internal, protocol, url }) => `port ${internal}${protocol === "udp" ? "/udp" : ""} → ${url}\n`).join("");
}

/** Ports as `--json` prints them. */
export function exposedJson(ports: readonly ExposedPort[]): Array<Record<string, unknown>> {
  return ports.map(({ internal, external, host, url }) => ({ internal, external, host, url }));
}

/** Says at once where the ports are: a server may run for long. `index` is that of the source where there are several. */
export function tellExposed(
  stderr: Output,
  ports: readonly ExposedPort[],
  { isJson, index }: { readonly isJson: boolean; readonly index?: number | undefined },
): void {
  stderr.startLine();
  if (!isJson) return stderr.write(exposedText(ports));
  stderr.write(
    `${JSON.stringify({ event: "exposed_ports", ...(index === undefined ? {} : { index }), exposed_ports: exposedJson(ports) })}\n`,
  );
}
