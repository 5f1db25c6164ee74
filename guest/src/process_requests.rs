//! Process requests: where the server's frames, events and times meet the table of processes.
use rustix::process::Pid;
use serde_json::Value;

use crate::cgroup;
use crate::error::{Fatal, Refusal};
use crate::exec::Execution;
use crate::link::Link;
use crate::process_turns::Part;
use crate::processes::Start;
use crate::server::Server;
use crate::wire::{data, Frame};

impl Server {
    /// OPEN of one of their methods; None: the stream stays open.
    pub(crate) fn open_process(&mut self, stream: u32, method: &str, open: &Value) -> Option<Result<Value, Refusal>> {
        let mut link = Link { channel: &mut self.channel, mux: &mut self.mux };
        let begun = match method {
            "spawn" => self.processes.open(stream, open),
            "attach" => self.processes.attach(stream, open, &mut link),
            _ => return Some(self.processes.answer(method, open)),
        };
        begun.err().map(Err)
    }

    pub(crate) fn on_process_data(&mut self, frame: &Frame, now_us: u64) -> Result<(), Fatal> {
        if frame.flags != data::BODY {
            return Err(Fatal::Protocol("DATA that was not asked for".to_owned()));
        }
        let mut link = Link { channel: &mut self.channel, mux: &mut self.mux };
        let start = Start { confinement: self.repl.confinement(), environment: self.network.environment(), now_us };
        self.processes.on_data(frame.stream, frame.payload, &mut link, &start).map_err(|what| Fatal::Protocol(what.to_owned()))
    }

    pub(crate) fn on_process_end(&mut self, stream: u32) {
        self.processes.on_end(stream, &mut Link { channel: &mut self.channel, mux: &mut self.mux });
    }

    pub(crate) fn on_process_cancel(&mut self, stream: u32, grace_ms: u64, now_us: u64) {
        self.processes.on_cancel(stream, grace_ms, &mut Link { channel: &mut self.channel, mux: &mut self.mux }, now_us);
    }

    pub(crate) fn on_process_events(&mut self, parts: &[Part], now_us: u64) {
        self.processes.on_events(parts, &mut Link { channel: &mut self.channel, mux: &mut self.mux }, now_us, self.coalesce_us);
    }

    pub(crate) fn on_ended_process(&mut self, pid: Pid, status: i32, now_us: u64) {
        self.processes.reaped(pid, status, &mut Link { channel: &mut self.channel, mux: &mut self.mux }, now_us);
    }

    pub(crate) fn settle_processes(&mut self, now_us: u64) {
        self.processes.settle(&mut Link { channel: &mut self.channel, mux: &mut self.mux }, now_us);
    }

    pub(crate) fn on_process_time(&mut self, now_us: u64) {
        let is_executing = self.execution.as_ref().is_some_and(Execution::is_running);
        if self.processes.on_time(now_us) && !is_executing && self.watch.is_exhausted() {
            cgroup::kill_largest();
        }
    }
}
