/** S3 errors: why a bucket could not be used, from what the SDK, the service and the streams in between throw. */
import { messageOf } from "../base/errors.ts";

/** Why S3 could not be used. */
export type S3Reason =
  | "forbidden"
  | "no-bucket"
  | "no-credentials"
  | "clock"
  | "timeout"
  | "unreachable"
  | "cut-off"
  | "service"
  | "damaged"
  | "no-space"
  | "local";

/** A request that failed for another reason than that there is no such object. */
export class S3Error extends Error {
  /** The class, also in minified programs. */
  override readonly name = "S3Error";

  /** `action` begins the message. */
  constructor(action: string, readonly reason: S3Reason, why: string, options: { readonly cause?: unknown } = {}) {
    super(`Cannot ${action}: ${why}`, options);
  }
}

interface ServiceError {
  readonly name?: string;
  readonly code?: string;
  readonly $metadata?: { readonly httpStatusCode?: number };
}

function statusOf(error: unknown): number | undefined {
  return (error as ServiceError | undefined)?.$metadata?.httpStatusCode;
}

/** There is no such object; a bucket that is missing is another matter. */
export function isMissing(error: unknown): boolean {
  const { name } = error as ServiceError;
  return name === "NoSuchKey" || (statusOf(error) === 404 && name !== "NoSuchBucket");
}

/** There is one, and it is not to be replaced. 412: it is there. 409: somebody else is putting it at this moment. */
export function isTaken(error: unknown): boolean {
  return statusOf(error) === 412 || statusOf(error) === 409;
}

/** An error of this host with one of these codes. */
export function isSystemError(error: unknown, ...codes: readonly string[]): boolean {
  return codes.includes((error as ServiceError).code ?? "");
}

/** What a failure means to whoever has set the bucket. */
export function explained(action: string, error: unknown): S3Error {
  if (error instanceof S3Error) return error;
  const { name = "", code = "" } = error as ServiceError, status = statusOf(error);
  const as = (reason: S3Reason, why: string) => new S3Error(action, reason, why, { cause: error });
  if (isSystemError(error, "ENOSPC", "EDQUOT")) return as("no-space", "no space is left on the disk");
  if (name === "NoSuchBucket") return as("no-bucket", "there is no such bucket");
  if (name === "CredentialsProviderError") return as("no-credentials", "there are no credentials for it");
  if (name === "RequestTimeTooSkewed") return as("clock", "this host's clock and the service's differ too much");
  if (status === 401 || status === 403) return as("forbidden", `the service refuses it (${status} ${name})`);
  if (status !== undefined) return as("service", `the service answers ${status} ${name}`);
  return as("unreachable", messageOf(error) || code || name);
}
