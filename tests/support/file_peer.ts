/** File peer: a guest that keeps files in memory and speaks the file methods, for tests of the host's side of transfers. */
import { DATA_FLAG, encodeCredit, type Frame, KIND } from "../../src/channel/wire.ts";
import { json, parsed, type Peer } from "./guest_peer.ts";

const PIECE_BYTES = 65_536;

/** What the peer has, and what it has seen. */
export interface FilePeer {
  readonly files: Map<string, Uint8Array>;
  /** Writes that were cancelled. */
  readonly cancelled: string[];
  readonly onFrame: (frame: Frame, peer: Peer) => void;
}

/** A guest without files. */
export function filePeer(): FilePeer {
  const files = new Map<string, Uint8Array>(), cancelled: string[] = [];
  const paths = new Map<number, string>(), bodies = new Map<number, Uint8Array[]>(), unsent = new Map<number, Uint8Array>();
  const give = (stream: number, credit: number, peer: Peer) => {
    let left = credit;
    for (let rest = unsent.get(stream); rest !== undefined && left > 0; rest = unsent.get(stream)) {
      const part = rest.subarray(0, Math.min(PIECE_BYTES, left));
      if (part.length > 0) peer.send(stream, KIND.data, part, DATA_FLAG.stdout);
      left -= part.length;
      if (part.length < rest.length) unsent.set(stream, rest.subarray(part.length));
      else {
        unsent.delete(stream);
        peer.send(stream, KIND.result, json({ bytes: files.get(paths.get(stream) ?? "")?.length }));
      }
    }
  };
  const open = (frame: Frame, peer: Peer) => {
    const { method, path } = parsed(frame) as { method: string; path: string };
    paths.set(frame.stream, path);
    if (method === "file_write") return bodies.set(frame.stream, []);
    const content = files.get(path);
    if (content === undefined) return peer.send(frame.stream, KIND.error, json({ code: "not_found", message: "m" }));
    const entry = { name: path, type: "file", size: content.length, mode: 0o644, modifiedMs: 1 };
    if (method === "file_stat") return peer.send(frame.stream, KIND.result, json(entry));
    unsent.set(frame.stream, content);
    give(frame.stream, 4 * PIECE_BYTES, peer);
  };
  const onFrame = (frame: Frame, peer: Peer) => {
    if (frame.kind === KIND.open) open(frame, peer);
    const body = bodies.get(frame.stream), path = paths.get(frame.stream) ?? "";
    if (frame.kind === KIND.data && body) {
      body.push(frame.payload.slice());
      peer.send(frame.stream, KIND.credit, encodeCredit(frame.payload.length));
    } else if (frame.kind === KIND.credit) {
      give(frame.stream, new DataView(frame.payload.buffer, frame.payload.byteOffset).getUint32(0, true), peer);
    } else if (frame.kind === KIND.end && body) {
      const size = body.reduce((sum, part) => sum + part.length, 0), content = new Uint8Array(size);
      body.reduce((at, part) => (content.set(part, at), at + part.length), 0);
      files.set(path, content);
      peer.send(frame.stream, KIND.result, json({ bytes: size }));
    } else if (frame.kind === KIND.cancel) {
      cancelled.push(path);
      unsent.delete(frame.stream);
      peer.send(frame.stream, KIND.error, json({ code: "internal", message: "cancelled" }));
    }
  };
  return { files, cancelled, onFrame };
}
