//! Processes: the table of the programs that run beside the REPL, and what each request about them does.
use std::ffi::CString;
use std::os::fd::OwnedFd;

use serde_json::{json, Value};

use crate::cgroup::Group;
use crate::error::{Code, Refusal};
use crate::limits::SESSION_PROCESSES;
use crate::link::Link;
use crate::memory::Watch;
use crate::process::Process;
use crate::spawn::{self, Pending, Request};
use crate::sys::Confinement;

const LISTED_BYTES: usize = 256;
/// The same as JSON, so that a list of all processes fits into one frame whatever they are called.
const LISTED_JSON_BYTES: usize = 600;
const SIGNAL_MAX: u64 = 64;

#[derive(Default)]
pub struct Processes {
    /// The control group that theirs lie in; None without cgroups.
    pub(crate) root: Option<Group>,
    pub(crate) pending: Vec<Pending>,
    /// Those that have ended unattended stand last, the newest at the end.
    pub(crate) list: Vec<Process>,
    pub(crate) last_id: u32,
    /// Outputs that descendants of ended background processes still write to: they would die of a closed pipe.
    pub(crate) lingering: Vec<OwnedFd>,
    pub(crate) lingering_look_at_us: u64,
    /// Control groups that could not be removed yet.
    pub(crate) stale: Vec<u32>,
    pub(crate) watch_at_us: u64,
    pub(crate) turn: usize,
}

/// How and when a program is started.
pub struct Start<'a> {
    pub confinement: Option<&'a Confinement>,
    /// What is in its environment beside the usual.
    pub environment: &'static [(&'static str, &'static str)],
    pub now_us: u64,
}

impl Processes {
    pub fn new(root: Option<Group>) -> Self {
        Processes { root, ..Processes::default() }
    }

    /// Whether a stream is one of ours.
    pub fn has(&self, stream: u32) -> bool {
        self.pending.iter().any(|pending| pending.stream == stream) || self.list.iter().any(|process| process.stream == Some(stream))
    }

    /// OPEN of `spawn`; its body follows.
    pub fn open(&mut self, stream: u32, open: &Value) -> Result<(), Refusal> {
        let request = Request::parse(open)?;
        let count = self.pending.len() + self.list.iter().filter(|process| process.is_alive() || process.stream.is_some()).count();
        if count >= SESSION_PROCESSES {
            return Err(Refusal::new(Code::Busy, format!("at most {SESSION_PROCESSES} processes may be there at once")));
        }
        self.pending.push(Pending::new(stream, request));
        Ok(())
    }

    /// Body and standard input. An error is a protocol error.
    pub fn on_data(&mut self, stream: u32, bytes: &[u8], link: &mut Link, to: &Start) -> Result<(), &'static str> {
        let Some(at) = self.pending.iter().position(|pending| pending.stream == stream) else { return self.on_input(stream, bytes, link) };
        match self.pending[at].append(bytes) {
            Ok(ours) => link.grant(stream, ours),
            Err(refusal) => {
                self.pending.remove(at);
                link.answer(stream, Err(refusal));
                return Ok(());
            }
        }
        if self.pending[at].is_complete() {
            let pending = self.pending.remove(at);
            if let Err(refusal) = self.start(pending, to) {
                link.answer(stream, Err(refusal));
            }
        }
        Ok(())
    }

    fn start(&mut self, pending: Pending, to: &Start) -> Result<(), Refusal> {
        self.sweep();
        if self.last_id == 0 {
            // A kernel that cannot shares as it does without groups.
            let _ = self.root.as_ref().map(Group::share_processor);
        }
        self.last_id += 1;
        let id = self.last_id;
        let no_group = |error| Refusal::new(Code::Internal, format!("no control group can be made: {error}"));
        let group = self.root.as_ref().map(|root| root.make(&group_name(id))).transpose().map_err(no_group)?;
        match spawn::start(&pending, to.confinement, group.as_ref(), to.environment) {
            Ok(child) => {
                let argv = listed(&pending.arguments()?);
                self.list.push(Process::new(id, argv, child, pending, group));
                self.watch_at_us = self.watch_at_us.max(to.now_us + Watch::FIRST_US);
                Ok(())
            }
            Err(refusal) => {
                self.stale.push(id);
                Err(refusal)
            }
        }
    }

    fn on_input(&mut self, stream: u32, bytes: &[u8], link: &mut Link) -> Result<(), &'static str> {
        let Some(process) = self.list.iter_mut().find(|process| process.stream == Some(stream)) else { return Ok(()) };
        if !process.takes_input {
            return Err("DATA that was not asked for");
        }
        match process.input.as_mut().filter(|input| input.is_open()) {
            Some(input) => input.push(bytes),
            None => link.grant(stream, bytes.len()),
        }
        process.write_input(link);
        Ok(())
    }

    pub fn on_end(&mut self, stream: u32, link: &mut Link) {
        if let Some(at) = self.pending.iter().position(|pending| pending.stream == stream) {
            self.pending.remove(at);
            link.answer(stream, Err(Refusal::bad_request("the body is shorter than announced")));
            return;
        }
        let Some(process) = self.list.iter_mut().find(|process| process.stream == Some(stream)) else { return };
        if let Some(input) = process.input.as_mut().filter(|_| process.takes_input) {
            input.end();
        }
        process.write_input(link);
    }

    /// Whoever waited on the stream lets go of the process.
    pub fn on_cancel(&mut self, stream: u32, grace_ms: u64, link: &mut Link, now_us: u64) {
        if let Some(at) = self.pending.iter().position(|pending| pending.stream == stream) {
            self.pending.remove(at);
            return link.answer(stream, Ok(json!({ "exitCode": null })));
        }
        let Some(process) = self.list.iter_mut().find(|process| process.stream == Some(stream)) else { return };
        match process.is_alive() {
            true if process.is_background => {
                process.let_go();
                link.answer(stream, Ok(json!({ "exitCode": null })));
            }
            true => process.stop(now_us, grace_ms),
            false => process.drop_rest(),
        }
    }

    /// Takes a process up again; its output follows.
    pub fn attach(&mut self, stream: u32, open: &Value, link: &mut Link) -> Result<(), Refusal> {
        let takes_input = spawn::flag(open, "stdin")?;
        let process = self.find(open)?;
        if process.stream.is_some() {
            return Err(Refusal::new(Code::Busy, "another stream has the process"));
        }
        process.take_up(stream, takes_input);
        process.announce(link);
        Ok(())
    }

    /// The requests that are answered at once.
    pub fn answer(&mut self, method: &str, open: &Value) -> Result<Value, Refusal> {
        match method {
            "process_list" => Ok(json!({ "processes": self.list.iter().filter_map(Process::to_json).collect::<Vec<_>>() })),
            "process_signal" => self.signal(open),
            _ => self.resize(open),
        }
    }

    fn signal(&mut self, open: &Value) -> Result<Value, Refusal> {
        let Some(signal) = open["signal"].as_u64().filter(|signal| (1..=SIGNAL_MAX).contains(signal)) else {
            return Err(Refusal::bad_request(format!("signal must be 1 to {SIGNAL_MAX}, got {:.64}", open["signal"].to_string())));
        };
        let is_past = self.is_past(open);
        let is_delivered = match self.find(open) {
            Ok(process) if process.is_alive() => {
                match signal as i32 {
                    libc::SIGKILL => process.kill(),
                    signal => process.signal(signal),
                }
                true
            }
            Err(refusal) if !is_past => return Err(refusal),
            // It has ended, whether somebody was told or not.
            _ => false,
        };
        Ok(json!({ "delivered": is_delivered }))
    }

    fn resize(&mut self, open: &Value) -> Result<Value, Refusal> {
        let size = spawn::parse_size(open)?;
        if self.is_past(open) && self.find(open).is_err() {
            return Ok(json!({}));
        }
        if !self.find(open)?.resize(size) {
            return Err(Refusal::bad_request("the process has no terminal"));
        }
        Ok(json!({}))
    }

    fn find(&mut self, open: &Value) -> Result<&mut Process, Refusal> {
        let id = open["id"].as_u64();
        let found = self.list.iter_mut().find(|process| Some(u64::from(process.id)) == id);
        found.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no process {:.64}", open["id"].to_string())))
    }

    /// Whether there was a process of that id.
    fn is_past(&self, open: &Value) -> bool {
        open["id"].as_u64().is_some_and(|id| (1..=u64::from(self.last_id)).contains(&id))
    }

    /// A program is on its way from the host, or between fork and exec.
    pub fn is_starting(&self) -> bool {
        !self.pending.is_empty() || self.list.iter().any(Process::is_starting)
    }

    /// The machine is a copy: what somebody was attached to goes on unattended.
    pub fn forget_streams(&mut self) {
        self.pending.clear();
        for process in &mut self.list {
            process.let_go();
        }
    }
}

pub fn group_name(id: u32) -> String {
    format!("p{id}")
}

/// Arguments as a list shows them: cut.
fn listed(argv: &[CString]) -> Vec<String> {
    let (mut bytes, mut json_bytes) = (0, 0);
    let mut words = Vec::new();
    for argument in argv {
        let mut word = String::new();
        json_bytes += 3;
        for character in argument.to_string_lossy().chars() {
            json_bytes += match character {
                '"' | '\\' => 2,
                control if control < ' ' => 6,
                other => other.len_utf8(),
            };
            bytes += character.len_utf8();
            if bytes > LISTED_BYTES || json_bytes > LISTED_JSON_BYTES {
                break;
            }
            word.push(character);
        }
        words.push(word);
        bytes += 1;
        if bytes > LISTED_BYTES || json_bytes > LISTED_JSON_BYTES {
            break;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_cut_at_256_bytes_and_between_characters() {
        let list = |words: &[&str]| listed(&words.iter().map(|word| CString::new(*word).expect("no NUL")).collect::<Vec<_>>());
        assert_eq!(list(&["ls", "", "ü"]), ["ls", "", "ü"]);
        assert_eq!(list(&[&"é".repeat(200), "x"]), ["é".repeat(128)]);
        assert_eq!(list(&["a", &"b".repeat(300)]), ["a".to_owned(), "b".repeat(254)]);
        for hostile in [vec!["\x01"; 1_000], vec![""; 1_000], vec!["\""; 1_000], vec![&"\x01".repeat(1_000) as &str]] {
            let json = json!(list(&hostile)).to_string();
            assert!(json.len() <= LISTED_JSON_BYTES + 16, "{}", json.len());
        }
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        let mut processes = Processes::default();
        let code = |answer: Result<Value, Refusal>| answer.expect_err("a refusal").code;
        for (method, open, wanted) in [
            ("process_signal", json!({ "id": 1, "signal": 15 }), Code::NotFound),
            ("process_signal", json!({ "id": 1, "signal": 0 }), Code::BadRequest),
            ("process_signal", json!({ "id": 1, "signal": 65 }), Code::BadRequest),
            ("process_signal", json!({ "id": null, "signal": 1 }), Code::NotFound),
            ("process_resize", json!({ "id": 1, "columns": 80, "rows": 24 }), Code::NotFound),
            ("process_resize", json!({ "id": 1, "columns": 80, "rows": 0 }), Code::BadRequest),
        ] {
            assert_eq!(code(processes.answer(method, &open)), wanted, "{method} {open}");
        }
        assert_eq!(processes.answer("process_list", &json!({})), Ok(json!({ "processes": [] })));
    }
}
