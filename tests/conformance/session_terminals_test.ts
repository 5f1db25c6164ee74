/** Conformance of a session's terminals: all that holds for the VMs of this process holds for those of a server. */
import { testsOverServer } from "../support/vm.ts";

await testsOverServer("session_terminals_test.ts");
