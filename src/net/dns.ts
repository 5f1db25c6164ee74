/** DNS: messages of the guest's resolver to questions, and answers to messages (RFC 1035, RFC 6891). Pure. */
import { addressOf } from "./address.ts";

/** A message of the guest. */
export const QUERY_MAX_BYTES = 4_096;
/** What a UDP answer may have where the question says nothing. */
const PLAIN_UDP_MAX_BYTES = 512;
const HEADER_BYTES = 12;
const OPT_BYTES = 11;
/** What we say that we take; fits one packet everywhere. */
const OWN_UDP_BYTES = 1_232;
const NAME_MAX_BYTES = 255;

/** Types of records. */
export const TYPE = { a: 1, aaaa: 28, opt: 41 } as const;
/** How an answer ends. */
export const RCODE = { ok: 0, malformed: 1, failed: 2, notFound: 3, notImplemented: 4, refused: 5 } as const;
/** One of `RCODE`. */
export type Rcode = typeof RCODE[keyof typeof RCODE];

/** A question that can be answered. */
export interface Question {
  readonly id: number;
  /** As asked, without the dot at the end; may have any character: `normalName` decides whether it is a name. */
  readonly name: string;
  readonly type: number;
  /** The question section as it came: resolvers compare the spelling. */
  readonly section: Uint8Array;
  readonly isRecursionDesired: boolean;
  /** The largest answer over UDP. */
  readonly udpBytes: number;
  readonly hasEdns: boolean;
}

/** What a message was. */
export type Query =
  | { readonly kind: "question"; readonly question: Question }
  /** An answer with that code is due. */
  | { readonly kind: "refused"; readonly id: number; readonly rcode: Rcode }
  /** Not worth an answer: too short for one, or an answer itself. */
  | { readonly kind: "ignored" };

/** Reads a message. Never throws. */
export function parseQuery(message: Uint8Array): Query {
  if (message.length < HEADER_BYTES || message.length > QUERY_MAX_BYTES) return { kind: "ignored" };
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  const id = view.getUint16(0), flags = view.getUint16(2);
  if ((flags & 0x8000) !== 0) return { kind: "ignored" };
  if (((flags >> 11) & 15) !== 0) return { kind: "refused", id, rcode: RCODE.notImplemented };
  const malformed: Query = { kind: "refused", id, rcode: RCODE.malformed };
  if (view.getUint16(4) !== 1 || view.getUint16(6) !== 0 || view.getUint16(8) !== 0) return malformed;
  const name = readName(message, HEADER_BYTES);
  if (!name || name.end + 4 > message.length) return malformed;
  const type = view.getUint16(name.end), recordClass = view.getUint16(name.end + 2), end = name.end + 4;
  const options = readOptions(message, end, view.getUint16(10));
  if (!options) return malformed;
  if (recordClass !== 1) return { kind: "refused", id, rcode: RCODE.refused };
  const question: Question = {
    id,
    name: name.text,
    type,
    section: new Uint8Array(message.subarray(HEADER_BYTES, end)),
    isRecursionDesired: (flags & 0x100) !== 0,
    udpBytes: Math.max(PLAIN_UDP_MAX_BYTES, options.udpBytes),
    hasEdns: options.udpBytes > 0,
  };
  return { kind: "question", question };
}

/** What is answered to a question. */
export interface Answer {
  readonly rcode: Rcode;
  /** 4 or 16 bytes each, all of the type asked for. */
  readonly addresses?: readonly Uint8Array[];
  readonly ttlSeconds?: number;
}

/** The message that answers `question`. Over UDP one that is too long is empty and says so: the resolver comes again over TCP. */
export function encodeAnswer(question: Question, { rcode, addresses = [], ttlSeconds = 0 }: Answer, transport: "udp" | "tcp"): Uint8Array {
  const recordBytes = addresses.reduce((sum, address) => sum + 12 + address.length, 0);
  const bareBytes = HEADER_BYTES + question.section.length + (question.hasEdns ? OPT_BYTES : 0);
  const isCut = transport === "udp" && bareBytes + recordBytes > question.udpBytes;
  const records = isCut ? [] : addresses;
  const message = new Uint8Array(bareBytes + (isCut ? 0 : recordBytes)), view = new DataView(message.buffer);
  writeHeader(view, question.id, 0x8080 | (question.isRecursionDesired ? 0x100 : 0) | (isCut ? 0x200 : 0) | rcode);
  view.setUint16(4, 1);
  view.setUint16(6, records.length);
  view.setUint16(10, question.hasEdns ? 1 : 0);
  message.set(question.section, HEADER_BYTES);
  let at = HEADER_BYTES + question.section.length;
  for (const address of records) {
    view.setUint16(at, 0xc000 | HEADER_BYTES); // The name is that of the question.
    view.setUint16(at + 2, addressOf(address).family === 4 ? TYPE.a : TYPE.aaaa);
    view.setUint16(at + 4, 1);
    view.setUint32(at + 6, ttlSeconds);
    view.setUint16(at + 10, address.length);
    message.set(address, at + 12);
    at += 12 + address.length;
  }
  if (question.hasEdns) {
    view.setUint16(at + 1, TYPE.opt);
    view.setUint16(at + 3, OWN_UDP_BYTES);
  }
  return message;
}

/** The message that refuses what could not be read. */
export function encodeRefusal(id: number, rcode: Rcode): Uint8Array {
  const message = new Uint8Array(HEADER_BYTES);
  writeHeader(new DataView(message.buffer), id, 0x8080 | rcode);
  return message;
}

function writeHeader(view: DataView, id: number, flags: number): void {
  view.setUint16(0, id);
  view.setUint16(2, flags);
}

/** A name of labels alone: nothing comes before a question that it could point to. */
function readName(message: Uint8Array, start: number): { readonly text: string; readonly end: number } | undefined {
  const labels: string[] = [];
  for (let at = start; at < message.length && at - start < NAME_MAX_BYTES;) {
    const length = message[at] ?? 0;
    if (length === 0) return { text: labels.join("."), end: at + 1 };
    if (length > 63 || at + 1 + length > message.length) return undefined;
    const label = String.fromCharCode(...message.subarray(at + 1, at + 1 + length));
    if (label.includes(".")) return undefined; // It would read as two.
    labels.push(label);
    at += 1 + length;
  }
  return undefined;
}

/** The records after the question: at most one OPT is of interest. */
function readOptions(message: Uint8Array, start: number, count: number): { readonly udpBytes: number } | undefined {
  let at = start, udpBytes = 0;
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  for (let record = 0; record < count; record++) {
    const end = skipName(message, at);
    if (end === undefined || end + 10 > message.length) return undefined;
    if (view.getUint16(end) === TYPE.opt) {
      if (udpBytes > 0 || end !== at + 1) return undefined;
      udpBytes = Math.max(PLAIN_UDP_MAX_BYTES, view.getUint16(end + 2));
    }
    at = end + 10 + view.getUint16(end + 8);
    if (at > message.length) return undefined;
  }
  return { udpBytes };
}

function skipName(message: Uint8Array, start: number): number | undefined {
  for (let at = start; at < message.length && at - start < NAME_MAX_BYTES;) {
    const length = message[at] ?? 0;
    if (length === 0) return at + 1;
    if (length >= 0xc0) return at + 2;
    if (length > 63) return undefined;
    at += 1 + length;
  }
  return undefined;
}
