/** Byte queue: bytes that come as they like, for a reader who takes them as it likes. */

interface Piece {
  readonly bytes: Uint8Array;
  readonly onTaken: () => void;
}

/** What was pushed is taken once the stream's reader has asked for it; whoever pushed waits for that, and so nothing is kept beyond it. */
export class ByteQueue {
  /** Its bytes. Cancelling it drops what comes. */
  readonly readable: ReadableStream<Uint8Array>;
  readonly #pieces: Piece[] = [];
  #controller: ReadableStreamDefaultController<Uint8Array> | undefined;
  #isWanted = false;
  #isOver = false;
  #hasEnded = false;

  /** An empty queue. */
  constructor() {
    this.readable = new ReadableStream<Uint8Array>({
      start: (controller) => void (this.#controller = controller),
      pull: () => this.#pull(),
      cancel: () => this.#discard(),
    }, { highWaterMark: 0 });
  }

  /** Adds a copy of `bytes`; the promise resolves when they were taken. */
  push(bytes: Uint8Array): Promise<void> | void {
    if (this.#isOver || this.#hasEnded || bytes.length === 0) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#pieces.push({ bytes: bytes.slice(), onTaken: resolve });
    if (this.#isWanted) this.#pull();
    return promise;
  }

  /** No more comes; what is here can still be read. */
  end(): void {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    if (this.#pieces.length === 0) this.#close();
  }

  /** Nothing more comes, for a reason; what is here is dropped. */
  fail(reason: unknown): void {
    if (this.#isOver) return;
    this.#discard();
    this.#controller?.error(reason);
  }

  #pull(): void {
    const piece = this.#pieces.shift();
    this.#isWanted = piece === undefined;
    if (!piece) return;
    this.#controller?.enqueue(piece.bytes);
    piece.onTaken();
    if (this.#hasEnded && this.#pieces.length === 0) this.#close();
  }

  #close(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#controller?.close();
  }

  #discard(): void {
    this.#isOver = true;
    for (const { onTaken } of this.#pieces.splice(0)) onTaken();
  }
}
