/** Attacks: what hostile Python in a guest works with, and how each attempt of it must end. */
import assert from "node:assert/strict";

/**
 * Python of the guest that every attack may use. `attempt` prints its name, how it ended, and whether that was within `LIMIT` seconds, pauses of
 * its own left out. A busy host may hold up any single attempt, so one that was slow is made again, twice at most, and has to end the same way; what
 * ends by a time-out is slow each time. `yardstick` raises the limit to ten times what an attempt takes that is granted, five seconds at most.
 */
export const ATTACK_TOOLS = `
import socket, ssl, struct, time, errno, select
LIMIT, TRIES, paused = 1.0, 3, 0.0
def outcome_of(work):
    global paused
    paused, began = 0.0, time.monotonic()
    try:
        outcome = work()
    except socket.gaierror as error:
        outcome = 'no such name' if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_AGAIN) else repr(error)
    except ConnectionRefusedError:
        outcome = 'refused'
    except (ConnectionResetError, BrokenPipeError):
        outcome = 'cut'
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        outcome = 'cut'
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, repr(error))
    return outcome, time.monotonic() - began - paused
def attempt(name, work):
    outcomes = []
    for _ in range(TRIES):
        outcome, seconds = outcome_of(work)
        if outcome not in outcomes: outcomes.append(outcome)
        if seconds <= LIMIT: break
    print(name, '|', ' then '.join(outcomes), '|', 'fast' if seconds <= LIMIT else 'slow')
def yardstick(work):
    global LIMIT
    for _ in range(2): LIMIT = max(LIMIT, min(5, 10 * outcome_of(work)[1]))
def pause(seconds):
    global paused
    began = time.monotonic()
    time.sleep(seconds)
    paused += time.monotonic() - began
def tcp(address, port, payload=None, more=None):
    def work():
        with socket.create_connection((address, port), 20) as s:
            s.settimeout(20)
            if payload is None: return 'connected'
            for part in payload if isinstance(payload, list) else [payload]:
                s.sendall(part)
                pause(0.02)
            got = s.recv(4096)
            if more is None or not got: return 'answer' if got else 'cut'
            s.sendall(more)
            got = s.recv(4096)
            return 'answer' if got else 'cut'
    return work
def udp(address, port, payload):
    def work():
        with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(2)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            s.connect(socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][4])
            for _ in range(3):
                s.send(payload)
                pause(0.1)
            try:
                return 'answer' if s.recv(2048) else 'empty'
            except TimeoutError:
                return 'silence'
    return work
def hello(name, ech=False):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    session = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try: session.do_handshake()
    except ssl.SSLWantReadError: pass
    bytes_ = outgoing.read()
    if not ech: return bytes_
    extra = struct.pack('>HH', 0xfe0d, 8) + b'\\0\\0\\1\\0\\1\\5\\0\\0'
    body = bytes_[9:]; at = 34; at += 1 + body[at]; at += 2 + struct.unpack('>H', body[at:at+2])[0]; at += 1 + body[at]
    size = struct.unpack('>H', body[at:at+2])[0]
    body = body[:at] + struct.pack('>H', size + len(extra)) + body[at+2:] + extra
    return b'\\x16\\x03\\x01' + struct.pack('>H', len(body) + 4) + b'\\1' + struct.pack('>I', len(body))[1:] + body
def records(hello_, size):
    body = hello_[5:]
    return [b'\\x16\\x03\\x01' + struct.pack('>H', len(body[at:at+size])) + body[at:at+size] for at in range(0, len(body), size)]
def address(name, family=socket.AF_INET): return socket.getaddrinfo(name, None, family)[0][4][0]
def http(host, line='GET / HTTP/1.1', fields='', body=''): return (line + '\\r\\nHost: ' + host + '\\r\\n' + fields + '\\r\\n' + body).encode()
`;

/** What an attempt is to end as: its name, then any of the outcomes. */
export type Expected = Readonly<Record<string, readonly string[]>>;

/** Holds what `attempt` printed against what was expected: each attempt was made, ended so, and soon. */
export function assertOutcomes(stdout: string, expected: Expected): void {
  const outcomes = Object.fromEntries(
    stdout.trim().split("\n").map((line) => line.split(" | ")).map(([name, outcome, speed]) => [name, `${outcome}, ${speed}`]),
  );
  for (const [name, accepted] of Object.entries(expected)) {
    assert.ok(
      accepted.some((outcome) => outcomes[name] === `${outcome}, fast`),
      `${name}: ${outcomes[name]}, wanted ${accepted.join(" or ")}, fast`,
    );
  }
  assert.deepEqual(Object.keys(outcomes).sort(), Object.keys(expected).sort());
}

/** The outcome `ends` for each of `names`. */
export function all(names: readonly string[], ...ends: readonly string[]): Expected {
  return Object.fromEntries(names.map((name) => [name, ends]));
}
