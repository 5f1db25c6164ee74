/** Package requests: which packages a VM is to have, and the check before anything starts. */
import { type PackageLanguage, type PackageSpec, parsePackages } from "../packages/spec.ts";
import { checkFlag } from "./check.ts";

/** A VM's packages, as part of a request. */
export interface PackageFields {
  /**
   * Packages that the VM has, at most 50, each a full pin: `requests==2.32.5` (Python), `lodash@4.17.21` (JavaScript). Installed once, with
   * all that they need; later VMs are cloned from a template that has them.
   */
  readonly packages?: readonly string[];
  /**
   * Python: the template has imported the packages' modules, so that importing them takes no time. Not where the request has `env`, which modules
   * may read when they are imported. Default true.
   */
  readonly preload?: boolean;
}

/** The names of the fields. */
export const PACKAGE_FIELDS: ReadonlyArray<keyof PackageFields> = ["packages", "preload"];

/** What a VM has besides its language. */
export interface PackageSet {
  readonly language: PackageLanguage;
  /** Each once, sorted by name; at least one. */
  readonly packages: readonly PackageSpec[];
  readonly isPreloaded: boolean;
}

/** The packages of a request; undefined where there are none. Throws `PackageNotAllowedError`, or `InputValidationError` for what is no list. */
export function checkPackages(
  action: string,
  request: PackageFields,
  { language, hasEnv }: { readonly language: string; readonly hasEnv: boolean },
): PackageSet | undefined {
  const packages = parsePackages(language, request.packages ?? []);
  const isPreloaded = checkFlag(action, "preload", request.preload, true) && language === "python" && !hasEnv;
  if (packages.length === 0 || (language !== "python" && language !== "javascript")) return undefined;
  return { language, packages, isPreloaded };
}
