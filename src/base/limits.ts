/** Limits: every bound that users meet, and the wire's own; checked on the host before dispatch and again in the guest. */

/** Code of one execution, in bytes of UTF-8. */
export const CODE_MAX_BYTES = 1_048_576;
/** Standard output of one execution. */
export const STDOUT_MAX_BYTES = 1_000_000;
/** Standard error of one execution. */
export const STDERR_MAX_BYTES = 100_000;
/** Packages of one request. */
export const PACKAGES_MAX = 50;
/** Environment variables of one request. */
export const ENV_VARS_MAX = 100;
/** Name of an environment variable. */
export const ENV_NAME_MAX_BYTES = 256;
/** Value of an environment variable. */
export const ENV_VALUE_MAX_BYTES = 32_768;
/** Exposed ports of one VM. */
export const EXPOSED_PORTS_MAX = 10;
/** One file, in bytes. */
export const FILE_MAX_BYTES = 500 * 1_048_576;
/** A path in the guest. */
export const PATH_MAX_BYTES = 4096;
/** One component of a path. */
export const PATH_COMPONENT_MAX_BYTES = 255;
/** Seconds the code may run. */
export const TIMEOUT_MIN_SECONDS = 1;
/** Seconds the code may run. */
export const TIMEOUT_MAX_SECONDS = 300;
/** Memory of a VM in MiB (2^20 bytes). */
export const MEMORY_MIN_MIB = 128;
/** Processes of the user in one guest. */
export const GUEST_PROCESSES_MAX = 1024;
/** Seconds until an idle session closes. */
export const IDLE_TIMEOUT_MIN_SECONDS = 10;
/** Seconds until an idle session closes. */
export const IDLE_TIMEOUT_MAX_SECONDS = 3600;
/** Display data of one object, as JSON. */
export const DISPLAY_MAX_BYTES = 8 * 1_048_576;
/** Display data of one execution, as JSON. */
export const DISPLAY_TOTAL_MAX_BYTES = 16 * 1_048_576;
/** Objects of display data that one execution's result keeps. */
export const DISPLAY_OBJECTS_MAX = 10_000;
/** Candidates of one completion. */
export const COMPLETIONS_MAX = 1_000;
/** Entries of a directory that is listed. */
export const DIRECTORY_ENTRIES_MAX = 100_000;
/** Files and directories of a tree that is uploaded or downloaded. */
export const TREE_ENTRIES_MAX = 100_000;
/** All files of a directory that is downloaded: a guest can claim far more than its memory holds. */
export const TREE_MAX_BYTES = 32 * 1_073_741_824;
/** Processes that a session has beside its executions. */
export const SESSION_PROCESSES_MAX = 32;
/** Arguments of one process, each with its ending NUL. */
export const ARGUMENTS_MAX_BYTES = 131_072;
/** Columns or rows of a terminal. */
export const TERMINAL_MAX_CELLS = 65_535;
/** A decoded chunk handed to a callback. */
export const CALLBACK_CHUNK_MAX_BYTES = 65_536;

/** Payload of one frame on the control channel. */
export const FRAME_MAX_BYTES = 65_536;
/** DATA bytes that may be on the way per stream and direction before the receiver grants more. */
export const STREAM_CREDIT_BYTES = 262_144;
/** Streams open at once on one channel. */
export const STREAMS_MAX = 64;
/** File transfers and listings at once on one channel. */
export const TRANSFERS_MAX = 16;
/** Short calls (stat, rename, interrupt …) at once on one channel. With transfers, processes and an execution they fit into its streams. */
export const CALLS_MAX = 8;
/** Version of the control channel. */
export const PROTOCOL_VERSION = 1;

/** From spawn to the agent's first answer, cold. Emulated hosts need seconds, loaded ones more. */
export const BOOT_TIMEOUT_MS = 120_000;
/** From spawn to the agent's first answer, for a clone. */
export const CLONE_TIMEOUT_MS = 30_000;
/** An accelerator either boots the canary in this time or is not used. */
export const CANARY_TIMEOUT_MS = 3_000;
/** A program that is asked for its version or its abilities has answered by then, or is not used. */
export const PROGRAM_ANSWER_TIMEOUT_MS = 10_000;
/** After the guest's own time-out (SIGTERM, then SIGKILL 5 s later) the host waits this long for the answer. */
export const GUEST_KILL_GRACE_MS = 5_000;
/** What the host allows on top before it calls the channel lost. */
export const RESULT_GRACE_MS = 15_000;
/** An aborted execution is interrupted, and killed if it has not stopped after this time. */
export const CANCEL_GRACE_MS = 2_000;
/** A short call that has no answer by then has none to expect. Guests under memory pressure need seconds. */
export const CALL_TIMEOUT_MS = 60_000;
/** A transfer that waits for the guest, and on which nothing has moved for so long, is lost. */
export const TRANSFER_STALL_MS = 60_000;
/** What may complete a line, or whether a block is unfinished: the guest has so long to say. */
export const ASSIST_TIMEOUT_MS = 5_000;
/** Kernel and agent log kept per VM for error messages. */
export const CONSOLE_TAIL_MAX_BYTES = 16_384;
