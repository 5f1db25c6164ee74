//! Exec: one execution, from its OPEN to its RESULT. Pure bookkeeping; the server does the work.
use serde_json::Value;

use crate::error::Refusal;
use crate::limits;
use crate::memory::Watch;

/// Room in front of the body for the header and the seed of the REPL protocol, so that a request leaves in one write.
pub const PREFIX_BYTES: usize = HEADER_BYTES + 32;
const HEADER_BYTES: usize = 24;
/// A body buffer that has grown beyond this is given back after its execution.
const KEPT_BODY_BYTES: usize = 65_536;

/// The parameters of OPEN.
#[derive(Debug)]
pub struct Request {
    pub env_bytes: usize,
    pub code_bytes: usize,
    pub timeout_ms: u64,
    /// Of stdout and stderr.
    pub output_limits: [u64; 2],
    /// What the REPL is told about this execution.
    pub flags: u32,
}

/// Flags of the REPL protocol.
pub mod flags {
    /// Nothing runs after it: the code ends as a program does.
    pub const FINAL: u32 = 1;
    /// Descriptor 0 is the FIFO.
    pub const STDIN: u32 = 2;
    /// The code is not run: somebody is typing it.
    pub const COMPLETE: u32 = 4;
    pub const IS_COMPLETE: u32 = 8;
}

impl Request {
    pub fn parse(json: &Value) -> Result<Self, Refusal> {
        let number = |name: &'static str| {
            json[name]
                .as_u64()
                .ok_or_else(|| Refusal::bad_request(format!("Cannot execute: {name} must be a whole number, got {}", json[name])))
        };
        let (env_bytes, code_bytes, timeout_ms) = (number("envBytes")?, number("codeBytes")?, number("timeoutMs")?);
        let output_limits = [number("stdoutLimit")?, number("stderrLimit")?];
        limits::check_sizes(env_bytes, code_bytes)?;
        if timeout_ms < limits::TIMEOUT_MIN_MS {
            return Err(Refusal::bad_request(format!(
                "Cannot execute: timeoutMs must be at least {}, got {timeout_ms}",
                limits::TIMEOUT_MIN_MS
            )));
        }
        limits::at_most("timeoutMs", timeout_ms, limits::TIMEOUT_MAX_MS, "milliseconds")?;
        limits::at_most("stdoutLimit", output_limits[0], limits::STDOUT_BYTES, "bytes")?;
        limits::at_most("stderrLimit", output_limits[1], limits::STDERR_BYTES, "bytes")?;
        let flag = |name: &'static str, flag: u32| match &json[name] {
            Value::Bool(true) => Ok(flag),
            Value::Bool(false) | Value::Null => Ok(0),
            other => Err(Refusal::bad_request(format!("Cannot execute: {name} must be true or false, got {other}"))),
        };
        let assist = match &json["assist"] {
            Value::Null => 0,
            Value::String(what) if what == "complete" => flags::COMPLETE,
            Value::String(what) if what == "is_complete" => flags::IS_COMPLETE,
            other => {
                return Err(Refusal::bad_request(format!("Cannot execute: assist must be complete, is_complete or null, got {other}")))
            }
        };
        let flags = flag("stdin", flags::STDIN)? | flag("final", flags::FINAL)? | assist;
        Ok(Request { env_bytes: env_bytes as usize, code_bytes: code_bytes as usize, timeout_ms, output_limits, flags })
    }
}

/// The body as it arrives, and the request to the REPL that it becomes.
#[derive(Debug, Default)]
pub struct Body {
    bytes: Vec<u8>,
    env_bytes: usize,
    total: usize,
    flags: u32,
}

impl Body {
    pub fn start(&mut self, request: &Request) {
        self.bytes.clear();
        self.bytes.resize(PREFIX_BYTES, 0);
        self.env_bytes = request.env_bytes;
        self.total = PREFIX_BYTES + request.env_bytes + request.code_bytes;
        self.flags = request.flags;
    }

    /// Takes what belongs to the body and returns the rest, which is stdin. Fails when more comes than was announced and there is none.
    pub fn append<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Refusal> {
        let (ours, rest) = bytes.split_at(bytes.len().min(self.total - self.bytes.len()));
        if !rest.is_empty() && !self.has_stdin() {
            return Err(Refusal::bad_request("Cannot execute: the body is longer than announced"));
        }
        self.bytes.extend_from_slice(ours);
        Ok(rest)
    }

    pub fn has_stdin(&self) -> bool {
        self.flags & flags::STDIN != 0
    }

    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// Nothing of the user's runs: somebody is typing.
    pub fn is_question(&self) -> bool {
        self.flags & (flags::COMPLETE | flags::IS_COMPLETE) != 0
    }

    /// Of the execution before, until `start`.
    pub fn is_final(&self) -> bool {
        self.flags & flags::FINAL != 0
    }

    pub fn is_complete(&self) -> bool {
        self.bytes.len() == self.total
    }

    /// Drops a leading byte-order mark and checks everything.
    pub fn check(&mut self) -> Result<(), Refusal> {
        let code_at = PREFIX_BYTES + self.env_bytes;
        if self.bytes[code_at..].starts_with(b"\xef\xbb\xbf") {
            self.bytes.drain(code_at..code_at + 3);
        }
        limits::check_code(self.code())?;
        limits::parse_env(self.env()).map(drop)
    }

    /// Puts entries in front of the environment, but for names that are in it. The body is complete and checked.
    pub fn add_env(&mut self, entries: &[(&str, &str)]) {
        if entries.is_empty() {
            return;
        }
        let own = limits::parse_env(self.env()).unwrap_or_default();
        let is_new = |name: &str| own.iter().all(|(other, _)| *other != name);
        let block: String = entries.iter().filter(|(name, _)| is_new(name)).map(|(name, value)| format!("{name}={value}\0")).collect();
        self.bytes.splice(PREFIX_BYTES..PREFIX_BYTES, block.bytes());
        self.env_bytes += block.len();
    }

    pub fn env(&self) -> &[u8] {
        &self.bytes[PREFIX_BYTES..PREFIX_BYTES + self.env_bytes]
    }

    pub fn code(&self) -> &[u8] {
        &self.bytes[PREFIX_BYTES + self.env_bytes..]
    }

    /// The request in the binary REPL protocol.
    pub fn request(&mut self, id: u32, seed: Option<&[u8; 32]>) -> &[u8] {
        const MAGIC: u32 = 0x3258_4253;
        let seed_bytes = seed.map_or(0, |seed| seed.len());
        let start = PREFIX_BYTES - HEADER_BYTES - seed_bytes;
        let header = [MAGIC, id, self.flags, seed_bytes as u32, self.env_bytes as u32, self.code().len() as u32];
        for (at, field) in header.iter().enumerate() {
            self.bytes[start + 4 * at..start + 4 * at + 4].copy_from_slice(&field.to_le_bytes());
        }
        if let Some(seed) = seed {
            self.bytes[PREFIX_BYTES - seed.len()..PREFIX_BYTES].copy_from_slice(seed);
        }
        &self.bytes[start..]
    }

    /// The REPL has it: a large buffer is given back.
    pub fn release(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BODY_BYTES);
    }
}

/// Where an execution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The body is on its way.
    Body,
    /// Complete; the REPL is not ready yet.
    Waiting,
    Running,
    /// The REPL is done; this much is left in its stdout and stderr pipes.
    Draining([usize; 2]),
}

/// The one execution.
#[derive(Debug)]
pub struct Execution {
    pub stream: u32,
    pub id: u32,
    pub phase: Phase,
    pub timeout_ms: u64,
    pub started_us: u64,
    /// SIGTERM is sent then.
    pub deadline_us: Option<u64>,
    /// SIGKILL is sent then.
    pub kill_at_us: Option<u64>,
    /// SIGINT is sent again then.
    pub interrupt_at_us: Option<u64>,
    /// How often that was done since the host asked.
    pub interrupts_sent: usize,
    /// The memory is looked at then.
    pub watch_at_us: Option<u64>,
    pub outcome: Outcome,
    /// Bytes of stdout and stderr that may still be sent.
    pub output_left: [u64; 2],
    /// The host may still send stdin.
    pub has_stdin: bool,
    pub is_stdin_ended: bool,
}

/// What RESULT says.
#[derive(Debug)]
pub struct Outcome {
    pub exit_code: i32,
    pub is_timed_out: bool,
    pub execution_us: u64,
    pub is_reset: bool,
    /// 0: stdout, 1: stderr.
    pub output_limit: Option<usize>,
    pub value: Option<String>,
}

impl Execution {
    pub fn new(stream: u32, id: u32, request: &Request) -> Self {
        Execution {
            stream,
            id,
            phase: Phase::Body,
            timeout_ms: request.timeout_ms,
            started_us: 0,
            deadline_us: None,
            kill_at_us: None,
            interrupt_at_us: None,
            interrupts_sent: 0,
            watch_at_us: None,
            outcome: Outcome { exit_code: -1, is_timed_out: false, execution_us: 0, is_reset: false, output_limit: None, value: None },
            output_left: request.output_limits,
            has_stdin: request.flags & flags::STDIN != 0,
            is_stdin_ended: false,
        }
    }

    pub fn run(&mut self, now_us: u64) {
        self.phase = Phase::Running;
        self.started_us = now_us;
        self.deadline_us = Some(now_us + self.timeout_ms * 1_000);
        self.watch_at_us = Some(now_us + Watch::FIRST_US);
    }

    /// The program is over, in whichever way; what is left in the pipes follows.
    pub fn end(&mut self, now_us: u64, exit_code: i32, pending: [usize; 2]) {
        self.phase = Phase::Draining(pending);
        self.deadline_us = None;
        self.kill_at_us = None;
        self.interrupt_at_us = None;
        self.watch_at_us = None;
        self.outcome.execution_us = now_us - self.started_us;
        self.outcome.exit_code = if self.outcome.is_timed_out { -1 } else { exit_code };
    }

    /// The earliest time at which something must be done.
    pub fn next_us(&self) -> Option<u64> {
        [self.deadline_us, self.kill_at_us, self.interrupt_at_us, self.watch_at_us].into_iter().flatten().min()
    }

    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }
}

impl Outcome {
    /// Appends the payload of RESULT to `out`: at most `most` bytes, the value cut as far as needed.
    pub fn write_json(&self, out: &mut Vec<u8>, most: usize) {
        let start = out.len();
        let mut value = self.value.as_deref().map(|value| cut(value, limits::VALUE_BYTES));
        loop {
            out.truncate(start);
            self.write_fields(out);
            out.extend_from_slice(br#","value":"#);
            // Writing to memory does not fail.
            let _ = serde_json::to_writer(&mut *out, &value);
            out.push(b'}');
            // Escapes lengthen the text up to six times.
            match value {
                Some(text) if out.len() - start > most => value = Some(cut(text, text.len() / 2)),
                _ => return,
            }
        }
    }

    /// All but the value, with no brace at the end. By hand: in a clone the code of a map of values would be translated for this alone.
    fn write_fields(&self, out: &mut Vec<u8>) {
        let flag = |flag: bool| if flag { &b"true"[..] } else { b"false" };
        out.extend_from_slice(br#"{"exitCode":"#);
        put_number(out, self.exit_code.unsigned_abs().into(), self.exit_code < 0);
        out.extend_from_slice(br#","timedOut":"#);
        out.extend_from_slice(flag(self.is_timed_out));
        out.extend_from_slice(br#","executionUs":"#);
        put_number(out, self.execution_us, false);
        out.extend_from_slice(br#","reset":"#);
        out.extend_from_slice(flag(self.is_reset));
        out.extend_from_slice(br#","outputLimit":"#);
        out.extend_from_slice(match self.output_limit {
            None => b"null",
            Some(0) => br#""stdout""#,
            Some(_) => br#""stderr""#,
        });
    }
}

/// Appends a number in decimal.
fn put_number(out: &mut Vec<u8>, mut number: u64, is_negative: bool) {
    let mut digits = [0; 21];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    if is_negative {
        at -= 1;
        digits[at] = b'-';
    }
    out.extend_from_slice(&digits[at..]);
}

/// The longest start of `text` of at most `most` bytes that ends between characters.
fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
