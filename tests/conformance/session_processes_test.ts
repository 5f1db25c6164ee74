/** Conformance of a session's processes: all that holds for the VMs of this process holds for those of a server. */
import { testsOverServer } from "../support/vm.ts";

await testsOverServer("session_processes_test.ts");
