//! Errors: what goes to the host as an ERROR frame, and what ends the machine.
use std::fmt;

use serde_json::{json, Value};

/// The codes of `tests/fixtures/error_codes.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)]
pub enum Code {
    BadRequest,
    Busy,
    Limit,
    UnknownMethod,
    ReplFailed,
    /// The agent itself failed at something that others need not.
    Internal,
    NotFound,
    IsDirectory,
    NotDirectory,
    NotAFile,
    Permission,
    Exists,
    NotEmpty,
    NoSpace,
    TooLarge,
    Changed,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Code::BadRequest => "bad_request",
            Code::Busy => "busy",
            Code::Limit => "limit",
            Code::UnknownMethod => "unknown_method",
            Code::ReplFailed => "repl_failed",
            Code::Internal => "internal",
            Code::NotFound => "not_found",
            Code::IsDirectory => "is_directory",
            Code::NotDirectory => "not_directory",
            Code::NotAFile => "not_a_file",
            Code::Permission => "permission",
            Code::Exists => "exists",
            Code::NotEmpty => "not_empty",
            Code::NoSpace => "no_space",
            Code::TooLarge => "too_large",
            Code::Changed => "changed",
        }
    }
}

/// What one stream is told: the request was not carried out. The channel lives on.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    pub code: Code,
    message: String,
    breach: Option<Breach>,
}

/// The numbers of a `limit` refusal.
#[derive(Debug, PartialEq, Eq)]
struct Breach {
    limit: &'static str,
    value: u64,
    wanted: u64,
    unit: &'static str,
}

impl Refusal {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Refusal { code, message: message.into(), breach: None }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, message)
    }

    /// `limit` is the name in `limits.json`.
    pub fn limit(limit: &'static str, value: u64, wanted: u64, unit: &'static str) -> Self {
        Self::beyond("execute", limit, value, wanted, unit)
    }

    /// The same for another action than an execution.
    pub fn beyond(action: &str, limit: &'static str, value: u64, wanted: u64, unit: &'static str) -> Self {
        let message = format!("Cannot {action}: {limit} is limited to {wanted} {unit}, got {value}");
        Refusal { code: Code::Limit, message, breach: Some(Breach { limit, value, wanted, unit }) }
    }

    /// The payload of the ERROR frame.
    pub fn to_json(&self) -> Value {
        let mut json = json!({ "code": self.code.as_str(), "message": self.message });
        if let Some(breach) = &self.breach {
            json["limit"] = breach.limit.into();
            json["value"] = breach.value.into();
            json["wanted"] = breach.wanted.into();
            json["unit"] = breach.unit.into();
        }
        json
    }
}

/// The machine cannot go on: logged, then powered off.
#[derive(Debug)]
pub enum Fatal {
    /// The host broke the protocol.
    Protocol(String),
    /// The host closed the control port.
    HostGone,
    /// No frame came for as long as the host asked to watch for.
    Silence,
    /// The host asked for it.
    PowerOff,
    /// A system call that the agent cannot do without failed.
    System(&'static str, rustix::io::Errno),
    /// The kernel's command line asks for what there is not.
    Parameter(String),
    /// The language's process never became ready.
    Repl(String),
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fatal::Parameter(what) => f.write_str(what),
            Fatal::Protocol(what) => write!(f, "protocol error: {what}"),
            Fatal::HostGone => f.write_str("the host closed the control port"),
            Fatal::Silence => f.write_str("the host was silent for too long"),
            Fatal::PowerOff => f.write_str("the host asked for it"),
            Fatal::System(action, error) => write!(f, "cannot {action}: {error}"),
            Fatal::Repl(what) => f.write_str(what),
        }
    }
}

/// Names the action in front of a system call's error.
pub trait Action<T> {
    fn action(self, action: &'static str) -> Result<T, Fatal>;
}

impl<T> Action<T> for Result<T, rustix::io::Errno> {
    fn action(self, action: &'static str) -> Result<T, Fatal> {
        self.map_err(|error| Fatal::System(action, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_fixture() {
        let rows: Value = serde_json::from_str(include_str!("../../tests/fixtures/error_codes.json")).expect("JSON");
        let fixture: Vec<_> = rows.as_array().expect("list").iter().map(|row| row["code"].as_str().expect("text")).collect();
        let requests = [Code::BadRequest, Code::Busy, Code::Limit, Code::UnknownMethod, Code::ReplFailed, Code::Internal];
        let kinds = [Code::NotFound, Code::IsDirectory, Code::NotDirectory, Code::NotAFile, Code::Permission, Code::Exists];
        let states = [Code::NotEmpty, Code::NoSpace, Code::TooLarge, Code::Changed];
        assert_eq!(fixture, [&requests[..], &kinds, &states].concat().iter().map(|code| code.as_str()).collect::<Vec<_>>());
    }

    #[test]
    fn a_limit_refusal_carries_its_numbers() {
        let json = Refusal::limit("codeBytes", 2, 1, "bytes").to_json();
        assert_eq!(json["code"], "limit");
        assert_eq!((&json["limit"], &json["value"], &json["wanted"]), (&"codeBytes".into(), &2.into(), &1.into()));
        assert!(json["message"].as_str().is_some_and(|text| text.contains("limited to 1 bytes, got 2")));
    }
}
