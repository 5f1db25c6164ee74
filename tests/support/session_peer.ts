/** Session peer: a session whose machine is a process that does nothing, and whose guest the test plays over the control channel. */
import type { TestContext } from "node:test";
import { PassThrough } from "node:stream";
import { Scope } from "../../src/base/scope.ts";
import { silentLogger } from "../../src/base/log.ts";
import type { Frame } from "../../src/channel/wire.ts";
import { Child } from "../../src/host/process.ts";
import { Qmp } from "../../src/qemu/qmp.ts";
import { LocalMachine } from "../../src/run/local_machine.ts";
import { Copies } from "../../src/run/copies.ts";
import type { CheckpointIndex } from "../../src/run/machine.ts";
import { Session } from "../../src/run/session.ts";
import { checkSession, type SessionRequest } from "../../src/run/session_request.ts";
import { Console } from "../../src/vm/console.ts";
import type { Template } from "../../src/vm/template.ts";
import { Vm } from "../../src/vm/vm.ts";
import { connect, type Peer, SHORT } from "./guest_peer.ts";

/** A session and the other end of its channel. */
export interface SessionPeer {
  readonly session: Session;
  readonly peer: Peer;
  readonly received: Frame[];
  /** The process that stands for QEMU. */
  readonly child: Child;
  /** How often the session gave its machine back. */
  releases(): number;
}

/** What a test may choose. */
export interface SessionPeerOptions {
  readonly onFrame?: (frame: Frame, peer: Peer) => void;
  readonly request?: Partial<SessionRequest>;
  /** Below what a caller may ask for, where a test waits for it. */
  readonly idleTimeoutSeconds?: number;
  readonly graces?: typeof SHORT;
  /** CPU slots; default: there is always one. */
  readonly occupy?: (signal: AbortSignal | undefined) => Disposable | Promise<Disposable>;
}

/** What the machine would be a clone of. */
const TEMPLATE: Template = {
  language: "python",
  memoryMiB: 256,
  key: "",
  directory: "",
  ramFile: "",
  stateFile: "",
  translationsFile: "",
  bakeId: "",
};

/** For sessions that nobody copies. */
export function noCopies(): Copies<Session> {
  const unused = () => {
    throw new Error("no copies here");
  };
  const machines = {
    checkpoints: {} as CheckpointIndex,
    checkMemory: unused,
    lease: unused,
    prepare: unused,
    pinPackages: unused,
    ready: unused,
    [Symbol.asyncDispose]: unused,
  };
  const defaults = { timeoutSeconds: 30, memoryMb: 256, idleTimeoutSeconds: 300 };
  return new Copies({ machines, defaults, closing: new AbortController().signal, open: unused, openNetwork: unused, track: unused });
}

/** Opens a session of the session's own code on a machine that is none; closed when the test ends. */
export async function openSessionPeer(t: TestContext, options: SessionPeerOptions = {}): Promise<SessionPeer> {
  const { channel, peer, received } = connect(options.onFrame, options.graces ?? SHORT);
  const owned = new Scope();
  const child = owned.barrier("qemu", await Child.spawn(["sleep", "1000"], { isTermFirst: false }));
  const vm = new Vm({
    id: "vm-test",
    request: { language: "python", memoryMiB: 256, origin: { kind: "cold" } },
    child,
    qmp: new Qmp(new PassThrough()),
    guest: channel,
    console: new Console(undefined, null),
    startedAt: performance.now(),
    savesDirectory: undefined,
    readyTimeoutMs: 1000,
    owned,
  });
  const checked = checkSession({ language: "python", ...options.request }, { timeoutSeconds: 30, memoryMb: 256, idleTimeoutSeconds: 300 });
  let releases = 0;
  const machine = new LocalMachine({
    vm,
    template: TEMPLATE,
    ...(options.occupy ? { occupy: options.occupy } : {}),
    onRelease: () => {
      releases += 1;
      // As a supply does: nobody waits for the death here, but the test's end does.
      void vm[Symbol.asyncDispose]();
    },
  });
  const session = new Session({
    machine,
    request: { ...checked, idleTimeoutSeconds: options.idleTimeoutSeconds ?? checked.idleTimeoutSeconds },
    log: silentLogger(),
    copies: noCopies(),
    onEnd: () => {},
  });
  t.after(() => session.close());
  return { session, peer, received, child, releases: () => releases };
}
