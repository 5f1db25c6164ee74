/** Addresses of every kind in the guest, against a gateway of the test: what is refused at once, and by whom. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import type { Flow } from "../support/net_gateway.ts";
import { NetVm } from "../support/net_vm.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

const CODE = `import socket, errno
def code(address, port=80):
    try:
        socket.create_connection((address, port), 60).close()
        return "connected"
    except TimeoutError:
        return "a time-out"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
def datagram(address, port=80):
    kind, to = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][::4]
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as s:
            s.settimeout(60)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            s.connect(to)
            s.send(b"x")
            return s.recv(100).decode()
    except TimeoutError:
        return "a time-out"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
`;
let vms: TestScheduler, machine: NetVm, onFlow: (flow: Flow) => void = () => {};
before(async () => {
  vms = await openTestScheduler();
  machine = await NetVm.start(vms, "python", (flow) => onFlow(flow));
  await machine.output(CODE);
});
after(async () => {
  await machine[Symbol.asyncDispose]();
  await vms.close(); // No child is left, and no file.
});

/** Refuses each flow with the code that the host has for it; tells which came. */
function refuseAll(code: (flow: Flow) => string): string[] {
  const came: string[] = [];
  onFlow = (flow) => {
    came.push(`${flow.open.flow} ${flow.open.address}`);
    flow.refuse(code(flow));
  };
  return came;
}

test("a destination that nobody has is refused at once, and the host is told where there is a packet", async () => {
  await machine.vm.guest.network({ outbound: true });
  const came = refuseAll(({ open }) => open.flow === "udp" ? "refused" : "unreachable");
  const said = await machine.output(`
for to in ("240.0.0.1", "255.1.2.3", "10.83.0.3", "0.1.2.3", "224.0.0.1", "255.255.255.255"): print(to, code(to))
for to in ("240.0.0.1", "224.0.0.251", "239.1.2.3", "255.255.255.255"): print(to, datagram(to))`);
  assert.deepEqual(said.split("\n"), [
    "240.0.0.1 EHOSTUNREACH",
    "255.1.2.3 EHOSTUNREACH",
    "10.83.0.3 ENETUNREACH",
    "0.1.2.3 EHOSTUNREACH",
    "224.0.0.1 ENETUNREACH",
    "255.255.255.255 ENETUNREACH",
    "240.0.0.1 ECONNREFUSED",
    "224.0.0.251 ECONNREFUSED",
    "239.1.2.3 ECONNREFUSED",
    "255.255.255.255 ECONNREFUSED",
  ]);
  assert.deepEqual(came, [
    ...["240.0.0.1", "255.1.2.3", "0.1.2.3"].map((to) => `tcp ${to}`),
    ...["240.0.0.1", "224.0.0.251", "239.1.2.3", "255.255.255.255"].map((to) => `udp ${to}`),
  ]);
});
