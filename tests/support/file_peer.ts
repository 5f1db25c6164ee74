/** File peer: a guest that keeps files in memory and speaks the file methods, for tests of the host's side of transfers. */
import { DATA_FLAG, encodeCredit, type Frame, KIND } from "../../src/channel/wire.ts";
import { json, parsed, type Peer } from "./guest_peer.ts";

const PIECE_BYTES = 65_536;

/** What the peer has, and what it has seen. */
export interface FilePeer {
  readonly files: Map<string, Uint8Array>;
  /** Writes that were cancelled. */
  readonly cancelled: string[];
  /** Permission bits of what was written; a test may set those of what is read. */
  readonly modes: Map<string, number>;
  readonly directories: Set<string>;
  /** What listings show besides, by directory; a `follow` of an entry is what `stat` says of it. */
  readonly listed: Map<string, ListedEntry[]>;
  /** Codes of refusals, by path. */
  readonly refused: Map<string, string>;
  readonly onFrame: (frame: Frame, peer: Peer) => void;
}

/** An entry as a guest may tell it. */
export interface ListedEntry {
  readonly name: string;
  readonly type: string;
  readonly size?: number;
  readonly follow?: { readonly type: string; readonly size?: number };
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
  const modes = new Map<string, number>(), directories = new Set<string>([""]), refused = new Map<string, string>();
  const listed = new Map<string, ListedEntry[]>();
  const isDirectory = (path: string) =>
    directories.has(path) || [...files.keys(), ...directories].some((name) => name.startsWith(`${path}/`));
  const fileEntry = (path: string, content: Uint8Array) => entryOf(nameOf(path), "file", content.length, modes.get(path) ?? 0o644);
  const find = (path: string) => {
    const content = files.get(path);
    if (content !== undefined) return fileEntry(path, content);
    if (isDirectory(path)) return entryOf(nameOf(path), "directory", 0, 0o755);
    const told = listed.get(parentOf(path))?.find(({ name }) => name === nameOf(path));
    return told && entryOf(told.name, told.follow?.type ?? told.type, told.follow?.size ?? told.size ?? 0, 0o644);
  };
  const list = (path: string) => {
    const children = new Set<string>();
    for (const each of [...files.keys(), ...directories]) {
      const rest = path === "" ? each : each.startsWith(`${path}/`) ? each.slice(path.length + 1) : "";
      if (rest !== "") children.add(rest.split("/")[0] ?? "");
    }
    const told = (listed.get(path) ?? []).map(({ name, type, size = 0 }) => entryOf(name, type, size, 0o644));
    return [...[...children].map((name) => find(path === "" ? name : `${path}/${name}`)), ...told];
  };
  const answer = (stream: number, method: string, path: string, peer: Peer) => {
    const entry = find(path);
    if (method === "file_make_directory") {
      directories.add(path);
      return peer.send(stream, KIND.result, json({}));
    }
    if (!entry) return peer.send(stream, KIND.error, json({ code: "not_found", message: "m" }));
    if (method === "file_stat") return peer.send(stream, KIND.result, json(entry));
    if (method === "file_list") {
      const lines = list(path).map((each) => `${JSON.stringify(each)}\n`);
      if (lines.length > 0) peer.send(stream, KIND.data, new TextEncoder().encode(lines.join("")), DATA_FLAG.stdout);
      return peer.send(stream, KIND.result, json({ entries: lines.length }));
    }
    const content = files.get(path);
    if (content === undefined) return peer.send(stream, KIND.error, json({ code: "is_directory", message: "m" }));
    unsent.set(stream, content);
    give(stream, 4 * PIECE_BYTES, peer);
  };
  const open = (frame: Frame, peer: Peer) => {
    const { method, path: given, mode } = parsed(frame) as { method: string; path: string; mode?: number };
    const path = given === "." ? "" : given, code = refused.get(path);
    paths.set(frame.stream, path);
    if (code !== undefined) return peer.send(frame.stream, KIND.error, json({ code, message: "m" }));
    if (method !== "file_write") return answer(frame.stream, method, path, peer);
    bodies.set(frame.stream, []);
    if (mode !== null && mode !== undefined) modes.set(path, mode);
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
  return { files, cancelled, modes, directories, listed, refused, onFrame };
}

function entryOf(name: string, type: string, size: number, mode: number) {
  return { name, type, size, mode, modifiedMs: 1 };
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

function parentOf(path: string): string {
  return path.slice(0, Math.max(0, path.lastIndexOf("/")));
}
