/** Messages: every line that client and server say to each other, checked before it is believed. */
import { z } from "zod";
import { ONCE } from "../base/schema.ts";
import { shown } from "../base/errors.ts";
import { LineError } from "./lines.ts";

const name = z.string().min(1).max(128);
const nonce = z.string().regex(/^[0-9a-f]{32}$/);
const proof = z.string().regex(/^[0-9a-f]{64}$/);
const text = z.string().max(8_192);
const language = z.enum(["python", "javascript", "raw"]);
const memoryMb = z.number().int().min(128).max(Number.MAX_SAFE_INTEGER);
const milliseconds = z.number().min(0).max(1e12);
const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const pid = z.number().int().positive();
/** Becomes that of a directory. */
const checkpointName = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/);
/** By its id alone it is one of this client's own, without a name. */
const checkpointRef = z.object({ id: name, name: checkpointName.nullable() });

/** What a VM may have besides. */
const wishes = {
  /** It can be saved. */
  isSavable: z.boolean().optional(),
  /** It goes on from there. */
  checkpoint: checkpointRef.optional(),
  /** It will have the room of the VM of that lease. */
  replacing: count.optional(),
  /** Its net port can be connected to. */
  hasNet: z.boolean().optional(),
};

/** A client's first line on any connection: what the connection is for. */
export const openingSchema = z.discriminatedUnion("open", [
  /** Requests and answers, for as long as the client lives. */
  z.object({ open: z.literal("control"), version: name, nonce }),
  /** The VM of a lease: after this line the connection is the guest's control channel, or its net port, whichever the token stands for. */
  z.object({ open: z.literal("vm"), token: nonce }),
]);

/** The server's first line on a control connection. The rest of it follows only when the versions are the same. */
export const welcomeSchema = z.object({
  version: name,
  pid,
  nonce,
  proof,
  /** What VMs are made from and who is admitted: a command line uses a server only when all of it is its own too. */
  config: z.record(name, z.union([text, z.number(), z.boolean(), z.null()])),
});

/** The client's second line on a control connection. */
export const proofSchema = z.object({ proof });

/** A client's further lines on a control connection. */
export const requestSchema = z.discriminatedUnion("method", [
  /** A VM. While it is waited for, and as long as it lives, events of this request's id may come. */
  z.object({ id: count, method: z.literal("lease"), language, memoryMb, wantsLog: z.boolean(), ...wishes }),
  /** The VM of the lease of that id is not needed any more; answered when it is dead. Its room goes to the heir. */
  z.object({ id: count, method: z.literal("release"), lease: count, heir: count.optional() }),
  /** A CPU slot for a VM; answered when there is one. A lease comes with its first. */
  z.object({ id: count, method: z.literal("occupy"), lease: count }),
  /** One of a VM's slots is free again. */
  z.object({ id: count, method: z.literal("vacate"), lease: count }),
  /** Saves a VM whose guest is held; `keep` makes a checkpoint of what was written, once, and `drop` forgets it. */
  z.object({ id: count, method: z.literal("save"), lease: count }),
  z.object({ id: count, method: z.literal("keep"), lease: count, name: checkpointName.nullable() }),
  z.object({ id: count, method: z.literal("drop"), lease: count }),
  /** Refused when so much can never be had at once. */
  z.object({ id: count, method: z.literal("check_memory"), memoryMb }),
  /** Checkpoints: refused when the name is taken; the one of a name; those with a name; away with one. */
  z.object({ id: count, method: z.literal("checkpoint_free"), name: checkpointName }),
  z.object({ id: count, method: z.literal("checkpoint_named"), name: checkpointName }),
  z.object({ id: count, method: z.literal("checkpoint_list") }),
  z.object({ id: count, method: z.literal("checkpoint_remove"), checkpoint: checkpointRef }),
  z.object({ id: count, method: z.literal("prepare"), language, memoryMb }),
  z.object({ id: count, method: z.literal("ready") }),
  z.object({ id: count, method: z.literal("status") }),
  /** The request of that id is not wanted any more; that one is answered all the same, this one is not. */
  z.object({ id: count, method: z.literal("cancel") }),
]);

const error = z.object({ code: name, message: text, retry: z.enum(["safe", "never", "unknown"]), hint: text.optional() });
const progress = z.object({
  language: name,
  memoryMb,
  phase: z.enum(["waiting", "booting", "importing", "warming", "saving", "done"]),
  elapsedMs: milliseconds,
});

/** The server's further lines on a control connection: events and the answer of the request of that id. */
export const answerSchema = z.union([
  z.object({ id: count, result: z.record(z.string(), z.unknown()) }),
  z.object({ id: count, error }),
  /** A step of the making of a template that the request waits for. */
  z.object({ id: count, progress }),
  /** Some of a VM's boot log. */
  z.object({ id: count, log: z.string().max(65_536) }),
]);

/** Result of `lease`. */
export const leasedSchema = z.object({
  /** Opens the VM's connection, once. */
  token: nonce,
  /** The same for that of its net port, where it has one. */
  netToken: nonce.nullable(),
  vm: name,
  start: z.enum(["cold", "template", "warm"]),
  /** Its start began so many milliseconds ago. */
  ageMs: milliseconds,
  /** From its start to the guest's first answer. */
  bootMs: milliseconds,
  /** The process whose usage is the VM's, and the processor time that it had cost before this client got it. */
  pid,
  cpuTimeBaseMs: milliseconds,
  firstStream: z.number().int().min(1).max(0xffff_ffff),
  /** What the guest was told that it is called. */
  guestId: name,
});

/** Result of `keep` and `checkpoint_named`. */
export const checkpointSchema = z.object({
  id: name,
  name: checkpointName.nullable().transform((given) => given ?? undefined),
  language,
  memoryMiB: memoryMb,
  createdAtMs: z.number(),
  sizeBytes: count,
  directory: text,
});

/** Result of `checkpoint_list`. */
export const checkpointsSchema = z.object({ checkpoints: z.array(checkpointSchema) });

/** Result of `status`. */
export const statusSchema = z.object({
  version: name,
  pid,
  uptimeSeconds: z.number().min(0),
  /** Who asks is among them. */
  clients: count,
  /** VMs that clients have, and requests that wait for one. */
  vms: count,
  waiting: count,
  /** Of the server's own process. */
  memoryMb: z.number().min(0),
});

/** See `openingSchema`. */
export type Opening = z.output<typeof openingSchema>;
/** See `welcomeSchema`. */
export type Welcome = z.output<typeof welcomeSchema>;
/** See `welcomeSchema`. */
export type SharedConfig = Readonly<Welcome["config"]>;
/** See `requestSchema`. */
export type Request = z.output<typeof requestSchema>;
/** Which VM is wanted. */
export type VmRequest = Readonly<Pick<Extract<Request, { method: "lease" }>, "language" | "memoryMb">>;
/** What a VM may have besides. */
export type LeaseWishes = Readonly<Pick<Extract<Request, { method: "lease" }>, "isSavable" | "checkpoint" | "replacing" | "hasNet">>;
/** Which checkpoint is meant. */
export type CheckpointRef = Readonly<z.output<typeof checkpointRef>>;
/** See `answerSchema`. */
export type Answer = z.output<typeof answerSchema>;
/** See `answerSchema`. */
export type LeaseProgress = Readonly<z.output<typeof progress>>;
/** See `leasedSchema`. */
export type Leased = z.output<typeof leasedSchema>;
/** See `statusSchema`. */
export type ServerStatus = z.output<typeof statusSchema>;

/** `value` as `schema` has it. Throws `LineError`; `what` names the message. */
export function readMessage<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const parsed = schema.safeParse(value, ONCE);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new LineError(`${what} is not as it should be: ${issue?.path.join(".") ?? ""} ${issue?.message ?? ""}, got ${shown(value)}`);
}
