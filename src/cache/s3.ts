/** S3: objects of one bucket, compressed files and small texts, by any service that speaks the protocol. Loads the SDK; import it only where S3 is used. */
import { createHash, type Hash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createZstdCompress, createZstdDecompress } from "node:zlib";
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  GetObjectCommand,
  HeadObjectCommand,
  PutObjectCommand,
  S3Client,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import { abortable, Deadline } from "../base/async.ts";
import { explained, isMissing, isSystemError, isTaken, S3Error } from "./s3_error.ts";

/** A service that is not reached by then is taken for one that is not there. */
const CONNECT_TIMEOUT_MS = 3_000;
/** Time for a small answer: somebody waits for it, who would do without. */
const ANSWER_TIMEOUT_MS = 5_000;
/** Time for a part of an upload, or for the next bytes of a download. */
const STALL_TIMEOUT_MS = 10_000;
/** A download that is slower than this, on the whole, takes longer than an installation. */
const DOWNLOAD_MIN_BYTES_PER_SECOND = 262_144;
/** The protocol takes no part below 5 MiB but the last; of one upload one part is in memory, and the next in the making. */
const PART_BYTES = 8 * 1_048_576;
/** Attempts of one request, the pauses between them being the SDK's. */
const ATTEMPTS_MAX = 2;
/** Ends an upload of parts at close; a service that does not answer keeps them until its own rules remove them. */
const ABANDON_TIMEOUT_MS = 2_000;

/** Which bucket, and where. Credentials come by the AWS default chain. */
export interface S3Place {
  readonly bucket: string;
  readonly region: string;
  /** URL of another service than AWS; the bucket is then named in the path. */
  readonly endpoint?: string | undefined;
}

/** How something is put. */
export interface PutOptions {
  /** Take the place of an object of that name. Else the one that is there stays. */
  readonly isReplacing: boolean;
  readonly signal: AbortSignal;
}

interface UploadOptions extends PutOptions {
  readonly action: string;
  /** Throws when what was read is not what should have been. */
  readonly checkHash: () => void;
}

/** Objects of one bucket. Every call rejects with `S3Error`, or the signal's reason. */
export class S3Objects implements Disposable {
  readonly #client: S3Client;
  readonly #bucket: string;

  /** Nothing is connected before the first call. */
  constructor({ bucket, region, endpoint }: S3Place) {
    this.#bucket = bucket;
    this.#client = new S3Client({
      region,
      maxAttempts: ATTEMPTS_MAX,
      requestHandler: { connectionTimeout: CONNECT_TIMEOUT_MS },
      // What comes is compared with a SHA-256 that is known beforehand; the service's own sums would say less, and as a broken connection.
      responseChecksumValidation: "WHEN_REQUIRED",
      ...(endpoint === undefined ? {} : { endpoint, forcePathStyle: true }),
    });
  }

  /** Closes the connections. */
  [Symbol.dispose](): void {
    this.#client.destroy();
  }

  /** True when there is an object of that name. */
  async has(key: string, signal: AbortSignal): Promise<boolean> {
    const found = await this.#call(
      `look for ${this.#shown(key)}`,
      signal,
      (abortSignal) => this.#client.send(new HeadObjectCommand({ Bucket: this.#bucket, Key: key }), { abortSignal }),
    );
    return found !== undefined;
  }

  /** A small object as text, or undefined when there is none. */
  async getText(key: string, maxBytes: number, signal: AbortSignal): Promise<string | undefined> {
    const action = `read ${this.#shown(key)}`;
    return await this.#call(action, signal, async (abortSignal) => {
      const { Body, ContentLength = 0 } = await this.#get(key, abortSignal);
      if (ContentLength > maxBytes) {
        bodyOf(Body).destroy();
        throw new S3Error(action, "damaged", `it must have at most ${maxBytes} bytes, got ${ContentLength}`);
      }
      const parts: Uint8Array[] = [];
      await pipeline(bodyOf(Body), bounded(maxBytes, action), async (source: AsyncIterable<Uint8Array>) => {
        for await (const part of source) parts.push(part);
      }, { signal: abortSignal });
      checkLength(action, parts.reduce((sum, part) => sum + part.length, 0), ContentLength);
      return Buffer.concat(parts).toString("utf8");
    });
  }

  /** Puts a small object; false when there is one of that name. */
  async putText(key: string, text: string, { isReplacing, signal }: PutOptions): Promise<boolean> {
    const Body = new TextEncoder().encode(text);
    return await this.#put(`write ${this.#shown(key)}`, signal, (abortSignal) =>
      this.#client.send(
        new PutObjectCommand({ Bucket: this.#bucket, Key: key, Body, ContentType: "application/json", ...ifAbsent(isReplacing) }),
        { abortSignal },
      ));
  }

  /**
   * Writes what `uploadFile` put to `file`, unpacked; it must have that size and SHA-256 then. False when there is no such object. What was
   * written so far is left there when it fails.
   */
  async downloadFile(
    key: string,
    file: string,
    { size, sha256, signal }: { readonly size: number; readonly sha256: string; readonly signal: AbortSignal },
  ): Promise<boolean> {
    const action = `read ${this.#shown(key)}`;
    using slow = new Deadline(
      STALL_TIMEOUT_MS + size / DOWNLOAD_MIN_BYTES_PER_SECOND * 1000,
      () => new S3Error(action, "timeout", `it must come at ${DOWNLOAD_MIN_BYTES_PER_SECOND} bytes a second at least`),
    );
    const whole = AbortSignal.any([signal, slow.signal]);
    const got = await this.#call(action, whole, (abortSignal) => this.#get(key, abortSignal));
    if (!got) return false;
    const stalls = new Stall(() => new S3Error(action, "timeout", `no byte came for ${STALL_TIMEOUT_MS} ms`));
    let packedBytes = 0;
    const watched = new Transform({
      transform: (part: Uint8Array, _encoding, done) => {
        packedBytes += part.length;
        stalls.moved();
        done(null, part);
      },
    });
    const either = AbortSignal.any([whole, stalls.signal]);
    const body = bodyOf(got.Body), unzip = createZstdDecompress(), hash = createHash("sha256");
    let isUnreadable = false, hadAll = false;
    // Before the pipeline hands the failure on to all of its streams.
    unzip.once("error", () => {
      isUnreadable = !body.errored;
      hadAll = unzip.writableEnded;
    });
    const target = createWriteStream(file, { flags: "wx", mode: 0o600 }), failed = new AbortController();
    const limit = bounded(size, action, hash), onError = (error: unknown) => failed.abort(error);
    // Bun's pipeline never settles when a later stage fails while the answer still comes.
    unzip.once("error", onError);
    limit.once("error", onError);
    target.once("error", onError);
    try {
      await abortable(pipeline(body, watched, unzip, limit, target, { signal: either }), AbortSignal.any([either, failed.signal]));
      checkLength(action, packedBytes, got.ContentLength);
      // Also for what ended early: not every runtime's unpacking tells.
      if (hash.digest("hex") !== sha256) {
        throw new S3Error(action, "damaged", `it must have SHA-256 ${sha256} when it is unpacked, and has not`);
      }
      return true;
    } catch (error) {
      if (either.aborted) throw either.reason;
      const damaged = () => new S3Error(action, "damaged", "it cannot be unpacked", { cause: error });
      if (error instanceof S3Error || isSystemError(error, "ENOSPC", "EDQUOT")) throw explained(action, error);
      if (isUnreadable && !hadAll) throw damaged();
      // Less than was promised: that is the connection's end, whatever the unpacking makes of it.
      checkLength(action, packedBytes, got.ContentLength);
      throw isUnreadable ? damaged() : explained(action, error);
    } finally {
      body.destroy();
      stalls.stop();
    }
  }

  /**
   * Packs `file` and puts it, in parts when it is big; false when there is an object of that name. Rejects when the file has not the SHA-256
   * that it should have, and puts nothing then.
   */
  async uploadFile(key: string, file: string, { sha256, ...options }: PutOptions & { readonly sha256: string }): Promise<boolean> {
    const action = `write ${this.#shown(key)}`, hash = createHash("sha256");
    const hashing = new Transform({
      transform: (part: Uint8Array, _encoding, done) => {
        hash.update(part);
        done(null, part);
      },
    });
    const checkHash = () => {
      if (hash.digest("hex") !== sha256) throw new S3Error(action, "local", `${file} must have SHA-256 ${sha256}, and has not`);
    };
    try {
      const source = createReadStream(file, { highWaterMark: 1_048_576 });
      return await pipeline(
        source,
        hashing,
        createZstdCompress(),
        (packed: AsyncIterable<Uint8Array>) => this.#uploadPacked(key, packed, { action, checkHash, ...options }),
        { signal: options.signal },
      );
    } catch (error) {
      options.signal.throwIfAborted();
      throw explained(action, error);
    }
  }

  async #uploadPacked(key: string, packed: AsyncIterable<Uint8Array>, options: UploadOptions): Promise<boolean> {
    const { action, checkHash, isReplacing, signal } = options;
    const parts = partsOf(packed);
    const first = (await parts.next()).value ?? new Uint8Array(), second = (await parts.next()).value;
    if (second !== undefined) return await this.#uploadParts(key, chained([first, second], parts), options);
    checkHash();
    return await this.#put(
      action,
      signal,
      (abortSignal) =>
        this.#client.send(new PutObjectCommand({ Bucket: this.#bucket, Key: key, Body: first, ...ifAbsent(isReplacing) }), { abortSignal }),
    );
  }

  async #uploadParts(Key: string, parts: AsyncIterable<Uint8Array>, options: UploadOptions): Promise<boolean> {
    const { action, checkHash, isReplacing, signal } = options;
    const object = { Bucket: this.#bucket, Key };
    const { UploadId } = await this.#need(
      action,
      signal,
      (abortSignal) => this.#client.send(new CreateMultipartUploadCommand(object), { abortSignal }),
    );
    const Parts: Array<{ ETag: string | undefined; PartNumber: number }> = [];
    try {
      for await (const Body of parts) {
        const PartNumber = Parts.length + 1;
        const { ETag } = await this.#need(
          action,
          signal,
          (abortSignal) => this.#client.send(new UploadPartCommand({ ...object, UploadId, PartNumber, Body }), { abortSignal }),
        );
        Parts.push({ ETag, PartNumber });
      }
      checkHash();
      const isStored = await this.#put(action, signal, (abortSignal) =>
        this.#client.send(
          new CompleteMultipartUploadCommand({ ...object, UploadId, MultipartUpload: { Parts }, ...ifAbsent(isReplacing) }),
          { abortSignal },
        ));
      if (!isStored) await this.#abandon({ ...object, UploadId });
      return isStored;
    } catch (error) {
      await this.#abandon({ ...object, UploadId });
      throw error;
    }
  }

  /** Takes back the parts that were sent. */
  async #abandon(upload: { readonly Bucket: string; readonly Key: string; readonly UploadId: string | undefined }): Promise<void> {
    const abortSignal = AbortSignal.timeout(ABANDON_TIMEOUT_MS);
    await this.#client.send(new AbortMultipartUploadCommand(upload), { abortSignal }).catch(() => {}); // The service's own rules remove them.
  }

  #get(key: string, abortSignal: AbortSignal) {
    return this.#client.send(new GetObjectCommand({ Bucket: this.#bucket, Key: key }), { abortSignal });
  }

  async #put(action: string, signal: AbortSignal, send: (signal: AbortSignal) => Promise<unknown>): Promise<boolean> {
    try {
      await this.#need(action, signal, send);
      return true;
    } catch (error) {
      if (error instanceof S3Error && isTaken(error.cause)) return false;
      throw error;
    }
  }

  async #need<T>(action: string, signal: AbortSignal, send: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const answer = await this.#call(action, signal, send, STALL_TIMEOUT_MS);
    if (answer === undefined) throw new S3Error(action, "service", "the service knows no such object");
    return answer;
  }

  /** The answer, or undefined when there is no such object. */
  async #call<T>(
    action: string,
    signal: AbortSignal,
    send: (signal: AbortSignal) => Promise<T>,
    timeoutMs: number = ANSWER_TIMEOUT_MS,
  ): Promise<T | undefined> {
    signal.throwIfAborted();
    using deadline = new Deadline(timeoutMs, () => new S3Error(action, "timeout", `no answer came within ${timeoutMs} ms`));
    const either = AbortSignal.any([signal, deadline.signal]);
    try {
      return await send(either);
    } catch (error) {
      if (either.aborted) throw either.reason;
      if (isMissing(error)) return undefined;
      throw explained(action, error);
    }
  }

  #shown(key: string): string {
    return `s3://${this.#bucket}/${key}`;
  }
}

/** Aborts when nothing has moved for `STALL_TIMEOUT_MS`. */
class Stall {
  readonly #controller = new AbortController();
  readonly #reason: () => S3Error;
  #timer: ReturnType<typeof setTimeout>;

  constructor(reason: () => S3Error) {
    this.#reason = reason;
    this.#timer = this.#start();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  moved(): void {
    clearTimeout(this.#timer);
    this.#timer = this.#start();
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  #start(): ReturnType<typeof setTimeout> {
    return setTimeout(() => this.#controller.abort(this.#reason()), STALL_TIMEOUT_MS);
  }
}

/** Lets so many bytes through, and fails at the next. */
function bounded(maxBytes: number, action: string, hash?: Hash): Transform {
  let byteCount = 0;
  return new Transform({
    transform(part: Uint8Array, _encoding, done) {
      byteCount += part.length;
      hash?.update(part);
      if (byteCount > maxBytes) done(new S3Error(action, "damaged", `it must have at most ${maxBytes} bytes, and has more`));
      else done(null, part);
    },
  });
}

function checkLength(action: string, got: number, wanted: number | undefined): void {
  if (wanted !== undefined && got < wanted) throw new S3Error(action, "cut-off", `${wanted} bytes were to come, got ${got}`);
}

/** Pieces of `PART_BYTES`, the last one shorter. */
async function* partsOf(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, undefined, void> {
  let pieces: Uint8Array[] = [], byteCount = 0;
  for await (const piece of source) {
    pieces.push(piece);
    byteCount += piece.length;
    if (byteCount < PART_BYTES) continue;
    yield Buffer.concat(pieces);
    pieces = [];
    byteCount = 0;
  }
  if (byteCount > 0) yield Buffer.concat(pieces);
}

async function* chained<T>(first: readonly T[], rest: AsyncIterable<T>): AsyncGenerator<T, void, void> {
  yield* first;
  yield* rest;
}

/** In all three runtimes the SDK hands out a stream of node's. */
function bodyOf(body: unknown): Readable {
  if (body instanceof Readable) return body;
  throw new TypeError("the answer has no body");
}

function ifAbsent(isReplacing: boolean): { IfNoneMatch?: string } {
  return isReplacing ? {} : { IfNoneMatch: "*" };
}
