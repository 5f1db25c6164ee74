//! Limits: every bound of the agent, and the checks of a request against them. Pure.
//! `tests/fixtures/limits.json` holds those that the host checks too.
use crate::error::Refusal;

pub const PROTOCOL_VERSION: u64 = 1;
/// DATA bytes that may be sent on a fresh stream before the receiver grants more.
pub const INITIAL_CREDIT_BYTES: u32 = 262_144;
/// More credit than this on one stream is a protocol error.
pub const MAX_CREDIT_BYTES: u32 = 0x7fff_ffff;
pub const OPEN_STREAMS: usize = 64;

pub const CODE_BYTES: usize = 1_048_576;
pub const STDOUT_BYTES: u64 = 1_000_000;
pub const STDERR_BYTES: u64 = 100_000;
/// A longer value of a trailing expression is cut.
pub const VALUE_BYTES: usize = 32_768;
/// One item of display data, and all of one execution.
pub const DISPLAY_ITEM_BYTES: usize = 8 << 20;
pub const DISPLAY_BYTES: usize = 16 << 20;
/// Output of background processes that is kept until the next execution, for each of stdout and stderr.
pub const BACKGROUND_OUTPUT_BYTES: usize = 65_536;

pub const ENV_VARS: usize = 100;
pub const ENV_NAME_BYTES: usize = 256;
pub const ENV_VALUE_BYTES: usize = 32_768;
/// The longest environment block that can pass the checks: `NAME=value\0`, a hundred times.
pub const ENV_BLOCK_BYTES: usize = ENV_VARS * (ENV_NAME_BYTES + 1 + ENV_VALUE_BYTES + 1);
const ENV_REFUSED_NAMES: [&str; 16] = [
    "PATH",
    "IFS",
    "GLIBC_TUNABLES",
    "BASH_ENV",
    "ENV",
    "SHELLOPTS",
    "BASHOPTS",
    "PS4",
    "PROMPT_COMMAND",
    "PYTHONSTARTUP",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONINSPECT",
    "NODE_OPTIONS",
    "NODE_PATH",
    "BUN_OPTIONS",
];
const ENV_REFUSED_PREFIXES: [&str; 3] = ["LD_", "MALLOC_", "BASH_FUNC_"];

/// A shorter time-out than the host's own minimum does no harm here; zero has no meaning.
pub const TIMEOUT_MIN_MS: u64 = 1;
pub const TIMEOUT_MAX_MS: u64 = 300_000;
/// From SIGINT to SIGKILL when the host does not say.
pub const CANCEL_GRACE_MS: u64 = 2_000;
/// From SIGTERM at the time-out to SIGKILL.
pub const KILL_GRACE_MS: u64 = 5_000;
/// A language's process that is not ready by then is replaced.
pub const REPL_START_MS: u64 = 120_000;
/// After so many failed starts in a row the language is given up.
pub const REPL_START_ATTEMPTS: u32 = 3;
pub const ENTROPY_BYTES: usize = 64;
/// One file, in bytes.
pub const FILE_BYTES: u64 = 500 << 20;
pub const PATH_BYTES: usize = 4_096;
pub const PATH_COMPONENT_BYTES: usize = 255;
/// Entries of a directory that is listed.
pub const DIRECTORY_ENTRIES: usize = 100_000;
/// Transfers and listings at once; as many trees may be removed beside them.
pub const TRANSFERS: usize = 16;
/// Processes and threads of the user, REPL included.
pub const GUEST_PROCESSES: u64 = 1_024;
/// Processes beside the REPL at once, and ended ones that are kept for whoever attaches.
pub const SESSION_PROCESSES: usize = 32;
/// Arguments of one process, each with its NUL.
pub const ARGUMENTS_BYTES: usize = 131_072;

/// Checks the sizes that OPEN announces, before any of the body is accepted.
pub fn check_sizes(env_bytes: u64, code_bytes: u64) -> Result<(), Refusal> {
    if code_bytes == 0 {
        return Err(Refusal::bad_request("Cannot execute: code must be at least 1 byte, got 0"));
    }
    at_most("codeBytes", code_bytes, CODE_BYTES as u64, "bytes")?;
    at_most("envBytes", env_bytes, ENV_BLOCK_BYTES as u64, "bytes")
}

pub fn at_most(limit: &'static str, value: u64, most: u64, unit: &'static str) -> Result<(), Refusal> {
    if value > most {
        return Err(Refusal::limit(limit, value, most, unit));
    }
    Ok(())
}

/// Checks the code; `code` has no byte-order mark any more.
pub fn check_code(code: &[u8]) -> Result<(), Refusal> {
    let text = std::str::from_utf8(code).map_err(|error| {
        Refusal::bad_request(format!("Cannot execute: code must be UTF-8, got an invalid byte at {}", error.valid_up_to()))
    })?;
    if let Some(at) = text.bytes().position(|byte| byte == 0) {
        return Err(Refusal::bad_request(format!("Cannot execute: code must not contain NUL, got one at byte {at}")));
    }
    if text.trim().is_empty() {
        return Err(Refusal::bad_request("Cannot execute: code must not be white space alone"));
    }
    Ok(())
}

/// The entries of an environment block (`NAME=value\0` each), checked.
pub fn parse_env(block: &[u8]) -> Result<Vec<(&str, &str)>, Refusal> {
    let mut entries: Vec<(&str, &str)> = Vec::new();
    let mut rest = block;
    while !rest.is_empty() {
        let end = rest.iter().position(|&byte| byte == 0).ok_or_else(|| bad_env("the block must end with NUL"))?;
        let entry = std::str::from_utf8(&rest[..end]).map_err(|_| bad_env("entries must be UTF-8"))?;
        let (name, value) = entry.split_once('=').ok_or_else(|| bad_env("entries must be NAME=value"))?;
        check_name(name)?;
        check_value(name, value)?;
        if entries.iter().any(|(other, _)| *other == name) {
            return Err(bad_env(&format!("{name} is given twice")));
        }
        entries.push((name, value));
        at_most("envVars", entries.len() as u64, ENV_VARS as u64, "variables")?;
        rest = &rest[end + 1..];
    }
    Ok(entries)
}

fn check_name(name: &str) -> Result<(), Refusal> {
    at_most("envNameBytes", name.len() as u64, ENV_NAME_BYTES as u64, "bytes")?;
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !starts_well || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(bad_env(&format!("names must match [A-Za-z_][A-Za-z0-9_]*, got {name:?}")));
    }
    if ENV_REFUSED_NAMES.contains(&name) || ENV_REFUSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(bad_env(&format!("{name} must not be set: it changes how programs are loaded")));
    }
    Ok(())
}

fn check_value(name: &str, value: &str) -> Result<(), Refusal> {
    at_most("envValueBytes", value.len() as u64, ENV_VALUE_BYTES as u64, "bytes")?;
    if value.bytes().any(|byte| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\n' | b'\r')) {
        return Err(bad_env(&format!("the value of {name} must not contain control characters but tab and newlines")));
    }
    Ok(())
}

fn bad_env(what: &str) -> Refusal {
    Refusal::bad_request(format!("Cannot set the environment: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::wire;
    use serde_json::{json, Value};

    fn fixture() -> Value {
        serde_json::from_str(include_str!("../../tests/fixtures/limits.json")).expect("JSON")
    }

    #[test]
    fn limits_are_those_of_the_fixture() {
        let ours = json!({
            "protocolVersion": PROTOCOL_VERSION, "frameHeaderBytes": wire::HEADER_BYTES, "framePayloadBytes": wire::PAYLOAD_BYTES,
            "initialCreditBytes": INITIAL_CREDIT_BYTES, "maxCreditBytes": MAX_CREDIT_BYTES, "openStreams": OPEN_STREAMS,
            "codeBytes": CODE_BYTES, "stdoutBytes": STDOUT_BYTES, "stderrBytes": STDERR_BYTES, "valueBytes": VALUE_BYTES,
            "displayItemBytes": DISPLAY_ITEM_BYTES, "displayBytes": DISPLAY_BYTES,
            "backgroundOutputBytes": BACKGROUND_OUTPUT_BYTES, "envVars": ENV_VARS, "envNameBytes": ENV_NAME_BYTES,
            "envValueBytes": ENV_VALUE_BYTES, "envRefusedNames": ENV_REFUSED_NAMES, "envRefusedPrefixes": ENV_REFUSED_PREFIXES,
            "timeoutMaxMs": TIMEOUT_MAX_MS, "cancelGraceMs": CANCEL_GRACE_MS, "killGraceMs": KILL_GRACE_MS,
            "entropyBytes": ENTROPY_BYTES, "guestProcesses": GUEST_PROCESSES, "fileBytes": FILE_BYTES,
            "pathBytes": PATH_BYTES, "pathComponentBytes": PATH_COMPONENT_BYTES, "languages": crate::repl::LANGUAGES,
            "sessionProcesses": SESSION_PROCESSES, "argumentsBytes": ARGUMENTS_BYTES,
        });
        let fixture = fixture();
        for (name, value) in ours.as_object().expect("object") {
            assert_eq!(&fixture[name], value, "{name}");
        }
        assert!(fixture["timeoutMinMs"].as_u64().is_some_and(|host| host >= TIMEOUT_MIN_MS));
    }

    #[test]
    fn code_at_its_limits_passes_and_beyond_is_refused() {
        assert_eq!(check_sizes(0, 1), Ok(()));
        assert_eq!(check_sizes(ENV_BLOCK_BYTES as u64, CODE_BYTES as u64), Ok(()));
        for (env, code) in [(0, 0), (0, CODE_BYTES as u64 + 1), (0, u64::MAX), (ENV_BLOCK_BYTES as u64 + 1, 1), (u64::MAX, 1)] {
            assert!(check_sizes(env, code).is_err(), "{env} {code}");
        }
    }

    #[test]
    fn code_that_is_no_text_is_refused() {
        assert_eq!(check_code("print('é🙂')".as_bytes()), Ok(()));
        for bad in [&b"a\0b"[..], b"\xff", b"\xf0\x9f\x99", b"\xed\xa0\x80", b" \n\t\r", "\u{2003}\u{a0}".as_bytes()] {
            assert!(check_code(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn env_is_split_at_the_first_equals_sign() {
        assert_eq!(parse_env(b""), Ok(vec![]));
        assert_eq!(parse_env(b"A=\0_b1=x=y\nz\0"), Ok(vec![("A", ""), ("_b1", "x=y\nz")]));
    }

    #[test]
    fn env_that_is_malformed_or_refused_is_refused() {
        for bad in [&b"A=1"[..], b"A\0", b"=1\0", b"1A=1\0", b"A-B=1\0", b"\0", b"A=\x1b\0", b"A=\x7f\0", b"A=\xff\0", b"A=1\0A=2\0"] {
            assert!(parse_env(bad).is_err(), "{bad:?}");
        }
        let fixture = fixture();
        for name in fixture["envRefusedNames"].as_array().expect("list") {
            assert!(parse_env(format!("{}=x\0", name.as_str().expect("text")).as_bytes()).is_err(), "{name}");
        }
        for prefix in fixture["envRefusedPrefixes"].as_array().expect("list") {
            assert!(parse_env(format!("{}X=x\0", prefix.as_str().expect("text")).as_bytes()).is_err(), "{prefix}");
        }
    }

    #[test]
    fn env_at_its_limits_passes_and_beyond_is_refused() {
        let block = |count: usize, name: usize, value: usize| -> Vec<u8> {
            (0..count).flat_map(|at| format!("{at:_>name$}={}\0", "v".repeat(value)).replacen("_", "A", 1).into_bytes()).collect()
        };
        let full = block(ENV_VARS, ENV_NAME_BYTES, ENV_VALUE_BYTES);
        assert_eq!(full.len(), ENV_BLOCK_BYTES);
        assert_eq!(parse_env(&full).map(|entries| entries.len()), Ok(ENV_VARS));
        for bad in [block(ENV_VARS + 1, 8, 1), block(1, ENV_NAME_BYTES + 1, 1), block(1, 8, ENV_VALUE_BYTES + 1)] {
            assert_eq!(parse_env(&bad).expect_err("a breach").code, Code::Limit);
        }
    }
}
