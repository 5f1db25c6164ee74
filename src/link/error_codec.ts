/** Error codec: errors of this library as they cross the private socket, and back. */
import {
  AssetError,
  CommunicationError,
  InputValidationError,
  messageOf,
  type Retry,
  SandboxDependencyError,
  SandboxError,
  type SandboxErrorOptions,
  SessionClosedError,
  SnapshotError,
  SocketAuthError,
  VmCapacityError,
  VmConfigError,
  VmTimeoutError,
} from "../base/errors.ts";

/** An error on the wire. */
export interface ErrorMessage {
  readonly code: string;
  readonly message: string;
  readonly retry: Retry;
  readonly hint?: string | undefined;
}

const MESSAGE_MAX_CHARS = 4_000;

/** Those that starting a VM can end with. */
const CLASSES: Readonly<Record<string, new (message: string, options: SandboxErrorOptions) => SandboxError>> = {
  SBX_ASSET: AssetError,
  SBX_COMMUNICATION: CommunicationError,
  SBX_DEPENDENCY: SandboxDependencyError,
  SBX_INPUT_VALIDATION: InputValidationError,
  SBX_SESSION_CLOSED: SessionClosedError,
  SBX_SNAPSHOT: SnapshotError,
  SBX_SOCKET_AUTH: SocketAuthError,
  SBX_VM_CAPACITY: VmCapacityError,
  SBX_VM_CONFIG: VmConfigError,
  SBX_VM_TIMEOUT: VmTimeoutError,
};

/** `error` for the wire; its cause stays here. */
export function encodeError(error: unknown): ErrorMessage {
  const message = messageOf(error).slice(0, MESSAGE_MAX_CHARS);
  if (!SandboxError.is(error)) return { code: "SBX_INTERNAL", message: `Internal error of the server: ${message}`, retry: "unknown" };
  return { code: error.code, message, retry: error.retry, ...(error.hint === undefined ? {} : { hint: error.hint }) };
}

/** The error that `encodeError` was given, of the same class; one of an unknown class is a `CommunicationError`. */
export function decodeError({ code, message, retry, hint }: ErrorMessage): SandboxError {
  const known = Object.hasOwn(CLASSES, code) ? CLASSES[code] : undefined;
  return new (known ?? CommunicationError)(message, { retry, ...(hint === undefined ? {} : { hint }) });
}
