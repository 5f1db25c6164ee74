/** Registries: where packages come from, as the host's own package managers are told, else as the images have it. */
import fs from "node:fs/promises";
import path from "node:path";
import { shown, VmConfigError } from "../base/errors.ts";
import type { PackageLanguage } from "./spec.ts";

/** What is known of the host. */
export interface RegistryHost {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** The user's home directory. */
  readonly home: string;
}

/** Where packages of one language come from. */
export interface Registry {
  /** Of the index (Python) or registry (JavaScript). */
  readonly url: string;
  /** The host's user has set it; otherwise it is the installer's own. */
  readonly isSet: boolean;
}

/** A place in which a package manager looks, and what it finds there. */
type Source = { readonly variable: string } | { readonly file: string | undefined; readonly pattern: RegExp };

/**
 * The registry of `language`: what the environment says, then the files, in the order of the package managers themselves; `fallback`, the
 * installer's own, where neither says anything. Throws `VmConfigError` for what is no web address.
 */
export async function findRegistry(language: PackageLanguage, host: RegistryHost, fallback: string | undefined): Promise<Registry> {
  for (const source of language === "python" ? pythonSources(host) : javascriptSources(host)) {
    const url = "variable" in source ? host.env[source.variable] : await readSetting(source);
    if (url) return { url: checkAddress(url.trim(), "variable" in source ? source.variable : source.file ?? ""), isSet: true };
  }
  if (fallback !== undefined) return { url: fallback, isSet: false };
  throw new VmConfigError(`Cannot install packages: the ${language} image does not say where they come from`, {
    hint: "Build or download the images anew (`sbx images build`, `sbx prefetch`), or set the index in the environment.",
  });
}

function pythonSources({ env, home }: RegistryHost): readonly Source[] {
  const config = env["XDG_CONFIG_HOME"] || path.join(home, ".config");
  const uv = /^\s*index-url\s*=\s*["']([^"']+)["']|^\s*\[\[index\]\][^[]*?^\s*url\s*=\s*["']([^"']+)["'][^[]*?^\s*default\s*=\s*true/m;
  const pip = /^\s*index[-_]url\s*[=:]\s*(\S+)/m;
  return [
    ...["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"].map((variable) => ({ variable })),
    ...[env["UV_CONFIG_FILE"], path.join(config, "uv/uv.toml"), "/etc/uv/uv.toml"].map((file) => ({ file, pattern: uv })),
    ...[env["PIP_CONFIG_FILE"], path.join(config, "pip/pip.conf"), path.join(home, ".pip/pip.conf"), "/etc/pip.conf"]
      .map((file) => ({ file, pattern: pip })),
  ];
}

function javascriptSources({ env, home }: RegistryHost): readonly Source[] {
  const npm = /^\s*registry\s*=\s*["']?([^\s"']+)/m, bun = /^\s*registry\s*=\s*["']([^"']+)["']/m;
  return [
    ...["npm_config_registry", "NPM_CONFIG_REGISTRY", "BUN_CONFIG_REGISTRY"].map((variable) => ({ variable })),
    ...[env["NPM_CONFIG_USERCONFIG"], path.join(home, ".npmrc"), "/etc/npmrc"].map((file) => ({ file, pattern: npm })),
    ...[path.join(env["XDG_CONFIG_HOME"] || home, ".bunfig.toml"), path.join(home, ".bunfig.toml")].map((file) => ({ file, pattern: bun })),
  ];
}

async function readSetting(
  { file, pattern }: { readonly file: string | undefined; readonly pattern: RegExp },
): Promise<string | undefined> {
  if (!file) return undefined;
  const text = await fs.readFile(file, "utf8").catch(() => ""); // Not there, or not for us: it says nothing.
  return pattern.exec(text)?.slice(1).find((group) => group !== undefined);
}

function checkAddress(url: string, source: string): string {
  if (/^https?:\/\//.test(url) && URL.canParse(url)) return url;
  throw new VmConfigError(`Cannot install packages: ${source} must name an index by its http or https address, got ${shown(url)}`);
}
