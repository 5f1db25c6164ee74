/** Conformance of sessions: all that holds for the VMs of this process holds for those of a server. */
import { testsOverServer } from "../support/vm.ts";

await testsOverServer(
  "session_contract_test.ts",
  "session_crowd_test.ts",
  "session_ends_test.ts",
  "session_idle_test.ts",
  "session_interrupts_test.ts",
  "session_lifecycle_test.ts",
  "session_reset_test.ts",
  "session_files_faults_test.ts",
);
