/** Conformance of runs: all that holds for the VMs of this process holds for those of a server. */
import { testsOverServer } from "../support/vm.ts";

await testsOverServer("run_contract_test.ts", "run_files_test.ts", "run_languages_test.ts");
