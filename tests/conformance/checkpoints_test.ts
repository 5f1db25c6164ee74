/** Conformance of checkpoints and forks: all that holds for the VMs of this process holds for those of a server. */
import { testsOverServer } from "../support/vm.ts";

await testsOverServer("checkpoints_test.ts", "forks_test.ts");
